"""A faulty network: an HTTP proxy in front of an S3 endpoint that corrupts chosen responses.

Faults, each of which affects the next ``times`` matching requests (GET by default):
    slowdown   503 SlowDown, as S3 responds under load
    a status   429, 408, 500, ...: that response instead of the store's
    drop       the connection is reset before the request reaches the store
    reset      the connection is reset in the middle of the body
    short      half of the body, then a clean close of the connection
    stall      half of the body, then silence for ``seconds``
    wrong      the whole body with one inverted byte, which only a hash detects
"""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["slowdown", "drop", "reset", "short", "stall", "wrong"] | str
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailers", "upgrade", "date", "server"}
_CODES = {
    "408": "RequestTimeout",
    "409": "OperationAborted",
    "425": "TooEarly",
    "429": "TooManyRequests",
    "500": "InternalError",
    "503": "SlowDown",
}


@dataclass
class Fault:
    """A fault for requests whose path contains ``match``; ``times`` counts down, -1 never ends."""

    kind: Kind
    match: str
    times: int
    seconds: float = 0.0
    method: str = "GET"


class FaultProxy:
    """Context manager; ``url`` is the endpoint to use, ``hits`` the faults injected so far, as (kind, path)."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.hits: list[tuple[Kind, str]] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def inject(self, kind: Kind, match: str = "", times: int = 1, seconds: float = 0.0, method: str = "GET") -> None:
        """Add a fault for the next ``times`` requests whose path contains ``match``; faults apply in order of addition."""
        with self._lock:
            self._faults.append(Fault(kind, match, times, seconds, method))

    def clear(self) -> None:
        """Remove all faults and hits."""
        with self._lock:
            self._faults.clear()
            self.hits.clear()

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Return the fault for this request, if any, and count it."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == method and fault.match in path:
                    fault.times -= 1
                    self.hits.append((fault.kind, path))
                    return fault
        return None

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing; tests read `FaultProxy.hits`."""

    def _forward(self) -> None:
        body = self._body()
        fault = self.owner.next_fault(self.command, self.path)
        if fault and (status := "503" if fault.kind == "slowdown" else fault.kind).isdecimal():
            error = f"<?xml version='1.0'?><Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>"
            self.respond(int(status), [("Content-Type", "application/xml")], error.encode())
            return
        if fault and fault.kind == "drop":
            self._reset()
            return
        upstream = http.client.HTTPConnection(self.owner.upstream.hostname or "", self.owner.upstream.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        upstream.request(self.command, self.path, body, headers)
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        kept = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP]
        if fault and response.status < 300:
            self._corrupt(fault, response.status, kept, content)
        else:
            self.respond(response.status, kept, content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _body(self) -> bytes:
        """Read the request's body, with a content length or chunked."""
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def respond(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    def _corrupt(self, fault: Fault, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        if fault.kind == "wrong":
            middle = len(content) // 2
            self.respond(status, headers, content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :])
            return
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        if fault.kind == "stall":
            time.sleep(fault.seconds)
        self._reset(linger=fault.kind != "reset")

    def _reset(self, linger: bool = False) -> None:
        """Close the connection; without lingering the client receives a reset instead of an end of stream."""
        if not linger:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        for end in (self.wfile, self.rfile, self.connection):  # the socket closes only when all of them are closed
            end.close()
