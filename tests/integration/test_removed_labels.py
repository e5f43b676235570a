"""Removed labels in the results of finished runs: those of the method itself and given ones."""

import math
from pathlib import Path

import pytest

from avvp_dist.datasets.external import noisy_segment_labels
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment
from avvp_dist.loading.refined import RefinedLabels
from avvp_dist.shards.index import Index, read_labels

pytestmark = pytest.mark.usefixtures("module_figures")
TINY = ["train.epochs=1", "train.batch_size=16", "model.width=32", "model.feedforward=32", "model.heads=1"]
TINY += ["tracking=none", "train.device=cpu"]


def run(recipe, packed, output, *overrides):
    config = load(recipe, [f"data={packed}", f"output={output}", *TINY, *overrides])
    return run_experiment(config, LocalRuntime(config.output, "cpu"))


@pytest.fixture(scope="module")
def lr(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lr")
    return folder, run("lr", packed, folder, "method.tau=0.4")


def counted(labels, refined, classes, spans):
    """Removed, noise and rightly removed visual labels of every (video, class, span of seconds), one at a time."""
    removed = noise = hits = 0
    for video, name in enumerate(labels.ids):
        row = refined.ids.index(name)
        for label in range(len(classes)):
            for number, (start, stop) in enumerate(spans if labels.weak[video, label] else ()):
                gone = refined.visual[row, number, label] == 0
                wrong = not labels.truth["visual"][video, start:stop, label].any()
                removed, noise, hits = removed + gone, noise + wrong, hits + (gone and wrong)
    return int(removed), int(noise), int(hits)


def test_windows_removed_by_lr_are_scored(packed, lr):
    folder, result = lr
    index = Index.load(packed)
    labels = read_labels(packed, index)["train"]
    (file,) = Path(folder, "stages").glob("relabel-*/refined.npz")
    refined = RefinedLabels.load(str(file))
    removed, noise, hits = counted(labels, refined, index.classes, refined.windows)
    row = result["denoising"]
    assert 0 < removed < 4 * labels.weak.sum()
    assert row["removed_windows/visual"] == removed
    assert row["removed_windows/visual_noise"] == noise
    assert math.isclose(row["removed_windows/visual_precision"], 100 * hits / removed)
    assert math.isclose(row["removed_windows/visual_recall"], 100 * hits / noise)
    assert math.isclose(row["removed_windows/visual_baseline"], 100 * noise / (4 * labels.weak.sum()))
    assert row["removed/visual"] == (labels.weak & (refined.visual.max(axis=1) == 0)).sum()
    assert result["denoising_given"] == {}
    assert (folder / "figures" / "denoising.png").exists()


def test_given_labels_are_scored_beside_those_of_the_run(packed, lr, tmp_path):
    made = noisy_segment_labels(packed, 0.2, seed=0)
    # in another order than the data set's: it is the ids that count
    upside_down = RefinedLabels(
        made.ids[::-1], made.classes, None, {"audio": made.audio[::-1], "visual": made.visual[::-1]}, {}
    )
    (tmp_path / "labels.npz").write_bytes(upside_down.to_bytes())
    result = run("valor", packed, tmp_path / "valor", "optim.warmup_epochs=0", f"data.refined={tmp_path / 'labels.npz'}")
    assert result["denoising"] == {}
    index = Index.load(packed)
    labels = read_labels(packed, index)["train"]
    removed, noise, hits = counted(labels, made, index.classes, [(second, second + 1) for second in range(10)])
    row = result["denoising_given"]
    assert (row["removed_segments/visual"], row["removed_segments/visual_noise"]) == (removed, noise)
    assert math.isclose(row["removed_segments/visual_precision"], 100 * hits / removed)
    assert 0 <= row["removed/visual_recall"] < row["removed_segments/visual_recall"]
    assert (tmp_path / "valor" / "figures" / "denoising_given.png").exists()

    (windows,) = Path(lr[0], "stages").glob("relabel-*/refined.npz")
    both = run("ma", packed, tmp_path / "ma", "method.rule=paper", f"data.refined={windows}")
    assert both["denoising_given"] == lr[1]["denoising"]
    assert "removed_windows/visual" not in both["denoising"]
    assert both["denoising"]["removed/visual"] > 0
