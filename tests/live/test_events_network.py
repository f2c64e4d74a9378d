"""Sockets and connections as the kernel reports them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from live_collect import Collector, Record

LOOPBACK = bytes(12) + bytes([127, 0, 0, 1])
LOOPBACK6 = ip_address("::1").packed


def mine(records: list[Record], event: str) -> list[Record]:
    return [r for r in records if r.event == event and r.pid == os.getpid()]


def do(collect: Collector, event: str, action: Callable[[], Any]) -> Record:
    [record] = mine(collect(action), event)
    return record


@pytest.fixture
def server() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening, listening.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_connection_and_its_acceptance(collect: Collector, server: tuple[socket.socket, int]) -> None:
    with contextlib.ExitStack() as stack:
        made: list[socket.socket] = []

        def act() -> None:
            made.append(stack.enter_context(socket.create_connection(server[0].getsockname())))
            made.append(stack.enter_context(server[0].accept()[0]))

        records = collect(act)
        [connect], [accept] = mine(records, "connect"), mine(records, "accept")
        local = made[0].getsockname()[1]
        assert (connect.family, connect.sock_type, connect.protocol) == (2, 1, 6)
        assert (connect.lport, connect.rport, connect.raddr, connect.result) == (local, server[1], LOOPBACK, 0)
        assert (connect.fd, connect.sock_ino) == (made[0].fileno(), os.fstat(made[0].fileno()).st_ino)
        assert (accept.lport, accept.rport, accept.raddr, accept.fd) == (server[1], local, LOOPBACK, made[1].fileno())


def test_a_refused_connection_tells_where_it_was_to_go(collect: Collector) -> None:
    port = closed_port()

    def act() -> None:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    event = do(collect, "connect", act)
    assert (event.family, event.raddr, event.rport, event.result) == (2, LOOPBACK, port, -errno.ECONNREFUSED)


def test_a_connection_in_progress_and_ipv6(collect: Collector) -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as listening,
        socket.socket(socket.AF_INET6) as client,
    ):
        client.setblocking(False)
        event = do(collect, "connect", lambda: client.connect_ex(listening.getsockname()[:2]))
        assert (event.family, event.raddr, event.rport) == (10, LOOPBACK6, listening.getsockname()[1])
        assert event.result in (0, -errno.EINPROGRESS)


def test_an_ipv4_address_in_ipv6_clothes_is_an_ipv4_address(
    collect: Collector, server: tuple[socket.socket, int]
) -> None:
    with socket.socket(socket.AF_INET6) as client:
        event = do(collect, "connect", lambda: client.connect(("::ffff:127.0.0.1", server[1])))
    assert (event.family, event.raddr, event.rport) == (2, LOOPBACK, server[1])
    with socket.socket(socket.AF_INET6) as client:
        event = do(collect, "connect", lambda: client.connect_ex(("::ffff:127.0.0.1", closed_port())))
    assert (event.family, event.raddr, event.result) == (2, LOOPBACK, -errno.ECONNREFUSED)


@pytest.mark.parametrize("call", ["sendto", "sendmsg"])
def test_a_datagram_with_an_address_counts_as_connection(collect: Collector, call: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:

        def act() -> None:
            if call == "sendto":
                sender.sendto(b"x", ("127.0.0.1", 9))
            else:
                sender.sendmsg([b"x"], [], 0, ("127.0.0.1", 9))

        event = do(collect, "connect", act)
    assert (event.family, event.sock_type, event.protocol, event.raddr, event.rport) == (2, 2, 17, LOOPBACK, 9)
    assert event.result == 0


def test_32_bit_and_io_uring_connections(collect: Collector, helper: Path, server: tuple[socket.socket, int]) -> None:
    port = str(server[1])

    def act() -> None:
        for what in ("connect32", "uring_connect"):
            subprocess.run([helper, what, "127.0.0.1", port], check=True, stdout=subprocess.DEVNULL)

    found = [r for r in collect(act) if r.comm == b"live_helper" and r.event in ("connect", "io_uring")]
    assert [(r.event, r.flags, r.family, r.raddr, r.rport) for r in found] == [
        ("connect", 2, 2, LOOPBACK, server[1]),
        ("io_uring", 4, 2, LOOPBACK, server[1]),
    ]
    assert found[1].opcode == 16


def test_unix_connections_tell_the_path_passed_and_the_listeners(
    collect: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "disguise").symlink_to("real/engine.sock")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind("real/engine.sock")
        listening.listen()
        event = do(collect, "connect", lambda: client.connect("disguise"))
    assert (event.family, event.path, event.bound_path) == (1, b"disguise", os.fsencode(tmp_path / "real/engine.sock"))
    assert event.result == 0


def test_unix_connections_that_fail_and_abstract_names(collect: Collector, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        event = do(collect, "connect", lambda: client.connect_ex(b"\0nobody\xff"))
        assert (event.path, event.bound_path, event.result) == (b"\0nobody\xff", b"", -errno.ECONNREFUSED)
        event = do(collect, "connect", lambda: client.connect_ex(str(tmp_path / "none.sock")))
        assert (event.path, event.result) == (os.fsencode(tmp_path / "none.sock"), -errno.ENOENT)


def test_bind_and_listen(collect: Collector, tmp_path: Path) -> None:
    with socket.socket() as listening:

        def act() -> None:
            listening.bind(("127.0.0.1", 0))
            listening.listen(7)

        records = collect(act)
        port = listening.getsockname()[1]
        [bind], [listen] = mine(records, "bind"), mine(records, "listen")
        assert (bind.lport, bind.laddr, bind.result) == (port, LOOPBACK, 0)
        assert (listen.lport, listen.backlog, listen.result) == (port, 7, 0)
        with socket.socket() as second:

            def bind_again() -> None:
                with pytest.raises(OSError, match="in use"):
                    second.bind(("127.0.0.1", port))

            event = do(collect, "bind", bind_again)
            assert (event.lport, event.result) == (port, -errno.EADDRINUSE)
    with socket.socket(socket.AF_UNIX) as named:
        event = do(collect, "bind", lambda: named.bind(str(tmp_path / "s")))
    assert (event.family, event.path) == (1, os.fsencode(tmp_path / "s"))


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "seen"),
    [
        (socket.AF_PACKET, socket.SOCK_RAW, 0, True),
        (socket.AF_INET, socket.SOCK_RAW, 1, True),
        (socket.AF_NETLINK, socket.SOCK_RAW, 4, True),
        (socket.AF_NETLINK, socket.SOCK_RAW, 0, False),
        (socket.AF_INET, socket.SOCK_STREAM, 0, False),
        (99, 1, 2, True),
    ],
)
def test_unusual_sockets(collect: Collector, family: int, kind: int, protocol: int, seen: bool) -> None:
    def act() -> None:
        with contextlib.suppress(OSError):
            socket.socket(family, kind, protocol).close()

    found = mine(collect(act), "socket")
    assert [(r.family, r.sock_type, r.protocol) for r in found] == ([(family, kind, protocol)] if seen else [])
    if family == 99:
        assert found[0].result < 0


def test_all_sockets_reports_ordinary_ones(collect: Collector) -> None:
    with collect.filters(all_sockets=True):
        event = do(collect, "socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close())
    assert (event.family, event.sock_type) == (2, 1)


def test_a_socket_that_becomes_standard_input(collect: Collector, server: tuple[socket.socket, int]) -> None:
    with socket.create_connection(server[0].getsockname()) as client:
        inode = os.fstat(client.fileno()).st_ino
        pid = 0

        def act() -> None:
            nonlocal pid
            pid = os.fork()
            if not pid:
                os.dup2(client.fileno(), 0)
                os.dup2(client.fileno(), 77)
                os.close(1)
                os.dup(client.fileno())
                os._exit(0)
            os.waitpid(pid, 0)

        found = [r for r in collect(act) if r.event == "dup" and r.pid == pid]
        assert [(r.old_fd, r.new_fd, r.sock_ino, r.rport) for r in found] == [
            (client.fileno(), 0, inode, server[1]),
            (client.fileno(), 1, inode, server[1]),
        ]
