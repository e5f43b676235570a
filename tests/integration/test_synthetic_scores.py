"""The table of methods on synthetic data: trains missing runs, reuses finished ones, scores removed labels."""

import json

import pytest

from benchmarks.synthetic_scores import VARIANTS, main

pytestmark = pytest.mark.slow
TINY = ["--set", "train.epochs=1", "model.width=32", "model.feedforward=32", "train.batch_size=32", "train.device=cpu"]


@pytest.fixture(scope="module")
def trained(packed, tmp_path_factory):
    """A folder with one run of LR and one of VALOR, and the reports written when they were trained."""
    out = tmp_path_factory.mktemp("runs")
    reports = ["--json", str(out / "first.json"), "--markdown", str(out / "first.md")]
    main([str(out), "--data", packed, "--only", "lr,valor", "--seeds", "1", *reports, *TINY])
    return out


def test_finished_runs_are_reused_and_scored_again(packed, trained, capsys):
    result = trained / "lr-1" / "result.json"
    content = json.loads(result.read_text())
    denoising = content.pop("denoising")
    try:
        result.write_text(json.dumps(content))  # as an older commit wrote it
        main([str(trained), "--data", packed, "--seeds", "1,2", "--finished", "--json", str(trained / "again.json"), *TINY])
    finally:
        result.write_text(json.dumps({**content, "denoising": denoising}))
    first, again = (json.loads((trained / f"{name}.json").read_text()) for name in ("first", "again"))
    assert again == first  # nothing was trained for seed 2, and variants without runs are left out
    assert list(again["rows"]) == ["lr", "valor"]
    row = again["rows"]["lr"]
    assert row["seeds"] == [1]
    assert row["protocol"] == "joint"
    assert {key: value["mean"] for key, value in row["denoising"].items()} == pytest.approx(denoising)
    scores = content["scores"]["test"]["joint"]
    visual = scores["metrics"]["segment.visual"]
    assert row["segment.visual"] == {"mean": visual, "std": None, "all": [visual]}
    assert (
        row["without_speech.event.type"]["mean"]
        == content["scores"]["test"]["joint/without_speech"]["metrics"]["event.type"]
    )
    assert row["speech.segment.visual"]["mean"] == scores["per_class"]["Speech"]["segment.visual"]
    given = again["rows"]["valor"]["denoising_given"]
    assert given["removed_segments/visual_recall"]["mean"] == pytest.approx(82, abs=3)
    printed = capsys.readouterr().out
    assert printed.strip() == (trained / "first.md").read_text().strip()
    noisy = given["removed_segments/visual_precision"]["mean"]
    (line,) = [line for line in printed.splitlines() if line.startswith("| segments | visual | VALOR")]
    assert f"| {noisy:.1f} |" in line


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([*TINY[:-1], "train.device=cpu", "optim.lr=0.01"], "optim.lr: 0.0003 there, 0.01 in this command"),
        (["--only", "lr"], "train.epochs: 1 there, 40 in this command"),
    ],
)
def test_runs_of_another_config_are_rejected(packed, trained, options, reason, capsys):
    with pytest.raises(SystemExit) as caught:
        main([str(trained), "--data", packed, "--seeds", "1", "--finished", *options])
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err


def test_runs_on_other_data_are_rejected(trained, tmp_path, capsys):
    from avvp_dist.datasets import synthetic

    other = str(tmp_path / "other")
    synthetic.write(other, videos=None, seed=1, layout="shards", splits=(20, 5, 5), workers=1, shard_videos=16)
    with pytest.raises(SystemExit):
        main([str(trained), "--data", other, "--seeds", "1", "--finished", "--only", "valor", *TINY])
    message = capsys.readouterr().err
    assert f"data: trained on other data than {other}" in message
    assert "data.refined: fingerprint" in message


def test_unknown_variants_are_reported(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--only", "han,jomould"])
    message = " ".join(capsys.readouterr().err.split())
    assert f"unknown variants jomould; valid: {', '.join(VARIANTS)}" in message
