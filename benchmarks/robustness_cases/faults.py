"""Faults while a command works: afterwards the same command runs to its end, and leaves what an undisturbed one leaves."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.robustness_cases import faults_network
from benchmarks.robustness_cases.fault_bench import PACK, TRACEBACK, TRAININGS, Bench, left
from benchmarks.robustness_cases.material import DAMAGES, Material, folder, half, holding, inverted, remove, replace
from benchmarks.robustness_cases.report import Verdict, verdict
from benchmarks.robustness_cases.running import Kill, Result

Case = Callable[[], Verdict]

KILLS = {"jomold": 8, "ma": 4, "streaming": 4}
"""Cases of each training, each of up to three kills at random moments."""
STAGES = {"jomold": ("estimate", "ratios", "denoise"), "ma": ("exchange",)}
_FULL = re.compile(r"No space left|full|File too large|space", re.IGNORECASE)


def run(material: Material, folder: Path, seed: int) -> Iterator[Case]:
    """A function for each case; undisturbed runs come first."""
    bench = Bench(material, folder)
    bench.learn()
    rng = random.Random(seed)
    local = [*_kills(bench, rng), *_signals(bench, rng), *_full_disks(bench), *_checkpoints(bench), *_stages(bench)]
    cases = [*local, *_data(bench), *_evaluate(bench, rng), *_two_writers(bench), *faults_network.cases(bench, rng)]
    rng.shuffle(cases)
    yield from cases


def _kills(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Random moments of ``kill -9``, up to three in a case."""

    def case(name: str, words: Sequence[str], number: int, moments: Sequence[float]) -> Verdict:
        here, results = bench.place(f"kill-{name}-{number}"), []
        for moment in moments:
            results.append(bench.run(words, here, kill=Kill(signal.SIGKILL, moment)))
            if results[-1].code != -signal.SIGKILL:
                break
        killed = sum(result.code == -signal.SIGKILL for result in results)
        why, results = bench.ends_well(name, words, here, results)
        return verdict("faults", "kill -9", f"{name} {number}: {[f'{m:.2f} s' for m in moments]}", why, results, killed)

    for name, words in (*TRAININGS.items(), ("pack", PACK)):
        for number in range(KILLS.get(name, 10)):
            moments = [rng.uniform(0.05, bench.seconds[name]) for _ in range(3)]
            yield lambda name=name, words=words, number=number, moments=moments: case(name, words, number, moments)


def _signals(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """SIGTERM and Ctrl-C: a checkpoint, an exit code of its own, no traceback."""

    def case(kind: int, name: str, number: int, moment: float) -> Verdict:
        here, words = bench.place(f"signal-{kind}-{name}-{number}"), TRAININGS[name]
        result = bench.run(words, here, kill=Kill(kind, moment, f"{here}/out/checkpoints/*.pt"))
        wrong = "" if result.code in (0, 75) else f"exit code {result.code} after the signal, expected 75"
        why, results = bench.ends_well(name, words, here, [result], wrong)
        sent = int(result.code != 0)  # else it had ended before
        return verdict("faults", signal.Signals(kind).name, f"{name} {number}", why, results, sent)

    def twice(kind: int) -> Verdict:
        """In a process of its own, the signal and at once again."""
        here, words = bench.place(f"twice-{kind}"), TRAININGS["jomold"]

        def act(process: subprocess.Popen[bytes]) -> None:
            process.send_signal(kind)
            process.send_signal(kind)

        full = bench.material.expand([*words, "output={here}/out"], here)
        result = bench.runner.cold(full, here, when=lambda: any(here.glob("out/checkpoints/*.pt")), act=act)
        wrong = "" if result.code in (0, 75, 128 + kind, -kind) else f"exit code {result.code}"
        why, results = bench.ends_well("jomold", words, here, [result], wrong)
        return verdict("faults", signal.Signals(kind).name, "jomold, twice, new process", why, results, tried=2)

    for kind in (signal.SIGTERM, signal.SIGINT):
        for name in TRAININGS:
            for number in range(2):
                moment = rng.uniform(0.1, 0.8 * bench.seconds[name])
                yield lambda kind=kind, name=name, number=number, moment=moment: case(kind, name, number, moment)
        yield lambda kind=kind: twice(kind)


def _full_disks(bench: Bench) -> Iterator[Case]:
    """A disk that fills up while a command writes: one message, and with room again the same result."""

    def judged(name: str, words: Sequence[str], what: str, here: Path, result: Result) -> Verdict:
        wrong = ""
        if result.code == 0:
            wrong = "ended well in spite of it"
        elif TRACEBACK in result.text or not _FULL.search(result.text):
            wrong = "no message that says so" if TRACEBACK not in result.text else "traceback"
        why, results = bench.ends_well(name, words, here, [result], wrong)
        return verdict("faults", "disk full", f"{name}, {what}", why, results)

    def limited(name: str, words: Sequence[str], size: int) -> Verdict:
        here = bench.place(f"limit-{name}-{size}")
        result = bench.run(words, here, file_size=size)
        return judged(name, words, f"files of {size:,} bytes at most", here, result)

    def mounted(name: str, words: Sequence[str], kilobytes: int) -> Verdict:
        here = bench.place(f"full-{name}-{kilobytes}")
        (here / "out").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(here / "out")]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            return limited(name, words, kilobytes * 512)
        try:
            result = bench.run(words, here)
            subprocess.run(["mount", "-o", "remount,size=1g", str(here / "out")], check=True)
            return judged(name, words, f"{kilobytes:,} KB of room", here, result)
        finally:
            subprocess.run(["umount", "-l", str(here / "out")], check=False)

    for size in (100, 20_000):
        yield lambda size=size: limited("jomold", TRAININGS["jomold"], size)
        yield lambda size=size: limited("pack", PACK, size)
    for kilobytes in (8, 150, 500):
        yield lambda kilobytes=kilobytes: mounted("jomold", TRAININGS["jomold"], kilobytes)
    for kilobytes in (8, 300, 1500):
        yield lambda kilobytes=kilobytes: mounted("pack", PACK, kilobytes)


def _checkpoints(bench: Bench) -> Iterator[Case]:
    """The newest checkpoint is damaged: the one before it, or the beginning, is gone on from."""
    damages = {**{name: DAMAGES[name] for name in ("empty", "half", "text", "folder")}, "inverted": inverted}

    def case(name: str, note: str, damage: Callable[[Path], None] | None) -> Verdict:
        here, words = bench.place(f"checkpoint-{name}-{note}"), TRAININGS[name]
        result = bench.run(words, here, kill=Kill(signal.SIGKILL, 0.0, f"{here}/out/checkpoints/*.pt", 2))
        found = sorted((here / "out" / "checkpoints").glob("*.pt"))
        if result.code == 0 or not found:
            return verdict("faults", "checkpoint damaged", f"{name}, {note}", "the run ended before it had two", [result])
        if damage:
            damage(found[-1])
        else:  # files of somebody else
            replace(found[-1].with_name("99999999.pt"), "not a checkpoint of ours\n")
            replace(found[-1].with_name("model_best.pt"), b"PK\3\4" + b"\0" * 100)
        why, results = bench.ends_well(name, words, here, [result])
        if not why and damage and found[-1].name not in results[-1].err:
            why = f"nothing said about {found[-1].name}"
        return verdict("faults", "checkpoint damaged", f"{name}, {note}", why, results)

    for name in ("jomold", "streaming"):
        for note, damage in (*damages.items(), ("foreign files", None)):
            yield lambda name=name, note=note, damage=damage: case(name, note, damage)


def _stages(bench: Bench) -> Iterator[Case]:
    """An artifact of a finished stage is damaged: it is computed again, and said so."""

    def case(name: str, stage: str, file: str, damage: Callable[[Path], None]) -> Verdict:
        here, words = bench.place(f"stage-{name}-{stage}-{file}-{damage.__name__}"), TRAININGS[name]
        first = bench.run(words, here)
        path = next((here / "out" / "stages").glob(f"{stage}-*")) / file
        if not path.exists():
            return verdict("faults", "stage damaged", f"{stage}/{file}", "the run left no such file", [first])
        damage(path)
        (here / "out" / "result.json").unlink()
        why, results = bench.ends_well(name, words, here, [first])
        said = results[-1].err + results[-1].out
        if not why and file != "stage.json" and path.parent.name not in said:
            why = f"nothing said about {path.parent.name}"
        return verdict("faults", "stage damaged", f"{name}, {stage}/{file}, {damage.__name__}", why, results)

    empty, text = holding(b""), holding("{}")
    empty.__name__, text.__name__ = "empty", "text"
    files = {"estimate": ("model.safetensors", "stage.json"), "ratios": ("ratios.json",), "exchange": ("refined.npz",)}
    files["denoise"] = ("model.safetensors", "removed.npz")
    for name, stages in STAGES.items():
        for stage in stages:
            for file in files[stage]:
                for damage in (half, inverted, remove, empty, text):
                    if file == "stage.json" and damage is remove:
                        continue  # then the stage is not finished: that is what the file is for
                    yield lambda name=name, stage=stage, file=file, damage=damage: case(name, stage, file, damage)


def _data(bench: Bench) -> Iterator[Case]:
    """A shard changes while a run trains on it: the run ends by the shard's name, or does not notice since it has a copy."""

    def truncate(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def overwrite(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 4)
            file.write(b"\xff" * (path.stat().st_size // 2))

    def case(name: str, damage: Callable[[Path], None], number: int) -> Verdict:
        here = bench.place(f"data-{name}-{damage.__name__}-{number}")
        shutil.copytree(bench.material.paths["data"], here / "data")
        words = [word.replace("{data}", "{here}/data") for word in TRAININGS[name]]
        shard = here / "data" / "train-000001.tar"

        def look() -> Result:
            return bench.run(words, here)

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(look)
            while not running.done():
                if any(here.glob("out/checkpoints/*.pt")):
                    damage(shard)
                    break
            result = running.result()
        wrong = ""
        if result.code < 0:
            wrong = f"ended by signal {-result.code}"
        elif result.code == 0 and left(here / "out") != bench.whole[name]:
            wrong = "trained on what it had not checked"
        elif result.code and shard.name not in result.text:
            wrong = f"nothing said about {shard.name}"
        replace(shard, (bench.material.paths["data"] / shard.name).read_bytes())
        why, results = bench.ends_well(name, words, here, [result], wrong)
        return verdict("faults", "shard changed during a run", f"{name}, {damage.__name__} {number}", why, results)

    for name in ("jomold", "streaming"):
        for damage in (truncate, overwrite, remove, folder):
            for number in range(2):
                yield lambda name=name, damage=damage, number=number: case(name, damage, number)


def _evaluate(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """The same for evaluations."""

    def case(number: int, moments: Sequence[float]) -> Verdict:
        here = bench.place(f"evaluate-{number}")
        shutil.copytree(bench.material.paths["run"], here / "run")
        whole = (here / "run" / "per_video.npz").read_bytes()
        remove(here / "run" / "per_video.npz")
        words = ["evaluate", str(here / "run"), "--json", str(here / "scores.json")]
        results = [bench.runner.run(words, here, kill=Kill(signal.SIGKILL, moment)) for moment in moments]
        killed = sum(result.code == -signal.SIGKILL for result in results)
        last = bench.runner.run(words, here)
        why = "" if last.code == 0 and "result.json reproduced" in last.out else f"exit code {last.code}, or not reproduced"
        if not why and (here / "run" / "per_video.npz").read_bytes() != whole:
            why = "other scores of videos"
        if not why and "scores" not in json.loads((here / "scores.json").read_text()):
            why = "no scores"
        return verdict("faults", "kill -9", f"evaluate {number}", why, [*results, last], killed)

    for number in range(6):
        moments = [rng.uniform(0.01, 0.2) for _ in range(3)]
        yield lambda number=number, moments=moments: case(number, moments)


def _two_writers(bench: Bench) -> Iterator[Case]:
    """The same command twice at once, with other folders for temporary files: one waits or is told who is there."""

    def case(name: str, words: Sequence[str]) -> Verdict:
        here = bench.place(f"two-{name}")
        target = ["--out", "{here}/out"] if name == "pack" else ["output={here}/out"]
        full = bench.material.expand([*words, *target], here)

        def one(number: int) -> Result:
            (here / f"tmp{number}").mkdir()
            return bench.runner.cold(full, here, {"TMPDIR": str(here / f"tmp{number}")})

        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(one, range(2)))
        codes = sorted(result.code for result in both)
        wrong = "" if codes in ([0, 0], [0, 2]) else f"exit codes {codes}, expected 0 and 0, or 0 and 2"
        why, results = bench.ends_well(name, words, here, both, wrong)
        return verdict("faults", "two writers", name, why, results)

    yield lambda: case("jomold", TRAININGS["jomold"])
    yield lambda: case("pack", PACK)
