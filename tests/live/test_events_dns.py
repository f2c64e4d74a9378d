"""DNS queries and answers, whatever the transport and the client: seen in the packets."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from live_collect import Collector, Record

SERVER = """
import socket, sys, threading
address = sys.argv[1]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
udp = socket.socket(family, socket.SOCK_DGRAM)
udp.bind((address, 53))
tcp = socket.create_server((address, 53), family=family)
def answer(query):
    head = query[:2] + b"\\x81\\x80" + query[4:6] + b"\\0\\1\\0\\0\\0\\0"
    return head + query[12:] + b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4\\xcb\\0\\x71\\7"
def over_tcp():
    while True:
        connection, _ = tcp.accept()
        data = connection.recv(4096)
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
            data += connection.recv(4096)
        reply = answer(data[2:])
        connection.sendall(len(reply).to_bytes(2, "big") + reply)
        connection.recv(1)
        connection.close()
threading.Thread(target=over_tcp, daemon=True).start()
print("ready", flush=True)
while True:
    query, peer = udp.recvfrom(4096)
    udp.sendto(answer(query), peer)
"""

CLIENT = """
import os, socket, sys
address, transport, number, how = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
name = b"\\7example\\3org\\0"
query = number.to_bytes(2, "big") + b"\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0" + name + b"\\0\\1\\0\\1"
family = socket.AF_INET6 if ":" in address else socket.AF_INET
client = socket.socket(family, socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM)
client.settimeout(5)
if how != "sendto":
    client.connect((address, 53))
if transport == "tcp":
    length = len(query).to_bytes(2, "big")
    if how == "split":
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        os.write(client.fileno(), length)
    else:
        query = length + query
if how == "sendto":
    client.sendto(query, (address, 53))
else:
    os.write(client.fileno(), query)
client.recv(4096)
print(os.getpid())
"""


@contextmanager
def network(*, veth: bool) -> Iterator[tuple[list[str], list[str], tuple[str, str]]]:
    """Commands to run a server and a client with, and the server's addresses.

    Either both in one network namespace over loopback, or in two that a bridge in a third one joins by veth pairs.
    """
    names = [f"vd{part}{os.getpid()}" for part in "csh"]
    client, server, host = names

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    used = [client, server, host] if veth else [client]
    try:
        for name in used:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        if not veth:
            ip("-n", client, "addr", "add", "198.51.100.53/32", "dev", "lo")
            ip("-n", client, "addr", "add", "2001:db8::53/128", "dev", "lo")
            enter = ["ip", "netns", "exec", client]
            yield enter, enter, ("198.51.100.53", "2001:db8::53")
            return
        ip("-n", host, "link", "add", "bridge", "type", "bridge")
        ip("-n", host, "link", "set", "bridge", "up")
        for name, address in ((client, "1"), (server, "53")):
            ip("-n", host, "link", "add", f"to{name[:3]}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", host, "link", "set", f"to{name[:3]}", "master", "bridge", "up")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "addr", "add", f"198.51.100.{address}/24", "dev", "eth0")
            ip("-n", name, "addr", "add", f"2001:db8::{address}/64", "dev", "eth0", "nodad")
        yield ["ip", "netns", "exec", server], ["ip", "netns", "exec", client], ("198.51.100.53", "2001:db8::53")
    finally:
        for name in used:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module", params=["loopback", "veth"])
def resolver(request: pytest.FixtureRequest, needs_root: None) -> Iterator[tuple[list[str], tuple[str, str]]]:
    with network(veth=request.param == "veth") as (enter_server, enter_client, addresses):
        servers = [
            subprocess.Popen([*enter_server, sys.executable, "-c", SERVER, address], stdout=subprocess.PIPE)
            for address in addresses
        ]
        try:
            for server in servers:
                assert server.stdout is not None
                assert server.stdout.readline() == b"ready\n"
            yield enter_client, addresses
        finally:
            for server in servers:
                server.kill()
                server.wait()
                assert server.stdout is not None
                server.stdout.close()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("transport", "how"),
    [("udp", "sendto"), ("udp", "write"), ("tcp", "write"), ("tcp", "split")],
)
def test_query_and_answer_are_seen_once_with_the_client(
    collect: Collector, resolver: tuple[list[str], tuple[str, str]], version: int, transport: str, how: str
) -> None:
    enter, addresses = resolver
    address = addresses[0 if version == 4 else 1]
    number = int.from_bytes(os.urandom(2), "big")
    printed: list[bytes] = []

    def act() -> None:
        command = [*enter, sys.executable, "-c", CLIENT, address, transport, str(number), how]
        printed.append(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    records = collect(act, settle_s=0.05)
    found = [r for r in records if r.event == "dns" and r.payload[:2] == number.to_bytes(2, "big")]
    assert [(r.direction, r.pid, r.flags) for r in found] == [(1, int(printed[0]), 0), (2, int(printed[0]), 0)]
    query, answer = found
    packed = socket.inet_pton(socket.AF_INET if version == 4 else socket.AF_INET6, address).rjust(16, b"\0")
    for record in found:
        assert (record.family, record.raddr, record.rport) == (2 if version == 4 else 10, packed, 53)
        assert (record.protocol, record.lport) == (17 if transport == "udp" else 6, query.lport)
        assert (record.uid, record.start, record.comm[:6]) == (0, query.start, b"python")
        assert b"\7example\3org\0\0\1\0\1" in record.payload
    assert query.cgroup == answer.cgroup == own_cgroup(records, int(printed[0]))
    assert query.payload[4:8] == b"\0\1\0\0"
    assert struct.unpack(">H", answer.payload[6:8]) == (1,)


def own_cgroup(records: list[Record], pid: int) -> int:
    [cgroup] = {r.cgroup for r in records if r.event == "exec" and r.pid == pid}
    return int(cgroup)


def test_other_ports_are_no_dns(collect: Collector) -> None:
    def act() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            socket.socket(type=socket.SOCK_DGRAM) as client,
        ):
            server.bind(("127.0.0.1", 0))
            client.sendto(b"x" * 64, server.getsockname())
            server.recv(64)

    assert [r for r in collect(act) if r.event == "dns" and r.pid == os.getpid()] == []


def test_many_clients_at_once(collect: Collector, resolver: tuple[list[str], tuple[str, str]]) -> None:
    enter, addresses = resolver
    script = CLIENT.replace("print(os.getpid())", "client.close()")
    loop = "for number in range(100, 200):\n sys.argv[3] = str(number)\n exec(CODE)\n"
    code = f"import sys\nCODE = {script!r}\n{loop}"

    def client(transport: str) -> None:
        subprocess.run([*enter, sys.executable, "-c", code, addresses[0], transport, "0", "write"], check=True)

    def act() -> None:
        threads = [threading.Thread(target=client, args=(transport,)) for transport in ("udp", "tcp")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    server = socket.inet_aton(addresses[0]).rjust(16, b"\0")
    records = [r for r in collect(act, settle_s=0.05) if r.event == "dns" and r.raddr == server]
    wanted = {(protocol, direction, n) for protocol in (6, 17) for direction in (1, 2) for n in range(100, 200)}
    assert {(r.protocol, r.direction, int.from_bytes(r.payload[:2], "big")) for r in records} == wanted
    assert len(records) == len(wanted)
