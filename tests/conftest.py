"""Fixtures of several test folders."""

import importlib.util
import os
import sys
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from ray_cluster import SETTINGS
from s3_servers import ENVIRONMENT, make_bucket, moto

GOLDEN = Path(__file__).parent / "golden"
STARTUP = Path(__file__).parent / "startup"
torch.set_num_threads(1)  # the tests' networks are small: more threads only wait for each other
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # where other tests keep the cores busy, 30 are too few
with pytest.MonkeyPatch.context() as _patch:
    for _name, _value in SETTINGS.items():  # Ray reads them when it is imported
        _patch.setenv(_name, _value)
    with suppress(ImportError):
        import ray  # noqa: F401
settings.register_profile("avvp", deadline=None)  # a busy machine is slow
settings.load_profile("avvp")


def _draw_no_figures() -> str:
    """Make this process and all Python processes it starts skip figures; return the variable that turns them on."""
    spec = importlib.util.spec_from_file_location("avvp_startup", STARTUP / "sitecustomize.py")
    startup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(startup)
    assert isinstance(sys.modules[startup.MODULE], startup.FiguresOnRequest), "imported before conftest.py"
    assert (Path(__file__).parents[1] / f"{startup.MODULE.replace('.', '/')}.py").is_file(), "the module was renamed"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
    return startup.SWITCH


_FIGURES = _draw_no_figures()


_SLOW = {
    "test_cache.py": {"test_killed_before_each_thing_it_does_to_the_disk"},
    "test_locks.py": {"test_a_store_that_knows_no_conditions", "test_a_killed_holder_of_another_machine_is_waited_for"},
    "test_robustness_benchmark.py": {"test_inputs_are_tried", "test_a_killed_training_is_run_again_and_compared"},
    "test_scale_benchmark.py": {"test_figures_of_few_videos"},
    "test_shards.py": {
        "test_killed_before_any_write_it_goes_on_and_ends_the_same",
        "test_killed_with_its_workers_it_goes_on_where_it_stopped",
    },
    "test_storage.py": {
        "test_not_now_is_asked_again",
        "test_giving_up_names_url_attempts_and_cause",
        "test_nobody_at_the_endpoint",
        "test_reads_that_break_off_are_made_whole",
    },
    "test_streaming.py": {"test_readers_end_with_the_trainer_however_it_ends"},
}
"""Unit tests that `make test-fast` leaves out: they take or wait for more than three seconds."""


def pytest_collection_modifyitems(items):
    for item in items:
        if getattr(item, "originalname", item.name) in _SLOW.get(item.path.name, ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def figures(monkeypatch):
    """Runs of this test draw their figures, in the processes that it starts as well."""
    monkeypatch.setenv(_FIGURES, "1")


@pytest.fixture(scope="module")
def module_figures():
    """As `figures`, for a whole module and its fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_FIGURES, "1")
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
