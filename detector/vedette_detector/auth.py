"""Who may talk to the detector, and for which node.

An `Authenticator` says who sends a request. On a unix socket the kernel says it (`PeerCredentials`); over HTTPS a
bearer token does, known from a file (`TokenFile`) or to the Kubernetes API server
(`vedette_detector.cluster.token_review.TokenReviews`). What is known of the sender is an `Identity`;
`Identity.may_speak_for` holds the rule that an agent delivers for its own node only.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aiohttp import web

from vedette_detector.errors import AuthenticationError, AuthorizationError, ConfigError

_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


@dataclass(frozen=True)
class Identity:
    """Who sends.

    Attributes:
        subject: for logs and messages.
        node: the only node that it may deliver for; None: any.
        admin: whether it may read status.
    """

    subject: str
    node: str | None = None
    admin: bool = False

    def may_speak_for(self, node: str) -> None:
        """Verify that a batch or heartbeat of ``node`` may come from this sender.

        Raises:
            AuthorizationError: it may not.
        """
        if self.node is not None and self.node != node:
            what = f"deliver for node {self.node!r} only" if self.node else "not deliver"
            raise AuthorizationError(f"{self.subject} may {what}", reason="WrongNode")


class Authenticator(Protocol):
    """Finds out who sends a request."""

    async def authenticate(self, request: web.Request) -> Identity:
        """Who sends ``request``.

        Raises:
            AuthenticationError: nobody who is known.
            AuthorizationError: somebody who has no business here.
        """
        ...


def bearer_token(request: web.Request) -> str:
    """The token of ``request``'s Authorization header (RFC 6750 §2.1).

    Raises:
        AuthenticationError: there is none.
    """
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if kind.lower() != "bearer" or not token:
        raise AuthenticationError("send 'Authorization: Bearer <token>'", reason="NoToken")
    return token


class PeerCredentials:
    """The unix socket's way: the kernel tells the uid of whoever connected (SO_PEERCRED, unix(7)).

    Admitted are root, the detector's own user and the agent's user. Whoever is one of them on this host may deliver
    for any node: there is only one host behind a unix socket.
    """

    def __init__(self, agent_uid: int) -> None:
        self._admins = frozenset({0, os.geteuid()})
        self._agent_uid = agent_uid

    async def authenticate(self, request: web.Request) -> Identity:
        """See `Authenticator`."""
        transport = request.transport
        peer: socket.socket | None = transport.get_extra_info("socket") if transport is not None else None
        if peer is None or peer.family != socket.AF_UNIX:
            raise AuthenticationError("the connection is not a unix socket", reason="NoPeerCredentials")
        _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in self._admins and uid != self._agent_uid:
            raise AuthorizationError(f"user {uid} is neither root nor the agent's user", reason="UserNotAdmitted")
        return Identity(f"uid {uid}", admin=uid in self._admins)


class TokenFile:
    """Bearer tokens from a file: ``<node> <token>`` on each line, ``*`` for a reader of the status.

    The file is read again when it changes, so tokens can be added and withdrawn.
    """

    def __init__(self, path: Path) -> None:
        """Read the tokens.

        Raises:
            ConfigError: the file cannot be read or a line is malformed.
        """
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._tokens: list[tuple[bytes, Identity]] = []
        self._read()

    def _read(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if stamp == self._stamp:
                return
            lines = self._path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"token file {self._path}: {error}") from None
        tokens = []
        for number, line in enumerate(lines, 1):
            parts = line.split()
            if not parts or parts[0].startswith("#"):
                continue
            if len(parts) != 2 or len(parts[1]) < 16:
                raise ConfigError(f"{self._path}:{number}: expected '<node> <token of at least 16 characters>'")
            node = parts[0]
            identity = Identity("operator", admin=True, node="") if node == "*" else Identity(f"node {node}", node)
            tokens.append((parts[1].encode(), identity))
        self._tokens, self._stamp = tokens, stamp

    async def authenticate(self, request: web.Request) -> Identity:
        """See `Authenticator`."""
        token = bearer_token(request).encode("utf-8", "surrogateescape")
        self._read()
        found = None
        # Every token is compared, each in constant time, so that the answer's time tells nothing.
        for known, identity in self._tokens:
            if hmac.compare_digest(known, token):
                found = identity
        if found is None:
            raise AuthenticationError("the token is not known", reason="UnknownToken")
        return found
