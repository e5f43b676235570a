"""The authors' checkpoint files: as they save them, wrapped, in old formats, damaged, malicious."""

import io
import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from avvp_dist.errors import DataError
from avvp_dist.models.published import load


@pytest.fixture(scope="module")
def parameters(golden):
    shapes = json.loads((golden / "A_han_shapes.json").read_text())
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=generator) * 0.05 for name, shape in sorted(shapes.items())}


def checkpoint(parameters):
    """A checkpoint as JoMoLD's training code saves it."""
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=6, gamma=0.25)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return {
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.get_rng_state(),  # a tensor of bytes as well
        "random_rng": random.Random(0).getstate(),
        "numpy_rng": np.random.RandomState(0).get_state(),
        "model": OrderedDict(parameters),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epochs": 25,
    }


def equal_weights(model, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def expected(parameters):
    return load("jomold", parameters)


@pytest.mark.parametrize("zipped", [True, False])  # torch 1.6 and later, torch 1.2
def test_a_checkpoint_of_the_published_training_code(parameters, expected, tmp_path, zipped):
    path = tmp_path / "JoMoLD.pt"
    torch.save(checkpoint(parameters), path, _use_new_zipfile_serialization=zipped)
    for location in (path, str(path), f"file://{path}"):
        assert equal_weights(load("jomold", location), expected)
    assert not load("jomold", path).training


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_numpy_1_and_2_load(parameters, expected, tmp_path, zipped):
    buffer = io.BytesIO()
    torch.save(checkpoint(parameters), buffer, _use_new_zipfile_serialization=zipped)
    content, new, old = buffer.getvalue(), b"numpy._core.multiarray", b"numpy.core.multiarray"
    other = old if new in content else new
    path = tmp_path / "other.pt"
    if zipped:  # its central directory contains sizes and checksums
        path.write_bytes(rezipped(content, new if other == old else old, other))
    else:
        path.write_bytes(content.replace(new, old) if other == old else content.replace(old, new))
    assert other in path.read_bytes()
    assert equal_weights(load("jomold", path), expected)


def rezipped(content, before, after):
    sink = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(sink, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(before, after) if name.endswith("data.pkl") else data)
    return sink.getvalue()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda parameters: parameters,
        lambda parameters: {"model": parameters, "epochs": 25},
        lambda parameters: {"state_dict": parameters},
        lambda parameters: {"model": {"state_dict": parameters}},
        lambda parameters: {f"module.{name}": value for name, value in parameters.items()},
        lambda parameters: {"model": {f"module.module.{name}": value for name, value in parameters.items()}},
    ],
)
def test_wrapped_parameters_load_from_a_file_or_from_memory(parameters, expected, tmp_path, wrap):
    assert equal_weights(load("jomold", wrap(parameters)), expected)
    torch.save(wrap(parameters), tmp_path / "checkpoint.pt")
    assert equal_weights(load("jomold", tmp_path / "checkpoint.pt"), expected)


class Bomb:
    """Calls a function when it is unpickled."""

    def __init__(self, path, function=os.mkdir):
        self.path = path
        self.function = function

    def __reduce__(self):
        return (self.function, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("function", "name"), [(os.mkdir, "posix.mkdir"), (Path, "pathlib.Path"), (eval, "eval")])
def test_code_in_a_checkpoint_is_refused_by_name(parameters, tmp_path, zipped, function, name):
    marker = tmp_path / "exploded"
    argument = f"__import__('os').mkdir({str(marker)!r})" if function is eval else str(marker)
    content = checkpoint(parameters) | {"best": Bomb(argument, function)}
    torch.save(content, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError) as caught:
        load("jomold", tmp_path / "bomb.pt")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'bomb.pt'}: refused: it contains {name}, which is not part of the parameters")
    assert not marker.exists()


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded")), protocol=2))
    with pytest.raises(DataError, match=r"bomb\.pt: "):
        load("han", tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


def test_whole_networks_are_refused_with_advice(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(DataError, match=r"refused: it contains torch\.nn\.modules\.linear\.Linear.*save its state_dict"):
        load("han", tmp_path / "net.pt")
    with pytest.raises(DataError, match=r"contains a Linear, expected parameters by name"):
        load("han", {"model": torch.nn.Linear(2, 2)})


def test_files_that_are_not_checkpoints_are_refused(parameters, tmp_path):
    torch.save(checkpoint(parameters), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for number, damaged in enumerate((b"", b"text\n", content[: len(content) // 2], content[:1000])):
        path = tmp_path / f"damaged-{number}.pt"
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"damaged-{number}\.pt: not a checkpoint that torch can read \(.+\)"):
            load("jomold", path)
    middle = len(content) // 2
    (tmp_path / "flipped.pt").write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(DataError, match=r"flipped\.pt: damaged: checksum error in .*data/"):
        load("jomold", tmp_path / "flipped.pt")
    with pytest.raises(DataError, match=r"nowhere\.pt: no such file"):
        load("jomold", tmp_path / "nowhere.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    with pytest.raises(DataError, match=r"tensor\.pt: not a published han checkpoint\n  - contains a Tensor, expected"):
        load("han", tmp_path / "tensor.pt")
    torch.save({"epochs": 25, "lr": [0.1]}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="contains no parameters; its keys are epochs, lr"):
        load("han", tmp_path / "other.pt")


def test_unusable_parameters_are_listed(parameters):
    broken = parameters | {
        "fc_a.weight": torch.full((512, 128), float("nan")),
        "fc_v.bias": torch.zeros(512, dtype=torch.int64),
        "fc_prob.weight": torch.zeros(25, 64),
    }
    with pytest.raises(DataError) as caught:
        load("jomold", broken)
    assert caught.value.problems == [
        "fc_a.weight: 65536 of 65536 values are not finite",
        "fc_v.bias: a torch.int64 tensor, expected dense floating-point numbers",
        "fc_prob.weight, fc_frame_att.weight, fc_av_att.weight: shapes [(25, 64), (25, 512)], "
        "expected the same for all three",
    ]
    with pytest.raises(DataError, match="fc_a.bias: int, not a tensor"):
        load("jomold", parameters | {"fc_a.bias": 3})
