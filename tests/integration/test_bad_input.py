"""Bad input of every kind, in this process: one message that names it, exit code 2, nothing left. A case is one line."""

import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from devices import FULL, device
from fake_runs import write_run

from avvp_dist.cli.main import main
from avvp_dist.cli.messages import LINES, WIDTH
from avvp_dist.datasets import synthetic

TINY = ["train.epochs=1", "model.width=16", "model.feedforward=16", "train.device=cpu", "tracking=none"]
BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
LONG = "n" * 300


@pytest.fixture(scope="module")
def world(packed, tmp_path_factory):
    """Files that the cases start from; a case works on copies below its own folder."""
    root = tmp_path_factory.mktemp("world")
    official = root / "official"
    synthetic.write(str(official), videos=None, seed=0, splits=(4, 3, 3), workers=1)
    run = root / "run"
    main_quietly(["train", "han", f"data={packed}", f"output={run}", *TINY])
    return SimpleNamespace(packed=packed, official=official, run=run, fake=Path(write_run(root / "fake")))


def main_quietly(arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        assert not ended.code, arguments  # noqa: PT017


class Case:
    """A command in a folder of its own; the helpers make what its arguments name."""

    def __init__(self, world, folder):
        self.world, self.folder = world, folder
        self.packed, self.official = world.packed, world.official

    def file(self, content, name="bad.yaml"):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def loop(self):
        (self.folder / "loop").symlink_to(self.folder / "loop")
        return str(self.folder / "loop" / "x")

    def dangling(self):
        (self.folder / "dangling").symlink_to(self.folder / "nowhere")
        return str(self.folder / "dangling")

    def full(self):
        """A device that is full. Not /dev/full: whatever writes aside and renames would replace it on the whole machine."""
        return str(device(self.folder / "full", FULL))

    def folder_at(self, name):
        (self.folder / name).mkdir()
        return str(self.folder / name)

    def broken(self, name, content, which="run"):
        """A copy of a finished run with another content of one file."""
        copy = self.folder / "broken"
        shutil.copytree(getattr(self.world, which), copy)
        place = copy / name
        place.write_bytes(content(place.read_bytes()) if callable(content) else content)
        return str(copy)

    def train(self, *overrides, recipe="han"):
        out = [] if any(each.startswith("output=") for each in overrides) else [f"output={self.folder / 'out'}"]
        return ["train", recipe, f"data={self.packed}", *out, *TINY, *overrides]

    def check(self, name, content):
        """Checks LLP's annotations, one file of which is another."""
        copy = self.folder / "annotations"
        copy.mkdir()
        for file in self.official.glob("AVVP_*.csv"):
            shutil.copy(file, copy)
        (copy / name).write_bytes(content)
        return ["data", "check", "llp", "--annotations", copy, "--limit", "5"]

    def pack(self, out):
        return ["data", "pack", "llp", "--annotations", self.official, "--features", self.official, "--out", out]

    def sweep(self, *more, **content):
        """A sweep's dry run."""
        spec = {"title": "t", "recipe": "han", "space": {"optim.lr": {"grid": [0.1]}}, "seeds": [1]} | content
        return ["sweep", self.file(json.dumps(spec), "s.yaml"), f"data={self.packed}", "--dry-run", *more]


def cut(content):
    return content[: len(content) // 2]


def other_shape(content):
    import safetensors.torch

    return safetensors.torch.save({name: torch.zeros(3) for name in safetensors.torch.load(content)})


# id, arguments, what the message says
CASES = [
    # what cannot be written, found out before the work
    (
        "output-is-file",
        lambda c: c.train(f"output={c.file('x', 'f')}"),
        "output: {folder}/f: not a directory; there is a file",
    ),
    ("output-below-file", lambda c: c.train(f"output={c.file('x', 'f')}/run"), "output: {folder}/f"),
    ("output-loop", lambda c: c.train(f"output={c.loop()}"), "loop of symbolic links"),
    ("output-dangling", lambda c: c.train(f"output={c.dangling()}"), "dangling symbolic link"),
    ("output-proc", lambda c: c.train("output=/proc/avvp/run"), "/proc: cannot be written to"),
    ("output-sys", lambda c: c.train("output=/sys/avvp"), "/sys: cannot be written to"),
    ("output-long-name", lambda c: c.train(f"output={c.folder}/{LONG}"), "file name too long; choose a shorter name"),
    ("output-long-path", lambda c: c.train("output=/tmp/" + "/".join(["n" * 200] * 25)), "too long"),
    ("output-nul", lambda c: c.train('output="a\\0b"'), "contains a NUL character"),
    ("store-is-file", lambda c: c.train(f"store={c.file('x', 'f')}"), "store: {folder}/f"),
    (
        "tracking-is-file",
        lambda c: [*c.train(f"output={Path(c.file('x', 'o/tracking')).parent}"), "tracking=mlflow"],
        "tracking",
    ),
    (
        "output-and-store",
        lambda c: c.train("output=/proc/a", f"store={c.file('x', 'f')}"),
        ["  - output: /proc", "  - store: {folder}/f"],
    ),
    (
        "evaluate-json-is-folder",
        lambda c: ["evaluate", c.world.run, "--json", c.folder_at("d")],
        "--json: {folder}/d: is a directory",
    ),
    (
        "evaluate-json-full",
        lambda c: ["evaluate", c.world.run, "--json", c.full()],
        "{folder}/full: no space left on device; free some",
    ),
    (
        "compare-targets",
        lambda c: [
            "compare",
            c.world.fake,
            "--csv",
            "/proc/a",
            "--latex",
            c.loop(),
            "--markdown",
            c.folder_at("d"),
            "--figures",
            c.file("", "f"),
        ],
        ["--csv", "--latex", "--markdown", "--figures"],
    ),
    ("compare-csv-full", lambda c: ["compare", c.world.fake, "--csv", c.full()], "{folder}/full: no space left"),
    ("pack-out-is-file", lambda c: c.pack(c.file("x", "f")), "--out: {folder}/f: not a directory"),
    (
        "check-json-long",
        lambda c: ["data", "check", "llp", "--annotations", c.official, "--json", LONG],
        "--json: {folder}/" + "n" * 99,
    ),
    ("synth-proc", lambda c: ["data", "synth", "/proc/x", "--splits", "3,3,3"], "OUT: /proc"),
    ("labels-out", lambda c: ["data", "noisy-labels", "--data", c.packed, "--out", "/sys/x.npz"], "--out: /sys"),
    (
        "table-targets",
        lambda c: ["table", "main", "--output", c.file("x", "f"), "--markdown", c.loop()],
        ["--output: {folder}/f", "--markdown"],
    ),
    ("sweep-output", lambda c: [*c.sweep()[:-1], "--output", c.file("x", "f")], "--output: {folder}/f"),
    # URLs that can be none
    (
        "output-no-bucket",
        lambda c: c.train("output=s3://"),
        "output: names no bucket or server (is a variable not set?)",
    ),
    ("output-http", lambda c: c.train("output=http://127.0.0.1:9/x"), "http addresses can only be read"),
    ("output-no-bucket-path", lambda c: c.train("output=s3:///runs/a"), "output: names no bucket"),
    ("output-one-slash", lambda c: c.train("output=s3:/b/x"), "output: has only one slash after 's3'; give s3://"),
    ("output-empty", lambda c: c.train("output=''"), "output: is empty"),
    ("output-file-scheme", lambda c: c.train("output=file://"), "output: names no path"),
    ("output-unknown-scheme", lambda c: c.train("output=foo://b/x"), "output: foo://b/x"),
    ("store-no-bucket", lambda c: c.train("store=s3://"), "store: names no bucket"),
    ("data-no-bucket", lambda c: ["train", "han", "output=x", "data=s3://"], "data.url: names no bucket"),
    ("refined-no-bucket", lambda c: c.train("data.refined=s3://"), "data.refined: names no bucket"),
    ("ratios-no-bucket", lambda c: c.train("method.ratios=s3://", recipe="jomold"), "names no bucket"),
    ("recipe-no-bucket", lambda c: ["train", "s3:///a.yaml"], "names no bucket"),
    ("evaluate-no-bucket", lambda c: ["evaluate", "s3://"], "run 's3://' names no bucket"),
    ("evaluate-json-empty", lambda c: ["evaluate", c.world.run, "--json", ""], "--json is empty"),
    ("compare-empty", lambda c: ["compare", "", c.world.fake], "runs is empty"),
    ("compare-sweep-no-bucket", lambda c: ["compare", "--sweep", "s3://"], "--sweep 's3://' names no bucket"),
    ("pack-out-no-bucket", lambda c: c.pack("s3://"), "--out 's3://' names no bucket"),
    ("synth-no-bucket", lambda c: ["data", "synth", "s3://", "--splits", "3,3,3"], "names no bucket"),
    ("inspect-no-bucket", lambda c: ["data", "inspect", "s3://"], "names no bucket"),
    ("table-data-empty", lambda c: ["table", "main", "--data", ""], "--data is empty"),
    ("sweep-output-no-bucket", lambda c: c.sweep("--output", "s3://"), "--output 's3://' names no bucket"),
    ("sync-empty", lambda c: ["sync", ""], "run is empty"),
    ("cache-empty", lambda c: ["cache", "info", "--cache", ""], "--cache is empty"),
    # YAML
    ("recipe-not-utf8", lambda c: ["train", c.file(b"recipe: \xff\xfe")], "{folder}/bad.yaml: not UTF-8 text"),
    ("recipe-binary", lambda c: ["train", c.file(bytes(range(256)))], "{folder}/bad.yaml: not UTF-8 text"),
    ("recipe-nul", lambda c: ["train", c.file("a: \0")], "bad.yaml: not valid YAML"),
    ("recipe-deep", lambda c: ["train", c.file("a: " + "[" * 10_000)], "nested deeper than 60 levels"),
    ("recipe-deep-blocks", lambda c: ["train", c.file("\n".join(" " * n + "a:" for n in range(1000)))], "nested deeper"),
    ("recipe-bomb", lambda c: ["train", c.file(BOMB)], "counting aliases as what they stand for"),
    ("recipe-cycle", lambda c: ["train", c.file("a: &a [*a]")], "alias *a refers to a collection that contains it"),
    ("recipe-twice", lambda c: ["train", c.file("seed: 1\nseed: 2")], "seed: given twice"),
    ("recipe-huge-integer", lambda c: ["train", c.file("seed: " + "9" * 5000)], "a number or date that cannot be read"),
    ("recipe-object", lambda c: ["train", c.file("a: !!python/object/apply:os.system [ls]")], "not valid YAML"),
    ("recipe-list", lambda c: ["train", c.file("- a")], "expected keys with values, got list"),
    ("recipe-number-key", lambda c: ["train", c.file("1: a")], "1 cannot be a key"),
    ("recipe-two-documents", lambda c: ["train", c.file("a: 1\n---\nb: 2")], "expected a single document"),
    ("recipe-folder", lambda c: ["train", c.folder_at("d.yaml")], "{folder}/d.yaml"),
    ("recipe-large", lambda c: ["train", c.file("x" * 3_000_000)], "3,000,000 characters"),
    ("sweep-not-utf8", lambda c: ["sweep", c.file(b"\xff"), "--dry-run"], "not UTF-8 text"),
    ("sweep-deep", lambda c: ["sweep", c.file("[" * 10_000), "--dry-run"], "nested deeper"),
    ("table-bomb", lambda c: ["table", c.file(BOMB)], "counting aliases"),
    ("override-deep", lambda c: c.train("tracking.tags=" + "[" * 10_000), "nested deeper"),
    ("override-cycle", lambda c: c.train("tracking.tags=&a {b: *a}"), "alias *a"),
    # numbers beyond all bounds
    ("seed-huge", lambda c: c.train(f"seed={2**64}"), "seed: too large"),
    ("seed-negative", lambda c: c.train("seed=-1"), "seed: "),
    ("batch-huge", lambda c: c.train(f"train.batch_size={10**30}"), "train.batch_size: "),
    ("epochs-huge", lambda c: c.train(f"train.epochs={10**18}"), "train.epochs: "),
    ("width-huge", lambda c: c.train("model.width=100000000"), "model.width: "),
    ("synth-seed-huge", lambda c: ["data", "synth", c.folder / "o", "--seed", 2**70], "--seed"),
    ("synth-videos-huge", lambda c: ["data", "synth", c.folder / "o", "--videos", 10**12], "--videos"),
    ("synth-splits-huge", lambda c: ["data", "synth", c.folder / "o", "--splits", f"{10**20},1,1"], "--splits"),
    ("sweep-seeds-huge", lambda c: c.sweep("--seeds", "9" * 5000), "--seeds"),
    ("table-seeds-huge", lambda c: ["table", "main", "--seeds", str(2**64)], "--seeds"),
    ("sweep-file-seeds-huge", lambda c: c.sweep(seeds=[2**64]), "seeds.0: too large"),
    # damaged files of a run
    ("model-cut", lambda c: ["evaluate", c.broken("model.safetensors", cut)], "broken/model.safetensors: damaged"),
    ("model-empty", lambda c: ["evaluate", c.broken("model.safetensors", b"")], "broken/model.safetensors: damaged"),
    ("model-other-shape", lambda c: ["evaluate", c.broken("model.safetensors", other_shape)], "model.safetensors: damaged"),
    ("result-cut", lambda c: ["evaluate", c.broken("result.json", cut)], "broken/result.json: damaged, not valid JSON"),
    (
        "result-list",
        lambda c: ["evaluate", c.broken("result.json", b"[]")],
        "broken/result.json: damaged, expected a JSON object; restore it",
    ),
    ("result-without-scores", lambda c: ["evaluate", c.broken("result.json", b'{"data": {}}')], "scores missing"),
    ("result-deep", lambda c: ["evaluate", c.broken("result.json", b"[" * 100_000)], "result.json: damaged"),
    ("config-cut", lambda c: ["evaluate", c.broken("config.yaml", b"recipe: [")], "broken/config.yaml: damaged"),
    ("config-not-utf8", lambda c: ["evaluate", c.broken("config.yaml", b"\xff")], "broken/config.yaml: damaged"),
    ("config-list", lambda c: ["evaluate", c.broken("config.yaml", b"[1]")], "broken/config.yaml: damaged"),
    (
        "train-into-broken-config",
        lambda c: c.train(f"output={c.broken('config.yaml', b'a: [')}"),
        "broken/config.yaml: damaged",
    ),
    ("compare-result-cut", lambda c: ["compare", c.broken("result.json", cut, "fake")], "broken/result.json"),
    (
        "compare-result-scores",
        lambda c: [
            "compare",
            c.broken(
                "result.json", lambda r: json.dumps(json.loads(r) | {"scores": {"val": {"joint": {}}}}).encode(), "fake"
            ),
        ],
        "broken/result.json",
    ),
    ("compare-config-bomb", lambda c: ["compare", c.broken("config.yaml", BOMB.encode(), "fake")], "broken/config.yaml"),
    (
        "sweep-json-cut",
        lambda c: ["sweep", "--resume", str(Path(c.file("{", "sw/sweep.json")).parent)],
        "sw/sweep.json: damaged",
    ),
    (
        "sweep-json-list",
        lambda c: ["sweep", "--resume", str(Path(c.file("[]", "sw/sweep.json")).parent)],
        "sw/sweep.json: malformed",
    ),
    (
        "index-cut",
        lambda c: ["data", "inspect", str(Path(c.file("{", "d/index.json")).parent)],
        "d/index.json: damaged, not valid JSON",
    ),
    ("index-deep", lambda c: ["data", "inspect", str(Path(c.file("[" * 100_000, "d/index.json")).parent)], "index.json: "),
    (
        "refined-cut",
        lambda c: c.train(f"data.refined={c.file(b'PK' + b'x' * 50, 'r.npz')}"),
        "r.npz: not a file of refined labels",
    ),
    ("refined-zip", lambda c: c.train(f"data.refined={c.file(b'PK' + bytes([3, 4]) + b'x' * 50, 'r.npz')}"), "r.npz: "),
    ("ratios-list", lambda c: c.train(f"method.ratios={c.file('[1]', 'r.json')}", recipe="jomold"), "r.json"),
    ("ratios-cut", lambda c: c.train(f"method.ratios={c.file('{', 'r.json')}", recipe="jomold"), "r.json"),
    # annotations
    ("annotations-carriage-returns", lambda c: c.check("AVVP_train.csv", b"x\ty\r" * 100_000), "AVVP_train.csv"),
    ("annotations-one-line", lambda c: c.check("AVVP_train.csv", b"x" * 1_000_000), "AVVP_train.csv"),
    (
        "annotations-other-data",
        lambda c: c.check(
            "AVVP_train.csv",
            b"filename\tevent_labels\n" + b"".join(b"video%05d_0_10\tThing%d\n" % (n, n) for n in range(3000)),
        ),
        "more like this",
    ),
    ("annotations-escapes", lambda c: c.check("AVVP_train.csv", b"filename\tevent_labels\n\x1b]0;x\x07\tSpeech\n"), "\\x1b"),
    # signs that a terminal or rich obeys
    ("escape-in-output", lambda c: c.train('output="/proc/\\e[31m/[/x]"'), "/proc: cannot be written"),
    ("escape-in-recipe", lambda c: ["train", "\x1b]0;owned\x07"], "\\x1b]0;owned\\x07"),
    ("escape-in-key", lambda c: c.train("\x1b[2J=1"), "\\x1b[2J"),
    ("escape-in-option", lambda c: ["train", "han", "--\x1b[31mred"], "\\x1b[31mred"),
    ("bidi-in-value", lambda c: c.train("launch=\u202eyar"), "\\u202e"),
    ("surrogate-in-path", lambda c: ["evaluate", "a\udcffb"], "a\\udcffb"),
    ("markup-in-name", lambda c: ["data", "inspect", "[/x][red]"], "[/x][red]"),
    ("megabyte-argument", lambda c: ["train", "y" * 1_000_000], "unknown recipe"),
]


@pytest.mark.parametrize(("arguments", "expected"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_input_is_one_message_and_exit_code_2(arguments, expected, world, tmp_path, monkeypatch, capsys):
    aside = tmp_path.parent / f"{tmp_path.name}-temporary"
    aside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    monkeypatch.chdir(tmp_path)
    argv = [str(argument) for argument in arguments(Case(world, tmp_path))]
    before = found(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, err = capsys.readouterr()
    message = " ".join(err.split()) if "╭─ Error" in err else err
    assert ended.value.code == 2, out + err
    assert "Traceback" not in out + err
    assert err.count("error: ") + err.count("╭─ Error") == 1, err
    for part in [expected] if isinstance(expected, str) else expected:
        assert part.format(folder=tmp_path) in message.replace("│ │ ", ""), err
    assert len(err.splitlines()) <= LINES + 2
    assert max(map(len, err.splitlines())) <= WIDTH + len("error: ") + 1
    assert all(sign.isprintable() or sign == "\n" for sign in err), repr(err)
    assert found(tmp_path) == before
    for path in aside.iterdir():  # only what the message names
        assert str(path) in err
        assert path.stat().st_mode & 0o077 == 0


def found(folder):
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()} | {
        str(path): 0 for path in folder.rglob("*") if path.is_dir()
    }
