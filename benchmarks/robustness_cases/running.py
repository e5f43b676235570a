"""Runs commands of avvp_dist: in forks of warm processes, or in new processes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_CHARACTERS = 200_000
"""Characters of a stream that are kept; its whole size is measured."""
MEMORY = 6 << 30
"""Bytes of data that a command can allocate (RLIMIT_DATA)."""
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """The result of a command.

    Attributes:
        code: exit code; the negative signal number if a signal ended it.
        out, err: its output, the first `MAX_CHARACTERS` characters.
        size: bytes of both streams.
        timed_out: whether it was killed at its time limit.
    """

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    size: int
    seconds: float
    timed_out: bool

    @property
    def text(self) -> str:
        """Both streams."""
        return f"{self.out}\n{self.err}"


@dataclass(frozen=True)
class Kill:
    """A signal, sent after ``after`` seconds and once at least ``count`` files match ``pattern``."""

    signal: int
    after: float = 0.0
    pattern: str = "/"
    count: int = 1


class Runner:
    """Warm processes, each of which runs one command at a time.

    Args:
        folder: holds home, cache, temporary files and output of all commands.
        processes: number of warm processes.

    Attributes:
        at_end: callbacks at its end, such as those that stop servers.
    """

    def __init__(self, folder: Path, processes: int = 2) -> None:
        self.folder = folder
        self.processes = processes
        self.at_end = ExitStack()
        self._free: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()
        for name in ("home", "tmp", "cache", "output"):
            (folder / name).mkdir(parents=True)
        starting = [self._start() for _ in range(processes)]
        for process in starting:
            self._free.put(self._ready(process))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.at_end.close()
        while not self._free.empty():
            process = self._free.get()
            assert process.stdin
            process.stdin.close()
            process.wait(30)

    def environment(self, more: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """Return the environment of commands, with ``more``; a value of None removes a variable."""
        env: dict[str, str | None] = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(_ROOT),
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "AVVP_CACHE": str(self.folder / "cache"),
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "MPLCONFIGDIR": str(self.folder / "home"),
            "AWS_EC2_METADATA_DISABLED": "true",
            **(more or {}),
        }
        return {name: value for name, value in env.items() if value is not None}

    def run(
        self,
        words: Sequence[str],
        cwd: Path,
        env: Mapping[str, str | None] | None = None,
        *,
        seconds: float = 60.0,
        kill: Kill | None = None,
        memory: int = MEMORY,
        file_size: int | None = None,
        figures: bool = True,
        call: str | None = None,
    ) -> Result:
        """Run a command in a fork of a warm process, to its end.

        Args:
            words: the command, without ``avvp``.
            cwd: its working directory.
            env: additions to `environment`.
            seconds: time limit, after which it is killed.
            kill: a signal to send while it runs.
            memory: limit of RLIMIT_DATA.
            file_size: limit of RLIMIT_FSIZE.
            figures: False skips the figures of a run, which take most of the time of a small one.
            call: ``module:function`` to call with ``words`` instead of a command.
        """
        output = self._output_path()
        job: dict[str, Any] = {
            "words": list(words),
            "cwd": str(cwd),
            "env": self.environment(env),
            "seconds": seconds,
            "kill": asdict(kill) if kill else None,
            "memory": memory,
            "file_size": file_size,
            "figures": figures,
            "output": str(output),
        }
        process = self._free.get()
        try:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(job | ({"call": call} if call else {})) + "\n")
            process.stdin.flush()
            reply = json.loads(process.stdout.readline() or "null")
        finally:
            self._free.put(process if process.poll() is None else self._ready(self._start()))
        if reply is None:
            raise RuntimeError(f"the warm process ended while it ran {words}")
        return self._result(words, reply["code"], output, reply["seconds"], reply["timed_out"])

    def cold(
        self,
        words: Sequence[str],
        cwd: Path,
        env: Mapping[str, str | None] | None = None,
        *,
        seconds: float = 120.0,
        when: Callable[[], object] | None = None,
        act: Callable[[subprocess.Popen[bytes]], None] | None = None,
    ) -> Result:
        """Run ``python -m avvp_dist`` in a new process; call ``act`` once, as soon as ``when`` returns true."""
        output = self._output_path()
        started = time.monotonic()
        with open(f"{output}.out", "wb") as out, open(f"{output}.err", "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "avvp_dist", *words],
                cwd=cwd,
                env=self.environment(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            timed_out = False
            while process.poll() is None:
                if act and (when is None or when()):
                    act(process)
                    act = None
                if not timed_out and time.monotonic() - started > seconds:
                    timed_out = True
                    os.killpg(process.pid, signal.SIGKILL)
                time.sleep(0.01)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return self._result(words, process.returncode, output, time.monotonic() - started, timed_out)

    def map(self, function: Callable[[T], R], items: Iterable[T], done: Callable[[R], None] | None = None) -> list[R]:
        """Apply ``function`` to every item, with two more threads than warm processes, since some wait.

        ``done`` is called with each result, in one thread at a time.
        """

        def one(item: T) -> R:
            result = function(item)
            if done:
                with self._lock:
                    done(result)
            return result

        with ThreadPoolExecutor(self.processes + 2) as pool:
            return list(pool.map(one, items))

    def _output_path(self) -> Path:
        with self._lock:
            return self.folder / "output" / str(next(self._numbers))

    def _result(self, words: Sequence[str], code: int, output: Path, seconds: float, timed_out: bool) -> Result:
        texts, size = [], 0
        for name in ("out", "err"):
            path = Path(f"{output}.{name}")
            size += path.stat().st_size if path.exists() else 0
            with suppress(FileNotFoundError), path.open("rb") as file:
                texts.append(file.read(MAX_CHARACTERS).decode("utf-8", "replace"))
            path.unlink(missing_ok=True)
        out, err = (*texts, "", "")[:2]
        return Result(tuple(words), code, out, err, size, seconds, timed_out)

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.robustness_cases.worker"],
            cwd=_ROOT,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def _ready(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        assert process.stdout
        if not process.stdout.readline():
            raise RuntimeError("a warm process did not start: is avvp_dist importable?")
        return process
