"""Fixtures of several test folders."""

import gc
import os
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings
from ray_cluster import SETTINGS
from s3_servers import ENVIRONMENT, make_bucket, moto

GOLDEN = Path(__file__).parent / "golden"
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # where other tests keep the cores busy, 30 are too few
os.environ.setdefault("RAY_worker_niceness", "0")  # with Ray's own 15, its workers would wait for the tests beside them
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process for each run; no node here is reclaimed
settings.register_profile("avvp", deadline=None)  # a busy machine is slow
settings.load_profile("avvp")


# drawing takes nine tenths of the CPU time of a run as small as the tests train; the fixture `figures` turns it on
os.environ["AVVP_FIGURES"] = "0"


@pytest.fixture
def figures(monkeypatch):
    """Runs of this test draw their figures, in the processes that it starts as well."""
    monkeypatch.setenv("AVVP_FIGURES", "1")


@pytest.fixture(scope="module")
def module_figures():
    """As `figures`, for a whole module and its fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVVP_FIGURES", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep the shards that tests fetch out of the user's cache."""
    os.environ["AVVP_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["AVVP_CACHE"]


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden files (outputs of the authors' published code)."""
    return GOLDEN


@pytest.fixture(scope="session")
def llp_annotations() -> Path:
    """Folder of the official LLP annotation files; skip the test if it is missing."""
    folder = Path(os.environ.get("AVVP_LLP_ANNOTATIONS", Path(__file__).parents[2] / "shared" / "llp"))
    if not (folder / "AVVP_train.csv").is_file():
        pytest.skip(f"LLP annotation files not found in {folder}; set AVVP_LLP_ANNOTATIONS to their folder")
    return folder


@pytest.fixture(scope="session")
def ave_annotations() -> Path:
    """Folder of the official AVE annotation files; skip the test if it is missing."""
    folder = Path(os.environ.get("AVVP_AVE_ANNOTATIONS", Path(__file__).parents[2] / "shared" / "ave"))
    if not (folder / "Annotations.txt").is_file():
        pytest.skip(f"AVE annotation files not found in {folder}; set AVVP_AVE_ANNOTATIONS to their folder")
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> str:
    """A small synthetic data set in shards; 62 training videos divide by no world size the tests use."""
    from avvp_dist.datasets import synthetic

    out = str(tmp_path_factory.mktemp("data") / "packed")
    synthetic.write(out, videos=None, seed=0, layout="shards", splits=(62, 14, 14), workers=1, shard_videos=16)
    return out


@pytest.fixture(scope="session")
def cluster():
    """A Ray of two CPUs that the tests of this process share; see `ray_cluster`."""
    pytest.importorskip("ray")
    from ray_cluster import ray_cluster

    with ray_cluster() as running:
        yield running


@pytest.fixture(scope="module")
def joined(cluster):
    """The shared Ray, which this process has joined as a driver."""
    import ray

    from avvp_dist.launch import ray_environment

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "0")
        ray_environment.prepare()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()


@pytest.fixture(scope="session")
def s3_server():
    """Address of an S3 server that all tests share."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with moto() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_server, monkeypatch) -> str:
    """URL of an empty bucket; this process and its children have the endpoint and credentials in their environment."""
    from avvp_dist import storage
    from avvp_dist.storage.config import StorageConfig

    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_S3_"))]:
        monkeypatch.delenv(name)
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": s3_server}).items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    make_bucket(s3_server, bucket)
    yield f"s3://{bucket}"
    storage.configure(StorageConfig())


def pytest_collection(session):
    """Import what needs settings first. The process that only hands out tests to others imports nothing."""
    if session.config.getoption("numprocesses", None):
        return
    import torch

    torch.set_num_threads(1)  # the tests' networks are small: more threads only wait for each other
    with pytest.MonkeyPatch.context() as patch, suppress(ImportError):
        for name, value in SETTINGS.items():  # Ray reads them when it is imported
            patch.setenv(name, value)
        import ray  # noqa: F401


def pytest_collection_finish():
    """Keep the million objects of imported modules out of every garbage collection."""
    gc.freeze()
