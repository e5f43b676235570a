"""The time estimate of a sweep's dry run, which takes real training steps of every method's stages."""

import pytest

from avvp_dist.experiments.recipe import load
from avvp_dist.methods import METHODS
from avvp_dist.methods.base import TrainStage
from avvp_dist.shards.index import Index

pytest.importorskip("ray")

from avvp_dist.launch import sweep_plan


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", METHODS)
def test_every_train_stage_can_be_timed(packed, tmp_path, name, precision):
    overrides = ["model.width=16", "train.epochs=2", "train.batch_size=8", "train.device=cpu"]
    overrides += ["model.feedforward=16"] if "feedforward" in type(load(name).model).model_fields else []
    output = tmp_path / "run"
    config = load(name, [f"data={packed}", f"output={output}", f"train.precision={precision}", *overrides])
    index = Index.load(packed)
    stages = config.method.build(index.classes, index.segments).stages
    for stage in stages:
        if isinstance(stage, TrainStage):
            assert 0 < sweep_plan._seconds(config, index, stage, stages) < 600
    assert not output.exists()
