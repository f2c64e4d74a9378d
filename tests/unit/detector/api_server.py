"""A server that speaks the Kubernetes API's protocol over TLS, for tests that need it to misbehave on request."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Authority:
    """A certificate authority of its own."""

    name: str = "test authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.certificate = self._sign(self.name, self.key.public_key(), (), datetime.timedelta(days=1), authority=True)

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def _sign(
        self, name: str, public_key: Any, hosts: tuple[str, ...], valid_for: datetime.timedelta, *, authority: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + valid_for)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        )
        if hosts:
            names: list[x509.GeneralName] = []
            for host in hosts:
                try:
                    names.append(x509.IPAddress(ipaddress.ip_address(host)))
                except ValueError:
                    names.append(x509.DNSName(host))
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(
        self, *hosts: str, valid_for: datetime.timedelta = datetime.timedelta(hours=1), kind: str = "ecdsa"
    ) -> tuple[bytes, bytes]:
        """Certificate and private key (PEM) of a server of these names and addresses; ``kind``: ecdsa or rsa."""
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = ec.generate_private_key(ec.SECP256R1())
        if kind == "rsa":
            key = rsa.generate_private_key(65537, 2048)
        certificate = self._sign(hosts[0], key.public_key(), hosts, valid_for, authority=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), private


def write_pair(folder: Path, pair: tuple[bytes, bytes]) -> tuple[Path, Path]:
    """The pair as tls.crt and tls.key."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tls.crt").write_bytes(pair[0])
    (folder / "tls.key").write_bytes(pair[1])
    return folder / "tls.crt", folder / "tls.key"


@dataclass
class ApiServer:
    """What the server does, changed by tests while it runs."""

    authority: Authority
    folder: Path
    token: str = "the-token"
    handlers: dict[tuple[str, str], Handler] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    runner: web.AppRunner | None = None

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def environ(self) -> dict[str, str]:
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.port)}

    def kubeconfig(self) -> Path:
        """A kubeconfig with a token for this server."""
        path = self.folder / "kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [
                {
                    "name": "test",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self.port}",
                        "certificate-authority": str(self.ca_file),
                    },
                }
            ],
            "users": [{"name": "test", "user": {"token": self.token}}],
        }
        path.write_text(json.dumps(document))
        return path

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        self.headers.append(dict(request.headers))
        if request.headers.get("Authorization", "").lower() != f"bearer {self.token}":
            return failure(401, "Unauthorized", "Unauthorized")
        handler = self.handlers.get((request.method, request.path))
        if handler is None:
            return failure(404, "NotFound", f"the server could not find {request.path}")
        return await handler(request)

    async def start(self) -> None:
        """Listen (on the same port as before, after a stop)."""
        app = web.Application(client_max_size=8 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        cert, key = write_pair(self.folder / "serving", self.authority.issue("127.0.0.1"))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cert, key)
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, ssl_context=context, reuse_address=True)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def stop(self) -> None:
        """Go away."""
        if self.runner is not None:
            await self.runner.cleanup()
            self.runner = None


def failure(code: int, reason: str, message: str, headers: dict[str, str] | None = None, **more: Any) -> web.Response:
    """A Status object, as the API server answers errors."""
    document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code} | more
    return web.json_response(document | {"reason": reason, "message": message}, status=code, headers=headers)


def answering(document: Any, status: int = 200) -> Handler:
    """A handler that always answers this."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.json_response(document, status=status)

    return handle


def streaming(*parts: bytes, then: Callable[[], Awaitable[Any]] | None = None) -> Handler:
    """A handler that streams these bytes, one write for each, and then waits for ``then``."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0)
        if then is not None:
            await then()
        return response

    return handle


@asynccontextmanager
async def api_server(folder: Path, authority: Authority | None = None) -> AsyncIterator[ApiServer]:
    """A running server; its token and CA lie in files, as in a pod."""
    server = ApiServer(authority or Authority(), folder)
    write_pair(folder / "serving", (b"", b""))
    server.token_file.write_text(server.token)
    server.ca_file.write_bytes(server.authority.pem)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
