"""VALOR's parts against their definitions: network, loss, schedule, selection of the best epoch, imported labels."""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_outputs import modality_outputs
from torch import nn
from typer.testing import CliRunner

from avvp_dist.cli.data import data
from avvp_dist.datasets.external import import_segment_labels, noisy_segment_labels
from avvp_dist.dist.collective import LocalCollective
from avvp_dist.errors import ConfigError, DataError
from avvp_dist.experiments.recipe import load
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.methods.valor import ValorConfig
from avvp_dist.models.han import HanConfig
from avvp_dist.shards.index import Index, read_labels
from avvp_dist.tasks.parsing import ParsingConfig
from avvp_dist.train.evaluate import EvaluateConfig
from avvp_dist.train.optim import OptimConfig
from avvp_dist.types import Batch, ForwardOptions, Refined, TrainPosition

DIMS = {"audio": 6, "visual": 9, "motion": 7}
SHAPES = {stream: (dim,) for stream, dim in DIMS.items()}
CLASSES = 5


def network(**settings):
    torch.manual_seed(0)
    return HanConfig(width=16, feedforward=24, **settings).build(SHAPES, CLASSES)


def random_batch(videos=8):
    generator = torch.Generator().manual_seed(0)
    streams = {name: torch.randn(videos, 10, dim, generator=generator) for name, dim in DIMS.items()}
    weak = (torch.rand(videos, CLASSES, generator=generator) < 0.4).float()
    return Batch(streams, weak, torch.arange(videos), videos)


def torch_attention(attention):
    """torch's attention module with the same weights."""
    width = attention.out_proj.in_features
    reference = nn.MultiheadAttention(width, attention.heads, batch_first=True)
    reference.load_state_dict(attention.state_dict())
    return reference


def published_layer(layer, query, other, norm):
    """One call of the published layer (post_norm or pre_norm), without dropout."""
    own, cross = torch_attention(layer.self_attention), torch_attention(layer.cross_attention)
    if norm == "first":
        x = layer.norm1(query)  # the other modality is not normalized
        x = query + cross(x, other, other)[0] + own(x, x, x)[0]
        return x + layer.linear2(F.relu(layer.linear1(layer.norm2(x))))
    x = layer.norm1(query + cross(query, other, other)[0] + own(query, query, query)[0])
    return layer.norm2(x + layer.linear2(F.relu(layer.linear1(x))))


def draw_norms(model):
    """Draw random parameters of the norms, so that the use of a wrong one changes the result."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("norm", ["last", "first"])
def test_network_is_the_published_encoder(heads, layers, sequential, norm):
    model, batch = network(heads=heads, layers=layers, sequential=sequential, norm=norm).eval(), random_batch()
    draw_norms(model)
    stack = getattr(model.layer, "stack", [model.layer])
    assert len(stack) == layers
    for layer in stack[1:]:
        nn.init.normal_(layer.linear1.weight)  # layers are initialized as copies; a wrong order must change the result
    outputs = model(batch)
    audio, visual = outputs.audio_inputs, outputs.visual_inputs
    for layer in stack:
        updated = published_layer(layer, audio, visual, norm)
        visual = published_layer(layer, visual, updated if sequential else audio, norm)
        audio = updated
    if norm == "first":
        audio, visual = (final(features) for final, features in zip(model.layer.norms, (audio, visual), strict=True))
    torch.testing.assert_close(outputs.audio_features, audio, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.visual_features, visual, rtol=1e-4, atol=1e-5)


NETWORKS = [
    {"sequential": True},
    {"layers": 2},
    {"layers": 2, "sequential": True, "heads": 4},
    {"norm": "first"},
    {"norm": "first", "layers": 2, "sequential": True},
    {"norm": "first", "temporal": "transformer"},
]


@pytest.mark.parametrize("settings", NETWORKS)
def test_every_parameter_is_trained_and_the_scoring_pass_equals_a_separate_pass(settings):
    model, batch = network(**settings).train(), random_batch()
    outputs = model(batch, scoring_pass=ForwardOptions(cross_modal=False, dropout=False))
    outputs.segments.square().mean().backward()
    unused = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert unused == []
    assert not outputs.scoring.segments.requires_grad
    assert model(random_batch(0)).segments.shape == (0, 10, 2, CLASSES)  # a rank can have no videos
    model.eval()
    torch.testing.assert_close(outputs.scoring.segments, model(batch, cross_modal=False).segments)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(batch).segments, exact.segments, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 2, "temporal": "gru"},
        {"sequential": True, "temporal": "transformer"},
        {"norm": "first", "temporal": "none"},
    ],
)
def test_settings_without_effect_are_refused(settings):
    with pytest.raises(ValueError, match=r"needs temporal=han"):
        HanConfig(**settings)


def test_names_of_saved_weights():
    assert "layer.self_attention.in_proj_weight" in network().state_dict()


def test_loss_is_the_published_one():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 10, 2, 3, generator=generator)
    video = torch.rand(4, 3, generator=generator)
    labels = (torch.rand(3, 4, 10, 3, generator=generator) < 0.3).float()
    outputs = modality_outputs(video, video, video, logits.sigmoid())
    batch = Batch({}, labels[0, :, 0], torch.arange(4), 4, Refined(None, {"audio": labels[1], "visual": labels[2]}))
    (stage,) = ValorConfig().build(("a", "b", "c"), 10).stages
    targets = stage.targets(outputs, batch, TrainPosition("train", 0, 0, 1, 1), LocalCollective())
    losses = stage.losses(outputs, targets, batch)
    expected = {
        "video": F.binary_cross_entropy(video, batch.weak),
        "audio": F.binary_cross_entropy_with_logits(logits[:, :, 0], labels[1]),
        "visual": F.binary_cross_entropy_with_logits(logits[:, :, 1], labels[2]),
    }
    for name, value in expected.items():
        assert losses[name].shape == (4,)
        torch.testing.assert_close(losses[name].mean(), value)
    torch.testing.assert_close(losses["total"].mean(), sum(expected.values()))


def published_rate(epoch, warmup, epochs, lowest, highest):
    """VALOR's learning rate; epochs are counted from 1."""
    if epoch < warmup:
        return epoch / warmup * highest
    return lowest + 0.5 * (highest - lowest) * (1 + math.cos((epoch - warmup) / (epochs - warmup) * math.pi))


def rates(config, epochs, stop=None):
    """Learning rate of each epoch; at ``stop``, optimizer and schedule are saved and restored into new ones."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer, schedule = config.build([weight], epochs)
    history = []
    for epoch in range(epochs):
        if epoch == stop:
            buffer = io.BytesIO()
            torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, buffer)
            buffer.seek(0)
            state = torch.load(buffer, weights_only=True)
            optimizer, schedule = config.build([weight], epochs)
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        history.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return history


def test_cosine_is_the_published_schedule():
    config = load("valor").optim
    expected = [published_rate(epoch, 10, 60, 1e-6, 1e-4) for epoch in range(1, 61)]
    assert rates(config, 60) == pytest.approx(expected, rel=1e-9)
    assert rates(OptimConfig(schedule="cosine", warmup_epochs=10, lr=1.0), 3) == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("settings", [{"schedule": "cosine", "warmup_epochs": 4, "name": "adamw"}, {"step_size": 3}])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_restored_schedule_is_bitwise_equal(settings, stop):
    config = OptimConfig(**settings)
    assert rates(config, 9, stop) == rates(config, 9)


def test_optimizer_settings_are_applied():
    weight = nn.Parameter(torch.zeros(1))
    optimizer, _ = load("valor").optim.build([weight], 60)
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.5, 0.999), 1e-3)
    plain, schedule = OptimConfig().build([weight])
    assert type(plain) is torch.optim.Adam
    assert (plain.defaults["betas"], type(schedule).__name__) == ((0.9, 0.999), "StepLR")


def test_recipe_has_the_published_values_and_its_optimizer_can_be_changed():
    config = load("valor")
    assert (config.seed, config.train.epochs, config.train.batch_size, config.optim.clip_norm) == (1000, 60, 64, 1.0)
    assert (config.model.width, config.model.heads, config.model.feedforward, config.model.layers) == (512, 8, 1024, 1)
    assert config.model.sequential
    assert (config.task.protocol, config.evaluate.select, config.evaluate.ties) == ("joint", "segment.type", "first")
    changed = load("valor", ["optim.name=adam"]).optim
    assert changed == config.optim.model_copy(update={"name": "adam"})
    with pytest.raises(ConfigError, match="warmup_epochs needs schedule=cosine"):
        load("valor", ["optim.schedule=step"])


@pytest.mark.parametrize(("recipe", "seed", "dataset"), [("valor-plus", 64, None), ("valor-plus-plus", 87, "llp-clip-clap")])
def test_the_larger_recipes_differ_from_valor_as_published(recipe, seed, dataset):
    deep, plain = load(recipe).model_dump(), load("valor").model_dump()
    expected = {"seed": seed, "recipe": recipe, "output": f"outputs/{recipe}-seed{seed}"}
    expected["data"] = plain["data"] | {"dataset": dataset}
    expected["model"] = plain["model"] | {"width": 256, "layers": 4}
    expected["optim"] = plain["optim"] | {"lr": 3e-4}
    assert deep == plain | expected


@pytest.mark.parametrize(("ties", "best"), [("later", 3), ("first", 1)])
def test_ties(ties, best):
    config, selected = EvaluateConfig(ties=ties), None
    for epoch, value in enumerate((40.0, 50.0, 45.0, 50.0, 10.0)):
        if selected is None or config.is_better(ParsingConfig, value, selected[1]):
            selected = (epoch, value)
    assert selected == (best, 50.0)
    assert EvaluateConfig(select="last", ties=ties).is_better(ParsingConfig, 1.0, 2.0)


@pytest.fixture(scope="module")
def train(packed):
    return read_labels(packed, Index.load(packed))["train"]


def write_files(folder, ids, values):
    folder.mkdir(exist_ok=True)
    for name, array in zip(ids, values, strict=True):
        np.save(folder / f"{name}.npy", array)


def test_import_reads_the_content_of_the_files(packed, train, tmp_path):
    write_files(tmp_path / "a", train.ids, train.truth["audio"].astype(np.int64))
    write_files(tmp_path / "v", train.ids, train.truth["visual"] * 0.25)
    out = tmp_path / "refined.npz"
    arguments = ["labels", "--data", packed, "--audio", tmp_path / "a", "--visual", tmp_path / "v", "--out", out]
    done = CliRunner().invoke(data, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    assert "62 videos" in done.output
    assert "SYNTHETIC" in done.output
    found = RefinedLabels.load(str(out))
    assert found.ids == train.ids
    assert found.has_segment_labels
    assert found.video is None
    np.testing.assert_array_equal(found.audio, train.truth["audio"])
    np.testing.assert_array_equal(found.visual, train.truth["visual"] * np.float32(0.25))
    assert found.provenance["outside_weak"] == ((train.truth["audio"] | train.truth["visual"]) & ~train.weak[:, None]).sum()


def test_import_reports_every_bad_file(packed, train, tmp_path):
    for folder, values in (("a", train.truth["audio"]), ("v", train.truth["visual"])):
        write_files(tmp_path / folder, train.ids, values)
    first, second, third, fourth, fifth, sixth, *_ = train.ids
    (tmp_path / "a" / f"{first}.npy").unlink()
    (tmp_path / "a" / f"{second}.npy").write_bytes(b"no array")
    np.save(tmp_path / "v" / f"{first}.npy", np.zeros((25, 10)))
    np.save(tmp_path / "v" / f"{third}.npy", np.full((10, 25), 2))
    np.save(tmp_path / "v" / f"{fourth}.npy", np.full((10, 25), np.nan))
    np.save(tmp_path / "v" / f"{fifth}.npy", np.full((10, 25), "1"))
    np.save(tmp_path / "v" / f"{sixth}.npy", np.full((10, 25), None), allow_pickle=True)
    with pytest.raises(DataError) as caught:
        import_segment_labels(packed, str(tmp_path / "a"), str(tmp_path / "v"))
    expected = {
        f"a/{first}.npy": "missing",
        f"a/{second}.npy": "not a readable .npy array",
        f"v/{first}.npy": "shape [25, 10], expected [10, 25]",
        f"v/{third}.npy": "250 values outside 0..1, the first at [0, 0]",
        f"v/{fourth}.npy": "250 values outside 0..1",
        f"v/{fifth}.npy": "expected bool, int or float",
        f"v/{sixth}.npy": "not a readable .npy array",
    }
    assert len(caught.value.problems) == len(expected)
    for file, problem in expected.items():
        assert any(file in line and problem in line for line in caught.value.problems), (file, caught.value.problems)


def test_import_refuses_missing_folders_and_unknown_splits(packed, tmp_path):
    with pytest.raises(DataError, match=r"audio: no folder(.|\n)*visual: no folder"):
        import_segment_labels(packed, str(tmp_path / "a"), str(tmp_path / "v"))
    with pytest.raises(DataError, match="no split 'trian'; it has train, val, test"):
        import_segment_labels(packed, str(tmp_path), str(tmp_path), "trian")


def test_noise_flips_the_requested_share_of_labels_within_the_weak_labels(packed, train):
    weak = np.broadcast_to(train.weak[:, None], train.truth["audio"].shape)
    clean = noisy_segment_labels(packed, 0.0, 0)
    np.testing.assert_array_equal(clean.audio, train.truth["audio"] & weak)
    np.testing.assert_array_equal(clean.visual, train.truth["visual"] & weak)
    noisy = noisy_segment_labels(packed, 0.2, 0)
    for found, truth in ((noisy.audio, train.truth["audio"]), (noisy.visual, train.truth["visual"])):
        assert not found[~weak].any()
        assert (found != truth)[weak].mean() == pytest.approx(0.2, abs=0.05)
    assert noisy.fingerprint == noisy_segment_labels(packed, 0.2, 0).fingerprint
    assert noisy.fingerprint != noisy_segment_labels(packed, 0.2, 1).fingerprint
    assert (noisy.audio != clean.audio)[weak].tolist() != (noisy.visual != clean.visual)[weak].tolist()


def test_noise_must_be_a_probability(packed):
    with pytest.raises(ConfigError, match=r"flip: 1.5 (.|\n)*seed: -1"):
        noisy_segment_labels(packed, 1.5, -1)
