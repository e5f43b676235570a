"""Marked secrets in addresses, environment and files: searched in everything that a command leaves and prints."""

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

from benchmarks.robustness_cases.material import SMALL, Material, replace
from benchmarks.robustness_cases.report import Verdict, told
from benchmarks.robustness_cases.running import Result
from benchmarks.robustness_cases.servers import CREDENTIALS, free_port

SECRET = "{secret}"
"""Placeholder of a marked secret, in words, environment and files."""
_CLOSED = "127.0.0.1:9"  # nobody listens there
_TRACKED = (*(word for word in SMALL if word != "tracking=none"), "train.epochs=1", "tracking.flush_timeout=1")
_TRAIN = ("train", "han", "data={tiny}", "output={here}/out", *_TRACKED)

# every spelling in which an address carries a secret
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
    "a password of its own": f"recipe: han\nmodel: {{name: han}}\nmethod: {{name: han}}\ntracking:\n  password: {SECRET}\n",
}
READERS = (
    ("config", "{here}/given.yaml"),
    ("train", "{here}/given.yaml", "data={tiny}", "output={here}/out"),
    ("sweep", "{here}/given.yaml", "data={tiny}", "--dry-run", "--output", "{here}/out"),
    ("table", "{here}/given.yaml", "--data", "{tiny}", "--output", "{here}/out"),
)
_SWEEP = '{"title": "t", "recipe": "han", "space": {"optim.lr": {"grid": [0.001]}}, "seeds": [1]}'


@dataclass(frozen=True)
class Planted:
    """One secret in one place of one command.

    Attributes:
        kind: what kind of place.
        name: the case in a line.
        words: of the command.
        env, files: what else it sees; files by their name in the case's folder, which are not searched.
        cold: whether it runs as a process of its own, on a Ray of its own.
        beside: a folder that is searched, too: where a server keeps what it was told.
    """

    kind: str
    name: str
    words: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    cold: bool = False
    beside: Path | None = None


def run(material: Material, folder: Path, seed: int) -> Iterator[Callable[[], Verdict]]:
    """A function for each case; those on Ray, which take longest, come first."""
    server = TrackingServer(folder / "server")
    material.runner.at_end.callback(server.close)
    cases = list(planted())
    random.Random(seed).shuffle(cases)
    late = list(server.cases())
    for number, case in enumerate([*on_ray(), *cases, *late]):
        yield lambda number=number, case=case: _try(case, material, folder / str(number), server if case in late else None)


def planted() -> Iterator[Planted]:
    """All cases that need no server and no Ray."""
    for name, uri in SPELLINGS.items():
        yield Planted("tracking.uri", f"train, {name}", (*_TRAIN, f"tracking.uri={uri}"))
        yield Planted("tracking.uri", f"config, {name}", ("config", "han", f"tracking.uri={uri}"))
    for name in ("password", "user name", "password with @", "token", "odd name", "postgresql"):
        uri = SPELLINGS[name]
        yield Planted("tracking.uri", f"MLFLOW_TRACKING_URI, {name}", _TRAIN, {"MLFLOW_TRACKING_URI": uri})
        yield Planted("tracking.uri", f"sync, {name}", ("sync", "{here}/out", "--uri", uri), files=_unsent())
        dry = ("sweep", "{here}/given.yaml", "data={tiny}", f"tracking.uri={uri}", "--dry-run", "--output", "{here}/out")
        yield Planted("tracking.uri", f"sweep --dry-run, {name}", dry, files={"given.yaml": _SWEEP})
    for name in ("password", "user name", "token"):
        uri = SPELLINGS[name]
        yield Planted("tracking.uri", f"doctor, {name}", ("doctor", f"tracking={uri}", "output={here}/out"))
        words = ("table", "{here}/given.yaml", "--data", "{tiny}", "--output", "{here}/out", "--seeds", "1", "--epochs", "1")
        yield Planted(
            "tracking.uri", f"table, {name}", (*words, "--set", f"tracking.uri={uri}"), files={"given.yaml": _table()}
        )
        recipe = f"recipe: han\nmodel: {{name: han}}\nmethod: {{name: han}}\ntracking: {{name: mlflow, uri: '{uri}'}}\n"
        given = ("train", "{here}/given.yaml", *_TRAIN[2:])
        yield Planted("tracking.uri", f"recipe, {name}", given, files={"given.yaml": recipe})
        for command in ("evaluate", "compare", "sync"):
            files = {"run/config.yaml": recipe, "run/result.json": '{"seed": 1, "scores": {}}'}
            yield Planted("run folder", f"{command}, {name}", (command, "{here}/run"), files=files)
    env = dict.fromkeys(ENVIRONMENT, SECRET)
    away = f"tracking.uri=http://{_CLOSED}"
    sweep = ("sweep", "{here}/given.yaml", "data={tiny}", "--dry-run", "--output", "{here}/out")
    table = ("table", "{here}/given.yaml", "--data", "{tiny}", "--output", "{here}/out", "--seeds", "1", "--epochs", "1")
    yield Planted("environment", "train", (*_TRAIN, away), env)
    yield Planted(
        "environment", "inspect", ("data", "inspect", "s3://bucket/x", "--storage", f"endpoint=http://{_CLOSED}"), env
    )
    yield Planted("environment", "doctor", ("doctor", "data={tiny}", f"tracking=http://{_CLOSED}"), env)
    yield Planted("environment", "sweep --dry-run", sweep, env, {"given.yaml": _SWEEP})
    yield Planted("environment", "table", (*table, "--set", away), env, {"given.yaml": _table()})
    yield Planted("environment", "sync", ("sync", "{here}/out", "--uri", f"http://{_CLOSED}"), env, _unsent())
    yield Planted("environment", "config", ("config", "jomold"), env)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "AWS_ENDPOINT_URL", "ALL_PROXY"):
        env = {variable: f"http://user:{SECRET}@{_CLOSED}", **CREDENTIALS}
        yield Planted("environment", f"inspect, {variable}", ("data", "inspect", "s3://bucket/x"), env)
    for url in BUCKETS:
        for key, more in URL_KEYS.items():
            yield Planted("addresses", f"train, {key}", ("train", "han", *more, *SMALL, f"{key}={url}"))
        for words in (("evaluate", url), ("compare", url), ("sync", url), ("data", "inspect", url), ("data", "verify", url)):
            yield Planted("addresses", " ".join(words[:-1]), words)
        yield Planted("addresses", "train, recipe", ("train", f"{url}.yaml"))
        yield Planted(
            "addresses", "data synth", ("data", "synth", url, "--videos", "9", "--layout", "shards", "--workers", "1")
        )
    for override in OVERRIDES:
        yield Planted("overrides", f"train, {override}", (*_TRAIN, "tracking=none", override))
        yield Planted("overrides", f"config, {override}", ("config", "han", override))
    for name, text in YAML.items():
        for words in READERS:
            yield Planted("YAML", f"{words[0]}, {name}", words, files={"given.yaml": text})


def on_ray() -> Iterator[Planted]:
    """A sweep and a training on Ray, every variable of the environment and the tracking server's address marked."""
    env = {variable: SECRET for variable in ENVIRONMENT if variable != "RAY_AUTH_TOKEN"} | {
        "RAY_AUTH_TOKEN": f"{SECRET}{SECRET}"
    }
    uri = f"tracking.uri={SPELLINGS['password']}"
    sweep = ("sweep", "{here}/given.yaml", "data={tiny}", uri, *_TRACKED, "--output", "{here}/out")
    yield Planted("on Ray", "sweep", sweep, env, {"given.yaml": _SWEEP}, cold=True)
    yield Planted("on Ray", "train", (*_TRAIN, uri, "launch=ray"), env, cold=True)


def _unsent() -> dict[str, str]:
    """A run whose tracking is not sent: what `sync` begins with."""
    return {"out/tracking/run.json": '{"key": "' + "0" * 32 + '", "started": 1}'}


def _table() -> str:
    small = ["model.width=8", "model.feedforward=8", "train.device=cpu", "tracking.flush_timeout=1"]
    row = {"label": "a", "recipe": "han", "protocol": "joint", "overrides": small}
    return json.dumps({"title": "t", "source": "s", "columns": {"segment": ["type"]}, "rows": [row]})


def _try(case: Planted, material: Material, here: Path, server: TrackingServer | None) -> Verdict:
    here.mkdir(parents=True)
    if server:
        server.wait()
    marks: dict[str, str] = {}  # by the secret, where it is planted
    env = {name: _mark(value, name, marks) for name, value in case.env.items()}
    words = [_mark(word, "the command line", marks) for word in material.expand(case.words, here)]
    files = {}
    for name, text in case.files.items():
        files[here / name] = _mark(text, name, marks)
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
        run = material.runner.cold if case.cold else material.runner.run
        result = run(
            words, here, {**env, **homes}, seconds=100 if case.cold else 40, **({} if case.cold else {"pictures": False})
        )
        places = [here, *([ray] if ray else []), *([case.beside] if case.beside else [])]
        found = leaks(marks, places, result, set(files))
    finally:
        if ray:
            shutil.rmtree(ray, ignore_errors=True)
    return _verdict(case, marks, found, result, here)


def _verdict(case: Planted, marks: Mapping[str, str], found: dict[str, list[str]], result: Result, here: Path) -> Verdict:
    why = "; ".join(f"that of {marks[mark]} is in {', '.join(places[:4])}" for mark, places in found.items())
    good = len(marks) - len(found)
    if result.timed_out or (result.code and (case.cold or case.beside)):  # a command that has to do all that it does
        ended = "did not end" if result.timed_out else f"ended with exit code {result.code}"
        why, good = f"{why}; the command {ended}".lstrip("; "), 0
    if not why:
        shutil.rmtree(here, ignore_errors=True)
    return Verdict("secrets", case.kind, case.name, why, len(marks), good, output=told(result) if why else "")


def _mark(text: str, place: str, marks: dict[str, str]) -> str:
    """Fills a new marked secret into a text that has a place for one, and notes where."""
    if SECRET not in text:
        return text
    mark = f"Zq{entropy.token_hex(9)}"
    marks[mark] = place
    return text.replace(SECRET, mark)


def leaks(marks: Iterable[str], places: Sequence[Path], result: Result, planted_files: set[Path]) -> dict[str, list[str]]:
    """Where which marked secret is found, in whatever spelling: in the streams, in files, and in archives among them."""
    found: dict[str, list[str]] = {}
    spelled = {mark: spellings(mark) for mark in marks}

    def search(name: str, content: bytes) -> None:
        for mark, forms in spelled.items():
            if any(form in content for form in forms):
                found.setdefault(mark, []).append(name)

    search("the output", result.text.encode())
    for place in places:
        for path in place.rglob("*"):
            search("a file's name", str(path.relative_to(place)).encode())
            if path.is_file() and not path.is_symlink() and path not in planted_files:
                with suppress(OSError):
                    for content in _contents(path.read_bytes()):
                        search(str(path.relative_to(place)), content)
    return {mark: list(dict.fromkeys(names)) for mark, names in found.items()}


def spellings(mark: str) -> list[bytes]:
    """A secret plain, in lower case, backwards, in hexadecimal, and in base64 wherever it begins."""
    plain = mark.encode()
    forms = [plain, plain.lower(), plain[::-1], binascii.hexlify(plain)]
    for offset in range(3):
        coded = base64.b64encode(b"\0" * offset + plain + b"\0" * 3)
        # characters that its neighbours have a part in are left away
        forms.append(coded[4 * offset // 3 + (offset > 0) : 4 * ((offset + len(plain)) // 3)])
    return forms


def _contents(content: bytes) -> Iterator[bytes]:
    """A file's bytes, and those of what it packs."""
    yield content
    with suppress(OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError, RuntimeError):
        if content[:2] == b"\x1f\x8b":
            yield gzip.decompress(content)
        elif content[:4] == b"PK\3\4":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                for name in archive.namelist():
                    yield name.encode() + archive.read(name)


class TrackingServer:
    """A real MLflow server, which takes any password; whatever it is told it keeps in one folder."""

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

    def cases(self) -> Iterator[Planted]:
        """A training and a sync whose server answers."""
        uri = f"http://user:{SECRET}@127.0.0.1:{self.port}"
        words = tuple(word for word in _TRAIN if "flush" not in word)
        yield Planted("answered", "train, password", (*words, f"tracking.uri={uri}"), beside=self.folder)
        env = dict.fromkeys(ENVIRONMENT, SECRET)
        plain = f"tracking.uri=http://127.0.0.1:{self.port}"
        yield Planted("answered", "train, environment", (*words, plain), env, beside=self.folder)

    def wait(self) -> None:
        """Returns once it answers."""
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"no MLflow server: {(self.folder / 'log').read_text()[-500:]}")

    def close(self) -> None:
        """Ends it with its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 15)
        self._process.wait(30)
