"""The sender: posts spooled batches and heartbeats to the detector, in its own thread.

HTTP/1.1 over a unix socket (``unix:///run/vedette/detector.sock``) or TLS (``https://host:port``), one connection that
is kept open. `judge` decides what an answer means; it is pure. What it decides:

    200             the batches named leave the spool; new filters are handed over
    400             that batch can never be accepted: it is given up and counted, the others go on
    401, 403        kept; tried again slowly, and at once when a heartbeat is taken again
    413             fewer batches per request; a single one that is still too large is given up and counted
    429, 503, 5xx   kept; tried again after Retry-After or a growing, random time; connection errors alike

Token and certificate authority are files that are replaced while the agent runs (projected tokens after 80 % of their
life, a ConfigMap when the authority is renewed). Both are looked at before each request; a request that a token just
expired for is sent again at once with the new one.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote, urlsplit

from vedette_agent import __version__
from vedette_agent.errors import SettingsError
from vedette_agent.spool import BatchRef, Spool

if TYPE_CHECKING:
    import ssl

    from vedette_agent.log import Log

REQUEST_BYTES = 4 << 20
"""Most bytes of batches in one request. One request of this size is about a quarter of a million compressed events."""

CONNECT_TIMEOUT_S = 5.0
RESPONSE_TIMEOUT_S = 20.0
HEARTBEAT_INTERVAL_S = 10.0
BACKOFF_FIRST_S = 0.2
BACKOFF_LAST_S = 15.0
BACKOFF_LAST_LOCAL_S = 2.0
"""On a unix socket there is one agent, and no crowd to keep apart when a detector comes back."""
BACKOFF_UNAUTHORISED_S = 30.0
RETRY_AFTER_MAX_S = 300.0
_MAX_ANSWER = 8 << 20
_MAX_FILE = 1 << 20
_REASON = re.compile(r"[A-Z][A-Za-z0-9]{0,63}\Z")
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/=-]+\Z")
"""The characters of a bearer token (RFC 6750 §2.1). Anything else would break the header, and be quoted in an error."""


@dataclass(frozen=True)
class Endpoint:
    """Where the detector listens. Exactly one of ``path`` (unix socket) and ``host`` is set."""

    path: str = ""
    host: str = ""
    port: int = 443
    prefix: str = ""

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read ``unix:///path`` or ``https://host[:port][/prefix]``.

        Raises:
            SettingsError: anything else.
        """
        parts = urlsplit(text)
        try:
            port = parts.port
        except ValueError as error:
            raise SettingsError(f"endpoint {text!r}: {error}") from error
        if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
            return cls(path=unquote(parts.path))
        if parts.scheme == "https" and parts.hostname and not parts.username and not parts.query:
            return cls(host=parts.hostname, port=port or 443, prefix=parts.path.rstrip("/"))
        raise SettingsError(f"endpoint {text!r}: expected unix:///path/of/socket or https://host:port")

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.path else f"https://{self.host}:{self.port}{self.prefix}"


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TransportError(Exception):
    """The detector could not be reached, or the connection broke; the message says which."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _WatchedFile:
    """A small file that is replaced while we run (a projected token, a CA bundle).

    It is read each time: some kilobytes for each request cost less than a change that its times do not show.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: bytes | None = None

    def renew(self) -> bool:
        """Read the file; whether it says something else than before.

        Raises:
            OSError: it cannot be read.
        """
        with self.path.open("rb") as file:
            content = file.read(_MAX_FILE)
        changed, self.content = content != self.content, content
        return changed

    def forget(self) -> None:
        """Take the file for another one at the next call."""
        self.content = None


class Client:
    """One kept-open connection to the detector.

    Args:
        endpoint: where to.
        token_file: bearer token, read again whenever the file changes.
        ca_file: certificates to trust in place of the system's, read again whenever the file changes. A file that no
            longer holds any leaves those in force that it held before.

    Attributes:
        problem: what is wrong although requests go on, for the log; empty: nothing.
    """

    def __init__(self, endpoint: Endpoint, token_file: Path | None = None, ca_file: Path | None = None) -> None:
        self._endpoint = endpoint
        self._token_file = _WatchedFile(token_file) if token_file else None
        self._ca_file = _WatchedFile(ca_file) if ca_file else None
        self._tls: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None
        self.problem = ""

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send one request.

        A kept-open connection that turns out to be closed is opened again once, and a token that was replaced while it
        was on its way is replaced in the request; batches are numbered, so a request that arrives twice does no harm.

        Raises:
            TransportError: no connection, no answer in time, or no HTTP.
        """
        sent = dict(headers)
        sent["User-Agent"] = f"vedette-agent/{__version__}"
        self._renew()
        self._authorise(sent)
        answer = self._post(path, body, sent)
        if answer.status == 401 and self._renew():
            self._authorise(sent)
            answer = self._post(path, body, sent)
        return answer

    def _renew(self) -> bool:
        """Look at the files; returns whether there is another token."""
        try:
            if self._ca_file is not None and self._ca_file.renew():
                self._trust(self._ca_file)
            return self._token_file is not None and self._token_file.renew()
        except OSError as error:
            raise TransportError(f"cannot read the token or CA file: {error}") from error

    def _authorise(self, headers: dict[str, str]) -> None:
        if self._token_file is None:
            return
        token = (self._token_file.content or b"").strip()
        if not _TOKEN.match(token):
            raise TransportError(f"{self._token_file.path} holds no token")
        headers["Authorization"] = f"Bearer {token.decode('ascii')}"

    def _trust(self, ca_file: _WatchedFile) -> None:
        """Trust what the file holds now, from the next connection on, which is opened at once."""
        if self._endpoint.path:
            return
        import ssl

        try:
            # From memory: the file may be replaced again before it is read a second time.
            content = ca_file.content or b""
            if b"-----BEGIN CERTIFICATE-----" not in content:
                # Given nothing, `create_default_context` would trust the system's authorities.
                raise ValueError("no certificate in it")
            made = ssl.create_default_context(cadata=content.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError) as error:
            self.problem = f"CA file {ca_file.path}: {error}"
            if self._tls is None:
                ca_file.forget()
                raise TransportError(self.problem) from error
            return
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls, self.problem = made, ""
        self.close()

    def _post(self, path: str, body: bytes, sent: Mapping[str, str]) -> Answer:
        reused = self._connection is not None
        try:
            return self._exchange(path, body, sent)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            if not reused or not _closed_by_peer(error):
                raise TransportError(f"{self._endpoint}: {_describe(error)}") from error
        try:
            return self._exchange(path, body, sent)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise TransportError(f"{self._endpoint}: {_describe(error)}") from error

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _exchange(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        if self._connection is None:
            self._connection = self._connect()  # kept before it connects, so that a failure closes it
            self._connection.connect()
            self._connection.sock.settimeout(RESPONSE_TIMEOUT_S)
        self._connection.request("POST", self._endpoint.prefix + path, body, dict(headers))
        response = self._connection.getresponse()
        data = response.read(_MAX_ANSWER)
        if response.read(1):
            raise http.client.HTTPException("the answer is longer than 8 MiB")
        if response.will_close:
            self.close()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data)

    def _connect(self) -> http.client.HTTPConnection:
        if self._endpoint.path:
            return _UnixConnection(self._endpoint.path, CONNECT_TIMEOUT_S)
        if self._tls is None:
            import ssl  # 4 MB that an agent on a unix socket does without

            self._tls = ssl.create_default_context()
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(
            self._endpoint.host, self._endpoint.port, timeout=CONNECT_TIMEOUT_S, context=self._tls
        )


def _closed_by_peer(error: BaseException) -> bool:
    """Whether the other side has ended the connection, as one does that is restarted or that was idle for long."""
    if isinstance(error, (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)):
        return True
    # Over TLS the same may come as one of these, which are only there when `ssl` is.
    return type(error).__name__ in ("SSLEOFError", "SSLZeroReturnError", "SSLSyscallError")


def _describe(error: BaseException) -> str:
    # ssl.SSLCertVerificationError: its text names OpenSSL's source line, its `verify_message` the reason.
    reason = getattr(error, "verify_message", "")
    if reason:
        return f"certificate verify failed, the detector is not trusted: {reason}"
    return str(error) or type(error).__name__


class Verdict(Enum):
    """What an answer to posted batches means."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"  # one batch can never be accepted
    SPLIT = "split"  # try again with fewer batches
    UNAUTHORISED = "unauthorised"
    RETRY = "retry"


@dataclass(frozen=True)
class Judgement:
    """What to do after an answer.

    ``settled`` holds (session, sequence); ``delay_s`` is the least time to wait; ``next_bytes`` is the size of the
    next request where that matters.
    """

    verdict: Verdict
    settled: frozenset[tuple[int, int]] = frozenset()
    reason: str = ""
    message: str = ""
    delay_s: float = 0.0
    next_bytes: int = 0
    filters: dict[str, Any] | None = None


def judge(answer: Answer, refs: tuple[BatchRef, ...], now_s: float) -> Judgement:
    """Decide what an answer to ``POST /v1/batches`` means for the batches sent.

    Args:
        answer: the detector's answer.
        refs: the batches of the request, in order.
        now_s: wall clock, for a Retry-After that is a date.
    """
    document = _document(answer)
    delay = retry_after(answer.headers.get("retry-after"), now_s)
    if answer.status == 200:
        filters = document.get("filters")
        named = document.get("acknowledged")
        sent = {(ref.session, ref.sequence) for ref in refs}
        names = {
            (entry.get("session"), entry.get("sequence"))
            for entry in (named if isinstance(named, list) else [])
            if isinstance(entry, dict)
            and isinstance(entry.get("session"), int)
            and isinstance(entry.get("sequence"), int)
        }
        settled = frozenset(sent & names)
        # Batches leave the spool in order: without the oldest nothing does, and at once the same would be sent again.
        oldest = bool(refs) and (refs[0].session, refs[0].sequence) in settled
        return Judgement(
            Verdict.ACKNOWLEDGED if oldest else Verdict.RETRY,
            settled,
            reason="" if oldest else "OldestNotAcknowledged" if settled else "NothingAcknowledged",
            delay_s=delay,
            filters=filters if isinstance(filters, dict) else None,
        )
    reason = document.get("reason")
    reason = reason if isinstance(reason, str) and _REASON.match(reason) else f"Http{answer.status}"
    message = str(document.get("message", ""))[:500]
    if answer.status in (400, 413):
        if len(refs) == 1:
            return Judgement(Verdict.REFUSED, reason=reason, message=message)
        # Only the first of the spool's batches can leave it. So those before the refused one are sent on their own
        # (the detector may have taken them already and says so), and then the refused one comes first.
        refused = (document.get("session"), document.get("sequence"))
        place = next((i for i, ref in enumerate(refs) if (ref.session, ref.sequence) == refused), None)
        if answer.status == 400 and place == 0:
            return Judgement(Verdict.REFUSED, reason=reason, message=message)
        if answer.status == 413 or place is None:
            place = len(refs) // 2
        size = sum(ref.size for ref in refs[:place])
        return Judgement(Verdict.SPLIT, reason=reason, message=message, next_bytes=size)
    if answer.status in (401, 403):
        return Judgement(Verdict.UNAUTHORISED, frozenset(), reason, message, delay)
    return Judgement(Verdict.RETRY, frozenset(), reason, message, delay)


def retry_after(value: str | None, now_s: float) -> float:
    """Seconds that a Retry-After header asks for: a number or an HTTP date (RFC 9110 §10.2.3); 0 when unreadable."""
    if not value:
        return 0.0
    try:
        seconds = float(int(value))
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now_s
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def _document(answer: Answer) -> dict[str, Any]:
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


@dataclass
class Backoff:
    """Growing, random waiting times: half to the whole of a bound that doubles."""

    bound_s: float = BACKOFF_FIRST_S
    last_s: float = BACKOFF_LAST_S
    random: Callable[[], float] = field(default=random.random)

    def next(self, at_least_s: float = 0.0) -> float:
        """Seconds to wait now; the next time will be longer."""
        wait = self.bound_s * (0.5 + 0.5 * self.random())
        self.bound_s = min(self.bound_s * 2, self.last_s)
        return max(wait, at_least_s)

    def reset(self) -> None:
        """Begin anew after a success."""
        self.bound_s = BACKOFF_FIRST_S


class Poster(Protocol):
    """What the sender needs of `Client`."""

    @property
    def problem(self) -> str:
        """What is wrong although requests go on; empty: nothing."""

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send one request."""

    def close(self) -> None:
        """Close the connection."""


class Sender(threading.Thread):
    """Moves batches from the spool to the detector and reports the heartbeat, until `stop`.

    Args:
        spool: where batches come from.
        client: how they go.
        heartbeat: makes the document of a heartbeat; called in this thread.
        filters_version: version of the filters in force.
        on_filters: takes a filters document of the detector; called in this thread.
        log: where to say what happens.
    """

    def __init__(
        self,
        spool: Spool,
        client: Poster,
        *,
        heartbeat: Callable[[], dict[str, Any]],
        filters_version: Callable[[], str],
        on_filters: Callable[[dict[str, Any]], None],
        log: Log,
        request_bytes: int = REQUEST_BYTES,
        heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S,
        backoff_last_s: float = BACKOFF_LAST_S,
    ) -> None:
        super().__init__(name="sender", daemon=True)
        self._spool = spool
        self._client = client
        self._heartbeat = heartbeat
        self._filters_version = filters_version
        self._on_filters = on_filters
        self._log = log
        self._request_bytes = request_bytes
        self._largest_request = request_bytes
        self._heartbeat_interval = heartbeat_interval_s
        self._next_heartbeat = 0.0
        self._next_batches = 0.0
        self._backoff = Backoff(last_s=backoff_last_s)
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._unauthorised = False
        self.healthy = False
        """Whether the last request was answered as it should be."""
        self.acknowledged = 0
        """Batches acknowledged since the start."""

    def stop(self, timeout_s: float) -> None:
        """Send what is left for at most ``timeout_s``, then end. Batches that remain stay in the spool."""
        self._deadline = time.monotonic() + timeout_s
        self._stopping.set()
        self._spool.wake()
        self.join(timeout_s + 0.5)

    def run(self) -> None:
        """The thread's body."""
        while not self._finished():
            try:
                delay = self._step()
            except TransportError as error:
                self.healthy = False
                self._log.repeated("warning", "the detector cannot be reached", error=error)
                delay = self._backoff.next()
            except Exception as error:  # whatever it is, it must not end the only thread that sends
                self.healthy = False
                self._log.repeated("error", "sending failed unexpectedly", error=f"{type(error).__name__}: {error}")
                delay = self._backoff.next()
            if delay:
                self._pause(delay)
        self._client.close()

    def _finished(self) -> bool:
        if not self._stopping.is_set():
            return False
        return time.monotonic() >= self._deadline or not self._spool.wait(0)

    def _pause(self, delay_s: float) -> None:
        if self._stopping.is_set():
            time.sleep(max(0.0, min(delay_s, 0.2, self._deadline - time.monotonic())))
        else:
            self._stopping.wait(delay_s)

    def _step(self) -> float:
        """One request, or waiting for a reason for one. Returns seconds to wait before the next."""
        now = time.monotonic()
        if now >= self._next_heartbeat and not self._stopping.is_set():
            self._next_heartbeat = now + self._heartbeat_interval
            return self._send_heartbeat()
        if now < self._next_batches and not self._stopping.is_set():
            # Asked to wait with batches, perhaps for minutes, the agent is alive all the same and says so.
            return min(self._next_batches, self._next_heartbeat) - now
        if not self._spool.wait(max(0.0, self._next_heartbeat - now)):
            return 0.0
        if self._stopping.is_set() and not self._spool.wait(0):
            return 0.0
        delay = self._send_batches()
        self._next_batches = time.monotonic() + delay
        return delay if self._stopping.is_set() else 0.0

    def _send_heartbeat(self) -> float:
        body = json.dumps(self._heartbeat()).encode()
        answer = self._client.post("/v1/heartbeat", body, self._headers("application/json"))
        self._tell_problem()
        if answer.status != 200:
            self.healthy = False
            judgement = judge(answer, (), time.time())
            self._log.repeated(
                "warning",
                "the detector does not take the heartbeat",
                status=answer.status,
                reason=judgement.reason,
                why=judgement.message,
            )
            return 0.0
        if self._unauthorised:
            # Whatever was wrong with the token is put right: the batches need not wait for their turn.
            self._unauthorised = False
            self._next_batches = 0.0
        filters = _document(answer).get("filters")
        if isinstance(filters, dict):
            self._on_filters(filters)
        return 0.0

    def _send_batches(self) -> float:
        chunk = self._spool.read(self._request_bytes)
        if chunk is None:
            return 0.0
        answer = self._client.post("/v1/batches", chunk.body, self._headers("application/x-vedette-batches"))
        judgement = judge(answer, chunk.refs, time.time())
        self._tell_problem()
        self._unauthorised = judgement.verdict is Verdict.UNAUTHORISED
        if judgement.filters is not None:
            self._on_filters(judgement.filters)
        if judgement.settled:
            self.acknowledged += self._spool.acknowledge(set(judgement.settled))
        if judgement.verdict is Verdict.ACKNOWLEDGED:
            self.healthy = True
            self._backoff.reset()
            self._request_bytes = min(self._request_bytes * 2, self._largest_request)
            return judgement.delay_s
        if judgement.verdict is Verdict.REFUSED:
            given_up = self._spool.refuse(judgement.reason)
            self._log(
                "error",
                "the detector refuses a batch; it is given up",
                reason=judgement.reason,
                detail=judgement.message,
                sequence=given_up.sequence if given_up else None,
            )
            return 0.0
        if judgement.verdict is Verdict.SPLIT:
            self._request_bytes = judgement.next_bytes
            return 0.0
        self.healthy = False
        if judgement.verdict is Verdict.UNAUTHORISED:
            self._log.repeated(
                "error",
                "the detector does not accept the token",
                status=answer.status,
                reason=judgement.reason,
                why=judgement.message,
            )
            return self._backoff.next(
                max(judgement.delay_s, BACKOFF_UNAUTHORISED_S * (0.5 + 0.5 * self._backoff.random()))
            )
        self._log.repeated(
            "warning", "the detector asks to wait", status=answer.status, reason=judgement.reason, why=judgement.message
        )
        return self._backoff.next(judgement.delay_s)

    def _tell_problem(self) -> None:
        if self._client.problem:
            self._log.repeated("error", "the old certificates stay trusted", problem=self._client.problem)

    def _headers(self, content_type: str) -> dict[str, str]:
        return {"Content-Type": content_type, "X-Vedette-Filters": self._filters_version()}
