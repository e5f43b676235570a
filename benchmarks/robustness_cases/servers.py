"""Servers: an object store (moto), and a tracking server with one of several faults."""

from __future__ import annotations

import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret", "AWS_DEFAULT_REGION": "us-east-1"}
"""Credentials for moto, which requires a signature but does not verify it."""
_SIGNED = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"


def free_port() -> int:
    """Return a port of the loopback interface on which no process listens."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


class Store:
    """An S3 server in a separate process, with one bucket."""

    bucket = "robustness"

    def __init__(self) -> None:
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        code = "from moto.server import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        """Wait until the server responds, and create the bucket."""
        for _ in range(600):
            try:
                self.request("PUT", "")
                return
            except OSError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError("no S3 server: `pip install 'moto[s3,server]'`")

    def request(self, method: str, name: str, content: bytes | None = None) -> bytes:
        """Send one request for an object of the bucket, and return the body of the response."""
        request = urllib.request.Request(f"{self.endpoint}/{self.bucket}/{name}", content, method=method)
        request.add_header("Authorization", _SIGNED)
        request.add_header("Content-Type", "application/octet-stream")  # otherwise moto parses the content as a form
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read()

    def upload(self, folder: Path, name: str) -> None:
        """Upload the files directly below a folder."""
        for path in folder.iterdir():
            if path.is_file():
                self.request("PUT", f"{name}/{path.name}", path.read_bytes())

    def close(self) -> None:
        """Stop the process."""
        self._process.terminate()
        self._process.wait(60)


@contextmanager
def faulty_server(fault: str) -> Iterator[str]:
    """Yield the address of an HTTP server whose every response is a status, ``garbage``, ``html``, ``reset`` or ``hang``."""
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault == "hang":
                stopping.wait(60)
            if fault in ("reset", "hang"):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            status = int(fault) if fault.isdecimal() else 200
            body = {"garbage": b'{"experiment": [', "html": b"<html>login</html>"}.get(fault)
            body = json.dumps({"error_code": "INTERNAL_ERROR", "message": "injected"}).encode() if body is None else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = respond

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        stopping.set()
        server.shutdown()
        server.server_close()
