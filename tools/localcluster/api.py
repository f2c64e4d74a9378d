"""Just enough of a client to bring a cluster up: get, apply, wait. Tests and people use kubectl or a real client."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable
from typing import Any

from tools.localcluster.errors import ClusterError
from tools.localcluster.layout import Layout, Network
from tools.localcluster.programs import API_PORT

Json = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"


class ApiError(ClusterError):
    """The API server refused; ``status`` is its HTTP status."""

    reason = "ApiError"

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the API server answered {status}: {message}")
        self.status = status


class Api:
    """A connection to the API server as its administrator."""

    def __init__(self, layout: Layout, network: Network, *, timeout_s: float = 15.0) -> None:
        self._context = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
        self._context.load_cert_chain(layout.pki / "admin.crt", layout.pki / "admin.key")
        self._host, self._timeout_s = network.node, timeout_s
        self._connection: http.client.HTTPSConnection | None = None

    def close(self) -> None:
        """Let go of the connection; the next request makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self, method: str, path: str, body: Json | None = None, content_type: str = "application/json") -> Json:
        """The answer's object.

        Raises:
            ApiError: any other status than 2xx.
            OSError: no connection.
        """
        status, content = self.raw(method, path, json.dumps(body).encode() if body is not None else None, content_type)
        if not 200 <= status < 300:
            try:
                message = str(json.loads(content)["message"])
            except (ValueError, KeyError, TypeError):
                message = content[:300].decode(errors="replace")
            raise ApiError(status, f"{method} {path}: {message}")
        answer: Json = json.loads(content)
        return answer

    def raw(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """The answer's status and body, whatever the status. Raises OSError when there is no answer."""
        if self._connection is None:
            self._connection = http.client.HTTPSConnection(
                self._host, API_PORT, timeout=self._timeout_s, context=self._context
            )
        try:
            self._connection.request(method, path, body, {"Content-Type": content_type, "Accept": "application/json"})
            response = self._connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise error if isinstance(error, OSError) else OSError(repr(error)) from error

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            return self.raw("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def apply(self, manifest: Json) -> Json:
        """Server-side apply, as the field manager ``localcluster``."""
        path = object_path(manifest) + "?fieldManager=localcluster&force=true"
        return self.request("PATCH", path, manifest, "application/apply-patch+yaml")

    def get(self, path: str) -> Json | None:
        """An object; None when there is none."""
        try:
            return self.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise


_PLURALS = {"StorageClass": "storageclasses"}


def object_path(manifest: Json) -> str:
    """Where an object of the kinds this program applies lies in the API."""
    kind, metadata = manifest["kind"], manifest["metadata"]
    version = manifest["apiVersion"]
    start = f"/apis/{version}" if "/" in version else f"/api/{version}"
    inside = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
    return f"{start}{inside}/{_PLURALS.get(kind, kind.lower() + 's')}/{metadata['name']}"


def wait(condition: Callable[[], bool], timeout_s: float, *, alive: Callable[[], None], pause_s: float = 0.1) -> bool:
    """Wait for a condition; ``alive`` is called between tries and raises when waiting has become pointless.

    Returns whether the condition came true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        alive()
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True
