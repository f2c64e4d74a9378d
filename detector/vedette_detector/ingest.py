"""The detector's HTTP side: what agents deliver to and the command line asks.

    POST /v1/batches     one or more framed batches, one after another
    POST /v1/heartbeat   JSON
    GET  /v1/status      JSON
    POST /v1/nodes/forget  JSON with ``node``
    GET  /v1/coverage    JSON
    GET  /healthz        200 or 503 (no authentication)
    GET  /metrics        Prometheus text (no authentication)

Every error is JSON with ``reason`` (CamelCase) and ``message``. 400 names the batch that can never be accepted; 503
with Retry-After means: keep everything, come again. See ``docs/ingest.md``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import web

from vedette_detector.auth import Authenticator, Identity
from vedette_detector.errors import AuthorizationError, DetectorError, QueryError, http_status
from vedette_detector.intake import Intake, RejectedBatchError, TooNewError
from vedette_detector.text import safe
from vedette_events.framing import BOOT_ID_SIZE, MAX_NODE, BatchError, BatchHeader, iter_batches

log = logging.getLogger(__name__)

MAX_HEARTBEAT = 256 << 10
"""Bytes of a heartbeat's body."""
MAX_FORGET = 4 << 10
"""Bytes of a request to forget a node."""
MAX_BATCHES = 16384
"""Batches in one request."""
MAX_RAW_BYTES = 512 << 20
"""Size of their records, decompressed: a small body may hold thousands of times its size."""
BODY_TIMEOUT_S = 60.0
"""Time for a body to arrive; while it does, room is kept for it."""
RETRY_S = 1
RETRY_TOO_NEW_S = 30
_OPEN_PATHS = ("/healthz", "/metrics")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
IDENTITY = web.RequestKey("identity", Identity)


class Backend(Protocol):
    """What the handlers need of the service."""

    intake: Intake

    def filters(self) -> dict[str, Any]:
        """The filters document for agents."""
        ...

    async def heartbeat(self, node: str, boot_id: bytes, document: dict[str, Any]) -> None:
        """Take a heartbeat."""
        ...

    async def status(self) -> dict[str, Any]:
        """What ``/v1/status`` answers."""
        ...

    async def coverage(self) -> dict[str, Any]:
        """What ``/v1/coverage`` answers."""
        ...

    async def forget(self, node: str) -> bool:
        """Forget a node that is gone; False when there is none, or when it is not gone."""
        ...

    def health(self) -> tuple[bool, str]:
        """Whether batches can be made durable now, and why not."""
        ...

    async def metrics(self) -> str:
        """Prometheus text."""
        ...


class MalformedHeartbeatError(DetectorError):
    """A heartbeat that is not what docs/ingest.md says."""

    reason = "MalformedHeartbeat"


def parse_body(body: bytes) -> tuple[list[tuple[BatchHeader, bytes]], RejectedBatchError | None]:
    """Cut a request's body into framed batches: those before the first bad one, and what is wrong with that.

    Pure; payloads are not looked at.

    Raises:
        web.HTTPRequestEntityTooLarge: more batches, or more in them, than one request may hold.
    """
    batches: list[tuple[BatchHeader, bytes]] = []
    raw = 0
    try:
        for header, frame in iter_batches(body):
            raw += header.raw_size
            if len(batches) == MAX_BATCHES or (batches and raw > MAX_RAW_BYTES):
                raise web.HTTPRequestEntityTooLarge(MAX_RAW_BYTES, raw)
            batches.append((header, bytes(frame)))
    except BatchError as error:
        return batches, RejectedBatchError(error.reason, error.message, error.header)
    if not batches:
        return [], RejectedBatchError("EmptyBody", "the body holds no batch", None)
    return batches, None


async def read_small(request: web.Request, limit: int) -> bytes:
    """A body for which no room is kept, so that no more of it is ever held than ``limit`` bytes.

    Raises:
        web.HTTPRequestEntityTooLarge: it is larger, whatever its Content-Length says.
        web.HTTPRequestTimeout: it does not arrive.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.content.iter_any():
                body += part
                if len(body) > limit:
                    raise web.HTTPRequestEntityTooLarge(limit, len(body))
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    return bytes(body)


def parse_heartbeat(body: bytes) -> tuple[str, bytes, dict[str, Any]]:
    """Node, boot id and the whole document, made safe to show.

    Raises:
        MalformedHeartbeatError: not JSON, or node or boot id are missing.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedHeartbeatError(f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise MalformedHeartbeatError("the body is not a JSON object")
    node, boot = document.get("node"), document.get("boot_id")
    if not isinstance(node, str) or not 0 < len(node.encode("utf-8", "surrogatepass")) <= MAX_NODE:
        raise MalformedHeartbeatError(f"node is not a text of 1 to {MAX_NODE} bytes")
    try:
        node.encode()
        boot_id = bytes.fromhex(str(boot).replace("-", ""))
    except ValueError:
        boot_id = b""
    if len(boot_id) != BOOT_ID_SIZE:
        raise MalformedHeartbeatError("boot_id is not 32 hex digits, or node is not UTF-8")
    shown: dict[str, Any] = _finite(safe(document, limit=1024, items=256, depth=6))
    return node, boot_id, {**shown, "node": node, "boot_id": boot_id.hex()}


def _finite(value: Any) -> Any:
    """Without NaN and infinities, which JSON has no form for, and integers that no reader expects."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**64:
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return value


def error_response(error: DetectorError, **more: Any) -> web.Response:
    """The answer to an error, as docs/ingest.md has it."""
    if isinstance(error, RejectedBatchError):
        header = error.header
        more = {
            "session": header.session if header is not None else None,
            "sequence": header.sequence if header is not None else None,
            **more,
        }
        status = 400
    elif isinstance(error, MalformedHeartbeatError):
        status = 400
    else:
        status = http_status(error)
    headers = {}
    if status == 503:
        headers["Retry-After"] = str(RETRY_TOO_NEW_S if isinstance(error, TooNewError) else RETRY_S)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    document = {"reason": error.reason, "message": safe(error.message), **more}
    return web.json_response(document, status=status, headers=headers)


def make_app(backend: Backend, authenticator: Authenticator, *, max_body_bytes: int) -> web.Application:
    """The application: handlers, with authentication before and errors made answers after them."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in _OPEN_PATHS:
                request[IDENTITY] = await authenticator.authenticate(request)
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            message = f"the body is larger than {max_body_bytes} bytes, or holds too much: send fewer batches"
            document = {"reason": "TooLarge", "message": message}
            return web.json_response(document, status=413)
        except web.HTTPException as error:
            return web.json_response(
                {"reason": error.reason.replace(" ", ""), "message": f"{request.method} {safe(request.path)}"},
                status=error.status,
            )
        except DetectorError as error:
            return error_response(error)

    async def post_batches(request: web.Request) -> web.Response:
        intake = backend.intake
        size = request.content_length or 0
        if size > max_body_bytes:
            raise web.HTTPRequestEntityTooLarge(max_body_bytes, size)
        # Asked before the body is read: a refused body costs nothing. One without a length may become the largest.
        identity = request[IDENTITY]
        with intake.room_for(size if request.content_length is not None else max_body_bytes, identity.node):
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    body = await request.read()
            except TimeoutError:
                raise web.HTTPRequestTimeout from None
        intake.admit(len(body), identity.node)
        batches, malformed = parse_body(body)
        for header, _ in batches:
            identity.may_speak_for(header.node)
        errors = await intake.submit(batches)
        acknowledged = [
            {"session": header.session, "sequence": header.sequence}
            for (header, _), error in zip(batches, errors, strict=True)
            if error is None
        ]
        rejected = next((e for e in errors if isinstance(e, RejectedBatchError)), None) or malformed
        if rejected is not None:
            return error_response(rejected, acknowledged=acknowledged)
        failure = next((e for e in errors if e is not None), None)
        if failure is not None and not acknowledged:
            return error_response(failure)
        return web.json_response({"acknowledged": acknowledged, "filters": new_filters(request)})

    def new_filters(request: web.Request) -> dict[str, Any] | None:
        filters = backend.filters()
        return filters if request.headers.get("X-Vedette-Filters") != filters["version"] else None

    async def post_heartbeat(request: web.Request) -> web.Response:
        node, boot_id, document = parse_heartbeat(await read_small(request, MAX_HEARTBEAT))
        request[IDENTITY].may_speak_for(node)
        await backend.heartbeat(node, boot_id, document)
        return web.json_response({"acknowledged": [], "filters": new_filters(request)})

    async def get_status(request: web.Request) -> web.Response:
        if not request[IDENTITY].admin:
            raise AuthorizationError("only an administrator may read the status", reason="NotAdministrator")
        return web.json_response(await backend.status())

    async def get_coverage(request: web.Request) -> web.Response:
        if not request[IDENTITY].admin:
            raise AuthorizationError("only an administrator may read the coverage", reason="NotAdministrator")
        return web.json_response(await backend.coverage())

    async def post_forget(request: web.Request) -> web.Response:
        if not request[IDENTITY].admin:
            raise AuthorizationError("only an administrator may forget a node", reason="NotAdministrator")
        try:
            node = json.loads(await read_small(request, MAX_FORGET))["node"]
        except (ValueError, RecursionError, TypeError, KeyError):
            raise QueryError('the body is not a JSON object with "node"') from None
        if not isinstance(node, str) or not await backend.forget(node):
            raise QueryError(f"no node {safe(node)} is known, or batches of it are under way", reason="UnknownNode")
        return web.json_response({"forgotten": safe(node)})

    async def get_health(request: web.Request) -> web.Response:
        healthy, message = backend.health()
        return web.json_response({"healthy": healthy, "message": message}, status=200 if healthy else 503)

    async def get_metrics(request: web.Request) -> web.Response:
        return web.Response(text=await backend.metrics(), content_type="text/plain", charset="utf-8")

    app = web.Application(middlewares=[guard], client_max_size=max_body_bytes)
    app.router.add_post("/v1/batches", post_batches)
    app.router.add_post("/v1/heartbeat", post_heartbeat)
    app.router.add_get("/v1/status", get_status)
    app.router.add_get("/v1/coverage", get_coverage)
    app.router.add_post("/v1/nodes/forget", post_forget)
    app.router.add_get("/healthz", get_health)
    app.router.add_get("/metrics", get_metrics)
    return app
