"""One Ray of two CPUs for all tests of a process: starting a Ray takes ten seconds of CPU time, joining it none."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from s3_servers import ENVIRONMENT

SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""What a process has to have in its environment to join: 127.0.0.1 stays 127.0.0.1, and requests carry the user's token."""

_HOLDER = """
import json, sys
from avvp_dist.launch import ray_environment
ray_environment.prepare()
import ray
ray.init(
    address="local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000, log_to_driver=False,
    logging_level="ERROR", _system_config={"metrics_report_interval_ms": 200},
)
(node,) = ray.nodes()
address = ray.get_runtime_context().gcs_address
print(json.dumps({"address": address, "metrics": f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"}), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class RayCluster:
    """Where a running Ray is found.

    Attributes:
        address: what RAY_ADDRESS and `ray.init` take.
        metrics: host and port of what Prometheus reads.
    """

    address: str
    metrics: str

    @property
    def environment(self) -> dict[str, str]:
        """With which commands in other processes use this Ray."""
        return SETTINGS | {"RAY_ADDRESS": self.address}


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """A Ray on loopback without a dashboard; its workers have credentials for S3 and the tests' modules, but no S3 endpoint.

    Trials that end are given all the time they need: on a busy machine Tune's own patience is too short.
    """
    tests = Path(__file__).parent
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_ADDRESS", "MLFLOW_"))}
    own = SETTINGS | {
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": "0",
        "OMP_NUM_THREADS": "1",
    }
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER], env=kept | ENVIRONMENT | own, stdin=pipe, stdout=pipe, text=True
    )
    try:
        yield RayCluster(**json.loads(process.stdout.readline()))
    finally:
        process.communicate()  # end of its input: it stops its Ray and ends
