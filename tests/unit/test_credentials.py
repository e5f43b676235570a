"""Redaction of secrets in text, and addresses without their secrets."""

import logging
import pickle
import subprocess
import sys
import time

import pytest

from avvp_dist import storage
from avvp_dist.config import parse_yaml
from avvp_dist.errors import ConfigError, StorageError
from avvp_dist.experiments.recipe import RunConfig, load
from avvp_dist.experiments.sweep import SweepConfig
from avvp_dist.experiments.sweep import read as read_sweep
from avvp_dist.text import credentials
from avvp_dist.text.credentials import attach, detach, holds_credentials, redact, redact_setting
from avvp_dist.text.redacted_output import guard_output

S = "Leak17Mark"
SPELLINGS = [
    f"http://{S}@host:5000/x",
    f"http://me:{S}@host:5000/x",
    f"https://me:p@{S}@host/x",
    f"https://me:{S}/w#o?rd@host/x",
    f"https://me:{S}%40%2F@host/x",
    f"http://me:a:{S}@[::1]:5000/x",
    f"http://me:pa'{S}\"`<@host/x",
    f"postgresql+psycopg2://me:{S}@host:5432/db",
    f"postgresql://host/db?user=me&password={S}",
    f"mysql+pymysql://me:{S}@host/db?ssl_key={S}&charset=utf8",
    f"mlflow://me:{S}@host/x",
    f"s3://KEY:{S}/+abc=@bucket/x",
    f"filecache::s3://KEY:{S}@bucket/x",
    f"https://host/x?X-Amz-Signature={S}",
    f"https://host/x?a=b&whatever={S}&c",
    f"https://host/x?{S}",
    f"https://host/x#access={S}",
    f"databricks://{S}@profile",
    f"HTTP://me:{S}@HOST/x",
]


@pytest.mark.parametrize("url", SPELLINGS)
def test_addresses_are_redacted(url):
    assert holds_credentials(url)
    for text in (url, f"cannot reach '{url}', or ({url}).", f'{{"uri": "{url}", "mail": "a@b.org"}}', f"{url} x@y.org"):
        assert S not in redact(text)
        assert redact(redact(text)) == redact(text)
    assert S not in redact(f'{{"a":"{url}","b":"{url}"}}')
    assert any(place in redact(url).lower() for place in ("host", "bucket", "profile", "[::1]:5000/x"))


@pytest.mark.parametrize(
    "url",
    [
        "http://server:9000/data@v2",
        "s3://bucket/a:b@c",
        "s3://bucket/a#b",
        "abfs://container@account.dfs.core.windows.net/a",
        "http://[::1]:5000/x",
        "sqlite:////home/me@work/mlflow.db",
        "sqlite:///mlflow.db?timeout=5",
        "postgresql+psycopg2://host/db?sslmode=require",
        "mysql://one:3306,two:3306/db",
        "/folder/a?b=c#d",
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH unless",
        "optim.lr=0.001 train.epochs=3",
    ],
)
def test_text_without_secrets_is_unchanged(url):
    assert redact(f"see {url}, please.") == f"see {url}, please."
    assert not holds_credentials(url)
    if "@" not in url or url.startswith("sqlite"):  # in a server's address, "@" counts as the end of a password
        assert detach(url) == url


@pytest.mark.parametrize("url", [url for url in SPELLINGS if not url.startswith(("filecache", "https://host/x"))])
def test_a_tracking_address_is_detached_and_attached(url):
    public = load("han", [f"tracking.uri={url}"]).tracking.uri
    assert S not in public
    assert redact(public) == public
    complete = attach(public)
    assert complete is not None
    assert S in complete.with_secrets()
    assert load("han", [f"tracking.uri={public}"]).tracking.uri == public


def test_passwords_with_special_characters_are_encoded():
    public = detach("postgresql+psycopg2://me:p@ss/w#o?r%41d@host:5432/db?sslmode=require")
    assert public == "postgresql+psycopg2://host:5432/db?sslmode=require"
    assert attach(public).with_secrets() == "postgresql+psycopg2://me:p%40ss%2Fw%23o%3FrAd@host:5432/db?sslmode=require"


@pytest.mark.parametrize("variable", [credentials.TRACKING_VARIABLE, "MLFLOW_TRACKING_URI"])
def test_another_process_gets_the_secret_only_from_its_environment(variable, monkeypatch):
    code = (
        "import sys; from avvp_dist.text import credentials; found = credentials.attach(sys.argv[1]);"
        "print(found and found.password, credentials.redact('x Leak17Mark y'))"
    )
    for value, expected in ((f"http://me:{S}@far:5", f"{S} x *** y"), ("http://me:other123@elsewhere:5", f"None x {S} y")):
        monkeypatch.setenv(variable, value)
        done = subprocess.run([sys.executable, "-c", code, "http://far:5"], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AZURE_STORAGE_CONNECTION_STRING",
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "MYSQL_PWD",
        "MY_SECRET",
        "PGPASSWORD",
        "RAY_AUTH_TOKEN",
        "WANDB_API_KEY",
    ],
)
def test_secrets_of_the_environment_are_redacted_in_every_spelling(name, monkeypatch):
    monkeypatch.setenv(name, f'{S}/+"=é')
    for text in (f'{S}/+"=é', f"{S}%2F%2B%22%3D%C3%A9", f'{S}/+\\"=\\u00e9'):
        assert S not in redact(f"Authorization: {text}")


def test_words_and_numbers_are_not_secrets(monkeypatch):
    """A variable may be named like a secret although redacting its value would make files unreadable."""
    for name, value in {"PGPASSWORD": "mlflow", "A_TOKEN": "avvp_dist", "B_KEY": "12345678", "C_KEY": "0.12345678"}.items():
        monkeypatch.setenv(name, value)
    text = '{"name": "mlflow", "package": "avvp_dist", "score": 0.12345678}'
    assert redact(text) == text


def test_proxies_and_databases_of_the_environment(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{S}@proxy:3128")
    monkeypatch.setenv("ANY_NAME", f"postgresql://me:{S}/2@db/x")
    assert redact(f"proxy says {S}") == "proxy says ***"
    assert S not in redact(f"db says {S}/2")


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        (f"tracking.uri=http://me:{S}@h:5", "tracking.uri=http://h:5"),
        (f"tracking={{uri: 'http://{S}@h:5', name: mlflow}}", "tracking={uri: 'http://h:5', name: mlflow}"),
        (f"--set=tracking.uri=http://{S}@h:5", "--set=tracking.uri=http://h:5"),
        (f"--uri=http://me:{S}@h:5", "--uri=http://h:5"),
        (f"storage.secret={S}", "storage.secret='***'"),
        (f"data=s3://K:{S}@b/x", "data=s3://***@b/x"),
        ("data=s3://b/x", "data=s3://b/x"),
        ("optim.lr=1e-3", "optim.lr=1e-3"),
    ],
)
def test_settings_are_redacted_for_storage(setting, kept):
    assert redact_setting(setting) == kept
    assert credentials.redact_command_line(["sync", "x", "--uri", f"http://{S}@h:5"])[-1] == "http://h:5"


def test_sweeps_contain_no_secrets():
    _, sweep = read_sweep("jomold-denoising")
    content = sweep.model_dump() | {"title": f"see http://me:{S}@h/x", "overrides": [f"tracking.uri=http://{S}@h:5"]}
    assert S not in SweepConfig.model_validate(content).model_dump_json()
    with pytest.raises(ValueError, match="one server tracks all trials"):
        SweepConfig.model_validate(content | {"space": {"tracking.uri": {"grid": [f"http://{S}@h:5"]}}})


def test_errors_contain_no_secrets():
    for error in (ConfigError([f"x: http://me:{S}@h/x"], f"http://{S}@h"), StorageError(f"http://{S}@h", transient=True)):
        assert S not in str(error)
        assert S not in str(pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (f'uri: "http://me:{S}@h" x\n', "line 1, column"),
        (f"uri: *{S}\n", "line 1, column 6: found undefined alias"),
        (f"a: 1\nuri: !{S} x\n", "line 2, column 6"),
        (f"uri: &{S} 1\nb: &{S} 2\n", "line 2, column 4: found duplicate anchor"),
        (f"uri: http://me: {S}@h\n", "line 1"),
        (f"x: '{S}\n", "line 2"),
        (f"x: [1,\n\t{S}", "line 2, column 1: while scanning for the next token: found character '\\t'"),
        (f"%{S} 1\n", "line 2, column 1: expected '<document start>'"),
        (f"{S}\n", "expected keys with values, got str"),
    ],
)
def test_a_syntax_error_reports_the_location_but_not_the_content(text, where):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "mine.yaml")
    assert where in str(caught.value)
    assert S not in str(caught.value)


def test_invalid_values_that_may_be_secret_are_not_repeated():
    with pytest.raises(ConfigError) as caught:
        load("han", [f"tracking.tags.password=[{S}]", f"tracking.uri=[http://me:{S}@h]", f"seed=http://me:{S}@h"])
    assert S not in str(caught.value)
    assert len(caught.value.problems) == 2  # a tag may be any text


def test_text_files_contain_no_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", S)
    storage.write_text(tmp_path / "a", f"{S} http://x:y@h\n")
    assert (tmp_path / "a").read_text() == "*** http://***@h\n"
    free = load("han", [f"tracking.tags.note=http://me:{S}@h/x", "tracking.experiment=http://me:pw@h/x"])
    assert free.tracking.tags == {"note": "http://***@h/x"}
    assert free.tracking.experiment == "http://***@h/x"
    assert RunConfig.model_validate(free.model_dump()) == free


GUARDED = f"""
import logging, sys, threading, warnings
from avvp_dist.report.console import set_up_logging
set_up_logging()
logging.getLogger("library").warning("at %s", "http://me:{S}@h/x")
other = logging.StreamHandler()
logging.getLogger("other").addHandler(other)
logging.getLogger("other").propagate = False
try:
    raise ValueError("http://{S}@h")
except ValueError:
    logging.getLogger("other").exception("failed")
warnings.warn("http://me:{S}@h/x")
thread = threading.Thread(target=lambda: 1 / len(open("/http://{S}@h")))
thread.start()
thread.join()
raise KeyError("http://{S}@h")
"""


def test_logs_warnings_and_tracebacks_of_a_process_contain_no_secrets():
    done = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert S not in done.stdout + done.stderr.replace(f'"/http://{S}@h"', "")  # Python quotes its source line
    kinds = "ValueError: http://***@h", "UserWarning: http://***@h/x", "FileNotFoundError", "KeyError"
    for text in ("at http://***@h/x", *kinds):
        assert text in done.stderr


def test_redacting_a_long_text_is_fast():
    started = time.monotonic()
    redact(f'{{"a": "{1_000_000 * "x"}", "b": {[0.1] * 200_000}, "c": "http://h/x?y=1"}}')
    assert time.monotonic() - started < 5


def test_log_records_without_secrets_are_unchanged(caplog):
    guard_output()
    logging.getLogger("avvp_dist.x").warning("%s of %d", "one", 2)
    assert caplog.records[-1].args == ("one", 2)
