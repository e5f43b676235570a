"""Faults of an object store and of a tracking server."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from benchmarks.fault_proxy import FaultProxy
from benchmarks.robustness_cases.report import Verdict, verdict
from benchmarks.robustness_cases.servers import CREDENTIALS, Store, free_port, ill_server

if TYPE_CHECKING:
    from benchmarks.robustness_cases.faults import Bench

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
ILLNESSES = ("500", "503", "429", "404", "401", "garbage", "html", "reset", "hang")


def cases(bench: Bench, rng: random.Random) -> Iterator[Case]:
    """Single faults of the object store, several at once, and ill tracking servers."""
    store = Store()
    bench.runner.at_end.callback(store.close)
    store.wait()
    many = [[rng.choice(SINGLE) for _ in range(5)] for _ in range(4)]
    for number, faults in enumerate([*([fault] for fault in SINGLE), *many]):
        yield lambda number=number, faults=faults: _store_case(bench, store, number, faults)
    for illness in ILLNESSES:
        yield lambda illness=illness: _tracking_case(bench, illness)
    yield lambda: _tracking_case(bench, "away")


def _store_case(bench: Bench, store: Store, number: int, faults: Sequence[Fault]) -> Verdict:
    from benchmarks.robustness_cases.faults import TRAININGS

    here = bench.place(f"store-{number}")
    data, output = f"data/{number}", f"runs/{number}"  # of its own: moto mixes up concurrent reads of one object
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


def _tracking_case(bench: Bench, illness: str) -> Verdict:
    from benchmarks.robustness_cases.faults import TRAININGS, left

    here = bench.place(f"tracking-{illness}")
    words = [word for word in TRAININGS["jomold"] if word != "{small}"]
    small = [word for word in bench.material.expand("{small}", here) if word != "tracking=none" and "epochs" not in word]

    def train(uri: str) -> tuple[str, list]:
        settings = [f"tracking.uri={uri}", "tracking.flush_timeout=1", "output={here}/out"]
        full = bench.material.expand([*words[:3], *small, *words[3:], *settings], here)
        result = bench.runner.run(full, here, pictures=False, seconds=60)
        why = "" if result.code == 0 else f"exit code {result.code}"
        if not why and left(here / "out") != bench.whole["jomold"]:
            why = "another result than undisturbed"
        if not why and "Traceback" in result.text:
            why = "traceback"
        if not why and not list((here / "out" / "tracking").glob("*")):
            why = "nothing kept for a later sync"
        return why, [result]

    if illness == "away":
        why, results = train(f"http://127.0.0.1:{free_port()}")
    else:
        with ill_server(illness) as uri:
            why, results = train(uri)
    return verdict("faults", "tracking server", illness, why, results)
