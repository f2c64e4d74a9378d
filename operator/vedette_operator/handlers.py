"""What kopf calls: thin. Everything leads to one level-triggered pass, `vedette_operator.reconcile`.

A daemon for the one resource is the queue: it sleeps until something wakes it or the time is up. Children are watched
by event handlers only, since any other handler would put finalizers and annotations on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import Any

import kopf

from vedette_operator import api, planning, reconcile
from vedette_operator.errors import OperatorError
from vedette_operator.settings import Settings
from vedette_operator.spec import GROUP, MANAGEMENT_ANNOTATION, VERSION

log = logging.getLogger("vedette.operator")
PLURAL = "runtimemonitoringconfigs"
SOON_S = 3.0
"""Between two passes while something is under way."""
CALM_S = 0.5
"""How long events are gathered before a pass."""
registry = kopf.OperatorRegistry()
_CHILDREN = (
    ("v1", "configmaps"),
    ("v1", "pods"),
    ("v1", "secrets"),
    ("v1", "services"),
    ("v1", "serviceaccounts"),
    ("apps/v1", "daemonsets"),
    ("apps/v1", "statefulsets"),
    ("networking.k8s.io/v1", "networkpolicies"),
    ("policy/v1", "poddisruptionbudgets"),
)


@kopf.on.startup(registry=registry)
async def configure(settings: kopf.OperatorSettings, memo: Any, **_: Any) -> None:
    """Set what kopf does by itself, and connect."""
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    # Not the prefix of the annotation that people set: kopf is blind to changes below its own.
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}", v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(
        prefix=f"kopf.{GROUP}", key="last-handled", v1=False
    )
    settings.posting.enabled = False
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.watching.server_timeout = 600
    settings.scanning.disabled = True
    settings.execution.default_backoff = 30
    for version, plural in _CHILDREN:
        group = version.rpartition("/")[0]
        settings.watching.label_selectors[group, plural] = f"{planning.PART_OF}=vedette"
    ours: Settings = memo.settings
    memo.closing = contextlib.AsyncExitStack()
    connection = await memo.closing.enter_async_context(api.connect(ours.namespace))
    memo.world = reconcile.World(connection, ours, last_pass=time.monotonic())


@kopf.on.cleanup(registry=registry)
async def close(memo: Any, **_: Any) -> None:
    """Close the connection."""
    await memo.closing.aclose()


@kopf.on.login(registry=registry)
def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The pod's account, or the kubeconfig outside of a cluster: said, not guessed from what is installed."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)


@kopf.on.probe(registry=registry, id="passes", errors=kopf.ErrorsMode.PERMANENT)
async def probe(memo: Any, **_: Any) -> float:
    """Fail when passes have stopped, so that the kubelet starts the operator anew."""
    world: reconcile.World = memo.world
    age = time.monotonic() - world.last_pass
    if world.busy and age > 5 * world.settings.interval_s + 60:
        raise kopf.PermanentError(f"no pass has ended for {age:.0f} s")
    return round(age, 1)


@kopf.daemon(GROUP, VERSION, PLURAL, registry=registry, id="passes", cancellation_timeout=30)
async def passes(stopped: kopf.DaemonStopped, memo: Any, **_: Any) -> None:
    """Pass after pass, for as long as the resource is there."""
    world: reconcile.World = memo.world
    world.busy = True
    try:
        while not stopped:
            world.wake.clear()
            pause = await _one_pass(world)
            await _sleep(world, stopped, pause)
    finally:
        world.busy = False


async def _one_pass(world: reconcile.World) -> float:
    """One pass; gives how long to sleep."""
    began = time.monotonic()
    try:
        async with world.lock:
            outcome = await reconcile.reconcile(world)
    except OperatorError as error:
        log.warning("the pass failed: %s", error)
        return SOON_S * 2
    world.last_pass = time.monotonic()
    log.info(
        "pass: %d writes, %.2f s%s", outcome.writes, world.last_pass - began, "" if outcome.settled else ", not done"
    )
    return world.settings.interval_s * random.uniform(1, 1.2) if outcome.settled else SOON_S  # noqa: S311 - jitter


async def _until(stopped: kopf.DaemonStopped, pause: float) -> None:
    await stopped.wait(pause)


async def _sleep(world: reconcile.World, stopped: kopf.DaemonStopped, pause: float) -> None:
    """Sleep, or until somebody wakes us; then wait a moment for what comes along."""
    waiting = [asyncio.create_task(world.wake.wait()), asyncio.ensure_future(_until(stopped, pause))]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not stopped and world.wake.is_set():
            await asyncio.sleep(CALM_S)
    finally:
        for task in waiting:
            task.cancel()


@kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
async def changed(body: kopf.Body, memo: Any, **_: Any) -> None:
    """Wake the daemon for what people changed, not for what we wrote ourselves."""
    metadata = body["metadata"]
    seen = (
        metadata.get("generation"),
        metadata.get("deletionTimestamp"),
        (metadata.get("annotations") or {}).get(MANAGEMENT_ANNOTATION),
    )
    if memo.get("seen") != seen:
        memo.seen = seen
        memo.world.wake.set()


async def child_changed(memo: Any, **_: Any) -> None:
    """Wake the daemon."""
    memo.world.wake.set()


for _version, _plural in _CHILDREN:
    kopf.on.event(_version, _plural, registry=registry, labels={planning.PART_OF: "vedette"}, id=f"child-{_plural}")(
        child_changed
    )


@kopf.on.delete(GROUP, VERSION, PLURAL, registry=registry, id="removal")
async def deleted(memo: Any, **_: Any) -> None:
    """Let the resource go when everything is gone, or at the latest when its time is up."""
    world: reconcile.World = memo.world
    async with world.lock:
        config = await world.api.get(*api.CONFIG)
        if config is None:
            return
        why = await reconcile.finalize(world, config)
    world.last_pass = time.monotonic()
    if why:
        raise kopf.TemporaryError(why, delay=2)
