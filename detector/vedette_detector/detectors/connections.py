"""Which way a connection went: opened by a process here, or accepted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory, Process
from vedette_detector.engine.segments import Array

Direction = Literal["outbound", "inbound", "unknown"]

_EINPROGRESS = -115
IORING_OP_CONNECT = 16
"""include/uapi/linux/io_uring.h"""
_EPHEMERAL = 32768
"""Where Linux's ephemeral ports begin by default (net.ipv4.ip_local_port_range)."""
_DNS = 53
_DATAGRAM = 2


@dataclass(frozen=True)
class Connection:
    """A connection and how its direction is known.

    Attributes:
        evidence: the connect or accept event; None when the direction is only guessed from the ports.
    """

    direction: Direction
    remote: str
    port: int
    evidence: Event | None = None


def _succeeded(rows: Array) -> Array:
    return np.asarray((rows["result"] == 0) | (rows["result"] == _EINPROGRESS))


def _over_ip(rows: Array) -> Array:
    return np.asarray((rows["family"] == 2) | (rows["family"] == 10))


def is_outbound_rows(rows: Array) -> Array:
    """Successful connections over IP, DNS queries by UDP left out. ``rows``: connect events, shape (N,)."""
    lookup = (rows["sock_type"] == _DATAGRAM) & (rows["rport"] == _DNS)
    return np.asarray(_succeeded(rows) & _over_ip(rows) & ~lookup & (rows["rport"] != 0))


def _dials_by_ring(rows: Array) -> Array:
    """Connections submitted to io_uring, whose outcome is not known. ``rows``: io_uring events, shape (N,)."""
    return np.asarray((rows["opcode"] == IORING_OP_CONNECT) & _over_ip(rows))


def outbound(history: NodeHistory, process: Process, since: int | None = None, until: int | None = None) -> list[Event]:
    """Connections that a process opened, newest first."""
    found = history.events(
        "connect", pid=process.pid, start=process.start, since=since, until=until, mask=is_outbound_rows, limit=20
    )
    by_ring = history.events(
        "io_uring", pid=process.pid, start=process.start, since=since, until=until, mask=_dials_by_ring, limit=20
    )
    return sorted([*found, *by_ring], key=lambda event: -event.time) if by_ring else found


def accepted(history: NodeHistory, process: Process, since: int | None = None, until: int | None = None) -> list[Event]:
    """Connections that a process accepted, newest first."""
    return history.events(
        "accept", pid=process.pid, start=process.start, since=since, until=until, mask=_over_ip, limit=4
    )


def of_socket(history: NodeHistory, event: Event, holders: Iterable[Process]) -> Connection:
    """Direction of the socket that an exec or dup event carries.

    Args:
        history: the node's history.
        event: an event with socket fields.
        holders: processes that may have opened the socket, besides whoever history names by its inode.
    """
    callers = list(holders)
    remote, port, ino = event.raddr_text, event.rport, event.sock_ino
    if ino:
        opened = history.events("connect", mask=lambda rows: (rows["sock_ino"] == ino) & _succeeded(rows), limit=1)
        opened = opened or history.events(
            "io_uring", mask=lambda rows: (rows["sock_ino"] == ino) & _dials_by_ring(rows), limit=1
        )
        taken = history.events("accept", mask=lambda rows: rows["sock_ino"] == ino, limit=1)
        if opened and (not taken or opened[0].time > taken[0].time):
            return Connection("outbound", remote, port, opened[0])
        if taken:
            return Connection("inbound", remote, port, taken[0])
    # The agent reports repeated connections of one process to one address once: go by the addresses then.
    lport = event.lport
    raddr = event.raddr
    for found in history.events("accept", mask=lambda rows: rows["lport"] == lport, limit=50):
        if found.raddr == raddr:
            return Connection("inbound", remote, port, found)
    for found in history.events("connect", mask=lambda rows: (rows["rport"] == port) & _succeeded(rows), limit=50):
        if found.raddr == raddr and any((p.pid, p.start) == (found.pid, found.start) for p in callers):
            return Connection("outbound", remote, port, found)
    if history.events("listen", mask=lambda rows: (rows["lport"] == lport) & (rows["lport"] != 0), limit=1):
        return Connection("inbound", remote, port)
    if port < _EPHEMERAL <= lport:
        return Connection("outbound", remote, port)
    if lport < _EPHEMERAL <= port:
        return Connection("inbound", remote, port)
    return Connection("unknown", remote, port)
