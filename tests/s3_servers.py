"""An in-memory S3 server (moto) for tests, and one with scripted failures."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ports import free_port

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}
"""Credentials that moto accepts, without any settings of the machine that runs the tests."""


@contextmanager
def moto() -> Iterator[str]:
    """The address of an S3 server that runs as long as the context."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    code = "from moto.server import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(endpoint, process)
        yield endpoint
    finally:
        process.terminate()
        process.wait(60)


def wait_for(endpoint: str, process: subprocess.Popen, seconds: float = 120.0) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.1)


def make_bucket(endpoint: str, name: str) -> None:
    """Create a bucket without boto, whose settings are under test. moto requires a signature but does not verify it."""
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request")
    urllib.request.urlopen(request, timeout=60).close()


class Flaky(ThreadingHTTPServer):
    """An S3 server with the same object under every name, which answers each request by the next word of ``script``.

    Words: ``whole``; ``short``, half of the body; ``reset``, half and a reset connection; ``stall``, half and then nothing;
    or a status such as ``503``, or one with S3's code such as ``409:OperationAborted``. Later answers are ``whole``.

    Attributes:
        expired: access keys whose token is refused as one that has expired.
        keys: the access key of each request.
    """

    daemon_threads = True

    def __init__(self, content: bytes, script: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), _FlakyHandler)
        self.content, self.script, self.requests = content, list(script), 0
        self.expired: set[str] = set()
        self.keys: list[str] = []
        self.over = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Flaky:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()


class _FlakyHandler(BaseHTTPRequestHandler):
    server: Flaky

    def do_GET(self) -> None:
        server = self.server
        server.requests += 1
        word = server.script.pop(0) if server.script else "whole"
        server.keys.append(self._key())
        if server.keys[-1] in server.expired:
            word = "400:ExpiredToken"
        status, _, code = word.partition(":")
        if self.headers.get("Expect", "").lower() == "100-continue":  # sent explicitly, since this server uses HTTP/1.0
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if status.isdecimal():
            body = f"<Error><Code>{code or _CODES.get(word, 'Strange')}</Code><Message>scripted</Message></Error>".encode()
            self._head(int(status), len(body))
            self.wfile.write(body)
            return
        if self.command == "PUT":
            self._head(200, 0)
            return
        self._head(200, len(server.content))
        self.wfile.write(server.content if word == "whole" else server.content[: len(server.content) // 2])
        self.wfile.flush()
        if word == "stall":
            server.over.wait(30)
        if word == "reset":  # without lingering, close sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.connection.close()
        self.close_connection = True

    do_PUT = do_GET

    def do_HEAD(self) -> None:
        server = self.server
        server.keys.append(self._key())
        self._head(400 if server.keys[-1] in server.expired else 501 if server.script else 200, len(server.content))

    def _key(self) -> str:
        return self.headers["Authorization"].partition("Credential=")[2].partition("/")[0]

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


_CODES = {
    "301": "PermanentRedirect",
    "403": "SignatureDoesNotMatch",
    "408": "RequestTimeout",
    "429": "TooManyRequests",
    "500": "InternalError",
    "503": "SlowDown",
}
