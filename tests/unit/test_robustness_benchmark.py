"""The robustness benchmark detects failures: some cases of each part, and results that must count as failed."""

import base64
import gzip
import json
import re
import signal
import zipfile
import zlib
from contextlib import nullcontext

import pytest

from avvp_dist.errors import DataError
from benchmarks import robustness
from benchmarks.robustness_cases import fault_bench, flips, inputs, outcomes, secrets
from benchmarks.robustness_cases.fixtures import Fixtures
from benchmarks.robustness_cases.inputs import BadInput
from benchmarks.robustness_cases.outcomes import Verdict
from benchmarks.robustness_cases.running import Kill, Result, Runner

BAD_SETTING = BadInput("settings", "train jomold optim.lr=fast", r"optim\.lr")
MESSAGE = "error: recipe jomold: 1 problem\n  - optim.lr: should be a number, got 'fast'\n"


def answer(err=MESSAGE, code=2, out="", size=None, timed_out=False):
    return Result(("train",), code, out, err, len(err) if size is None else size, 0.1, timed_out)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    with Runner(tmp_path_factory.mktemp("runner"), processes=1) as started:
        yield started


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory, runner):
    return Fixtures(tmp_path_factory.mktemp("fixtures"), runner, tiny=True)


def test_expected_results_pass():
    assert inputs.check_answer(BAD_SETTING, answer()) == ""
    assert inputs.check_answer(BAD_SETTING, answer("Usage: avvp train\n╭─ Error ─╮\n│ optim.lr │\n")) == ""
    assert inputs.check_answer(BAD_SETTING, answer(), ["out/.avvp-lock-1"]) == ""


@pytest.mark.parametrize(
    ("result", "changes", "expected"),
    [
        (answer("Traceback (most recent call last):\nValueError: optim.lr\n", code=1), [], "exit code 1, .*Traceback"),
        (answer(MESSAGE + "Traceback (most recent call last):\n"), [], "Traceback"),
        (answer("", code=0, out="optim.lr"), [], "exit code 0, expected 2"),
        (answer("error: something is wrong\n"), [], "nothing in the output matches"),
        (answer(MESSAGE + MESSAGE), [], "2 messages"),
        (answer("optim.lr\n"), [], "0 messages"),
        (answer(size=70_000), [], "70,000 bytes"),
        (answer(MESSAGE + "\x1b[31m"), [], "escapes"),
        (answer(code=-9, timed_out=True), [], "not finished within"),
        (answer(MESSAGE + "this is a bug; the traceback is in x"), [], "bug"),
        (answer(), ["out", "out/config.yaml"], "left or changed out, out/config.yaml"),
    ],
)
def test_unexpected_results_fail(result, changes, expected):
    assert re.search(expected, inputs.check_answer(BAD_SETTING, result, changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "good"),
    [
        (BAD_SETTING, True),
        (BadInput("options", "train nosuch", "nosuch"), True),
        (BadInput("options", "train nosuch", "text that is not in the output"), False),
        (BadInput("options", "config han", "recipe"), False),  # a valid command
        (BadInput("files", "data inspect {tiny}", "index", (lambda here, _: (here / "x").touch(),)), False),
    ],
)
def test_input_cases_run_the_command(tmp_path, fixtures, case, good):
    (one,) = inputs.run(fixtures, tmp_path, 0, [case])
    assert one().failed is not good


def test_a_traceback_is_reported(tmp_path, runner):
    result = runner.run(["no", "such", "arguments"], tmp_path, call="benchmarks.robustness_cases.flips:batch")
    assert result.code == 1
    assert "Traceback" in inputs.check_answer(BAD_SETTING, result)


def test_a_command_that_does_not_end_is_killed(tmp_path, runner):
    result = runner.run(["import time; time.sleep(60)"], tmp_path, seconds=0.5, call="builtins:exec")
    assert result.timed_out
    assert result.seconds < 20


def test_number_of_bad_inputs_and_flips():
    assert len(inputs.all_cases()) >= 250
    assert sum(kind.flips for kind in flips.KINDS) >= 3000


def checked(here, path):
    content = path.read_bytes()
    if zlib.crc32(content[4:]) != int.from_bytes(content[:4], "big"):
        raise DataError(f"{path.name}: another checksum")
    return ""


def unnamed(here, path):
    raise DataError("something is wrong")


@pytest.mark.parametrize(
    ("read", "meaning", "outcome"),
    [
        (checked, bytes, "detected"),
        (lambda here, path: "", bytes, "undetected"),
        (lambda here, path: "", lambda content: 1, "harmless"),
        (lambda here, path: f"{path.name} is damaged, computing it again", bytes, "detected"),
        (unnamed, bytes, "failed"),
        (lambda here, path: 1 / 0, bytes, "failed"),
    ],
)
def test_flip_outcomes(tmp_path, read, meaning, outcome):
    body = b"some content"
    path = tmp_path / "file.bin"
    path.write_bytes(zlib.crc32(body).to_bytes(4, "big") + body)
    whole = path.read_bytes()
    kind = flips.Kind("toy", "toy", "", read, meaning, 1)
    assert flips.check_flip(kind, tmp_path, path, whole, meaning(whole), 70)["outcome"] == outcome
    assert path.read_bytes() != whole


def test_flips_in_a_shard_are_detected(tmp_path, fixtures):
    found = flips._run_batch(0, 5, fixtures, tmp_path / "here", 0)
    assert (found.kind, found.tried, found.good) == ("shards, verify", 5, 5), found


@pytest.mark.parametrize(
    "hide", [bytes, gzip.compress, lambda content: content[::-1], lambda content: content.hex().encode()]
)
def test_a_leak_is_found_in_a_file(tmp_path, hide):
    (tmp_path / "log").write_bytes(hide(b"password is Zq0123456789abcdef, keep it"))
    assert secrets.leaks(["Zq0123456789abcdef"], [tmp_path], answer(), set()) == {"Zq0123456789abcdef": ["log"]}
    assert not secrets.leaks(["Zq0123456789abcdee"], [tmp_path], answer(), set())
    assert not secrets.leaks(["Zq0123456789abcdef"], [tmp_path], answer(), {tmp_path / "log"})


@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
def test_a_leak_is_found_in_base64_an_archive_a_name_and_the_output(tmp_path, before):
    mark = "Zq0123456789abcdef"
    (tmp_path / "auth").write_bytes(b"Basic " + base64.b64encode(f"{before}{mark} and more".encode()))
    with zipfile.ZipFile(tmp_path / "archive", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", f"{mark}" * 5)
    (tmp_path / f"name-{mark}").touch()
    found = secrets.leaks([mark], [tmp_path], answer(out=f"uri http://{mark}@host"), set())
    assert set(found[mark]) == {"the output", "auth", "archive", "a file's name"}


def test_leaked_secrets_fail(tmp_path, fixtures):
    kept = secrets.SecretCase("environment", "config", ("config", "han"), {"AWS_SECRET_ACCESS_KEY": secrets.SECRET})
    assert not secrets._run_case(kept, fixtures, tmp_path / "kept", None).failed
    leaked = secrets.SecretCase("overrides", "config", ("config", "han", f"recipe={secrets.SECRET}"))
    found = secrets._run_case(leaked, fixtures, tmp_path / "leaked", None)
    assert (found.failed, found.tried, found.good) == (True, 1, 0)
    assert found.why == "the secret of the command line is in the output"


@pytest.mark.slow
def test_a_killed_training_is_resumed_and_compared(tmp_path, fixtures):
    bench = fault_bench.Bench(fixtures, tmp_path)
    words = ("train", "han", "data={tiny}", "{small}", "train.epochs=3")
    bench.run(words, bench.case_folder("reference"))
    bench.reference["han"] = fault_bench.outputs_of(tmp_path / "reference" / "out")
    here = bench.case_folder("killed")
    killed = bench.run(words, here, kill=Kill(signal.SIGKILL, 0.0, f"{here}/out/checkpoints/*.pt"))
    assert killed.code == -signal.SIGKILL
    assert bench.run_to_end("han", words, here, [killed])[0] == ""
    bench.reference["han"] = {**bench.reference["han"], "best": None}
    assert bench.run_to_end("han", words, bench.case_folder("other"), [])[0] == "result differs from an undisturbed run"
    assert "exit code 2" in bench.run_to_end("han", (*words, "seed=x"), bench.case_folder("refused"), [])[0]


@pytest.fixture
def patched(monkeypatch, runner):
    """Replace the parts of the benchmark."""

    def set_parts(parts):
        monkeypatch.setattr(robustness, "PARTS", parts)
        monkeypatch.setattr(robustness, "Runner", lambda _: nullcontext(runner))
        monkeypatch.setattr(robustness, "Fixtures", lambda *_: None)

    return set_parts


def test_table_has_a_row_for_each_part_and_failures_are_listed(tmp_path, patched, capsys):
    def cases(section, *verdicts):
        def run(fixtures, folder, seed):
            yield from ((lambda verdict=verdict: verdict) for verdict in verdicts)

        return run

    parts = {name: (cases(name, Verdict(name, "a kind", "a case", tried=3, good=3)), 1.0) for name in outcomes.SECTIONS}
    patched(parts)
    out, page = tmp_path / "report.json", tmp_path / "report.md"
    assert robustness.main(["--out", str(out), "--markdown", str(page), "--only", ",".join(parts)]) == 0
    printed = capsys.readouterr().out
    for tested, passed in outcomes.SECTIONS.values():
        assert f"{tested}; {passed}" in printed
        assert f"| {tested}; {passed} | 3 | 3 | 0 |" in page.read_text()
    parts["flips"] = (cases("flips", Verdict("flips", "a kind", "the bad case", "unnoticed", tried=9, good=8)), 1.0)
    assert robustness.main(["--out", str(out), "--only", "flips"]) == 1
    assert "FAILED flips, a kind: the bad case: unnoticed" in capsys.readouterr().out
    content = json.loads(out.read_text())
    assert content["rows"]["flips"]["kinds"]["a kind"] == {"tried": 9, "good": 8, "cases": 1}
    assert len(content["failures"]) == 1


def test_cases_beyond_the_time_limit_are_counted(patched, capsys):
    patched({"inputs": (lambda *_: iter([lambda: Verdict("inputs", "k", "c", good=1)] * 3), -1.0)})
    robustness.main([])
    assert "3 cases not run" in capsys.readouterr().out
