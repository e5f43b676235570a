"""The short rehearsal of a cluster: three nodes, an elastic run, one node killed; see cluster/rehearsal.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNSHARE = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]

for module in ("ray", "mlflow", "s3fs", "moto.server"):
    pytest.importorskip(module)


def namespaces() -> bool:
    try:
        options = [] if os.getuid() == 0 else ["--map-root-user"]
        return subprocess.run([*UNSHARE, *options, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not namespaces(), reason="namespaces cannot be made here")
def test_an_elastic_run_shrinks_with_the_loss_of_a_node_and_grows_with_another():
    command = [str(ROOT / "cluster" / "rehearsal.sh"), "--short"]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rehearsal passed" in done.stdout
