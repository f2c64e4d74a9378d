"""Keeps one kind of object as the API server has it: list in pages, then watch, for ever.

The protocol is that of kubernetes.io/docs/reference/using-api/api-concepts ("Efficient detection of changes"): a list
gives a resource version, a watch goes on from it, bookmarks move it forward, and 410 means that the server no longer
has it: list again. What is kept is never thrown away because the server is away: it grows old, and `Watch.state` says
since when. `Sink.retain` lets go of what a new list does not hold any more.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from vedette_detector.cluster.api import JSON, ApiError, ApiUnreachableError, WatchEvent
from vedette_detector.errors import DetectorError

log = logging.getLogger(__name__)

PAGE = 250
"""Objects of one page: decoding it (some 2 MB) keeps the event loop for about 20 ms."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 30.0
"""Pauses after a failure double between these, and each is shortened by up to a half at random, so that the
detectors of many clusters, or many watches, do not come back together."""
SHORTEST_S, LONGEST_S = 180.0, 300.0
"""The server is asked to end a watch after a time between these. A dead connection shows earlier, by keep-alive."""
_PARSE_BURST = 25
"""Objects read before others get a turn on the event loop."""
_LOGGED_EVERY_S = 60.0


class Api(Protocol):
    """What is needed of `vedette_detector.cluster.api.KubernetesApi`."""

    def pages(
        self, path: str, query: Mapping[str, str] | None = None, *, accept: str = JSON, limit: int = PAGE
    ) -> AsyncGenerator[dict[str, Any]]:
        """List in pages."""
        ...

    def watch(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        accept: str = JSON,
        timeout_s: float = LONGEST_S,
        opened: Callable[[], None] = lambda: None,
    ) -> AsyncGenerator[WatchEvent]:
        """Watch from a resource version."""
        ...


class Sink(Protocol):
    """Takes the objects of one kind."""

    def put(self, given: dict[str, Any]) -> None:
        """An object is there, or has changed."""
        ...

    def remove(self, given: dict[str, Any]) -> None:
        """An object is gone."""
        ...

    def retain(self, uids: set[str]) -> None:
        """A whole list was read: what is not in it is gone."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Resource:
    """What to watch."""

    name: str
    path: str
    accept: str = JSON
    accept_list: str = JSON


@dataclass
class WatchState:
    """How a watch does, for people. Times are of the wall clock, in seconds; 0 means never.

    Attributes:
        synced: whether a whole list was read at least once.
        connected: whether the server answers now.
        contact: when the server last said anything.
        away_since: since when it does not answer; 0 while it does.
        error: the last failure; empty while connected.
    """

    name: str
    synced: bool = False
    connected: bool = False
    contact: float = 0.0
    away_since: float = 0.0
    error: str = ""
    lists: int = 0
    events: int = 0
    failures: int = 0
    unreadable: int = 0


def _version(given: Mapping[str, Any]) -> str:
    metadata = given.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return version if isinstance(version, str) else ""


def uid_of(given: Mapping[str, Any]) -> str:
    """An object's UID; empty where it has none."""
    metadata = given.get("metadata")
    uid = metadata.get("uid") if isinstance(metadata, dict) else None
    return uid if isinstance(uid, str) else ""


class Watch:
    """One list and watch."""

    def __init__(self, api: Api, resource: Resource, sink: Sink) -> None:
        self._api = api
        self._resource = resource
        self._sink = sink
        self._version = ""
        self._failures_in_a_row = 0
        self._logged = 0.0
        self.state = WatchState(resource.name, away_since=time.time())
        self.synced = asyncio.Event()

    @property
    def objects(self) -> int:
        """Objects kept."""
        return len(self._sink)

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
                pause = 0.0
            except Exception as error:  # nothing that a server answers may end the watch
                pause = self._failed(error)
            await asyncio.sleep(pause)

    async def _list(self) -> None:
        resource, uids, version = self._resource, set[str](), ""
        async with aclosing(self._api.pages(resource.path, accept=resource.accept_list, limit=PAGE)) as pages:
            async for page in pages:
                self._heard()
                version = _version(page)
                items = page.get("items")
                for number, item in enumerate(items if isinstance(items, list) else []):
                    if isinstance(item, dict) and uid_of(item):
                        uids.add(uid_of(item))
                        self._put(item)
                    if number % _PARSE_BURST == _PARSE_BURST - 1:
                        await asyncio.sleep(0)
        if not version:
            raise ApiError(f"the list of {resource.name} has no version", status=200, reason="MalformedAnswer")
        self._sink.retain(uids)
        self._version = version
        self.state.lists += 1
        self.state.synced = True
        self.synced.set()

    async def _follow(self) -> None:
        resource, began = self._resource, time.monotonic()
        lasting = random.uniform(SHORTEST_S, LONGEST_S)  # noqa: S311 - spreads load, keeps no secret
        events = self._api.watch(
            resource.path,
            {"resourceVersion": self._version},
            accept=resource.accept,
            timeout_s=lasting,
            opened=self._heard,
        )
        async with aclosing(events) as stream:
            async for event in stream:
                self._heard()
                self._failures_in_a_row = 0
                self._take(event)
        if time.monotonic() - began < 1.0:
            # A server (or a proxy before it) that ends each watch at once must not be asked without a pause.
            raise ApiUnreachableError("the watch ended as soon as it began")
        self._heard()
        self._failures_in_a_row = 0

    def _take(self, event: WatchEvent) -> None:
        if event.type != "BOOKMARK" and uid_of(event.object):
            self.state.events += 1
            if event.type == "DELETED":
                self._sink.remove(event.object)
            else:
                self._put(event.object)
        version = _version(event.object)
        if version:
            self._version = version

    def _put(self, given: dict[str, Any]) -> None:
        try:
            self._sink.put(given)
        except Exception:  # one object that cannot be read must not cost all the others
            self.state.unreadable += 1
            if self.state.unreadable == 1:
                log.exception("an object of %s could not be read", self._resource.name)

    def _heard(self) -> None:
        state = self.state
        state.contact = time.time()
        if not state.connected:
            state.connected, state.away_since, state.error = True, 0.0, ""

    def _failed(self, error: Exception) -> float:
        """Note a failure; how long to pause, in seconds."""
        state = self.state
        if isinstance(error, ApiError) and error.status == 410:
            # The version is too old for the server, or the list took longer than it keeps one: begin again.
            log.info("%s: the server no longer has version %s: listing again", state.name, self._version or "of a list")
            self._version = ""
            again, self._failures_in_a_row = self._failures_in_a_row > 0, self._failures_in_a_row + 1
            return random.uniform(0.5, 1.0) if again else 0.0  # noqa: S311
        state.failures += 1
        if state.connected or not state.away_since:
            state.away_since = time.time()
        state.connected = False
        told = isinstance(error, DetectorError)
        state.error = f"{error.reason}: {error.message}" if isinstance(error, DetectorError) else type(error).__name__
        if not told:
            log.exception("the watch of %s failed", state.name)
        elif time.monotonic() - self._logged > _LOGGED_EVERY_S or not self._logged:
            self._logged = time.monotonic()
            log.warning("cannot watch %s: %s", state.name, state.error)
        if isinstance(error, ApiError) and error.status == 400:
            self._version = ""  # a version that the server does not understand: it was set up anew
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._failures_in_a_row, 20))
        self._failures_in_a_row += 1
        asked = error.retry_after_s if isinstance(error, ApiError) else 0.0
        return max(min(asked, LONGEST_PAUSE_S), longest * random.uniform(0.5, 1.0))  # noqa: S311
