"""Files that are missing, damaged or of the wrong type, and targets that cannot be written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.robustness_cases.fixtures import REPLACEMENTS, Damage, Fixtures, fifo, folder, inverted, loop, replace
from benchmarks.robustness_cases.inputs import BadInput

_SMALL_RUN = "output={here}/out {small}"
_ALL = tuple(REPLACEMENTS)
_SOME = ("missing", "half", "binary", "folder", "fifo")
_NOT_MISSING = tuple(name for name in REPLACEMENTS if name != "missing")

# (what is copied, file in it, damages, commands)
READ: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("tiny", "index.json", _ALL, ("data inspect {here}/tiny",)),
    (
        "tiny",
        "index.json",
        _SOME,
        (
            "data verify {here}/tiny --workers 1",
            f"train han data={{here}}/tiny {_SMALL_RUN}",
        ),
    ),
    ("tiny", "labels.parquet", _ALL, ("data verify {here}/tiny --workers 1",)),
    (
        "tiny",
        "labels.parquet",
        _SOME,
        (
            "data inspect {here}/tiny",
            f"train han data={{here}}/tiny {_SMALL_RUN}",
        ),
    ),
    ("tiny", "train-000000.tar", (*_ALL, "inverted"), ("data verify {here}/tiny --workers 1",)),
    ("tiny", "train-000000.tar", (*_ALL, "inverted"), (f"train han data={{here}}/tiny {_SMALL_RUN}",)),
    ("tiny", "test-000000.tar", ("missing", "half", "inverted", "fifo"), ("evaluate {run} data={here}/tiny",)),
    ("run", "config.yaml", (*_ALL, "inverted"), ("evaluate {here}/run", "compare {here}/run {other}")),
    ("run", "result.json", _ALL, ("evaluate {here}/run", "compare {here}/run {other}")),
    ("run", "model.safetensors", (*_ALL, "inverted"), ("evaluate {here}/run",)),
    ("ratios.json", "", _ALL, (f"train jomold data={{data}} method.ratios={{here}}/ratios.json {_SMALL_RUN}",)),
    ("labels", "", (*_ALL, "inverted"), (f"train valor data={{data}} data.refined={{here}}/labels.npz {_SMALL_RUN}",)),
    ("recipe", "", _ALL, ("config {here}/recipe.yaml",)),
    ("recipe", "", _SOME, (f"train {{here}}/recipe.yaml data={{tiny}} {_SMALL_RUN}",)),
    ("recipe", "", _SOME, ("sweep {here}/recipe.yaml data={tiny} --dry-run --output {here}/out",)),
    ("recipe", "", _SOME, ("table {here}/recipe.yaml --data {tiny} --output {here}/out",)),
    ("sweep.json", "", _NOT_MISSING, ("sweep --resume {here}", "compare --sweep {here}")),
    ("annotations", "AVVP_train.csv", _ALL, ("data check llp --annotations {here}/annotations",)),
    ("annotations", "AVVP_val_pd.csv", _SOME, ("data check llp --annotations {here}/annotations",)),
    ("annotations", "AVVP_eval_audio.csv", _SOME, ("data check llp --annotations {here}/annotations",)),
    (
        "annotations",
        "AVVP_eval_visual.csv",
        _ALL,
        ("data pack llp --annotations {here}/annotations --features {raw} --out {here}/out --workers 1",),
    ),
    (
        "audio",
        "FIRST.npy",
        _ALL,
        ("data labels --data {data} --audio {here}/audio --visual {visual} --out {here}/labels.npz",),
    ),
)
# a damaged file of scores is reported, and the rest is compared
PER_VIDEO = (*_NOT_MISSING, "inverted")

FEATURES = ("missing", "empty", "half", "text", "folder", "loop", "fifo")
_PACK = "data pack llp --annotations {raw} --features {here}/features --out {here}/out --workers 1"
_CHECK = "data check llp --annotations {raw} --features {here}/features --workers 1"

# command with TARGET -> alternative text that the message can name
TARGETS = {
    "evaluate {run} --json TARGET": "json",
    "compare {run} {other} --csv TARGET": "csv",
    "compare {run} {other} --markdown TARGET": "markdown",
    "compare {run} {other} --latex TARGET": "latex",
    "data check llp --annotations {raw} --json TARGET": "json",
    "data noisy-labels --data {data} --out TARGET": "out",
    "data labels --data {data} --audio {audio} --visual {visual} --out TARGET": "out",
}
FOLDERS = {
    "train han data={tiny} output=TARGET {small}": "output",
    "train han data={tiny} output={here}/out store=TARGET {small}": "store",
    "compare {run} {other} --figures TARGET": "figures",
    "data pack llp --annotations {raw} --features {raw} --workers 1 --out TARGET": "out",
    "data synth TARGET --videos 9 --layout shards --workers 1": "out",
    "data synth TARGET --videos 9 --layout official --workers 1": "out",
    "table main --data {tiny} --epochs 1 --seeds 1 --output TARGET": "output",
}


def _recipe(path: Path) -> None:
    replace(path, "recipe: han\nmodel: {name: han}\nmethod: {name: han}\n")


def _copied(what: str, file: str, damage: str) -> Callable[[Path, Fixtures], None]:
    """Return a step that damages one file of a copy."""
    change: Damage = {**REPLACEMENTS, "inverted": inverted}[damage]

    def prepare(here: Path, fixtures: Fixtures) -> None:
        if what == "recipe":
            path = here / "recipe.yaml"
            _recipe(path)
        elif what == "sweep.json":
            path = here / "sweep.json"
            replace(path, "{}")
            fixtures.copy("run", here / "runs")
        elif what == "annotations":
            for source in fixtures.paths["raw"].glob("*.csv"):
                replace(here / "annotations" / source.name, source.read_bytes())
            path = here / "annotations" / file
        else:
            copy = fixtures.copy(what, here)
            path = (next(iter(sorted(copy.glob("*.npy")))) if file == "FIRST.npy" else copy / file) if file else copy
        change(path)

    return prepare


def _features(damage: str) -> Callable[[Path, Fixtures], None]:
    def prepare(here: Path, fixtures: Fixtures) -> None:
        source = fixtures.paths["feats"]
        for path in sorted(source.rglob("*.npy")):
            target = here / "features" / "feats" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path)
        REPLACEMENTS[damage](next(iter(sorted((here / "features" / "feats" / "res152").glob("*.npy")))))

    return prepare


def _unwritable_paths(here: Path, _: Fixtures) -> None:
    """Create paths that cannot be written."""
    replace(here / "file", "a file\n")
    loop(here / "loop")
    folder(here / "folder")
    fifo(here / "fifo")


_UNWRITABLE = {
    "below a file": "{here}/file/x",
    "below a loop": "{here}/loop/x",
    "below proc": "/proc/nothing/x",
    "name too long": "{here}/" + "n" * 300,
}
# no devices, since a command that renames a file onto a device would remove it from the machine
_NO_FILE = {"a folder": "{here}/folder", "a loop": "{here}/loop", "a pipe": "{here}/fifo"}
_NO_FOLDER = {"a file": "{here}/file", "a loop": "{here}/loop"}


def cases() -> Iterator[BadInput]:
    """Yield all cases of this module."""
    for what, file, damages, commands in READ:
        for damage in damages:
            for words in commands:
                name = {"labels": "labels.npz", "recipe": "recipe.yaml"}.get(what, file or what)
                expects = r"\.npy" if file == "FIRST.npy" else re.escape(name)
                # a training creates its folder before it reads the shards
                leaves = r"out(/config\.yaml)?$" if file.endswith(".tar") and words.startswith("train") else ""
                yield BadInput(
                    f"files, {name if file != 'FIRST.npy' else 'labels'}",
                    words,
                    expects,
                    prepare=(_copied(what, file, damage),),
                    may_leave=leaves,
                    note=f"{name}: {damage}",
                )
    for damage in PER_VIDEO:
        yield BadInput(
            "files, per_video.npz",
            "compare {here}/run {ma}",
            r"per_video\.npz",
            prepare=(_copied("run", "per_video.npz", damage),),
            codes=(0, 2),
            note=damage,
        )
    for damage in FEATURES:
        for words in (_PACK, _CHECK):
            prepare = (_features(damage),)
            yield BadInput("files, features", words, r"res152/", prepare=prepare, note=damage, table=words is _CHECK)
    for table, places in ((TARGETS, _NO_FILE), (FOLDERS, _NO_FOLDER)):
        for words, option in table.items():
            for note, place in {**_UNWRITABLE, **places}.items():
                written = [word.replace("TARGET", place) for word in words.split(" ")]
                expects = f"{option}|{re.escape(place.replace('{here}/', ''))[:60]}"
                # a link to itself can be replaced by a file
                codes = (0, 2) if place == "{here}/loop" and table is TARGETS else (2,)
                expects = "" if 0 in codes else expects
                yield BadInput("targets", written, expects, prepare=(_unwritable_paths,), note=note, codes=codes, seconds=30)
