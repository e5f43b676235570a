"""Unique secrets in addresses, environment and files; everything that a command writes or prints is searched for them."""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import os
import random
import secrets as entropy
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.robustness_cases.fixtures import SMALL, Fixtures, replace
from benchmarks.robustness_cases.outcomes import Verdict, describe
from benchmarks.robustness_cases.running import Result
from benchmarks.robustness_cases.servers import CREDENTIALS, free_port

SECRET = "{secret}"
"""Placeholder of a secret, in command lines, environment and files."""
_CLOSED = "127.0.0.1:9"  # no process listens on this port
_TRACKED = (*(word for word in SMALL if word != "tracking=none"), "train.epochs=1", "tracking.flush_timeout=1")
_TRAIN = ("train", "han", "data={tiny}", "output={here}/out", *_TRACKED)

# all positions and encodings of a secret in an address
SPELLINGS = {
    "password": f"http://user:{SECRET}@{_CLOSED}",
    "user name": f"http://{SECRET}@{_CLOSED}",
    "password without user": f"http://:{SECRET}@{_CLOSED}",
    "password with @": f"http://user:p@{SECRET}@{_CLOSED}",
    "password with /": f"http://user:p/{SECRET}@{_CLOSED}",
    "password with :": f"http://user:p:{SECRET}@{_CLOSED}",
    "password encoded": f"http://user:p%40{SECRET}%2F@{_CLOSED}",
    "token": f"http://{_CLOSED}/?token={SECRET}",
    "api key": f"http://{_CLOSED}/?x=1&api_key={SECRET}",
    "access token": f"http://{_CLOSED}/?access_token={SECRET}",
    "signature": f"https://{_CLOSED}/?X-Amz-Signature={SECRET}",
    "SAS": f"https://{_CLOSED}/?sv=2024&sig={SECRET}",
    "odd name": f"http://{_CLOSED}/?pw={SECRET}",
    "fragment": f"http://{_CLOSED}/#access_token={SECRET}",
    "postgresql": f"postgresql+psycopg2://mlflow:{SECRET}@{_CLOSED}/mlflow",
    "upper case": f"HTTP://user:{SECRET}@{_CLOSED}",
}
ENVIRONMENT = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "RAY_AUTH_TOKEN",
    "WANDB_API_KEY",
    "HF_TOKEN",
    "MY_SERVICE_PASSWORD",
)
URL_KEYS = {
    "output": (),
    "store": ("output={here}/out",),
    "data": ("output={here}/out",),
    "data.refined": ("data={tiny}", "output={here}/out"),
}
BUCKETS = (f"s3://KEY:{SECRET}@bucket/x", f"s3://{SECRET}@bucket/x", f"https://bucket.example/x?X-Amz-Signature={SECRET}")
OVERRIDES = (
    f"storage.secret={SECRET}",
    f"storage.aws_secret_access_key={SECRET}",
    f"storage.endpoint=http://user:{SECRET}@{_CLOSED}",
    f"storage.token=[{SECRET}",
    f"tracking.password={SECRET}",
    f"tracking.token={SECRET}",
    f"password={SECRET}",
    f"tracking.uri=[http://user:{SECRET}@{_CLOSED}]",
    f"tracking.uri={{a: http://user:{SECRET}@{_CLOSED}",
    f"tracking.name=http://user:{SECRET}@{_CLOSED}",
    f"data.mode=http://user:{SECRET}@{_CLOSED}",
)
YAML = {
    "error in the line": f"tracking: {{name: mlflow, uri: http://user:{SECRET}@{_CLOSED}\nseed: [1\n",
    "error in the value": f'tracking:\n  uri: "http://user:{SECRET}@{_CLOSED}\n  name: x: y\n',
    "error in the next line": f"recipe: han\ntracking:\n  uri: http://user:{SECRET}@{_CLOSED}\n  name: x: y\n",
    "control character": f"tracking:\n  uri: http://user:{SECRET}@{_CLOSED}\0\n",
    "latin-1": f"# caf\xe9\ntracking:\n  uri: http://user:{SECRET}@{_CLOSED}\n",
    "unknown key": f"recipe: han\ntracking:\n  url: http://user:{SECRET}@{_CLOSED}\n",
    "wrong place": f"recipe: http://user:{SECRET}@{_CLOSED}\nmodel: 3\n",
    "a password key": f"recipe: han\nmodel: {{name: han}}\nmethod: {{name: han}}\ntracking:\n  password: {SECRET}\n",
}
READERS = (
    ("config", "{here}/given.yaml"),
    ("train", "{here}/given.yaml", "data={tiny}", "output={here}/out"),
    ("sweep", "{here}/given.yaml", "data={tiny}", "--dry-run", "--output", "{here}/out"),
    ("table", "{here}/given.yaml", "--data", "{tiny}", "--output", "{here}/out"),
)
_SWEEP = '{"title": "t", "recipe": "han", "space": {"optim.lr": {"grid": [0.001]}}, "seeds": [1]}'


@dataclass(frozen=True)
class SecretCase:
    """One command with a secret in one place.

    Attributes:
        kind: kind of place, a row of the table.
        name: one line that identifies the case.
        words: the command.
        env, files: its environment and files; files by name in the case's folder, which are not searched.
        cold: whether it runs in a new process, with its own Ray instance.
        server_folder: folder of a server, which is searched as well.
    """

    kind: str
    name: str
    words: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    cold: bool = False
    server_folder: Path | None = None


def run(fixtures: Fixtures, folder: Path, seed: int) -> Iterator[Callable[[], Verdict]]:
    """Yield a function for each case; those on Ray, which take longest, come first."""
    server = TrackingServer(folder / "server")
    fixtures.runner.at_end.callback(server.close)
    cases = list(local_cases())
    random.Random(seed).shuffle(cases)
    with_server = list(server.cases())
    for number, case in enumerate([*on_ray(), *cases, *with_server]):
        yield lambda number=number, case=case: _run_case(
            case, fixtures, folder / str(number), server if case in with_server else None
        )


def local_cases() -> Iterator[SecretCase]:
    """Yield the cases that need no server and no Ray."""
    for name, uri in SPELLINGS.items():
        yield SecretCase("tracking.uri", f"train, {name}", (*_TRAIN, f"tracking.uri={uri}"))
        yield SecretCase("tracking.uri", f"config, {name}", ("config", "han", f"tracking.uri={uri}"))
    for name in ("password", "user name", "password with @", "token", "odd name", "postgresql"):
        uri = SPELLINGS[name]
        yield SecretCase("tracking.uri", f"MLFLOW_TRACKING_URI, {name}", _TRAIN, {"MLFLOW_TRACKING_URI": uri})
        yield SecretCase("tracking.uri", f"sync, {name}", ("sync", "{here}/out", "--uri", uri), files=_unsent())
        dry = ("sweep", "{here}/given.yaml", "data={tiny}", f"tracking.uri={uri}", "--dry-run", "--output", "{here}/out")
        yield SecretCase("tracking.uri", f"sweep --dry-run, {name}", dry, files={"given.yaml": _SWEEP})
    for name in ("password", "user name", "token"):
        uri = SPELLINGS[name]
        yield SecretCase("tracking.uri", f"doctor, {name}", ("doctor", f"tracking={uri}", "output={here}/out"))
        words = ("table", "{here}/given.yaml", "--data", "{tiny}", "--output", "{here}/out", "--seeds", "1", "--epochs", "1")
        yield SecretCase(
            "tracking.uri", f"table, {name}", (*words, "--set", f"tracking.uri={uri}"), files={"given.yaml": _table()}
        )
        recipe = f"recipe: han\nmodel: {{name: han}}\nmethod: {{name: han}}\ntracking: {{name: mlflow, uri: '{uri}'}}\n"
        given = ("train", "{here}/given.yaml", *_TRAIN[2:])
        yield SecretCase("tracking.uri", f"recipe, {name}", given, files={"given.yaml": recipe})
        for command in ("evaluate", "compare", "sync"):
            files = {"run/config.yaml": recipe, "run/result.json": '{"seed": 1, "scores": {}}'}
            yield SecretCase("run folder", f"{command}, {name}", (command, "{here}/run"), files=files)
    env = dict.fromkeys(ENVIRONMENT, SECRET)
    unavailable = f"tracking.uri=http://{_CLOSED}"
    sweep = ("sweep", "{here}/given.yaml", "data={tiny}", "--dry-run", "--output", "{here}/out")
    table = ("table", "{here}/given.yaml", "--data", "{tiny}", "--output", "{here}/out", "--seeds", "1", "--epochs", "1")
    yield SecretCase("environment", "train", (*_TRAIN, unavailable), env)
    yield SecretCase(
        "environment", "inspect", ("data", "inspect", "s3://bucket/x", "--storage", f"endpoint=http://{_CLOSED}"), env
    )
    yield SecretCase("environment", "doctor", ("doctor", "data={tiny}", f"tracking=http://{_CLOSED}"), env)
    yield SecretCase("environment", "sweep --dry-run", sweep, env, {"given.yaml": _SWEEP})
    yield SecretCase("environment", "table", (*table, "--set", unavailable), env, {"given.yaml": _table()})
    yield SecretCase("environment", "sync", ("sync", "{here}/out", "--uri", f"http://{_CLOSED}"), env, _unsent())
    yield SecretCase("environment", "config", ("config", "jomold"), env)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "AWS_ENDPOINT_URL", "ALL_PROXY"):
        env = {variable: f"http://user:{SECRET}@{_CLOSED}", **CREDENTIALS}
        yield SecretCase("environment", f"inspect, {variable}", ("data", "inspect", "s3://bucket/x"), env)
    for url in BUCKETS:
        for key, more in URL_KEYS.items():
            yield SecretCase("addresses", f"train, {key}", ("train", "han", *more, *SMALL, f"{key}={url}"))
        for words in (("evaluate", url), ("compare", url), ("sync", url), ("data", "inspect", url), ("data", "verify", url)):
            yield SecretCase("addresses", " ".join(words[:-1]), words)
        yield SecretCase("addresses", "train, recipe", ("train", f"{url}.yaml"))
        yield SecretCase(
            "addresses", "data synth", ("data", "synth", url, "--videos", "9", "--layout", "shards", "--workers", "1")
        )
    for override in OVERRIDES:
        yield SecretCase("overrides", f"train, {override}", (*_TRAIN, "tracking=none", override))
        yield SecretCase("overrides", f"config, {override}", ("config", "han", override))
    for name, text in YAML.items():
        for words in READERS:
            yield SecretCase("YAML", f"{words[0]}, {name}", words, files={"given.yaml": text})


def on_ray() -> Iterator[SecretCase]:
    """Yield a sweep and a training on Ray, with secrets in all variables of the environment and the tracking address."""
    env = {variable: SECRET for variable in ENVIRONMENT if variable != "RAY_AUTH_TOKEN"} | {
        "RAY_AUTH_TOKEN": f"{SECRET}{SECRET}"
    }
    uri = f"tracking.uri={SPELLINGS['password']}"
    sweep = ("sweep", "{here}/given.yaml", "data={tiny}", uri, *_TRACKED, "--output", "{here}/out")
    yield SecretCase("on Ray", "sweep", sweep, env, {"given.yaml": _SWEEP}, cold=True)
    yield SecretCase("on Ray", "train", (*_TRAIN, uri, "launch=ray"), env, cold=True)


def _unsent() -> dict[str, str]:
    """Return the files of a run with an unsent journal, as input of `sync`."""
    return {"out/tracking/run.json": '{"key": "' + "0" * 32 + '", "started": 1}'}


def _table() -> str:
    small = ["model.width=8", "model.feedforward=8", "train.device=cpu", "tracking.flush_timeout=1"]
    row = {"label": "a", "recipe": "han", "view": "joint", "overrides": small}
    return json.dumps({"title": "t", "source": "s", "rows": [row]})


def _run_case(case: SecretCase, fixtures: Fixtures, here: Path, server: TrackingServer | None) -> Verdict:
    here.mkdir(parents=True)
    if server:
        server.wait()
    places: dict[str, str] = {}  # secret -> where it was inserted
    env = {name: _insert(value, name, places) for name, value in case.env.items()}
    words = [_insert(word, "the command line", places) for word in fixtures.expand(case.words, here)]
    files = {}
    for name, text in case.files.items():
        files[here / name] = _insert(text, name, places)
        content = files[here / name]
        replace(here / name, content.encode("latin-1" if "\xe9" in content else "utf-8"))
    homes = {"HOME": str(here / "home"), "TMPDIR": str(here / "tmp"), "AVVP_CACHE": str(here / "cache")}
    for folder in homes.values():
        Path(folder).mkdir(exist_ok=True)
    ray = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp")) if case.cold else None  # Ray's sockets need a short path
    if ray:
        homes["RAY_TMPDIR"] = homes["TMPDIR"] = str(ray)
        env |= {"RAY_AUTH_MODE": "token", "AWS_EC2_METADATA_DISABLED": "true"}
    try:
        run = fixtures.runner.cold if case.cold else fixtures.runner.run
        result = run(
            words, here, {**env, **homes}, seconds=100 if case.cold else 40, **({} if case.cold else {"figures": False})
        )
        folders = [here, *([ray] if ray else []), *([case.server_folder] if case.server_folder else [])]
        found = leaks(places, folders, result, set(files))
    finally:
        if ray:
            shutil.rmtree(ray, ignore_errors=True)
    return _verdict(case, places, found, result, here)


def _verdict(
    case: SecretCase, places: Mapping[str, str], found: dict[str, list[str]], result: Result, here: Path
) -> Verdict:
    why = "; ".join(f"the secret of {places[secret]} is in {', '.join(names[:4])}" for secret, names in found.items())
    good = len(places) - len(found)
    if result.timed_out or (result.code and (case.cold or case.server_folder)):  # these commands must succeed
        ended = "did not end" if result.timed_out else f"ended with exit code {result.code}"
        why, good = f"{why}; the command {ended}".lstrip("; "), 0
    if not why:
        shutil.rmtree(here, ignore_errors=True)
    return Verdict("secrets", case.kind, case.name, why, len(places), good, output=describe(result) if why else "")


def _insert(text: str, place: str, places: dict[str, str]) -> str:
    """Replace the placeholder of a text, if it has one, with a new secret, and record its place."""
    if SECRET not in text:
        return text
    secret = f"Zq{entropy.token_hex(9)}"
    places[secret] = place
    return text.replace(SECRET, secret)


def leaks(secrets: Iterable[str], folders: Sequence[Path], result: Result, input_files: set[Path]) -> dict[str, list[str]]:
    """Return where each secret is found, in any encoding: in output, file names, files and archives."""
    found: dict[str, list[str]] = {}
    encoded = {secret: encodings(secret) for secret in secrets}

    def search(name: str, content: bytes) -> None:
        for secret, forms in encoded.items():
            if any(form in content for form in forms):
                found.setdefault(secret, []).append(name)

    search("the output", result.text.encode())
    for folder in folders:
        for path in folder.rglob("*"):
            search("a file's name", str(path.relative_to(folder)).encode())
            if path.is_file() and not path.is_symlink() and path not in input_files:
                with suppress(OSError):
                    for content in _contents(path.read_bytes()):
                        search(str(path.relative_to(folder)), content)
    return {secret: list(dict.fromkeys(names)) for secret, names in found.items()}


def encodings(secret: str) -> list[bytes]:
    """Return a secret plain, in lower case, reversed, in hexadecimal, and in base64 at any offset."""
    plain = secret.encode()
    forms = [plain, plain.lower(), plain[::-1], binascii.hexlify(plain)]
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + plain + b"\0" * 3)
        # without the characters that also depend on neighboring bytes
        forms.append(coded[4 * offset // 3 + (offset > 0) : 4 * ((offset + len(plain)) // 3)])
    return forms


def _contents(content: bytes) -> Iterator[bytes]:
    """Yield the bytes of a file, and of the members of an archive."""
    yield content
    with suppress(OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError, RuntimeError):
        if content[:2] == b"\x1f\x8b":
            yield gzip.decompress(content)
        elif content[:4] == b"PK\3\4":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for name in archive.namelist():
                    yield name.encode() + archive.read(name)


class TrackingServer:
    """A real MLflow server, which accepts any password and stores everything in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.port = free_port()
        store = f"sqlite:///{folder}/mlflow.db"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                *("--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"),
            ],
            cwd=folder,
            env={
                **os.environ,
                "HOME": str(folder),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdout=(folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def cases(self) -> Iterator[SecretCase]:
        """Yield trainings whose tracking server is available."""
        uri = f"http://user:{SECRET}@127.0.0.1:{self.port}"
        words = tuple(word for word in _TRAIN if "flush" not in word)
        yield SecretCase("tracking server", "train, password", (*words, f"tracking.uri={uri}"), server_folder=self.folder)
        env = dict.fromkeys(ENVIRONMENT, SECRET)
        plain = f"tracking.uri=http://127.0.0.1:{self.port}"
        yield SecretCase("tracking server", "train, environment", (*words, plain), env, server_folder=self.folder)

    def wait(self) -> None:
        """Wait until the server responds."""
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"no MLflow server: {(self.folder / 'log').read_text()[-500:]}")

    def close(self) -> None:
        """Stop the server and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 15)
        self._process.wait(30)
