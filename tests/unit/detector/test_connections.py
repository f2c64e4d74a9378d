"""Connections over TLS: strangers have little time and little room, senders who are known have their share."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web

from tests.unit.detector.api_server import Authority
from tests.unit.detector.detector_parts import eventually
from tests.unit.detector.test_access import free_port
from tests.unit.detector.test_tls import Secret
from vedette_detector import connections
from vedette_detector.auth import Authenticator
from vedette_detector.config import Settings
from vedette_detector.listeners import Listeners

TOKENS = {"node-a": "a" * 20, "node-b": "b" * 20}


@dataclass
class Peer:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, token: str = "") -> int:
        """The status of an answer on it."""
        self.writer.write(f"GET / HTTP/1.1\r\nHost: d\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        await self.reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        return int(head.split()[1])

    async def closed(self) -> bool:
        """Wait until the other side has closed it."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 20.0) == b""
        except ConnectionError:
            return True


@dataclass
class World:
    listeners: Listeners
    port: int
    context: ssl.SSLContext
    peers: list[Peer] = field(default_factory=list)

    async def connect(self, source: str = "127.0.0.1") -> Peer:
        peer = Peer(
            *await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.context, local_addr=(source, 0), server_hostname="127.0.0.1"
            )
        )
        self.peers.append(peer)
        return peer


def app_with(authenticator: Authenticator) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        identity = await authenticator.authenticate(request) if request.headers["Authorization"] != "Bearer" else None
        return web.Response(text=identity.subject if identity is not None else "nobody")

    app = web.Application()
    app.router.add_get("/", answer)
    return app


@asynccontextmanager
async def world_of(settings: Settings, folder: Path) -> AsyncIterator[World]:
    authority = Authority()
    cert, key = Secret(folder / "tls").put(authority.issue("127.0.0.1"))
    tokens = folder / "tokens"
    tokens.write_text("".join(f"{node} {token}\n" for node, token in TOKENS.items()))
    port = free_port()
    listeners = Listeners(
        replace(settings, listen=(f"https://127.0.0.1:{port}",), tls_cert=cert, tls_key=key, token_file=tokens),
        app_with,
    )
    await listeners.start()
    world = World(listeners, port, ssl.create_default_context(cadata=authority.pem.decode()))
    try:
        yield world
    finally:
        for peer in world.peers:
            peer.writer.transport.abort()
        await listeners.stop()


@pytest.fixture
async def world(settings: Settings, tmp_path: Path) -> AsyncIterator[World]:
    async with world_of(settings, tmp_path) as made:
        yield made


async def test_an_address_with_too_many_strangers_gives_up_its_oldest(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "STRANGERS", 3)
    other = await world.connect("127.0.0.2")
    flood = [await world.connect() for _ in range(5)]
    assert [await peer.closed() for peer in flood[:3]] == [True] * 3
    assert [await peer.ask() for peer in (other, *flood[3:])] == [200] * 3
    assert world.listeners.connections.strangers == 3
    assert caplog.text.count("3 connections have shown no token, 2 of them from 127.0.0.1") == 1


async def test_who_shows_no_token_has_little_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STRANGER_S", 0.3)
    known = await world.connect()
    assert await known.ask(TOKENS["node-a"]) == 200
    silent, talking = await world.connect(), await world.connect()
    assert await talking.ask() == 200
    half = await world.connect()
    half.writer.write(b"GET / HTTP/1.1\r\n")
    assert [await peer.closed() for peer in (silent, talking, half)] == [True] * 3
    assert await known.ask(TOKENS["node-a"]) == 200
    assert "vedette_connections_closed_total 3\n" in world.listeners.metrics()
    assert 'vedette_connections{sender="known"} 1\n' in world.listeners.metrics()


async def test_who_does_not_shake_hands_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HANDSHAKE_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    assert await reader.read() == b""
    await eventually(lambda: world.listeners.connections.strangers == 0, "no stranger is left")
    writer.close()


async def test_one_sender_has_so_many_connections_and_takes_none_of_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "PER_SENDER", 2)
    other = await world.connect()
    assert await other.ask(TOKENS["node-b"]) == 200
    peers = [await world.connect() for _ in range(3)]
    for peer in peers:
        assert await peer.ask(TOKENS["node-a"]) == 200
    assert await peers[0].closed()
    assert [await peer.ask(TOKENS["node-a"]) for peer in peers[1:]] == [200, 200]
    assert await other.ask(TOKENS["node-b"]) == 200
