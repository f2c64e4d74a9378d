"""What a test container and a sandboxed host process have in common: somewhere to run commands, with a network.

Every place has its own network namespace in which the addresses below are local, so that an attack simulation
has somebody to talk to and no packet can leave the machine. All are documentation addresses (RFC 5737, RFC 3849).
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

LOCAL_V4 = "198.51.100.10"
RESOLVER_V4 = "198.51.100.53"
ATTACKER_V4 = "203.0.113.66"
ATTACKER_V6 = "2001:db8::66"
ADDRESSES: tuple[str, ...] = (
    f"{LOCAL_V4}/32",
    f"{RESOLVER_V4}/32",
    f"{ATTACKER_V4}/32",
    f"{ATTACKER_V6}/128",
    "203.0.113.77/32",
    "203.0.113.78/32",
    "2001:db8:bad::1/128",
)

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class Place(Protocol):
    """Somewhere to run commands; `Container` and `HostSandbox`."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def root(self) -> Path:
        """The place's root directory as this process sees it."""

    @property
    def namespaces_pid(self) -> int:
        """A process that is in the place's network namespace."""

    @property
    def container_id(self) -> str | None:
        """The 64-hex id, or None on the host."""

    def popen(
        self, command: Sequence[str], *, stdin: int | IO[Any] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start ``command`` there."""

    def run(
        self, command: Sequence[str], *, timeout_s: float = 20, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` there to its end."""


def add_addresses(pid: int) -> None:
    """Bring lo up and give it `ADDRESSES` in the network namespace of ``pid``."""
    script = "ip link set lo up\n" + "".join(f"ip addr replace {address} dev lo\n" for address in ADDRESSES)
    subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", "sh", "-ec", script], check=True, capture_output=True, text=True
    )


def in_network_of(pid: int, function: Callable[[], T]) -> T:
    """Call ``function`` on a thread of its own that has joined the network namespace of ``pid``.

    A socket made there keeps that namespace for good, whichever thread uses it later.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, f"setns: {os.strerror(number)}")
            finally:
                os.close(descriptor)
            result.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="in-netns")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def listening_socket(pid: int, address: str, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """Make a bound (and, for streams, listening) socket in the network namespace of ``pid``."""

    def make() -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = socket.socket(family, kind | socket.SOCK_CLOEXEC)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if kind == socket.SOCK_STREAM:
            made.listen(8)
        return made

    return in_network_of(pid, make)
