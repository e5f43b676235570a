"""Object storage: the same functions as for a disk, retries of temporary errors, and clear messages for permanent ones."""

import itertools
import pickle
import subprocess
import sys
import time

import pytest
from ports import free_port
from s3_servers import Flaky

from avvp_dist import storage
from avvp_dist.errors import ConfigError, StorageError
from avvp_dist.experiments.recipe import load
from avvp_dist.storage.config import StorageConfig
from avvp_dist.text.credentials import redact


def test_files_and_folders_behave_as_on_a_disk(s3):
    url = storage.join(s3, "folder", "a.txt")
    assert not storage.exists(url)
    assert storage.names(storage.join(s3, "folder")) == []
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(url)
    storage.write_text(url, "one")
    storage.write_text(url, "two")
    storage.write_bytes(storage.join(s3, "folder", "deeper", "b"), b"\0" * 1000)
    storage.write_text(storage.join(s3, "folder-next-door"), "stays")
    assert storage.read_text(url) == "two"
    assert storage.size(storage.join(s3, "folder", "deeper", "b")) == 1000
    assert storage.names(storage.join(s3, "folder")) == ["a.txt", "deeper"]
    assert storage.exists(storage.join(s3, "folder"))
    assert storage.local_path(url) is None
    assert storage.absolute(url) == url
    storage.remove(storage.join(s3, "folder"))
    storage.remove(storage.join(s3, "folder"))
    assert storage.names(s3) == ["folder-next-door"]


def test_writes_of_other_processes_are_visible_immediately(s3):
    url = storage.join(s3, "folder", "late")
    storage.write_text(storage.join(s3, "folder", "early"), "")
    assert storage.names(storage.join(s3, "folder")) == ["early"]
    code = f"from avvp_dist import storage; storage.write_text({url!r}, 'here')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert storage.exists(url)
    assert storage.read_text(url) == "here"


def test_the_endpoint_can_be_set(s3, s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    storage.configure(StorageConfig(endpoint=s3_server, region="eu-west-1", addressing="path"))
    storage.write_text(storage.join(s3, "a"), "b")
    assert storage.settings().endpoint == s3_server
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert storage.read_text(storage.join(s3, "a")) == "b"


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://all:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://s3:2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "default")
    monkeypatch.setenv("AWS_REGION", "region")
    assert StorageConfig().resolved() == StorageConfig(endpoint="http://s3:2", region="region")
    assert StorageConfig(endpoint="http://mine", region="here").resolved() == StorageConfig(
        endpoint="http://mine", region="here"
    )
    monkeypatch.setenv("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", "virtual")
    assert StorageConfig(addressing="path").mlflow_environment() == {"MLFLOW_S3_ENDPOINT_URL": "http://s3:2"}
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert StorageConfig().resolved().endpoint is None


CONTENT = bytes(range(256)) * 4000


@pytest.fixture
def flaky_settings(s3):
    """Configures a flaky server: retries as by default, but with a read timeout that suits a test."""

    def configure(server, retries=4):
        storage.configure(StorageConfig(endpoint=server.endpoint, retries=retries, read_timeout=2))

    return configure


@pytest.mark.slow
def test_interrupted_reads_are_repeated(flaky_settings, caplog):
    with Flaky(CONTENT, ["503", "short", "reset", "stall"]) as server:
        flaky_settings(server)
        assert storage.read_bytes("s3://bucket/shard.tar") == CONTENT
        assert server.requests == 5
    assert caplog.text.count("s3://bucket/shard.tar: read broke off") == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "cause"), [("short", "512000 of 1024000 bytes"), ("stall", "ReadTimeoutError"), ("500", "InternalError")]
)
def test_giving_up_names_url_attempts_and_cause(flaky_settings, word, cause):
    with Flaky(CONTENT, [word] * 100) as server:
        flaky_settings(server, retries=1)
        with pytest.raises(StorageError) as caught:
            storage.read_bytes("s3://bucket/shard.tar")
        assert server.requests == 2
    assert "s3://bucket/shard.tar: gave up trying to read it after 2 attempts" in str(caught.value)
    assert cause in str(caught.value)
    assert caught.value.transient
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.transient) == (str(caught.value), True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", ["408", "408:Strange", "409:OperationAborted", "409:ConditionalRequestConflict", "425", "429", "429:SlowDown"]
)
def test_temporary_refusals_are_retried(flaky_settings, word, caplog):
    with Flaky(CONTENT, [word, word]) as server:
        flaky_settings(server)
        assert storage.read_bytes("s3://bucket/shard.tar") == CONTENT
        storage.write_bytes("s3://bucket/result.json", b"{}")
        assert server.requests == 4
    with Flaky(CONTENT, [word] * 100) as server:
        flaky_settings(server, retries=2)
        with pytest.raises(StorageError, match="gave up trying to write it after 3 attempts") as caught:
            storage.write_bytes("s3://bucket/result.json", b"{}")
        assert server.requests == 3
        assert caught.value.transient


@pytest.mark.parametrize("word", ["409:BucketAlreadyExists", "409:BucketNotEmpty", "412:PreconditionFailed"])
def test_a_permanent_conflict_is_reported_immediately(flaky_settings, word):
    with Flaky(CONTENT, [word] * 100) as server:
        flaky_settings(server)
        with pytest.raises(StorageError, match="cannot write it, the store refuses"):
            storage.write_bytes("s3://bucket/result.json", b"{}")
        assert server.requests == 1


@pytest.fixture
def profile(tmp_path, monkeypatch, s3):
    """Writes the credentials of this process to a file, as tools that fetch session tokens do."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    def write(key):
        lines = ["[default]", f"aws_access_key_id={key}", "aws_secret_access_key=abc", f"aws_session_token=of-{key}"]
        (tmp_path / "credentials").write_text("\n".join(lines))

    return write


@pytest.mark.parametrize(
    "call",
    [storage.read_bytes, storage.exists, lambda url: storage.write_bytes(url, b""), storage.size],
    ids=["read", "exists", "write", "size"],
)
def test_credentials_are_read_again_once_after_a_token_expired(flaky_settings, profile, call, caplog):
    profile("OLD")
    with Flaky(CONTENT, []) as server:
        flaky_settings(server)
        call("s3://bucket/shard.tar")
        profile("NEW")
        call("s3://bucket/shard.tar")
        assert set(server.keys) == {"OLD"}, "credentials are not read again while they work"
        server.keys.clear()
        server.expired = {"OLD"}
        call("s3://bucket/shard.tar")
        call("s3://bucket/shard.tar")
        assert [key for key, _ in itertools.groupby(server.keys)] == ["OLD", "NEW"]
        assert caplog.text.count("reading credentials again") == 1


@pytest.mark.slow
def test_a_token_that_stays_expired_is_an_error(flaky_settings, profile):
    profile("OLD")
    with Flaky(CONTENT, []) as server:
        flaky_settings(server)
        server.expired = {"OLD"}
        with pytest.raises(StorageError, match=r"does not accept these credentials \(ExpiredToken\); set AWS_ACCESS_KEY_ID"):
            storage.read_bytes("s3://bucket/shard.tar")
        assert server.keys == ["OLD", "OLD"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("403", "does not accept these credentials (SignatureDoesNotMatch); set AWS_ACCESS_KEY_ID"),
        ("301", "bucket 'bucket' is in another region"),
        ("405", "cannot read it, the store refuses"),
    ],
)
def test_a_refusal_is_reported_immediately(flaky_settings, word, message):
    with Flaky(CONTENT, [word] * 100) as server:
        flaky_settings(server, retries=8)
        started = time.monotonic()
        with pytest.raises(StorageError) as caught:
            storage.read_bytes("s3://bucket/shard.tar")
        assert time.monotonic() - started < 60  # without eight retries
        assert server.requests <= 2
    assert message in str(caught.value)
    assert not caught.value.transient


@pytest.mark.parametrize(
    "call",
    [
        storage.read_bytes,
        storage.exists,
        storage.names,
        storage.size,
        storage.remove,
        lambda url: storage.write_bytes(url, b""),
    ],
)
def test_a_missing_bucket_differs_from_a_missing_file(s3, call):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/a/b: there is no bucket 'no-such-bucket'"):
        call("s3://no-such-bucket/a/b")


def test_no_credentials(s3, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    storage.configure(StorageConfig(region="nowhere-1"))  # other settings, so that no cached client has credentials
    with pytest.raises(StorageError, match=r"no usable credentials .*set AWS_ACCESS_KEY_ID"):
        storage.read_bytes(f"{s3}/a")
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    storage.configure(StorageConfig(region="nowhere-2"))
    with pytest.raises(StorageError, match=r"no usable credentials .*no-such-profile"):
        storage.read_bytes(f"{s3}/a")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:{port}", "http://no-such-host.invalid"])
def test_no_server_at_the_endpoint(s3, endpoint):
    endpoint = endpoint.format(port=free_port())
    storage.configure(StorageConfig(endpoint=endpoint))
    started = time.monotonic()
    with pytest.raises(StorageError, match="cannot connect to") as caught:
        storage.read_bytes(f"{s3}/a")
    assert time.monotonic() - started < 100
    assert endpoint in str(caught.value)
    assert "storage.endpoint" in str(caught.value)


def test_other_urls():
    storage.write_text("memory://folder/a", "b")
    assert storage.names("memory://folder") == ["a"]
    with pytest.raises(ConfigError, match="abc://x/y: not a usable URL"):
        storage.read_bytes("abc://x/y")


SECRET = "hunter2"


@pytest.mark.parametrize(
    "override",
    [
        f"storage.key={SECRET}",
        f"storage.secret={SECRET}",
        f"storage.aws_session_token={SECRET}",
        f"storage.endpoint=http://me:{SECRET}@server:9000",
        f"storage.endpoint=me:{SECRET}@server",
        f"storage.secret=[{SECRET}",
        f"data=s3://me:{SECRET}@bucket/data",
        f"output=https://server/run?X-Amz-Signature={SECRET}",
        f"method.ratios=s3://me:{SECRET}@bucket/ratios.json",
    ],
)
def test_credentials_are_refused_and_not_repeated(override):
    with pytest.raises(ConfigError) as caught:
        load("jomold", ["data=x", override])
    assert SECRET not in str(caught.value)
    if "[" not in override:
        assert "AWS_ACCESS_KEY_ID" in str(caught.value)


@pytest.mark.parametrize("call", [storage.read_bytes, storage.exists, storage.names])
def test_urls_with_credentials_are_not_opened(call):
    with pytest.raises(ConfigError) as caught:
        call(f"s3://me:{SECRET}@bucket/a")
    assert SECRET not in str(caught.value)
    assert "s3://***@bucket/a" in str(caught.value)


def test_harmless_urls_are_not_taken_for_credentials():
    for url in ("abfs://container@account.dfs.core.windows.net/a", "http://server:9000/data@v2", "s3://bucket/a:b@c"):
        load("jomold", [f"data={url}"])
    assert redact("http://server/a?X-Amz-Credential=abc&b=c") == "http://server/a?X-Amz-Credential=***&b=***"
