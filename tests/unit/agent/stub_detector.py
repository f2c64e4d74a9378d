"""A small real HTTP server in the detector's place: it keeps what it is sent and answers as a test tells it to."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vedette_events.framing import BatchHeader, decode_batch, iter_batches


@dataclass
class Scripted:
    """One answer to ``POST /v1/batches``; ``status`` 0 closes the connection without one."""

    status: int
    body: dict[str, Any] | bytes = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class StubDetector:
    """Acknowledges everything, unless a scripted answer is next.

    ``batches`` are the headers acknowledged, in order; ``records`` their decompressed records; ``arrived`` when they
    came, in ns since boot.
    """

    batches: list[BatchHeader] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    heartbeats: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str], int]] = field(default_factory=list)
    script: deque[Scripted] = field(default_factory=deque)
    filters: dict[str, Any] | None = None
    keep_records: bool = False
    connections: int = 0
    open: set[socket.socket] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)
    server: socketserver.BaseServer | None = None

    def answer(self, path: str, headers: dict[str, str], body: bytes) -> Scripted:
        """What to answer to one request."""
        with self.changed:
            try:
                return self._answer(path, headers, body)
            finally:
                self.changed.notify_all()

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> Scripted:
        frames = [] if path == "/v1/heartbeat" else list(iter_batches(body))
        self.requests.append((path, headers, len(frames)))
        filters = self.filters
        if filters is not None and headers.get("x-vedette-filters") == filters["version"]:
            filters = None
        if path == "/v1/heartbeat":
            self.heartbeats.append(json.loads(body))
            return Scripted(200, {"acknowledged": [], "filters": filters})
        if self.script:
            return self.script.popleft()
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for header, frame in frames:
            self.arrived.append(now)
            self.batches.append(header)
            if self.keep_records:
                self.records.append(decode_batch(frame)[1])
        acknowledged = [{"session": h.session, "sequence": h.sequence} for h, _ in frames]
        return Scripted(200, {"acknowledged": acknowledged, "filters": filters})

    def wait_for(self, condition: Any, timeout_s: float = 30.0) -> None:
        """Wait until ``condition()`` holds; it is looked at after each request."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "what the test waits for did not come"

    def stop(self) -> None:
        """Stop listening and break off the connections that are open."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None
        with self.changed:
            for connection in self.open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    detector: StubDetector
    disable_nagle_algorithm = False

    def setup(self) -> None:
        super().setup()
        with self.detector.changed:
            self.detector.connections += 1
            self.detector.open.add(self.connection)

    def finish(self) -> None:
        with self.detector.changed:
            self.detector.open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer = self.detector.answer(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        if answer.status == 0:
            self.close_connection = True
            return
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class _Quiet:
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed or does not trust us breaks off; that is what some tests want."""


class _UnixServer(_Quiet, socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    pass


class _TcpServer(_Quiet, ThreadingHTTPServer):
    pass


def serve_unix(detector: StubDetector, path: Path) -> str:
    """Listen on a unix socket; returns the endpoint."""
    path.unlink(missing_ok=True)
    handler = type("Handler", (_Handler,), {"detector": detector})
    return _start(detector, _UnixServer(str(path), handler), f"unix://{path}")


def serve_tls(detector: StubDetector, certificate: Path, key: Path) -> str:
    """Listen on loopback with TLS; returns the endpoint."""
    server = _TcpServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"detector": detector}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return _start(detector, server, f"https://localhost:{server.server_address[1]}")


def _start(detector: StubDetector, server: socketserver.BaseServer, endpoint: str) -> str:
    detector.server = server
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return endpoint
