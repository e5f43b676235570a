"""Whole runs on features from the shared page cache, from private memory and through the cache: the same numbers."""

import shutil
from pathlib import Path

from avvp_dist import storage
from avvp_dist.dist.runtime import LocalRuntime
from avvp_dist.experiments.recipe import load
from avvp_dist.experiments.run import run_experiment

SMALL = ["train.epochs=2", "train.batch_size=16", "model.width=32", "model.feedforward=32", "tracking=none"]


def run(data, output, *overrides):
    """Scores and weights of a run without anything finished before."""
    shutil.rmtree(output / "stages", ignore_errors=True)
    config = load("han", [f"data={data}", f"output={output}", *SMALL, "train.device=cpu", *overrides])
    result = run_experiment(config, LocalRuntime(config.output, "cpu"))
    return result["scores"], (output / "model.safetensors").read_bytes()


def test_scores_do_not_depend_on_how_features_are_loaded(packed, tmp_path):
    url = "memory://bucket/shared-data"
    storage.remove(url)
    for path in Path(packed).iterdir():
        storage.write_bytes(storage.join(url, path.name), path.read_bytes())
    shared = run(packed, tmp_path / "run")
    # into the same output: where the bytes come from is not what the run is
    assert run(packed, tmp_path / "run", "data.share=false", "data.cache_gb=1", f"data.cache={tmp_path / 'none'}") == shared
    assert run(url, tmp_path / "cached", f"data.cache={tmp_path / 'cache'}") == shared
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 6
    assert not (tmp_path / "none").exists()
