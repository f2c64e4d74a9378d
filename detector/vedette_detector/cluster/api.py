"""The Kubernetes API over plain JSON: get, post, lists in pages, watches line by line.

Only this module touches the ``kubernetes`` package, and only its configuration loaders: they know kubeconfig files,
exec plugins and the files that a pod is given. The package's import loads all 700 typed models (measured: 0.8 s and
24 MB), so it happens in `KubernetesApi.open` and in a thread; a detector without Kubernetes does not pay for it. The
requests are aiohttp's own: the package's REST client bounds neither the size of an answer nor of a watch's line, and
gives a watch no TCP keep-alive.

The API's conventions are those of https://kubernetes.io/docs/reference/using-api/api-concepts/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from vedette_detector.errors import ConfigError, DetectorError
from vedette_detector.text import safe_text

log = logging.getLogger(__name__)

IN_CLUSTER = "in-cluster"
TOKEN_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
CA_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")

JSON = "application/json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Accept header of a get or watch that needs the objects' metadata only (PartialObjectMetadata)."""
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
"""As `METADATA`, for a list."""

MAX_ANSWER = 64 << 20
"""Bytes of one answer. A page of 500 pods is a few MiB; an object in etcd has 1.5 MiB at most."""
MAX_LINE = 8 << 20
"""Bytes of one event of a watch."""
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 20.0
WATCH_TIMEOUT_S = 300.0
PAGE = 500
CONFIGURE_AGAIN_S = 5.0
"""Least time between two readings of the configuration because of an error."""
_REASON = re.compile(r"[A-Z][A-Za-z0-9]{0,63}\Z")


class ApiError(DetectorError):
    """The API server answered, and not with what was asked for.

    Attributes:
        status: HTTP status; for an ERROR event of a watch its code (410: list again).
        reason: of the Status object (``NotFound``, ``Forbidden``, ``Expired`` …), otherwise ``Http<status>``;
            ``MalformedAnswer`` and ``AnswerTooLarge`` with status 200 when the answer could not be read.
        retry_after_s: seconds that the server asks to wait; 0: nothing said.
    """

    reason = "ApiError"

    def __init__(self, message: str, *, status: int, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message, reason=reason)
        self.status = status
        self.retry_after_s = retry_after_s


class ApiUnreachableError(DetectorError):
    """No connection, no answer in time, or the connection broke."""

    reason = "ApiUnreachable"


@dataclass(frozen=True)
class WatchEvent:
    """One event of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and the object as JSON."""

    type: str
    object: dict[str, Any]


def status_error(status: int, body: bytes, headers: Mapping[str, str]) -> ApiError:
    """What an answer that is not 2xx says; ``body`` is a Status object, or anything if a proxy answered."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return _status_object_error(document if isinstance(document, dict) else {}, status, headers.get("Retry-After", ""))


def _status_object_error(document: dict[str, Any], status: int, retry_after: str = "") -> ApiError:
    reason, message = document.get("reason"), document.get("message")
    details = document.get("details")
    wait = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    if retry_after.isascii() and retry_after.isdigit():
        wait = int(retry_after[:9])
    return ApiError(
        f"the API server answers {status}: {safe_text(message, 500) if isinstance(message, str) else 'no message'}",
        status=status,
        reason=reason if isinstance(reason, str) and _REASON.match(reason) else f"Http{status}",
        retry_after_s=float(wait) if isinstance(wait, int) and 0 < wait < 86400 else 0.0,
    )


def parse_event(line: bytes) -> WatchEvent:
    """One line of a watch.

    Raises:
        ApiError: an ERROR event, or not an event.
    """
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"a watch's line is not JSON: {error}", status=200, reason="MalformedAnswer") from None
    kind = document.get("type") if isinstance(document, dict) else None
    body = document.get("object") if isinstance(document, dict) else None
    if not isinstance(kind, str) or not isinstance(body, dict):
        raise ApiError("a watch's line is not an event", status=200, reason="MalformedAnswer")
    if kind == "ERROR":
        code = body.get("code")
        raise _status_object_error(body, code if isinstance(code, int) else 500)
    return WatchEvent(kind, body)


async def iter_lines(chunks: AsyncIterator[bytes], max_line: int) -> AsyncGenerator[bytes]:
    """Cut a stream into lines (without the newline; empty ones left out).

    Raises:
        ApiError: a line is longer than ``max_line``.
        ApiUnreachableError: the stream ends within a line.
    """
    buffer = bytearray()
    async for chunk in chunks:
        searched = len(buffer)
        buffer += chunk
        begin = 0
        while (end := buffer.find(b"\n", max(begin, searched))) >= 0:
            if end > begin:
                yield bytes(buffer[begin:end])
            begin = end + 1
        del buffer[:begin]
        if len(buffer) > max_line:
            raise ApiError(f"a watch's line has more than {max_line} bytes", status=200, reason="AnswerTooLarge")
    if buffer.strip():
        raise ApiUnreachableError("a watch ended within a line")


class KubernetesApi:
    """A client of one API server.

    Args:
        where: ``in-cluster`` or the path of a kubeconfig (its current context is used).
        environ: for tests; in a cluster, KUBERNETES_SERVICE_HOST and _PORT name the API server.
        token_file: the pod's token; read again every minute, and when the server says 401.
        ca_file: the cluster's certificate authority; read again when the server's certificate cannot be verified.
    """

    def __init__(
        self,
        where: str = IN_CLUSTER,
        *,
        environ: Mapping[str, str] = os.environ,
        token_file: Path = TOKEN_FILE,
        ca_file: Path = CA_FILE,
    ) -> None:
        self._where = where
        self._environ = environ
        self._token_file = token_file
        self._ca_file = ca_file
        self._configuration: Any = None
        self._session: aiohttp.ClientSession | None = None
        self._configured_at = float("-inf")
        self._configuring = asyncio.Lock()
        self._retired: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> KubernetesApi:
        await self.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def host(self) -> str:
        """Address of the API server, once open."""
        return str(self._configuration.host) if self._configuration is not None else ""

    async def open(self) -> None:
        """Load the configuration; connects to nothing.

        Raises:
            ConfigError: it is missing, malformed, or the ``kubernetes`` package is not installed.
        """
        async with self._configuring:
            await self._configure()

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        for task in list(self._retired):
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)

    async def _configure(self) -> None:
        try:
            aio = await asyncio.to_thread(_load_library)
        except ImportError as error:
            raise ConfigError(f"the package 'kubernetes' is missing: {error}", reason="KubernetesMissing") from None
        configuration = aio.client.Configuration()
        try:
            if self._where == IN_CLUSTER:
                aio.config.incluster_config.InClusterConfigLoader(
                    token_filename=str(self._token_file), cert_filename=str(self._ca_file), environ=self._environ
                ).load_and_set(configuration)
            else:
                if not await asyncio.to_thread(Path(self._where).is_file):
                    raise FileNotFoundError("no such file")
                # Nothing is written back into the user's file.
                await aio.config.load_kube_config(
                    config_file=self._where, client_configuration=configuration, persist_config=False
                )
            context = await asyncio.to_thread(_tls, configuration)
        # The loaders raise their own ConfigException, and whatever a malformed file makes PyYAML or OpenSSL raise.
        except Exception as error:
            text = "not a kubeconfig" if isinstance(error, TypeError) else error
            raise ConfigError(f"Kubernetes configuration {self._where!r}: {text}") from None
        connector = aiohttp.TCPConnector(ssl=context, limit=100, socket_factory=_socket)
        old = self._session
        # The API server is reached directly: no proxy and no .netrc of the environment, only a kubeconfig's proxy-url.
        self._session = aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=True)
        self._configuration = configuration
        self._configured_at = time.monotonic()
        if old is not None:
            # Requests under way, watches above all, end on the session that they began on.
            task = asyncio.create_task(_close_later(old), name="retired API session")
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    async def _configure_again(self, seen: aiohttp.ClientSession) -> bool:
        """Read the configuration again, unless that was just done; whether there is a new one."""
        async with self._configuring:
            if self._session is not seen:
                return True
            if time.monotonic() - self._configured_at < CONFIGURE_AGAIN_S:
                return False
            try:
                await self._configure()
            except ConfigError as error:
                log.warning("the Kubernetes configuration could not be read again: %s", error.message)
                self._configured_at = time.monotonic()
                return False
            return True

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        accept: str,
        body: Any,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request's answer with status 2xx; everything else is raised."""
        for attempt in (1, 2):
            session = self._session
            if session is None:
                raise ApiUnreachableError("the Kubernetes client is closed")
            try:
                async with self._send(session, method, path, query, accept, body, timeout) as response:
                    if response.status < 300:
                        yield response
                        return
                    failure = status_error(response.status, await _read(response, 1 << 20), response.headers)
            except aiohttp.ClientConnectorCertificateError as error:
                if attempt == 1 and await self._configure_again(session):
                    continue
                raise ApiUnreachableError(f"{self.host}: {safe_text(str(error), 500)}") from error
            # A 401 means that the token is not (or no longer) the one in the file, or that a plugin's is used up.
            if failure.status == 401 and attempt == 1 and await self._configure_again(session):
                continue
            raise failure

    @asynccontextmanager
    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        query: Mapping[str, str],
        accept: str,
        body: Any,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's own
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        configuration = self._configuration
        headers = {"Accept": accept, "User-Agent": "vedette-detector"}
        more: dict[str, Any] = {}
        try:
            settings = await configuration.auth_settings()
        except Exception as error:  # a token file that is away, an exec plugin that fails
            raise ApiUnreachableError(f"no credentials: {safe_text(str(error), 200)}") from error
        bearer = settings.get("BearerToken", {}).get("value")
        if bearer:
            headers["Authorization"] = bearer.strip()
        elif configuration.username:
            headers["Authorization"] = configuration.get_basic_auth_token()
        if body is not None:
            headers["Content-Type"] = JSON
            more["data"] = json.dumps(body).encode()
        if configuration.tls_server_name:
            more["server_hostname"] = configuration.tls_server_name
        if configuration.proxy:
            more["proxy"] = configuration.proxy
        try:
            async with session.request(
                method,
                configuration.host + path,
                params=dict(query),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                **more,
            ) as response:
                yield response
        except aiohttp.ClientConnectorCertificateError:
            raise
        except TimeoutError as error:
            raise ApiUnreachableError(f"{self.host}: no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            text = safe_text(str(error) or type(error).__name__, 500)
            raise ApiUnreachableError(f"{self.host}: {text}") from error

    async def get(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        accept: str = JSON,
        timeout_s: float = REQUEST_TIMEOUT_S,
        max_bytes: int = MAX_ANSWER,
    ) -> dict[str, Any]:
        """GET ``path`` (for example ``/api/v1/nodes``); the JSON object of the answer.

        Raises:
            ApiError: any status but 2xx, or an answer that is no JSON object or larger than ``max_bytes``.
            ApiUnreachableError: no answer.
        """
        return await self._document("GET", path, query or {}, accept, None, timeout_s, max_bytes)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        query: Mapping[str, str] | None = None,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        max_bytes: int = MAX_ANSWER,
    ) -> dict[str, Any]:
        """POST ``body`` as JSON; the JSON object of the answer.

        Raises:
            ApiError: as `get`.
            ApiUnreachableError: no answer; whether the request was carried out is not known.
        """
        return await self._document("POST", path, query or {}, JSON, body, timeout_s, max_bytes)

    async def _document(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        accept: str,
        body: Any,
        timeout_s: float,
        max_bytes: int,
    ) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        async with self._request(method, path, query, accept, body, timeout) as response:
            data = await _read(response, max_bytes)
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ApiError(f"{path}: not JSON: {error}", status=200, reason="MalformedAnswer") from None
        if not isinstance(document, dict):
            raise ApiError(f"{path}: not a JSON object", status=200, reason="MalformedAnswer")
        return document

    async def pages(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        accept: str = JSON,
        limit: int = PAGE,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> AsyncGenerator[dict[str, Any]]:
        """List ``path`` in pages of ``limit`` objects; each page is a List object.

        All pages are of one state, named by ``metadata.resourceVersion`` of any of them: watch from there. Items carry
        no kind of their own; it is the list's without "List".

        Raises:
            ApiError: as `get`; 410 (``Expired``) when the list took too long: begin again.
            ApiUnreachableError: no answer.
        """
        asked = {**(query or {}), "limit": str(limit)}
        while True:
            page = await self.get(path, asked, accept=accept, timeout_s=timeout_s)
            metadata = page.get("metadata")
            more = metadata.get("continue") if isinstance(metadata, dict) else None
            yield page
            if not more:
                return
            asked["continue"] = str(more)

    async def watch(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        accept: str = JSON,
        timeout_s: float = WATCH_TIMEOUT_S,
        max_line: int = MAX_LINE,
        opened: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[WatchEvent]:
        """Watch ``path`` (with ``resourceVersion`` in ``query``); ends when the server ends it, after ``timeout_s``.

        Bookmarks are asked for: their ``metadata.resourceVersion`` is where to go on. Close the iterator
        (``contextlib.aclosing``) when leaving it early. ``opened`` is called once the server has agreed: the
        first event may be minutes away.

        Raises:
            ApiError: the watch is refused, or an ERROR event comes (status 410: the version is too old, list again).
            ApiUnreachableError: no connection, or it broke; go on from the last version seen.
        """
        asked = {"allowWatchBookmarks": "true", **(query or {}), "watch": "1", "timeoutSeconds": str(int(timeout_s))}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s + 15.0)
        async with (
            self._request("GET", path, asked, accept, None, timeout) as response,
            contextlib.aclosing(_chunks(response)) as chunks,
            contextlib.aclosing(iter_lines(chunks, max_line)) as lines,
        ):
            opened()
            async for line in lines:
                yield parse_event(line)


def _load_library() -> Any:
    import kubernetes.aio as aio

    return aio


def _tls(configuration: Any) -> ssl.SSLContext:
    """The TLS side of a configuration; reads the certificates' files."""
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    if configuration.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _socket(address: Any) -> socket.socket:
    """A socket that notices within about 30 s when the other side is gone: a watch may be silent for minutes."""
    made = socket.socket(address[0], address[1], address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return made


async def _close_later(session: aiohttp.ClientSession) -> None:
    try:
        await asyncio.sleep(WATCH_TIMEOUT_S + 30.0)
    finally:
        await session.close()


async def _chunks(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    async for chunk in response.content.iter_any():
        yield chunk


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > max_bytes:
            raise ApiError(
                f"the answer has more than {max_bytes} bytes", status=response.status, reason="AnswerTooLarge"
            )
    return bytes(data)
