"""EM-MIL on a small synthetic data set: networks in turn, also after a run was killed."""

import pytest
from commands import history, stage_folder, train_here
from dying import DyingRuntime, Killed

SMALL = ["train.epochs=5", "train.batch_size=16", "train.checkpoint_every=2", "model.width=32", "model.feedforward=32"]
SMALL += ["method.phases=[1, 1, 1, 2]", "optim.lr=0.003", "optim.warmup_epochs=1", "tracking=none", "train.device=cpu"]


@pytest.fixture(scope="module")
def finished(packed, tmp_path_factory):
    """Folder of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("em-mil")
    train_here("em-mil", packed, output, *SMALL)
    return output


def test_the_class_network_learns_in_m_steps_only(finished):
    rows = history(finished)
    validated = [{key: value for key, value in row.items() if key.startswith("val/")} for row in rows]
    assert validated[1] == validated[0] != validated[2]  # whole, keys, classes
    assert validated[3] == validated[2]  # keys


# killed within the first E-epoch, when the optimizer has a state of the class network only, and in an M-epoch after it
@pytest.mark.parametrize("after", [3, 5])
def test_a_run_killed_within_an_epoch_resumes_bit_for_bit(packed, tmp_path, finished, after):
    with pytest.raises(Killed):
        train_here("em-mil", packed, tmp_path, *SMALL, runtime=DyingRuntime(str(tmp_path), after=after))
    train_here("em-mil", packed, tmp_path, *SMALL)
    assert history(tmp_path) == history(finished)
    files = [stage_folder(output) / "model.safetensors" for output in (finished, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()
