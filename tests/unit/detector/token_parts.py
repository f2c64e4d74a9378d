"""Tokens in the form of service account tokens, and the API server's side that says which of them are valid."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.unit.detector.api_server import ApiServer
from vedette_detector.cluster.token_review import NODE_NAME, POD_NAME, POD_UID

AGENTS = "system:serviceaccount:vedette-system:vedette-agent"
OPERATOR = "system:serviceaccount:vedette-system:vedette-operator"
FAR = 4_000_000_000.0


def encoded(document: Any) -> str:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def jwt(subject: str = AGENTS, audience: Any = ("vedette",), expires: Any = FAR, mark: str = "signature") -> str:
    """A token in a service account token's form; only the server below says whether it is one."""
    claims = {"sub": subject, "aud": list(audience) if isinstance(audience, tuple) else audience, "exp": expires}
    return f"{encoded({'alg': 'RS256'})}.{encoded(claims)}.{mark}"


@dataclass
class Reviewer:
    """The API server's side: which tokens are valid, and whose."""

    server: ApiServer
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    audiences: list[str] | None = None
    failing: Callable[[], web.Response] | None = None
    hold: asyncio.Event | None = None
    asked: int = 0

    def know(self, token: str, username: str = AGENTS, **extra: str) -> str:
        names = {"node": NODE_NAME, "pod": POD_NAME, "uid": POD_UID}
        self.users[token] = {"username": username, "extra": {names[k]: [v] for k, v in extra.items()}}
        return token

    async def review(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.hold is not None:
            await self.hold.wait()
        if self.failing is not None:
            return self.failing()
        spec = (await request.json())["spec"]
        user = self.users.get(spec["token"])
        status: dict[str, Any] = {"authenticated": False, "error": "invalid bearer token"}
        if user is not None:
            audiences = spec["audiences"] if self.audiences is None else self.audiences
            status = {"authenticated": True, "user": user, "audiences": audiences}
        return web.json_response(
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec, "status": status},
            status=201,
        )
