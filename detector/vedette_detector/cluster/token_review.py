"""Who sends, by the token that Kubernetes gave its pod: TokenReview, with a cache that outlives an API server's outage.

An agent sends the token that the kubelet projects into its pod (audience ``vedette``). The API server says whether the
token is valid, whose it is, and on which node its pod runs (the extra attribute
``authentication.kubernetes.io/node-name``, Kubernetes 1.30 and later; before, the pod's name and uid, with which the
pod is asked for). Fields: https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/

What a token says of itself (`parse_claims`) only ever *refuses*: it spares the API server questions whose answer is
plain and gives the refusal a reason that a person can act on. Nobody is admitted without a review.

Tokens are kept as SHA-256 sums, and never shown: not in logs, not in messages.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from aiohttp import web

from vedette_detector.auth import Identity, bearer_token
from vedette_detector.cluster.api import ApiError, ApiUnreachableError
from vedette_detector.errors import AuthenticationError, AuthorizationError, DetectorError, IdentityUnavailableError
from vedette_detector.text import safe_text

log = logging.getLogger(__name__)

PATH = "/apis/authentication.k8s.io/v1/tokenreviews"
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"
NODE_NAME = "authentication.kubernetes.io/node-name"

MAX_TOKEN = 8192
"""Characters; a projected token has one to two thousand."""
REVIEW_TIMEOUT_S = 10.0
CLOCK_LEEWAY_S = 60.0
"""A token is refused unseen only when it expired so long ago: this clock may be ahead of the API server's."""
NEGATIVE_S = 5.0
"""How long a refusal is remembered."""
LEAST_S = 1.0
"""Least time that an admission is remembered, however soon the token expires: bounds the questions to the API server
when this clock is ahead. So long, at most, is a token admitted after its end."""
PATIENCE_S = 2.0
"""How long a sender who was admitted before waits for a new review before it is admitted without."""
RETRY_S = 5.0
"""Time between two attempts to review a known token while the API server is away."""
MAX_KNOWN = 20_000
MAX_REFUSED = 2_000
MAX_UNDER_REVIEW = 16
MAX_WAITING = 512
MAX_WAITING_PER_PEER = 8
"""Unknown tokens of one address that may wait at once. An agent has one; a flood from one address shuts out nobody."""
SAY_AGAIN_S = 60.0

_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
_SERVICE_ACCOUNT = "system:serviceaccount:"


class Api(Protocol):
    """What the reviews need of `vedette_detector.cluster.api.KubernetesApi`."""

    async def post(self, path: str, body: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """POST; see there."""
        ...

    async def get(self, path: str, *, timeout_s: float) -> dict[str, Any]:
        """GET; see there."""
        ...


@dataclass(frozen=True)
class Claims:
    """What a token says of itself. ``expires_at`` is seconds since the epoch; None: nothing usable."""

    subject: str
    audiences: tuple[str, ...]
    expires_at: float | None


def parse_claims(token: str) -> Claims | None:
    """The claims of a JWT (RFC 7519), unverified; None when it is none. For any text. Pure."""
    match = _TOKEN.fullmatch(token) if len(token) <= MAX_TOKEN else None
    if match is None:
        return None
    try:
        payload = base64.urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4))
        claims = json.loads(payload)
    except (ValueError, RecursionError, binascii.Error):
        return None
    if not isinstance(claims, dict):
        return None
    subject, audience, expires = claims.get("sub"), claims.get("aud"), claims.get("exp")
    audiences = [audience] if isinstance(audience, str) else audience if isinstance(audience, list) else []
    expires_at: float | None = None
    if isinstance(expires, int | float) and not isinstance(expires, bool) and abs(expires) < 2**53:
        expires_at = float(expires) if math.isfinite(expires) else None
    return Claims(
        subject if isinstance(subject, str) else "",
        tuple(a for a in audiences if isinstance(a, str)),
        expires_at,
    )


@dataclass(frozen=True)
class Bound:
    """Who a reviewed token is: a service account, and where its pod runs as far as the API server says."""

    username: str
    node: str = ""
    namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""


def read_review(answer: Mapping[str, Any], audience: str) -> Bound:
    """What a TokenReview that came back says. Pure.

    Raises:
        AuthenticationError: the token is not valid, or valid for somebody else only.
        IdentityUnavailableError: the answer is not a TokenReview.
    """
    status = answer.get("status")
    if answer.get("kind") != "TokenReview" or not isinstance(status, dict):
        raise IdentityUnavailableError("the API server's answer is not a TokenReview", reason="MalformedAnswer")
    if status.get("authenticated") is not True:
        raise AuthenticationError("the API server does not know the token", reason="UnknownToken")
    audiences = status.get("audiences")
    # An API server that ignores audiences leaves this empty: the token may then be meant for anybody.
    if not isinstance(audiences, list) or audience not in audiences:
        raise AuthenticationError(f"the token is not meant for the audience {audience!r}", reason="WrongAudience")
    user = status.get("user")
    username = user.get("username") if isinstance(user, dict) else None
    if not isinstance(user, dict) or not isinstance(username, str):
        raise IdentityUnavailableError("the API server names no user", reason="MalformedAnswer")
    extra = user.get("extra")
    namespace = username.removeprefix(_SERVICE_ACCOUNT).partition(":")[0]

    def only(name: str) -> str:
        values = extra.get(name) if isinstance(extra, dict) else None
        return values[0] if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str) else ""

    return Bound(username, only(NODE_NAME), namespace, only(POD_NAME), only(POD_UID))


@dataclass
class _Admitted:
    """A token's last positive review. Times are monotonic seconds unless named otherwise."""

    identity: Identity
    reviewed: float
    fresh_until: float
    expires_at: float | None
    """Of the token, seconds since the epoch."""


@dataclass
class Counts:
    """Counted since the start of the process."""

    reviews: int = 0
    refused: int = 0
    failed: int = 0
    unreviewed: int = 0
    """Requests admitted by an earlier review because the API server was away."""


@dataclass
class _Outage:
    """The API server cannot be asked, since when and why."""

    since: float
    since_wall: float
    error: DetectorError
    said: float = field(default=float("-inf"))


class TokenReviews:
    """Authenticator by TokenReview.

    Args:
        api: how to ask.
        audience: that tokens must be meant for.
        agents: service account of the agents, ``namespace:name``.
        admins: service accounts that may read status and coverage.
        cache_s: how long an admission is good without asking again; so long a token of a deleted pod is admitted.
        grace_s: how long after its last review a token is admitted while the API server is away, at most until its end.
        clock: monotonic seconds.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        api: Api,
        *,
        audience: str,
        agents: str,
        admins: Sequence[str] = (),
        cache_s: float = 60.0,
        grace_s: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._audience = audience
        self._agents = _SERVICE_ACCOUNT + agents
        self._admins = frozenset(_SERVICE_ACCOUNT + admin for admin in admins)
        self._cache_s = cache_s
        self._grace_s = grace_s
        self._clock = clock
        self._wall = wall
        self._admitted: OrderedDict[bytes, _Admitted] = OrderedDict()
        self._refused: OrderedDict[bytes, tuple[float, DetectorError]] = OrderedDict()
        self._under_review: dict[bytes, asyncio.Task[Identity]] = {}
        self._slots = asyncio.Semaphore(MAX_UNDER_REVIEW)
        self._waiting: Counter[str] = Counter()
        self._outage: _Outage | None = None
        self.counts = Counts()

    async def authenticate(self, request: web.Request) -> Identity:
        """See `vedette_detector.auth.Authenticator`.

        Raises:
            AuthenticationError: NoToken, MalformedToken, WrongAudience, TokenExpired, UnknownToken.
            AuthorizationError: WrongServiceAccount, UnboundToken, PodGone.
            IdentityUnavailableError: the API server cannot be asked, and no review of the token is recent enough.
        """
        token = bearer_token(request)
        key = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._admitted.get(key)
        if known is not None:
            return await self._known(key, token, known)
        until, refusal = self._refused.get(key, (0.0, None))
        if refusal is not None and self._clock() < until:
            self.counts.refused += 1
            raise type(refusal)(refusal.message, reason=refusal.reason)
        try:
            claims = self._plausible(token)
        except DetectorError:
            self.counts.refused += 1
            raise
        peer = request.remote or ""
        if key not in self._under_review:
            if self._waiting.total() >= MAX_WAITING or self._waiting[peer] >= MAX_WAITING_PER_PEER:
                raise IdentityUnavailableError("too many unknown tokens wait to be reviewed", reason="Overloaded")
            self._count_waiting(peer, self._review(key, token, claims))
        return await asyncio.shield(self._under_review[key])

    def _count_waiting(self, peer: str, task: asyncio.Task[Identity]) -> None:
        self._waiting[peer] += 1

        def done(_: object) -> None:
            self._waiting[peer] -= 1
            if not self._waiting[peer]:
                del self._waiting[peer]

        task.add_done_callback(done)

    async def _known(self, key: bytes, token: str, known: _Admitted) -> Identity:
        """Admit by an earlier review while it is fresh; else ask again, and admit all the same while nobody answers."""
        now = self._clock()
        self._admitted.move_to_end(key)
        if now < known.fresh_until:
            return known.identity
        within_grace = now - known.reviewed < self._grace_s and (
            known.expires_at is None or self._wall() < known.expires_at
        )
        task = self._under_review.get(key) or self._review(key, token, parse_claims(token))
        if not within_grace:
            return await asyncio.shield(task)
        await asyncio.wait([task], timeout=PATIENCE_S)
        if task.done():
            error = task.exception()
            if error is None:
                return task.result()
            if not isinstance(error, IdentityUnavailableError):
                raise error
        self.counts.unreviewed += 1
        known.fresh_until = self._clock() + RETRY_S
        return known.identity

    def _plausible(self, token: str) -> Claims:
        """Refuse what no API server would admit.

        Raises:
            AuthenticationError: see `authenticate`.
            AuthorizationError: see `authenticate`.
        """
        claims = parse_claims(token)
        if claims is None:
            raise AuthenticationError("the token is not a service account's", reason="MalformedToken")
        if self._audience not in claims.audiences:
            raise AuthenticationError(
                f"the token is not meant for the audience {self._audience!r}", reason="WrongAudience"
            )
        if claims.expires_at is not None and claims.expires_at + CLOCK_LEEWAY_S < self._wall():
            raise AuthenticationError("the token has expired", reason="TokenExpired")
        if claims.subject != self._agents and claims.subject not in self._admins:
            raise AuthorizationError(
                f"{safe_text(claims.subject, 256)} is neither the agents' service account nor an administrator's",
                reason="WrongServiceAccount",
            )
        return claims

    def _review(self, key: bytes, token: str, claims: Claims | None) -> asyncio.Task[Identity]:
        """Ask about a token, once however many wait for it."""
        task = asyncio.create_task(self._ask(key, token, claims), name="token review")
        self._under_review[key] = task

        def done(finished: asyncio.Task[Identity]) -> None:
            del self._under_review[key]
            if not finished.cancelled():
                finished.exception()  # whoever waited may be gone: then nobody looks at the error

        task.add_done_callback(done)
        return task

    async def _ask(self, key: bytes, token: str, claims: Claims | None) -> Identity:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        try:
            async with self._slots:
                self.counts.reviews += 1
                answer = await self._api.post(PATH, body, timeout_s=REVIEW_TIMEOUT_S)
            self._answered()
            identity = await self._identity(read_review(answer, self._audience))
        except (ApiError, ApiUnreachableError) as error:
            self.counts.failed += 1
            self._away(error)
            raise IdentityUnavailableError(f"the token cannot be reviewed now: {_shown(error)}") from None
        except (AuthenticationError, AuthorizationError) as error:
            raise self._refuse(key, error, claims) from None
        self._admit(key, identity, claims)
        return identity

    async def _identity(self, bound: Bound) -> Identity:
        if bound.username in self._admins:
            return Identity(safe_text(bound.username, 256), node="", admin=True)
        if bound.username != self._agents:
            raise AuthorizationError(
                f"{safe_text(bound.username, 256)} is neither the agents' service account nor an administrator's",
                reason="WrongServiceAccount",
            )
        node = bound.node
        if not node:
            if not bound.pod_name or not bound.pod_uid:
                message = "the token is bound to no pod; agents send the token that is projected into their pod"
                raise AuthorizationError(message, reason="UnboundToken")
            node = await self._node_of_pod(bound)
        return Identity(f"agent of node {safe_text(node, 253)}", node=node)

    async def _node_of_pod(self, bound: Bound) -> str:
        """Where the pod runs, asked of the API server; for one that does not say so in the review.

        Raises:
            AuthorizationError: there is no such pod.
            ApiError, ApiUnreachableError: as of the API server.
        """
        path = f"/api/v1/namespaces/{quote(bound.namespace, safe='')}/pods/{quote(bound.pod_name, safe='')}"
        try:
            pod = await self._api.get(path, timeout_s=REVIEW_TIMEOUT_S)
        except ApiError as error:
            if error.status != 404:
                raise
            pod = {}
        metadata, spec = pod.get("metadata"), pod.get("spec")
        uid = metadata.get("uid") if isinstance(metadata, dict) else None
        node = spec.get("nodeName") if isinstance(spec, dict) else None
        if uid != bound.pod_uid or not isinstance(node, str) or not node:
            raise AuthorizationError(
                f"pod {safe_text(bound.namespace, 63)}/{safe_text(bound.pod_name, 253)} of the token runs nowhere",
                reason="PodGone",
            )
        return node

    def _refuse(self, key: bytes, error: DetectorError, claims: Claims | None) -> DetectorError:
        """Remember a refusal for a moment; returns what to raise."""
        expires_at = claims.expires_at if claims is not None else None
        if error.reason == "UnknownToken" and expires_at is not None and expires_at <= self._wall():
            error = AuthenticationError("the token has expired", reason="TokenExpired")
        self.counts.refused += 1
        if self._admitted.pop(key, None) is not None:
            log.info("a token that was admitted before is refused: %s: %s", error.reason, error.message)
        self._refused[key] = (self._clock() + NEGATIVE_S, error)
        while len(self._refused) > MAX_REFUSED:
            self._refused.popitem(last=False)
        return error

    def _admit(self, key: bytes, identity: Identity, claims: Claims | None) -> None:
        now = self._clock()
        expires_at = claims.expires_at if claims is not None else None
        left = self._cache_s if expires_at is None else min(self._cache_s, expires_at - self._wall())
        self._admitted[key] = _Admitted(identity, now, now + max(left, LEAST_S), expires_at)
        self._refused.pop(key, None)
        while len(self._admitted) > MAX_KNOWN:
            self._admitted.popitem(last=False)

    def _answered(self) -> None:
        if self._outage is not None:
            seconds = self._clock() - self._outage.since
            log.info("the API server reviews tokens again, after %.0f s", seconds)
            self._outage = None

    def _away(self, error: DetectorError) -> None:
        now = self._clock()
        if self._outage is None:
            self._outage = _Outage(now, self._wall(), error)
        self._outage.error = error
        if now - self._outage.said >= SAY_AGAIN_S:
            self._outage.said = now
            log.warning(
                "tokens cannot be reviewed: %s; tokens reviewed before are admitted until they expire, for at most %.0f"
                " s after their last review",
                _shown(error),
                self._grace_s,
            )

    def describe(self) -> dict[str, Any]:
        """JSON for the status page."""
        outage = self._outage
        return {
            "audience": self._audience,
            "agents": self._agents.removeprefix(_SERVICE_ACCOUNT),
            "admins": sorted(a.removeprefix(_SERVICE_ACCOUNT) for a in self._admins),
            "known_tokens": len(self._admitted),
            "reviews": self.counts.reviews,
            "refused": self.counts.refused,
            "failed": self.counts.failed,
            "admitted_without_review": self.counts.unreviewed,
            "away_since_ns": int(outage.since_wall * 1e9) if outage is not None else None,
            "error": _shown(outage.error) if outage is not None else None,
        }

    async def close(self) -> None:
        """Give up what is under review."""
        tasks = list(self._under_review.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _shown(error: DetectorError) -> str:
    """An error of the API server without its message, which may repeat what was sent: the token."""
    if not isinstance(error, ApiError):
        return f"{error.reason}: {error.message}"
    hint = ": the detector's service account must be allowed to create tokenreviews" if error.status == 403 else ""
    return f"{error.reason} (status {error.status}){hint}"
