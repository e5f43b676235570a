"""Noise ratios in the form that JoMoLD's authors write: read, exported, refused."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from avvp_dist.cli.main import main
from avvp_dist.datasets.catalog import LLP
from avvp_dist.errors import ConfigError
from avvp_dist.methods.jomold import JomoldConfig, read_ratios


def values(seed=0):
    return np.random.default_rng(seed).random(25)


def ratio_json(path: Path, classes=LLP.classes) -> dict:
    numbers = random.Random(0)
    content = {modality: {name: numbers.random() for name in classes} for modality in ("audio", "visual")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


def test_published_file_is_read_in_the_official_order(tmp_path):
    path = tmp_path / "noise_ratios.npz"
    np.savez(path, audio=values(0), visual=values(1))
    found = read_ratios(str(path), LLP.classes)
    assert list(found["audio"]) == list(LLP.classes)
    assert list(found["audio"].values()) == values(0).tolist()
    assert list(found["visual"].values()) == values(1).tolist()
    (stage,) = JomoldConfig(ratios=str(path)).build(LLP.classes, 10).stages
    stage.start({}, torch.device("cpu"))
    assert stage.ratio_visual.tolist() == values(1).tolist()


def test_what_the_file_holds_counts_not_its_name_and_order_follows_the_data_set(tmp_path):
    path = tmp_path / "ratios"
    buffer = io.BytesIO()
    np.savez_compressed(buffer, audio=values(0).astype(np.float32), visual=np.zeros(25, np.int64), extra=np.ones(3))
    path.write_bytes(buffer.getvalue())
    backwards = LLP.classes[::-1]
    found = read_ratios(str(path), backwards)
    assert list(found["audio"]) == list(backwards)
    assert found["audio"]["Speech"] == np.float32(values(0)[0])  # LLP's first class, though the data set's last
    np.savez(tmp_path / "own.npz", audio=[0.1, 0.2], visual=[0.3, 0.4])
    assert read_ratios(str(tmp_path / "own.npz"), ("b", "a")) == {
        "audio": {"b": 0.1, "a": 0.2},
        "visual": {"b": 0.3, "a": 0.4},
    }


def test_both_forms_are_the_same_training(tmp_path):
    content = ratio_json(tmp_path / "ratios.json")
    np.savez(tmp_path / "ratios.npz", **{name: list(table.values()) for name, table in content.items()})
    first, second = (
        JomoldConfig(ratios=str(tmp_path / name)).build(LLP.classes, 10).stages[0] for name in ("ratios.json", "ratios.npz")
    )
    assert json.dumps(dict(first.external_inputs)) == json.dumps(dict(second.external_inputs)) != "{}"


def test_every_problem_of_an_archive_is_named(tmp_path):
    wrong = values()
    wrong[[1, 3, 24]] = np.nan, 1.5, -np.inf
    np.savez(tmp_path / "values.npz", audio=wrong, visual=values()[:24])
    with pytest.raises(ConfigError) as caught:
        read_ratios(str(tmp_path / "values.npz"), LLP.classes)
    assert caught.value.title == f"method.ratios: cannot use {tmp_path / 'values.npz'}"
    assert caught.value.problems == [
        "audio.Car: nan is not a ratio between 0 and 1",
        "audio.Dog: 1.5 is not a ratio between 0 and 1",
        "audio.Clapping: -inf is not a ratio between 0 and 1",
        "visual: shape [24], expected [25], one ratio per class",
    ]
    np.savez(tmp_path / "names.npz", Audio=values(), visual=values().astype(str))
    with pytest.raises(ConfigError) as caught:
        read_ratios(str(tmp_path / "names.npz"), LLP.classes)
    assert caught.value.problems[0] == "audio: array missing; the file contains Audio, visual"
    assert "expected numbers" in caught.value.problems[1]
    np.savez(tmp_path / "complex.npz", audio=values().astype(complex), visual=values())
    with pytest.raises(ConfigError, match="audio: data type complex128"):
        read_ratios(str(tmp_path / "complex.npz"), LLP.classes)


def test_damaged_and_pickled_archives_are_refused_by_name(tmp_path):
    path = tmp_path / "ratios.npz"
    np.savez(path, audio=np.array([Path("x")] * 25, object), visual=values())
    with pytest.raises(ConfigError, match=r"ratios\.npz\n  - not a readable \.npz archive \(Object arrays cannot be loaded"):
        read_ratios(str(path), LLP.classes)
    np.savez(path, audio=values(), visual=values())
    content = path.read_bytes()
    for damaged in (content[:200], content[:100] + b"\xff" + content[101:], b"PK\x03\x04"):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="not a readable"):
            read_ratios(str(path), LLP.classes)


def avvp(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_export_of_a_run_is_read_back_the_same(tmp_path, capsys):
    content = ratio_json(tmp_path / "run" / "stages" / "ratios-0123abcd" / "ratios.json", classes=sorted(LLP.classes))
    assert avvp("data", "ratios", tmp_path / "run", "--out", tmp_path / "out" / "noise_ratios.npz") == 0
    assert "noise ratios of 25 classes" in capsys.readouterr().out
    with np.load(tmp_path / "out" / "noise_ratios.npz") as archive:
        assert sorted(archive.files) == ["audio", "visual"]
        assert archive["audio"].dtype == np.float64
        assert archive["audio"].tolist() == [content["audio"][name] for name in LLP.classes]
    back = read_ratios(str(tmp_path / "out" / "noise_ratios.npz"), LLP.classes)
    assert back == content  # to the last bit


def test_what_cannot_be_exported_is_one_message(tmp_path, capsys):
    out = tmp_path / "out.npz"
    for name in ("a", "b"):
        ratio_json(tmp_path / "two" / "stages" / f"ratios-{name}" / "ratios.json")
    (tmp_path / "none").mkdir()
    (tmp_path / "text.json").write_text("[1, 2]")
    np.savez(tmp_path / "there.npz", audio=values(), visual=values())
    for source, message in {
        "two": "contains several noise-ratio files; name one of them",
        "none": "neither a ratio file (.json, .npz) nor a run",
        "nowhere": "neither a ratio file (.json, .npz) nor a run",
        "nowhere.json": "no such file",
        "text.json": "audio: missing",
        "there.npz": "already an .npz archive",
    }.items():
        assert avvp("data", "ratios", tmp_path / source, "--out", out) == 2
        assert message in capsys.readouterr().err
    assert not out.exists()
