"""The one door to the Kubernetes API: plain objects in and out, one field manager, a time limit on every request.

Paths are a table here rather than discovered: the kinds are known, and a process with a read-only file system has no
place for a discovery cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError

from vedette_operator.errors import OperatorError
from vedette_operator.planning import MANAGER
from vedette_operator.rendering import Object
from vedette_operator.spec import GROUP, NAME, VERSION

REQUEST_TIMEOUT_S = 20.0
DETECTOR_TIMEOUT_S = 5.0
PAGE = 500
_ANSWER_BYTES = 64 << 20
_PATHS = {
    "ConfigMap": "api/v1/namespaces/{}/configmaps",
    "DaemonSet": "apis/apps/v1/namespaces/{}/daemonsets",
    "Event": "api/v1/namespaces/{}/events",
    "MonitoredCluster": f"apis/{GROUP}/{VERSION}/monitoredclusters",
    "NetworkPolicy": "apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Node": "api/v1/nodes",
    "PersistentVolumeClaim": "api/v1/namespaces/{}/persistentvolumeclaims",
    "Pod": "api/v1/namespaces/{}/pods",
    "PodDisruptionBudget": "apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "ResourceQuota": "api/v1/namespaces/{}/resourcequotas",
    "RuntimeMonitoringConfig": f"apis/{GROUP}/{VERSION}/runtimemonitoringconfigs",
    "Secret": "api/v1/namespaces/{}/secrets",
    "Service": "api/v1/namespaces/{}/services",
    "ServiceAccount": "api/v1/namespaces/{}/serviceaccounts",
    "StatefulSet": "apis/apps/v1/namespaces/{}/statefulsets",
}


class ApiError(OperatorError):
    """The API server refused a request or did not answer; ``status`` 0: it did not answer."""

    reason = "ApiError"

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status
        super().__init__(message)


class DetectorError(OperatorError):
    """The detector did not say how its nodes are covered."""

    reason = "DetectorUnreachable"


class Api:
    """Requests about one namespace and what is in none."""

    def __init__(self, connection: client.ApiClient, namespace: str) -> None:
        self._client = DynamicClient(connection)  # type: ignore[no-untyped-call]
        self._namespace = namespace

    async def list(self, kind: str, selector: str = "") -> list[Object]:
        """Every object of a kind, in pages."""
        found: list[Object] = []
        more: dict[str, Any] = {}
        while True:
            options: dict[str, Any] = {"label_selector": selector} if selector else {}
            answer = await self._request("get", kind, "", limit=PAGE, **options, **more)
            version = "v1" if "apis/" not in _PATHS[kind] else "/".join(_PATHS[kind].split("/")[1:3])
            found += [{"apiVersion": version, "kind": kind, **item} for item in answer.get("items") or []]
            following = (answer.get("metadata") or {}).get("continue")
            if not following:
                return found
            more = {"_continue": following}

    async def get(self, kind: str, name: str) -> Object | None:
        """One object; None where there is none."""
        try:
            return await self._request("get", kind, name)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def apply(self, content: Object) -> Object:
        """Server-side apply of all that we say of an object."""
        kind, name = content["kind"], content["metadata"]["name"]
        options: dict[str, Any] = {
            "content_type": "application/apply-patch+yaml",
            "field_manager": MANAGER,
            "force_conflicts": True,
        }
        return await self._request("patch", kind, name, body=content, **options)

    async def patch(self, content: Object, steps: Sequence[Object]) -> Object:
        """JSON patch."""
        kind, name = content["kind"], content["metadata"]["name"]
        options = {"content_type": "application/json-patch+json", "field_manager": MANAGER}
        return await self._request("patch", kind, name, body=list(steps), **options)

    async def delete(self, content: Object) -> None:
        """Delete this very object, not one of its name that came after it."""
        metadata = content["metadata"]
        body = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        try:
            await self._request("delete", content["kind"], metadata["name"], body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def set_status(self, content: Object, status: Object) -> None:
        """Put a status in the place of the former one, where nobody changed the object meanwhile."""
        body = {
            "apiVersion": content["apiVersion"],
            "kind": content["kind"],
            "metadata": {
                "name": content["metadata"]["name"],
                "resourceVersion": content["metadata"]["resourceVersion"],
            },
            "status": status,
        }
        await self._request("put", content["kind"], content["metadata"]["name"], "/status", body=body)

    async def create_event(self, event: Object) -> None:
        """Post an Event. Those about what is in no namespace belong into ``default``."""
        await self._request("post", "Event", "", body=event, namespace="default")

    async def _request(self, verb: str, kind: str, name: str, below: str = "", **options: Any) -> Object:
        path = _PATHS[kind].format(options.pop("namespace", self._namespace)) + (f"/{name}" if name else "") + below
        try:
            response = await self._client.request(
                verb, path, serialize=False, _request_timeout=REQUEST_TIMEOUT_S, **options
            )
            answer: Object = await response.json()
            return answer
        except DynamicApiError as error:
            raise ApiError(_refusal(verb, kind, name, error), int(error.status or 0)) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            what = f"{verb} {kind} {name}".strip()
            raise ApiError(f"{what}: the API server does not answer: {type(error).__name__}") from error


def _refusal(verb: str, kind: str, name: str, error: DynamicApiError) -> str:
    try:
        said = json.loads(error.body or "")["message"]
    except (ValueError, TypeError, KeyError):
        said = str(error.reason)
    return f"{verb} {kind} {name}".strip() + f": {said}"


@contextlib.asynccontextmanager
async def connect(namespace: str) -> AsyncIterator[Api]:
    """An `Api` with the pod's own account, or outside of a cluster with the current context of the kubeconfig."""
    configuration = client.Configuration()
    try:
        loaded = config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        loaded = config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    if asyncio.iscoroutine(loaded):
        await loaded
    async with client.ApiClient(configuration) as connection:
        yield Api(connection, namespace)


async def ask_coverage(url: str, authorities: str, token_file: Path) -> Object:
    """What the detector says of its nodes: ``GET /v1/coverage``, see docs/ingest.md.

    Raises:
        DetectorError: it said nothing, or nothing sensible.
    """
    try:
        token = (await asyncio.to_thread(token_file.read_text, "ascii")).strip()
        context = ssl.create_default_context(cadata=authorities or None)
        timeout = aiohttp.ClientTimeout(total=DETECTOR_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(
                f"{url}/v1/coverage", headers={"Authorization": f"Bearer {token}"}, ssl=context, allow_redirects=False
            ) as response,
        ):
            if response.status != 200:
                raise DetectorError(f"the detector answers {response.status}")
            answer = await response.json()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise DetectorError(f"the detector cannot be asked: {type(error).__name__}") from error
    if not isinstance(answer, dict) or not isinstance(answer.get("nodes"), list):
        raise DetectorError("the detector's answer is not one that is known")
    return answer


CONFIG = ("RuntimeMonitoringConfig", NAME)
