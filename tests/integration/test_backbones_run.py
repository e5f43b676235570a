"""Every method trains AVE's network and AVSlowFast, on a small synthetic data set."""

import json

import pytest

from avvp_dist.datasets import synthetic
from avvp_dist.datasets.external import noisy_segment_labels
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.inputs import open_data
from avvp_dist.experiments.recipe import load, stage_config
from avvp_dist.experiments.run import evaluate_experiment, run_experiment
from avvp_dist.loading import resident
from avvp_dist.train.stages import Identity, StageRunner

SMALL = ["train.epochs=1", "train.batch_size=8", "optim.lr=0.001", "train.device=cpu", "tracking=none"]


class Silent:
    """Callback that ignores all events."""

    def stage_started(self, stage, epochs, resumed): ...

    def stage_reused(self, stage, key): ...

    def step(self, progress): ...

    def epoch(self, row, best): ...


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Shards of 20 training videos."""
    out = str(tmp_path_factory.mktemp("tiny") / "data")
    synthetic.write(out, videos=None, seed=0, layout="shards", splits=(20, 4, 4), workers=1, shard_videos=20)
    return out


def configured(recipe, data, output, network, *overrides):
    settings = [f"model={network}", "model.width=32", "model.visual_dropout=0.5"]
    return load(recipe, [f"data={data}", f"output={output}", *SMALL, *settings, *overrides])


def train(config):
    """All stages of a method without what `run_experiment` leaves beside them, figures above all."""
    index, labels = open_data(config)
    runtime = LocalRuntime(config.output, "cpu")
    splits = {name: resident.load(config.data.store(), index, labels[name], runtime.device) for name in ("train", "val")}
    method = config.method.build(index.classes, index.segments)
    if config.method.segment_labels:
        given = noisy_segment_labels(config.data.url, flip=0.1, seed=0)
        splits["train"] = splits["train"].with_refined(given, index.classes, "labels")
    runner = StageRunner(
        store=config.output,
        identity=Identity(index.fingerprint, stage_config(config)),
        seed=config.seed,
        train=config.train,
        optim=config.optim,
        evaluate=config.evaluate,
        task=config.task.build(index.classes),
        build=lambda: config.model.build(index.shapes, len(index.classes)),
        splits=splits,
        runtime=runtime,
        callback=Silent(),
    )
    return runner.run(method)


@pytest.mark.parametrize("network", ["ave-llp", "avslowfast"])
@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("han", {"train"}),
        ("ma", {"base", "retrain"}),
        ("jomold", {"estimate", "denoise"}),
        ("lr", {"base", "refine"}),
        ("valor", {"train"}),
        ("poibin", {"mil", "count"}),
        ("em-mil", {"train"}),
    ],
)
def test_every_method_trains_every_network(tiny, tmp_path, method, stages, network):
    warmup = ["optim.warmup_epochs=1"] if method in ("valor", "em-mil") else []
    config = configured(method, tiny, tmp_path, network, *warmup)
    trained, _ = train(config)
    assert set(trained) == stages
    fresh = config.model.build({"audio": (128,), "visual": (2048,), "motion": (512,)}, 25).state_dict()
    shapes = {name: weight.shape for name, weight in fresh.items()}
    for stage in trained.values():
        (row,) = stage.history
        assert 0 < row["loss/total"] < 20
        assert {name: weight.shape for name, weight in stage.weights.items()} == shapes


def test_evaluation_reproduces_the_scores_of_a_whole_run(tiny, tmp_path):
    config = configured("jomold", tiny, tmp_path / "run", "ave-llp", "method.skip_exchange=false")
    result = run_experiment(config, LocalRuntime(config.output, "cpu"))
    again = load(str(tmp_path / "run" / "config.yaml"))
    assert again.model == config.model
    assert evaluate_experiment(again, LocalRuntime(config.output, "cpu")).scores == result["scores"]
    rows = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["stage"] for row in rows] == ["estimate", "denoise"]
