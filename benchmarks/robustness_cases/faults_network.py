"""Faults of an object store and of a tracking server."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

from benchmarks.fault_proxy import FaultProxy
from benchmarks.robustness_cases.fault_bench import TRAININGS, Bench, left
from benchmarks.robustness_cases.report import Verdict, verdict
from benchmarks.robustness_cases.servers import CREDENTIALS, Store, faulty_server, free_port

Case = Callable[[], Verdict]
Fault = tuple[str, str, str, int]
"""Kind, method, part of the path, times."""

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
    """Single faults of the object store, several at once, and faulty tracking servers."""
    store = Store()
    bench.runner.at_end.callback(store.close)
    store.wait()
    many = [[rng.choice(SINGLE) for _ in range(5)] for _ in range(4)]
    for number, faults in enumerate([*([fault] for fault in SINGLE), *many]):
        yield lambda number=number, faults=faults: _store_case(bench, store, number, faults)
    for fault in SERVER_FAULTS:
        yield lambda fault=fault: _tracking_case(bench, fault)
    yield lambda: _tracking_case(bench, "away")


def _store_case(bench: Bench, store: Store, number: int, faults: Sequence[Fault]) -> Verdict:
    here = bench.place(f"store-{number}")
    data, output = f"data/{number}", f"runs/{number}"
    store.upload(bench.material.paths["data"], data)
    with FaultProxy(store.endpoint) as proxy:
        for kind, method, path, times in faults:
            proxy.inject(kind, path, times, 20.0, method)
        words = [word.replace("{data}", f"s3://{store.bucket}/{data}") for word in TRAININGS["jomold"]]
        where = [f"output=s3://{store.bucket}/{output}", f"storage.endpoint={proxy.url}", "storage.read_timeout=1"]
        # botocore would find wrong bytes by the store's own checksum, which not every store sends
        env = {**CREDENTIALS, "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
        full = bench.material.expand([*words, *where, f"data.cache={here}/cache"], here)
        result = bench.runner.run(full, here, env, pictures=False, seconds=90)
        met = len(proxy.hits)
    name = ", ".join(f"{kind} of {method} {path}" for kind, method, path, _ in faults)
    why = ""
    if result.code:
        why = f"exit code {result.code}"
    elif not met:
        why = "no request met the fault"
    else:
        found = json.loads(store.request("GET", f"{output}/result.json"))
        whole = bench.whole["jomold"]
        if {key: found[key] for key in whole} != whole:
            why = "another result than undisturbed"
    return verdict("faults", "object store", name, why, [result], max(met, 1))


def _tracking_case(bench: Bench, fault: str) -> Verdict:
    """A training whose tracking server has a fault, or is not there."""
    here = bench.place(f"tracking-{fault}")
    server = nullcontext(f"http://127.0.0.1:{free_port()}") if fault == "away" else faulty_server(fault)
    with server as uri:
        tracked = ["tracking=mlflow", f"tracking.uri={uri}", "tracking.flush_timeout=1", "output={here}/out"]
        full = bench.material.expand([*TRAININGS["jomold"], *tracked], here)
        result = bench.runner.run(full, here, pictures=False, seconds=60)
    if result.code:
        why = f"exit code {result.code}"
    elif left(here / "out") != bench.whole["jomold"]:
        why = "another result than undisturbed"
    elif "Traceback" in result.text:
        why = "traceback"
    else:
        why = "" if list((here / "out" / "tracking").glob("*")) else "nothing kept for a later sync"
    return verdict("faults", "tracking server", fault, why, [result])
