"""Faults of an object store and of a tracking server."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from benchmarks.fault_proxy import FaultProxy
from benchmarks.robustness_cases.fault_bench import TRAININGS, Bench, outputs_of
from benchmarks.robustness_cases.outcomes import Verdict, verdict
from benchmarks.robustness_cases.servers import CREDENTIALS, Store, faulty_server, free_port

Case = Callable[[], Verdict]
Fault = tuple[str, str, str, int]
"""Kind, method, part of the path, number of requests."""

STATUSES = ("503", "429", "408", "500", "409", "425")
SINGLE: tuple[Fault, ...] = (
    *((status, "GET", "train-000000", 2) for status in STATUSES),
    *((status, "PUT", "checkpoints", 1) for status in STATUSES),
    *((status, "GET", "index.json", 1) for status in ("503", "408")),
    *((status, "PUT", "result.json", 1) for status in ("503", "429")),
    *((kind, "GET", path, 1) for kind in ("reset", "short", "wrong", "drop") for path in ("train-000001", "labels.parquet")),
    ("stall", "GET", "train-000002", 1),
    ("drop", "PUT", "stages", 1),
    ("drop", "PUT", "model.safetensors", 1),
)
SERVER_FAULTS = ("500", "503", "429", "404", "401", "garbage", "html", "reset", "hang")


def cases(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Yield cases: single faults of the object store, several together, and faulty tracking servers."""
    store = Store()
    bench.runner.at_end.callback(store.close)
    store.wait()
    many = [[rng.choice(SINGLE) for _ in range(5)] for _ in range(4)]
    for number, faults in enumerate([*([fault] for fault in SINGLE), *many]):
        yield lambda number=number, faults=faults: _store_case(bench, store, number, faults)
    for fault in SERVER_FAULTS:
        yield lambda fault=fault: _tracking_case(bench, fault)
    yield lambda: _tracking_case(bench, "unavailable")


def _store_case(bench: Bench, store: Store, number: int, faults: Sequence[Fault]) -> Verdict:
    here = bench.case_folder(f"store-{number}")
    data, output = f"data/{number}", f"runs/{number}"
    store.upload(bench.fixtures.paths["data"], data)
    with FaultProxy(store.endpoint) as proxy:
        for kind, method, path, times in faults:
            proxy.inject(kind, path, times, 20.0, method)
        words = [word.replace("{data}", f"s3://{store.bucket}/{data}") for word in TRAININGS["jomold"]]
        settings = [f"output=s3://{store.bucket}/{output}", f"storage.endpoint={proxy.url}", "storage.read_timeout=1"]
        # otherwise botocore would detect corrupt bytes by the store's checksum, which not every store sends
        env = {**CREDENTIALS, "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
        full = bench.fixtures.expand([*words, *settings, f"data.cache={here}/cache"], here)
        result = bench.runner.run(full, here, env, figures=False, seconds=90)
        injected = len(proxy.hits)
    name = ", ".join(f"{kind} of {method} {path}" for kind, method, path, _ in faults)
    why = ""
    if result.code:
        why = f"exit code {result.code}"
    elif not injected:
        why = "no request was affected"
    else:
        found = json.loads(store.request("GET", f"{output}/result.json"))
        reference = bench.reference["jomold"]
        if {key: found[key] for key in reference} != reference:
            why = "result differs from an undisturbed run"
    return verdict("faults", "object store", name, why, [result], max(injected, 1))


def _tracking_case(bench: Bench, fault: str) -> Verdict:
    """Run a training whose tracking server has a fault or does not exist."""
    here = bench.case_folder(f"tracking-{fault}")
    server = nullcontext(f"http://127.0.0.1:{free_port()}") if fault == "unavailable" else faulty_server(fault)
    with server as uri:
        tracked = ["tracking=mlflow", f"tracking.uri={uri}", "tracking.flush_timeout=1", "output={here}/out"]
        full = bench.fixtures.expand([*TRAININGS["jomold"], *tracked], here)
        result = bench.runner.run(full, here, figures=False, seconds=60)
    if result.code:
        why = f"exit code {result.code}"
    elif outputs_of(here / "out") != bench.reference["jomold"]:
        why = "result differs from an undisturbed run"
    elif "Traceback" in result.text:
        why = "traceback"
    else:
        why = "" if list((here / "out" / "tracking").glob("*")) else "no journal kept for a later sync"
    return verdict("faults", "tracking server", fault, why, [result])
