"""Where the detector listens: unix sockets and https addresses at once, each with its own way to tell who sends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from vedette_detector.auth import Authenticator, PeerCredentials, TokenFile
from vedette_detector.cluster.token_review import TokenReviews
from vedette_detector.config import Settings
from vedette_detector.connections import Connections, Introducing
from vedette_detector.errors import ConfigError
from vedette_detector.metrics import metric
from vedette_detector.tls import ServingCertificate

log = logging.getLogger(__name__)


def _leave_out_malformed(record: logging.LogRecord) -> bool:
    """Whether aiohttp's record is of the detector, and not of a request that is no HTTP.

    Those are answered with 400, and anybody can send them: the record would quote the header that was malformed, with
    the token in it.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError)


_http_log = logging.getLogger("vedette_detector.http")
_http_log.addFilter(_leave_out_malformed)

ANSWER_S = 10.0
"""How long requests under way may take until they are answered when the detector stops; a pod has 30 s in all."""

MakeApp = Callable[[Authenticator], web.Application]


class Listeners:
    """The open listeners of one detector.

    Args:
        settings: ``listen`` and what belongs to it.
        make_app: the application for listeners with this authenticator.
        reviews: who tells who sends over https in place of the token file.
    """

    def __init__(self, settings: Settings, make_app: MakeApp, reviews: Authenticator | None = None) -> None:
        """Load certificate and tokens; listens nowhere yet.

        Raises:
            ConfigError: certificate or tokens cannot be used.
        """
        self._settings = settings
        self._make_app = make_app
        self._runners: list[web.AppRunner] = []
        self.connections = Connections()
        self.certificate: ServingCertificate | None = None
        self._over_https: Authenticator | None = reviews
        if any(address.startswith("https:") for address in settings.listen):
            assert settings.tls_cert is not None
            assert settings.tls_key is not None
            self.certificate = ServingCertificate(settings.tls_cert, settings.tls_key)
            if self._over_https is None:
                assert settings.token_file is not None
                self._over_https = TokenFile(settings.token_file)

    async def start(self) -> None:
        """Listen everywhere.

        Raises:
            ConfigError: an address cannot be listened on.
        """
        for kind in ("unix:", "https:"):
            addresses = [address for address in self._settings.listen if address.startswith(kind)]
            if not addresses:
                continue
            authenticator: Authenticator = PeerCredentials(self._settings.agent_uid)
            if kind == "https:":
                assert self._over_https is not None
                authenticator = Introducing(self._over_https, self.connections)
            # Room for a body is kept by its Content-Length: what some kilobytes unpack to must not come on top of it.
            runner = web.AppRunner(
                self._make_app(authenticator),
                access_log=None,
                logger=_http_log,
                shutdown_timeout=ANSWER_S,
                auto_decompress=False,
            )
            self._runners.append(runner)
            await runner.setup()
            for address in addresses:
                try:
                    await (self._unix(runner, address) if kind == "unix:" else self._https(runner, address))
                except OSError as error:
                    raise ConfigError(f"cannot listen on {address}: {error}", reason="CannotListen") from None

    async def _https(self, runner: web.AppRunner, address: str) -> None:
        host, _, port = address.removeprefix("https://").rpartition(":")
        assert self.certificate is not None
        assert runner.server is not None
        await self.connections.listen(host.strip("[]"), int(port), runner.server, self.certificate.context)

    async def _unix(self, runner: web.AppRunner, address: str) -> None:
        settings = self._settings
        path = Path(address.removeprefix("unix://"))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        remove_stale_socket(path)
        # Bound under a mask that admits nobody, then opened to whom it is for.
        mask = os.umask(0o177)
        try:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if os.geteuid() == 0:
            os.chown(path, 0, settings.agent_uid)
        os.chmod(path, settings.socket_mode)
        await web.SockSite(runner, listener).start()

    async def reload(self) -> None:
        """Take a changed certificate; connections that are open go on. It takes some milliseconds, for once."""
        if self.certificate is not None:
            self.certificate.reload()

    async def stop(self) -> None:
        """Take no more connections, answer the requests under way, close."""
        runners, self._runners = self._runners, []
        await self.connections.refuse()
        await asyncio.gather(*(runner.cleanup() for runner in runners))
        await self.connections.close()

    def describe(self) -> dict[str, Any]:
        """JSON for the status page."""
        return {
            "listen": list(self._settings.listen),
            "tls": self.certificate.describe() if self.certificate is not None else None,
            "token_review": self._over_https.describe() if isinstance(self._over_https, TokenReviews) else None,
        }

    def metrics(self) -> str:
        """Prometheus text."""
        text = ""
        if self.certificate is not None:
            text += metric(
                "vedette_serving_certificate_not_after_seconds",
                "gauge",
                "When the certificate that the detector shows ends, in seconds since the epoch.",
                [({}, self.certificate.not_after.timestamp())],
            ) + metric(
                "vedette_serving_certificate_reload_failed",
                "gauge",
                "1 while the certificate's files hold a pair that cannot be used; the old one stays.",
                [({}, float(self.certificate.error is not None))],
            )
            states = {"stranger": self.connections.strangers, "known": self.connections.known}
            text += metric(
                "vedette_connections",
                "gauge",
                "Open connections over TCP, by whether a token has been shown on them.",
                [({"sender": k}, float(v)) for k, v in states.items()],
            ) + metric(
                "vedette_connections_closed_total",
                "counter",
                "Connections closed because no token was shown in time, or because there were too many.",
                [({}, float(self.connections.closed))],
            )
        if isinstance(self._over_https, TokenReviews):
            counts = self._over_https.counts
            results = {"asked": counts.reviews, "failed": counts.failed}
            text += metric(
                "vedette_token_reviews_total",
                "counter",
                "Questions to the API server about tokens: all, and those without an answer.",
                [({"result": k}, float(v)) for k, v in results.items()],
            ) + metric(
                "vedette_token_admissions_total",
                "counter",
                "Requests refused because of their token, and those admitted by an earlier review alone.",
                [({"result": "refused"}, float(counts.refused)), ({"result": "unreviewed"}, float(counts.unreviewed))],
            )
        return text


def remove_stale_socket(path: Path) -> None:
    """Remove a socket that nobody listens on.

    Raises:
        ConfigError: somebody listens, or the path is not a socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket", reason="CannotListen")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(probe):
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConfigError(f"another process listens on {path}", reason="AlreadyRunning")
