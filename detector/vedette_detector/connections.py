"""Connections over TCP, bounded: whoever is not known yet gets little time, and no more room than there is for all.

Everybody who reaches the port can open connections, and each costs some 270 kB, most of it the buffer of asyncio's TLS.
So a connection is a *stranger's* until its first request is authenticated. Of strangers' connections there are at most
`STRANGERS`, for at most `STRANGER_S` seconds each; when there are more, the address with the most of them gives up its
oldest. Of what is known, one sender has at most `PER_SENDER`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from vedette_detector.auth import Authenticator, Identity

log = logging.getLogger(__name__)

STRANGERS = 512
STRANGER_S = 30.0
"""Longer than a review of a token takes. Scrapers of metrics, who show none, open a new connection now and then."""
PER_SENDER = 16
"""An agent has two, for batches and for heartbeats."""
HANDSHAKE_S = 10.0
ANSWER_S = 10.0
"""For an answer to a stranger that is under way when its time is over."""
BACKLOG = 1024
_LOOK_S = 1.0
"""How often is looked whether a stranger has gone by itself."""
_SAY_AGAIN_S = 60.0


@dataclass(eq=False)
class _Stranger:
    address: str
    known: asyncio.Event = field(default_factory=asyncio.Event)
    handler: RequestHandler | None = None
    task: asyncio.Task[None] | None = None


class Connections:
    """Takes connections for an HTTP server; one for each `web.Server`.

    Attributes:
        closed: strangers and surplus connections that were closed, since the start.
    """

    def __init__(self) -> None:
        self.closed = 0
        self._strangers: dict[_Stranger, None] = {}  # the oldest first
        self._by_handler: dict[object, _Stranger] = {}
        self._known: dict[RequestHandler, str] = {}
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._said = float("-inf")

    @property
    def strangers(self) -> int:
        """Connections of whoever has not been authenticated."""
        return len(self._strangers)

    @property
    def known(self) -> int:
        """Connections of whoever has been."""
        return sum(handler.transport is not None for handler in self._known)

    async def listen(self, host: str, port: int, server: web.Server, context: ssl.SSLContext) -> None:
        """Listen on every address of ``host``; empty: on all of this machine.

        Raises:
            OSError: one cannot be listened on.
        """
        infos = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, address in dict.fromkeys((info[0], info[4]) for info in infos):
            listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
            listener.setblocking(False)
            self._sockets.append(listener)
            self._accepting.append(asyncio.create_task(self._accept(listener, server, context), name="accept"))

    def introduce(self, handler: RequestHandler | None, sender: str) -> None:
        """A request on this connection was authenticated."""
        stranger = self._by_handler.pop(handler, None)
        if handler is None or stranger is None:
            return
        stranger.known.set()
        self._known = {h: s for h, s in self._known.items() if h.transport is not None}
        of_sender = [h for h, s in self._known.items() if s == sender]
        for surplus in of_sender[: max(0, len(of_sender) + 1 - PER_SENDER)]:
            del self._known[surplus]
            surplus.force_close()
            self.closed += 1
        self._known[handler] = sender

    async def refuse(self) -> None:
        """Take no more connections."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for listener in self._sockets:
            listener.close()

    async def close(self) -> None:
        """Close what strangers still have open."""
        tasks = [s.task for s in self._strangers if s.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket, server: web.Server, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:
                # Too many files are open (EMFILE), or the peer has gone (ECONNABORTED): those under way go on.
                self._say(f"a connection cannot be taken: {error}")
                await asyncio.sleep(_LOOK_S)
                continue
            stranger = _Stranger(str(address[0]))
            self._make_room()
            self._strangers[stranger] = None
            stranger.task = asyncio.create_task(self._receive(stranger, connection, server, context), name="stranger")

    def _make_room(self) -> None:
        if len(self._strangers) < STRANGERS:
            return
        worst, count = Counter(s.address for s in self._strangers).most_common(1)[0]
        oldest = next(s for s in self._strangers if s.address == worst)
        del self._strangers[oldest]
        if oldest.task is not None:
            oldest.task.cancel()
        self.closed += 1
        self._say(f"{STRANGERS} connections have shown no token, {count} of them from {worst}: its oldest are closed")

    def _say(self, message: str) -> None:
        now = time.monotonic()
        if now - self._said >= _SAY_AGAIN_S:
            self._said = now
            log.warning("%s", message)

    async def _receive(
        self, stranger: _Stranger, connection: socket.socket, server: web.Server, context: ssl.SSLContext
    ) -> None:
        """Shake hands, and wait until the stranger is known, has gone, or has had its time."""
        transport: asyncio.BaseTransport | None = None
        try:
            transport, handler = await asyncio.get_running_loop().connect_accepted_socket(
                server, connection, ssl=context, ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=ANSWER_S
            )
            self._by_handler[handler] = stranger
            stranger.handler = handler
            if await self._over(stranger, handler, STRANGER_S):
                return
            self.closed += 1
            handler.close()
            if not await self._over(stranger, handler, ANSWER_S):
                _abort(transport)
        except (OSError, TimeoutError):  # of the handshake; ssl.SSLError is an OSError
            connection.close()
        except asyncio.CancelledError:
            if transport is not None:
                _abort(transport)
            raise
        finally:
            self._strangers.pop(stranger, None)
            if stranger.handler is not None:
                self._by_handler.pop(stranger.handler, None)

    @staticmethod
    async def _over(stranger: _Stranger, handler: RequestHandler, within_s: float) -> bool:
        """Whether the stranger is known or has gone within some seconds."""
        deadline = time.monotonic() + within_s
        while not stranger.known.is_set() and handler.transport is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stranger.known.wait(), min(left, _LOOK_S))
        return True


def _abort(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.Transport):
        transport.abort()


class Introducing:
    """An authenticator that tells connections who they are of."""

    def __init__(self, authenticator: Authenticator, connections: Connections) -> None:
        self._authenticator = authenticator
        self._connections = connections

    async def authenticate(self, request: web.Request) -> Identity:
        """See `vedette_detector.auth.Authenticator`."""
        identity = await self._authenticator.authenticate(request)
        self._connections.introduce(request.protocol, identity.subject)
        return identity
