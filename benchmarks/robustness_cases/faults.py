"""Faults while a command runs: afterwards the same command must finish with the result of an undisturbed run."""

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
from benchmarks.robustness_cases.fault_bench import PACK, TRACEBACK, TRAININGS, Bench, outputs_of
from benchmarks.robustness_cases.fixtures import REPLACEMENTS, Fixtures, folder, half, holding, inverted, remove, replace
from benchmarks.robustness_cases.outcomes import Verdict, verdict
from benchmarks.robustness_cases.running import Kill, Result

Case = Callable[[], Verdict]

KILLS = {"jomold": 8, "ma": 4, "streaming": 4}
"""Number of cases of each training, each with up to three kills at random moments."""
STAGES = {"jomold": ("estimate", "ratios", "denoise"), "ma": ("exchange",)}
_FULL = re.compile(r"No space left|full|File too large|space", re.IGNORECASE)


def run(fixtures: Fixtures, folder: Path, seed: int) -> Iterator[Case]:
    """Run the undisturbed commands, and yield a function for each case."""
    bench = Bench(fixtures, folder)
    bench.run_references()
    rng = random.Random(seed)
    local = [*_kills(bench, rng), *_signals(bench, rng), *_full_disks(bench), *_checkpoints(bench), *_stages(bench)]
    cases = [*local, *_data(bench), *_evaluate(bench, rng), *_two_writers(bench), *faults_network.cases(bench, rng)]
    rng.shuffle(cases)
    yield from cases


def _kills(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Yield cases of ``kill -9`` at up to three random moments."""

    def case(name: str, words: Sequence[str], number: int, moments: Sequence[float]) -> Verdict:
        here, results = bench.case_folder(f"kill-{name}-{number}"), []
        for moment in moments:
            results.append(bench.run(words, here, kill=Kill(signal.SIGKILL, moment)))
            if results[-1].code != -signal.SIGKILL:
                break
        killed = sum(result.code == -signal.SIGKILL for result in results)
        why, results = bench.run_to_end(name, words, here, results)
        return verdict("faults", "kill -9", f"{name} {number}: {[f'{m:.2f} s' for m in moments]}", why, results, killed)

    for name, words in (*TRAININGS.items(), ("pack", PACK)):
        for number in range(KILLS.get(name, 10)):
            moments = [rng.uniform(0.05, bench.seconds[name]) for _ in range(3)]
            yield lambda name=name, words=words, number=number, moments=moments: case(name, words, number, moments)


def _signals(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Yield cases of SIGTERM and Ctrl-C: a checkpoint, a specific exit code, no traceback."""

    def case(kind: int, name: str, number: int, moment: float) -> Verdict:
        here, words = bench.case_folder(f"signal-{kind}-{name}-{number}"), TRAININGS[name]
        result = bench.run(words, here, kill=Kill(kind, moment, f"{here}/out/checkpoints/*.pt"))
        wrong = "" if result.code in (0, 75) else f"exit code {result.code} after the signal, expected 75"
        why, results = bench.run_to_end(name, words, here, [result], wrong)
        sent = int(result.code != 0)  # otherwise the command had ended before
        return verdict("faults", signal.Signals(kind).name, f"{name} {number}", why, results, sent)

    def twice(kind: int) -> Verdict:
        """Send the signal twice in immediate succession, to a new process."""
        here, words = bench.case_folder(f"twice-{kind}"), TRAININGS["jomold"]

        def act(process: subprocess.Popen[bytes]) -> None:
            process.send_signal(kind)
            process.send_signal(kind)

        full = bench.fixtures.expand([*words, "output={here}/out"], here)
        result = bench.runner.cold(full, here, when=lambda: any(here.glob("out/checkpoints/*.pt")), act=act)
        wrong = "" if result.code in (0, 75, 128 + kind, -kind) else f"exit code {result.code}"
        why, results = bench.run_to_end("jomold", words, here, [result], wrong)
        return verdict("faults", signal.Signals(kind).name, "jomold, twice, new process", why, results, tried=2)

    for kind in (signal.SIGTERM, signal.SIGINT):
        for name in TRAININGS:
            for number in range(2):
                moment = rng.uniform(0.1, 0.8 * bench.seconds[name])
                yield lambda kind=kind, name=name, number=number, moment=moment: case(kind, name, number, moment)
        yield lambda kind=kind: twice(kind)


def _full_disks(bench: Bench) -> Iterator[Case]:
    """Yield cases of a disk that becomes full: one message, and with free space the same result."""

    def check(name: str, words: Sequence[str], limit: str, here: Path, result: Result) -> Verdict:
        wrong = ""
        if result.code == 0:
            wrong = "succeeded in spite of the full disk"
        elif TRACEBACK in result.text or not _FULL.search(result.text):
            wrong = "no message about the full disk" if TRACEBACK not in result.text else "traceback"
        why, results = bench.run_to_end(name, words, here, [result], wrong)
        return verdict("faults", "disk full", f"{name}, {limit}", why, results)

    def limited(name: str, words: Sequence[str], size: int) -> Verdict:
        here = bench.case_folder(f"limit-{name}-{size}")
        result = bench.run(words, here, file_size=size)
        return check(name, words, f"files of {size:,} bytes at most", here, result)

    def mounted(name: str, words: Sequence[str], kilobytes: int) -> Verdict:
        here = bench.case_folder(f"full-{name}-{kilobytes}")
        (here / "out").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(here / "out")]
        if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
            return limited(name, words, kilobytes * 512)
        try:
            result = bench.run(words, here)
            subprocess.run(["mount", "-o", "remount,size=1g", str(here / "out")], check=True)
            return check(name, words, f"{kilobytes:,} KB free", here, result)
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
    """Yield cases of a damaged newest checkpoint: training resumes from the one before it, or starts from scratch."""
    damages = {**{name: REPLACEMENTS[name] for name in ("empty", "half", "text", "folder")}, "inverted": inverted}

    def case(name: str, note: str, damage: Callable[[Path], None] | None) -> Verdict:
        here, words = bench.case_folder(f"checkpoint-{name}-{note}"), TRAININGS[name]
        result = bench.run(words, here, kill=Kill(signal.SIGKILL, 0.0, f"{here}/out/checkpoints/*.pt", 2))
        found = sorted((here / "out" / "checkpoints").glob("*.pt"))
        if result.code == 0 or not found:
            return verdict(
                "faults", "checkpoint damaged", f"{name}, {note}", "the run ended before it had two checkpoints", [result]
            )
        if damage:
            damage(found[-1])
        else:  # files of other programs
            replace(found[-1].with_name("99999999.pt"), "not a checkpoint of avvp_dist\n")
            replace(found[-1].with_name("model_best.pt"), b"PK\3\4" + b"\0" * 100)
        why, results = bench.run_to_end(name, words, here, [result])
        if not why and damage and found[-1].name not in results[-1].err:
            why = f"no message names {found[-1].name}"
        return verdict("faults", "checkpoint damaged", f"{name}, {note}", why, results)

    for name in ("jomold", "streaming"):
        for note, damage in (*damages.items(), ("foreign files", None)):
            yield lambda name=name, note=note, damage=damage: case(name, note, damage)


def _stages(bench: Bench) -> Iterator[Case]:
    """Yield cases of a damaged artifact of a finished stage: it is computed again, with a message."""

    def case(name: str, stage: str, file: str, damage: Callable[[Path], None]) -> Verdict:
        here, words = bench.case_folder(f"stage-{name}-{stage}-{file}-{damage.__name__}"), TRAININGS[name]
        first = bench.run(words, here)
        path = next((here / "out" / "stages").glob(f"{stage}-*")) / file
        if not path.exists():
            return verdict("faults", "stage damaged", f"{stage}/{file}", "the run has no such file", [first])
        damage(path)
        (here / "out" / "result.json").unlink()
        why, results = bench.run_to_end(name, words, here, [first])
        output = results[-1].err + results[-1].out
        if not why and file != "stage.json" and path.parent.name not in output:
            why = f"no message names {path.parent.name}"
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
                        continue  # the stage is then unfinished, which is what the file states
                    yield lambda name=name, stage=stage, file=file, damage=damage: case(name, stage, file, damage)


def _data(bench: Bench) -> Iterator[Case]:
    """Yield cases of a shard that changes during training: an error names the shard, or a copy makes it harmless."""

    def truncate(path: Path) -> None:
        os.truncate(path, path.stat().st_size // 2)

    def overwrite(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 4)
            file.write(b"\xff" * (path.stat().st_size // 2))

    def case(name: str, damage: Callable[[Path], None], number: int) -> Verdict:
        here = bench.case_folder(f"data-{name}-{damage.__name__}-{number}")
        shutil.copytree(bench.fixtures.paths["data"], here / "data")
        words = [word.replace("{data}", "{here}/data") for word in TRAININGS[name]]
        shard = here / "data" / "train-000001.tar"

        def train() -> Result:
            return bench.run(words, here)

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(train)
            while not running.done():
                if any(here.glob("out/checkpoints/*.pt")):
                    damage(shard)
                    break
            result = running.result()
        wrong = ""
        if result.code < 0:
            wrong = f"ended by signal {-result.code}"
        elif result.code == 0 and outputs_of(here / "out") != bench.reference[name]:
            wrong = "trained on unverified bytes"
        elif result.code and shard.name not in result.text:
            wrong = f"no message names {shard.name}"
        replace(shard, (bench.fixtures.paths["data"] / shard.name).read_bytes())
        why, results = bench.run_to_end(name, words, here, [result], wrong)
        return verdict("faults", "shard changed during a run", f"{name}, {damage.__name__} {number}", why, results)

    for name in ("jomold", "streaming"):
        for damage in (truncate, overwrite, remove, folder):
            for number in range(2):
                yield lambda name=name, damage=damage, number=number: case(name, damage, number)


def _evaluate(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Yield cases of ``kill -9`` during an evaluation."""

    def case(number: int, moments: Sequence[float]) -> Verdict:
        here = bench.case_folder(f"evaluate-{number}")
        shutil.copytree(bench.fixtures.paths["run"], here / "run")
        expected = (here / "run" / "per_video.npz").read_bytes()
        remove(here / "run" / "per_video.npz")
        words = ["evaluate", str(here / "run"), "--json", str(here / "scores.json")]
        results = [bench.runner.run(words, here, kill=Kill(signal.SIGKILL, moment)) for moment in moments]
        killed = sum(result.code == -signal.SIGKILL for result in results)
        last = bench.runner.run(words, here)
        why = "" if last.code == 0 and "result.json reproduced" in last.out else f"exit code {last.code}, or not reproduced"
        if not why and (here / "run" / "per_video.npz").read_bytes() != expected:
            why = "per-video scores differ"
        if not why and "scores" not in json.loads((here / "scores.json").read_text()):
            why = "no scores"
        return verdict("faults", "kill -9", f"evaluate {number}", why, [*results, last], killed)

    for number in range(6):
        moments = [rng.uniform(0.01, 0.2) for _ in range(3)]
        yield lambda number=number, moments=moments: case(number, moments)


def _two_writers(bench: Bench) -> Iterator[Case]:
    """Yield cases of the same command started twice: one waits, or ends with a message about the other."""

    def case(name: str, words: Sequence[str]) -> Verdict:
        here = bench.case_folder(f"two-{name}")
        target = ["--out", "{here}/out"] if name == "pack" else ["output={here}/out"]
        full = bench.fixtures.expand([*words, *target], here)

        def one(number: int) -> Result:
            (here / f"tmp{number}").mkdir()
            return bench.runner.cold(full, here, {"TMPDIR": str(here / f"tmp{number}")})

        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(one, range(2)))
        codes = sorted(result.code for result in both)
        wrong = "" if codes in ([0, 0], [0, 2]) else f"exit codes {codes}, expected 0 and 0, or 0 and 2"
        why, results = bench.run_to_end(name, words, here, both, wrong)
        return verdict("faults", "two writers", name, why, results)

    yield lambda: case("jomold", TRAININGS["jomold"])
    yield lambda: case("pack", PACK)
