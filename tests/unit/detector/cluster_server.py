"""An API server that holds objects: lists in pages, watches from a version, bookmarks, and misbehaves on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.unit.detector.api_server import ApiServer, api_server, failure
from vedette_detector.cluster.api import KubernetesApi

PATHS = {
    "pods": "/api/v1/pods",
    "nodes": "/api/v1/nodes",
    "replicasets": "/apis/apps/v1/replicasets",
    "jobs": "/apis/batch/v1/jobs",
}


@dataclass
class ClusterServer:
    """The objects, and what was asked.

    Attributes:
        oldest: watches from a version before this are answered with 410.
        refuse: answered to every request of a resource while set.
        lists, watches: versions and tokens asked for, by resource.
    """

    server: ApiServer
    version: int = 10
    oldest: int = 0
    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: {n: {} for n in PATHS})
    log: dict[str, list[tuple[int, str, dict[str, Any]]]] = field(default_factory=lambda: {n: [] for n in PATHS})
    refuse: dict[str, web.Response] = field(default_factory=dict)
    expire_continue: int = 0
    lists: list[tuple[str, str]] = field(default_factory=list)
    watches: list[tuple[str, int]] = field(default_factory=list)
    accepted: dict[str, set[str]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    hang_up: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, resource: str, given: dict[str, Any]) -> None:
        """Make or change an object."""
        uid = given["metadata"]["uid"]
        self._enter(resource, "MODIFIED" if uid in self.objects[resource] else "ADDED", given)
        self.objects[resource][uid] = given

    def delete(self, resource: str, uid: str) -> None:
        """Delete an object."""
        self._enter(resource, "DELETED", self.objects[resource].pop(uid))

    def bookmark(self, resource: str) -> None:
        """Send a bookmark."""
        self._enter(resource, "BOOKMARK", {"kind": "Pod", "apiVersion": "v1", "metadata": {}})

    def forget_unseen(self, resource: str, uid: str) -> None:
        """Delete an object without an event: as if it happened while nobody watched and the history is compacted."""
        del self.objects[resource][uid]
        self.version += 1

    def send(self, resource: str, kind: str, given: dict[str, Any]) -> None:
        """Send an event as it is."""
        self.log[resource].append((self.version, kind, given))
        self._wake()

    def _enter(self, resource: str, kind: str, given: dict[str, Any]) -> None:
        self.version += 1
        given["metadata"]["resourceVersion"] = str(self.version)
        self.log[resource].append((self.version, kind, given))
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    async def handle(self, resource: str, request: web.Request) -> web.StreamResponse:
        self.accepted.setdefault(resource, set()).add(request.headers["Accept"])
        refused = self.refuse.get(resource)
        if refused is not None:
            return web.Response(status=refused.status, body=refused.body, headers=refused.headers)
        if request.query.get("watch"):
            return await self._watch(resource, request)
        return self._list(resource, request)

    def _list(self, resource: str, request: web.Request) -> web.Response:
        token = request.query.get("continue", "")
        self.lists.append((resource, token))
        if token and self.expire_continue:
            self.expire_continue -= 1
            return failure(410, "Expired", "The provided continue parameter is too old")
        version, begin = token.split("-") if token else (str(self.version), "0")
        items = list(self.objects[resource].values())
        end = int(begin) + int(request.query["limit"])
        more = {"continue": f"{version}-{end}"} if end < len(items) else {}
        return web.json_response(
            {"kind": "List", "metadata": {"resourceVersion": version, **more}, "items": items[int(begin) : end]}
        )

    async def _watch(self, resource: str, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        self.watches.append((resource, since))
        assert request.query["allowWatchBookmarks"] == "true"
        if since < self.oldest:
            return failure(410, "Expired", f"too old resource version: {since} ({self.oldest})")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        sent = 0
        hung_up = asyncio.ensure_future(self.hang_up.wait())
        try:
            while not hung_up.done():
                changed = asyncio.ensure_future(self.changed.wait())
                log = self.log[resource]
                for version, kind, given in log[sent:]:
                    if version > since:
                        await response.write(json.dumps({"type": kind, "object": given}).encode() + b"\n")
                sent = len(log)
                await asyncio.wait({changed, hung_up}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
        finally:
            hung_up.cancel()
        return response


@asynccontextmanager
async def cluster_server(folder: Path) -> AsyncIterator[ClusterServer]:
    """A running server without objects."""
    async with api_server(folder) as server:
        cluster = ClusterServer(server)
        for name, path in PATHS.items():
            server.handlers["GET", path] = lambda request, name=name: cluster.handle(name, request)  # type: ignore[misc]
        yield cluster
        cluster.hang_up.set()


@asynccontextmanager
async def client_of(cluster: ClusterServer) -> AsyncIterator[KubernetesApi]:
    """The detector's client of it."""
    server = cluster.server
    async with KubernetesApi(environ=server.environ, token_file=server.token_file, ca_file=server.ca_file) as api:
        yield api
