"""Carries a behaviour out: the place, the attacker's side of the network, the command."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.attacks.catalogue import Behaviour
from tools.attacks.programs import DIRECTORY, ensure_programs
from tools.containers import (
    ATTACKER_V4,
    ATTACKER_V6,
    LOCAL_V4,
    RESOLVER_V4,
    Container,
    HostSandbox,
    Place,
    ensure_rootfs,
)
from tools.containers.place import in_network_of, listening_socket

_COMMANDS = (b"id\n", b"exit\n")


@dataclass(frozen=True)
class Performed:
    """What came of carrying a behaviour out.

    Attributes:
        began: ns since boot (CLOCK_BOOTTIME) before the command was started.
        ended: ns since boot after it had ended.
        container_id: the container it ran in, None on the host.
        returncode: the command's exit status; None when it had to be killed.
        output: what it printed.
        conversation: what the attacker's side received.
    """

    behaviour: Behaviour
    began: int
    ended: int
    container_id: str | None
    returncode: int | None
    output: str
    conversation: bytes


def boottime_ns() -> int:
    """Now, ns since boot, suspend included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Attacker:
    """The far side: listens where the behaviour connects to, or connects to where it listens."""

    def __init__(self, behaviour: Behaviour, pid: int, port: int, port2: int, directory: Path) -> None:
        self.received = b""
        self._directory = directory
        self._done = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        kind = behaviour.listener
        if kind == "udp":
            for address in (ATTACKER_V4,):
                self._start(self._datagrams, listening_socket(pid, address, port, socket.SOCK_DGRAM))
        elif kind is not None:
            for address in (ATTACKER_V4, ATTACKER_V6, "127.0.0.1"):
                self._start(self._accept, listening_socket(pid, address, port), kind)
            self._start(self._accept, listening_socket(pid, ATTACKER_V4, port2), "hold")
            if kind == "hold":
                self._start(self._accept, listening_socket(pid, RESOLVER_V4, 53), "hold")
        if behaviour.dial:
            self._start(self._dial, pid, port)

    def _start(self, target: Any, *arguments: Any) -> None:
        for argument in arguments:
            if isinstance(argument, socket.socket):
                argument.settimeout(0.2)
                self._sockets.append(argument)
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, kind: str) -> None:
        while not self._done.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(0.2)
                    self._serve(connection, kind)

    def _serve(self, connection: socket.socket, kind: str) -> None:
        if kind == "http":
            self._receive(connection, 0.3, b"\r\n\r\n")
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\ntrue\n")
            return
        if kind == "tls":
            certificate, key = self._certificate()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            connection.settimeout(3)
            connection = context.wrap_socket(connection, server_side=True)
            connection.settimeout(0.2)
        self._converse(connection, _COMMANDS if kind in ("shell", "tls") else ())

    def _converse(self, connection: socket.socket, commands: tuple[bytes, ...]) -> None:
        for command in commands:
            time.sleep(0.1)  # as a person types: after the shell has come up
            connection.sendall(command)
            self._receive(connection, 3 if command != commands[-1] else 1, b"uid=")
        if not commands:
            self._receive(connection, 2, b"\0nothing sends this\0")
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _receive(self, connection: socket.socket, timeout_s: float, until: bytes) -> None:
        until_time = time.monotonic() + timeout_s
        got = b""
        while time.monotonic() < until_time and not self._done.is_set():
            try:
                data = connection.recv(4096)
            except TimeoutError:
                continue
            if not data:
                return
            got += data
            self.received += data
            if until in got:
                return

    def _datagrams(self, listener: socket.socket) -> None:
        peers: set[Any] = set()
        while not self._done.is_set():
            with contextlib.suppress(OSError):
                data, peer = listener.recvfrom(4096)
                self.received += data
                if peer not in peers:
                    peers.add(peer)
                    for command in _COMMANDS:
                        time.sleep(0.1)
                        listener.sendto(command, peer)

    def _dial(self, pid: int, port: int) -> None:
        for _ in range(50):
            if self._done.is_set():
                return
            try:
                connection = in_network_of(pid, lambda: socket.create_connection((LOCAL_V4, port), timeout=1))
            except OSError:
                time.sleep(0.1)
                continue
            connection.settimeout(0.2)
            with connection, contextlib.suppress(OSError):
                self._converse(connection, _COMMANDS)
            return

    def _certificate(self) -> tuple[Path, Path]:
        certificate, key = self._directory / "cert.pem", self._directory / "key.pem"
        subprocess.run(
            [
                *(
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:P-256",
                    "-nodes",
                    "-days",
                    "1",
                ),
                *("-subj", "/CN=attacker.example", "-keyout", str(key), "-out", str(certificate)),
            ],
            check=True,
            capture_output=True,
        )
        return certificate, key

    def close(self) -> None:
        """End all conversations."""
        self._done.set()
        for thread in self._threads:
            thread.join(timeout=5)
        for made in self._sockets:
            made.close()


@contextlib.contextmanager
def open_place(behaviour: Behaviour) -> Iterator[Container | HostSandbox]:
    """Make the place that a behaviour needs."""
    if behaviour.where == "host":
        with HostSandbox() as sandbox:
            yield sandbox
        return
    with tempfile.TemporaryDirectory(prefix="vedette-runc-") as runc_copy:
        (Path(runc_copy) / "runc").write_bytes(b"not really runc\n")
        mounts: list[Mapping[str, Any]] = [
            {**mount, "source": str(mount["source"]).replace("{runc_copy}", runc_copy)} for mount in behaviour.mounts
        ]
        with Container(
            ensure_rootfs(),
            layers=(ensure_programs(),),
            privileged=behaviour.privileged,
            capabilities=behaviour.capabilities,
            mounts=mounts,
        ) as container:
            container.run(["mkdir", "-p", "/tmp/work"])
            yield container


def command_of(behaviour: Behaviour, place: Place, port: int, port2: int) -> list[str]:
    """The behaviour's command with its words in braces replaced; pure."""
    on_host = isinstance(place, HostSandbox)
    words = {
        "{ip}": ATTACKER_V4,
        "{ip6}": ATTACKER_V6,
        "{port}": str(port),
        "{port2}": str(port2),
        "{local}": LOCAL_V4,
        "{resolver}": RESOLVER_V4,
        "{bin}": str(ensure_programs() / DIRECTORY) if on_host else f"/{DIRECTORY}",
        "{dir}": str(place.directory) if isinstance(place, HostSandbox) else "/tmp/work",
    }
    out = []
    for argument in behaviour.command:
        replaced = argument
        for word, value in words.items():
            replaced = replaced.replace(word, value)
        out.append(replaced)
    return out


def perform(behaviour: Behaviour, place: Place) -> Performed:
    """Carry ``behaviour`` out in ``place``, which `open_place` made for it."""
    port, port2 = (random.randrange(20000, 30000) for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="vedette-attacker-") as directory:
        attacker = Attacker(behaviour, place.namespaces_pid, port, port2, Path(directory))
        began = boottime_ns()
        process = place.popen(command_of(behaviour, place, port, port2))
        returncode: int | None = None
        try:
            output, errors = process.communicate(timeout=behaviour.timeout_s)
            returncode = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        finally:
            ended = boottime_ns()
            attacker.close()
    return Performed(behaviour, began, ended, place.container_id, returncode, output + errors, attacker.received)
