"""A process that has imported torch, avvp_dist and its optional libraries, and forks for every command that it runs.

    python -m benchmarks.robustness_cases.worker

Reads jobs from stdin and writes replies to stdout, one JSON object per line; see `running.Runner`, which starts it. A child
is a process with its own limits, environment and working directory; only its imports, which otherwise take five seconds of
every command, are already done.
"""

from __future__ import annotations

import atexit
import glob
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

_PRELOADED = (
    "avvp_dist.cli.main",
    "avvp_dist.experiments.run",
    "avvp_dist.experiments.comparison",
    "avvp_dist.launch.local",
    "avvp_dist.report.run_figures",
    "avvp_dist.report.compare",
    "avvp_dist.tracking.tracker",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "pandas",
    "matplotlib.backends.backend_agg",
    "mlflow",
    "s3fs",
    "optuna",
    "ray.train",
    "ray.tune",
)
_ENVIRONMENT = {  # as `avvp_dist.launch` sets it before ray is imported
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def main() -> None:
    os.environ.update(_ENVIRONMENT)
    for name in _PRELOADED:
        with suppress(ImportError):  # an optional library; a command that needs it reports that it is missing
            importlib.import_module(name)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), file=replies, flush=True)


def _serve(job: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(job)
    kill = job.get("kill")
    timed_out = False
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        passed = time.monotonic() - started
        if kill and passed >= kill["after"] and len(glob.glob(kill["pattern"])) >= kill["count"]:
            os.kill(pid, kill["signal"])
            kill = None
        if passed >= job["seconds"] and not timed_out:
            timed_out = True
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.004)
    with suppress(ProcessLookupError, PermissionError):  # its remaining child processes
        os.killpg(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": time.monotonic() - started, "timed_out": timed_out}


def _child(job: dict[str, Any]) -> None:
    """Run the job and exit."""
    code: Any = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{job['output']}.{name}", os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
        os.environ.clear()
        os.environ.update(job["env"])
        os.chdir(job["cwd"])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (job["memory"], job["memory"]))
        if job.get("file_size"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"], job["file_size"]))
        if not job.get("figures", True):
            importlib.import_module("avvp_dist.experiments.result").draw = lambda *_, **__: []  # type: ignore[attr-defined]
        if "call" in job:
            module, function = job["call"].split(":")
            getattr(importlib.import_module(module), function)(*job["words"])
        else:
            sys.argv = ["avvp", *job["words"]]
            runpy.run_module("avvp_dist", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if error.code is not None else 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:  # end as Python does, without the exit handlers of the parent
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(BaseException):
                stream.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
