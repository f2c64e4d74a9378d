"""One pass: observe, plan, act, report. Whatever happened before, it brings what is there to what is wanted.

A pass that finds everything as wanted writes nothing.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from vedette_operator import __version__, authority, conditions, coverage, planning
from vedette_operator.api import Api, ApiError, DetectorError, ask_coverage
from vedette_operator.certificates import facts as certificate_facts
from vedette_operator.errors import OperatorError
from vedette_operator.planning import Key, Plan
from vedette_operator.rendering import Object, digest, render
from vedette_operator.settings import Settings
from vedette_operator.spec import (
    GROUP,
    MANAGED_BY,
    NAME,
    SKIP_CLEANUP_ANNOTATION,
    VERSION,
    Decision,
    Spec,
    SpecError,
    decide,
    parse_spec,
    to_values,
)

log = logging.getLogger("vedette.operator")

KINDS = (
    "ConfigMap",
    "DaemonSet",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "ResourceQuota",
    "Secret",
    "Service",
    "ServiceAccount",
    "StatefulSet",
)
CLEANUP_S = 900.0
"""How long removal may be in the way of the resource's deletion. What is then left has an owner reference to it, so
that the cluster's garbage collector goes on."""


@dataclass(frozen=True)
class Observed:
    """What is there.

    Attributes:
        found: children and whatever has their names.
        nodes: of the cluster.
        pods: of agents and detector.
    """

    found: Mapping[Key, Object]
    nodes: Sequence[Object]
    pods: Sequence[Object]

    def secret_text(self, kind: str, name: str, key: str) -> str:
        """Text of a key of a ConfigMap or Secret; empty where there is none."""
        data = (self.found.get((kind, name)) or {}).get("data") or {}
        try:
            return base64.b64decode(data[key]).decode() if kind == "Secret" else str(data[key])
        except (KeyError, ValueError):
            return ""


@dataclass
class World:
    """What a pass works with, and what the process remembers between passes."""

    api: Api
    settings: Settings
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    busy: bool = False
    """Whether there is a resource, so that passes are due."""
    last_pass: float = 0.0
    """Monotonic time at which a pass ended well."""


@dataclass(frozen=True)
class Outcome:
    """What a pass came to.

    Attributes:
        writes: requests that changed something, for logs.
        settled: nothing is left that a further pass soon would do.
    """

    writes: int = 0
    settled: bool = True


async def observe(world: World) -> Observed:
    """Look at everything at once. What is ours is found by its labels."""
    api = world.api
    selector = f"{planning.PART_OF}=vedette"
    lists = await asyncio.gather(
        *(api.list(kind, selector) for kind in KINDS), api.list("Node"), api.list("Pod", selector)
    )
    found = planning.index(item for items in lists[: len(KINDS)] for item in items)
    return Observed(found, lists[-2], lists[-1])


async def reconcile(world: World) -> Outcome:
    """One pass over the one RuntimeMonitoringConfig, if there is one.

    Raises:
        ApiError: the API server did not do what was needed; the status says so where it could be written.
    """
    config = await world.api.get("RuntimeMonitoringConfig", NAME)
    if config is None or config["metadata"].get("deletionTimestamp"):
        return Outcome()
    decision = decide(config.get("spec") or {}, config["metadata"].get("annotations") or {})
    if decision.mode == "Disabled":
        outcome, _ = await remove(world, config, deleting=False)
        return outcome
    observed = await observe(world)
    try:
        spec = parse_spec(config.get("spec"), world.settings.namespace, world.settings.release)
    except SpecError as error:
        return await _report(world, config, observed, None, conditions.Facts(decision, str(error), observed.found))
    plan, writes = Plan(), 0
    failures: tuple[str, ...] = ()
    if decision.mode == "Automatic":
        wanted = _wanted(spec, config, observed, world.settings)
        observed = await _with_names(world, observed, wanted)
        plan = planning.make_plan(wanted, observed.found)
        failures, writes = await carry_out(world, config, plan)
    facts = conditions.Facts(decision, "", observed.found, plan, failures)
    facts = replace(facts, external=spec.detector.external.url if spec.detector.external else "")
    outcome = await _report(world, config, observed, spec, facts)
    settled = not (plan.actions or plan.waiting or failures) and outcome.settled
    return Outcome(writes + outcome.writes, settled)


def _wanted(spec: Spec, config: Object, observed: Observed, settings: Settings) -> list[Object]:
    values = to_values(spec, settings.namespace, settings.release)
    more: list[Object] = []
    tls = None
    if spec.tls.certificates == "Managed" and spec.detector.external is None:
        kept = authority.keep(
            authority.pair_of(observed.found.get(("Secret", authority.SECRET)), "ca"),
            authority.pair_of(observed.found.get(("Secret", values.tls.secret)), "tls"),
            observed.secret_text("ConfigMap", values.tls.ca_config_map, "ca.crt"),
            values.dns_names,
            datetime.now(UTC),
        )
        tls = kept.material
        labels = {
            "app.kubernetes.io/name": "vedette",
            planning.PART_OF: "vedette",
            planning.MANAGED: MANAGED_BY,
            "app.kubernetes.io/component": "detector",
        }
        more.append(authority.authority_secret(kept.authority, settings.namespace, labels))
    restart = {}
    if spec.detector.store_url is not None:
        secret = observed.found.get(("Secret", spec.detector.store_url.secret))
        restart = {f"Secret/{spec.detector.store_url.secret}": digest((secret or {}).get("data") or {})}
    return planning.wanted_objects(render(values, tls, observed=restart), more, config)


async def _with_names(world: World, observed: Observed, wanted: Sequence[Object]) -> Observed:
    """Look also for objects of the names that we want which do not have our labels: they are somebody else's."""
    missing = [key for key in map(planning.key_of, wanted) if key not in observed.found]
    looked = await asyncio.gather(*(world.api.get(*key) for key in missing))
    others = planning.index(content for content in looked if content is not None)
    return replace(observed, found={**observed.found, **others})


async def carry_out(world: World, config: Object, plan: Plan) -> tuple[tuple[str, ...], int]:
    """Do it in order. A failure is told and does not keep the rest from being done.

    Returns:
        Failures in words, and how many writes went well.
    """
    failures, writes = [], 0
    for action in plan.actions:
        kind, name = action.key
        try:
            if action.verb == "delete":
                await world.api.delete(action.content)
            elif action.verb == "patch":
                await world.api.patch(action.content, action.patch)
            else:
                await world.api.apply(action.content)
        except ApiError as error:
            failures.append(coverage.readable(error))
            log.warning("%s of %s %s failed: %s", action.verb, kind, name, coverage.readable(error))
            continue
        writes += 1
        log.info("%s %s %s: %s %s", action.verb, kind, name, action.why, ", ".join(action.detail[:5]))
        if action.why == "Drifted":
            message = f"{kind} {name} was changed by somebody else and is put back: {', '.join(action.detail[:5])}"
            await _event(world, config, "Normal", "DriftCorrected", message)
    return tuple(failures), writes


async def remove(world: World, config: Object, *, deleting: bool) -> tuple[Outcome, bool]:
    """One step of taking everything away.

    Returns:
        The outcome, and whether nothing is left.
    """
    given = config.get("spec") or {}
    storage = (given.get("detector") or {}).get("storage") or {}
    observed = await observe(world)
    plan = planning.make_removal(observed.found, observed.pods, volumes=storage.get("deletionPolicy") == "Delete")
    failures, writes = await carry_out(world, config, plan)
    decision = decide(given, config["metadata"].get("annotations") or {})
    if not plan.actions and not plan.waiting:
        monitored = await world.api.get("MonitoredCluster", "local")
        if monitored is not None and planning.label(monitored, planning.MANAGED) == MANAGED_BY:
            await world.api.delete(monitored)
            writes += 1
    done = not plan.actions and not plan.waiting
    facts = conditions.Facts(decision, found=observed.found, plan=plan, failures=failures, deleting=deleting)
    outcome = await _report_config(world, config, observed, facts, {})
    return Outcome(writes + outcome.writes, done), done


async def finalize(world: World, config: Object) -> str:
    """One step towards letting the resource go.

    Returns:
        Why it cannot go yet; empty: it can.
    """
    metadata = config["metadata"]
    if (metadata.get("annotations") or {}).get(SKIP_CLEANUP_ANNOTATION) == "true":
        log.warning("cleanup is skipped, as the annotation %s asks for", SKIP_CLEANUP_ANNOTATION)
        return ""
    decision = decide(config.get("spec") or {}, metadata.get("annotations") or {})
    if decision.mode == "Manual":
        # What the operator once made is collected with its owner; what people made is not the operator's to remove.
        log.info("deleted in manual mode: the cluster collects what the operator once made")
    since = (datetime.now(UTC) - _moment(metadata["deletionTimestamp"])).total_seconds()
    try:
        _, done = await remove(world, config, deleting=True)
    except ApiError as error:
        if since > CLEANUP_S:
            return ""
        return coverage.readable(error)
    if done:
        return ""
    if since > CLEANUP_S:
        log.warning("not everything is gone after %.0f s; the garbage collector goes on", since)
        return ""
    return "agents, detector and their objects are being removed"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


async def _report(
    world: World, config: Object, observed: Observed, spec: Spec | None, facts: conditions.Facts
) -> Outcome:
    """Write the status of both resources where it changed."""
    answer = None
    external = bool(facts.external)
    if not external:
        try:
            url = world.settings.detector_url or f"https://vedette-detector.{world.settings.namespace}.svc:8443"
            name = spec.tls.ca_config_map if spec else "vedette-ca"
            trusted = observed.secret_text("ConfigMap", name, "ca.crt")
            if ("StatefulSet", "vedette-detector") in observed.found:
                answer = await ask_coverage(url, trusted, world.settings.token_file)
        except DetectorError as error:
            log.info("coverage: %s", error)
    agents = [p for p in observed.pods if planning.label(p, "app.kubernetes.io/component") == "agent"]
    judged = coverage.judge(observed.nodes, agents, answer)
    summary = coverage.summarise(judged)
    facts = replace(facts, coverage=summary)
    written = await _report_cluster(world, config, spec, summary)
    more = _details(observed, facts)
    outcome = await _report_config(world, config, observed, facts, more)
    settled = outcome.settled and summary["coverage"] == "HEALTHY"
    return Outcome(outcome.writes + written, settled)


def _details(observed: Observed, facts: conditions.Facts) -> dict[str, Any]:
    found = observed.found
    details: dict[str, Any] = {}
    daemons, stateful = found.get(("DaemonSet", "vedette-agent")), found.get(("StatefulSet", "vedette-detector"))
    if daemons is not None:
        desired, ready, updated = conditions.agent_counts(daemons)
        details["agents"] = {
            "summary": f"{ready}/{desired}",
            "desired": desired,
            "ready": ready,
            "updated": updated,
            "image": daemons["spec"]["template"]["spec"]["containers"][0]["image"],
        }
    if facts.external:
        details["detector"] = {"state": "External", "url": facts.external}
    elif stateful is not None:
        namespace = stateful["metadata"]["namespace"]
        details["detector"] = {
            "state": "NotReady" if planning.rollout_problem(stateful) else "Ready",
            "url": f"https://vedette-detector.{namespace}.svc:8443",
            "image": stateful["spec"]["template"]["spec"]["containers"][0]["image"],
        }
        serving = authority.pair_of(found.get(("Secret", "vedette-detector-tls")), "tls")
        if serving is not None:
            try:
                end = certificate_facts(serving.certificate).not_after
                details["detector"]["certificateNotAfter"] = end.strftime("%Y-%m-%dT%H:%M:%SZ")
            except OperatorError as error:
                log.warning("the detector's certificate: %s", error)
    return details


async def _report_config(
    world: World, config: Object, observed: Observed, facts: conditions.Facts, more: Mapping[str, Any]
) -> Outcome:
    del observed
    former = config.get("status") or {}
    generation = config["metadata"]["generation"]
    merged = conditions.merge(conditions.judge(facts), former.get("conditions") or [], generation, _now())
    status = {
        "observedGeneration": generation,
        "conditions": merged,
        "mode": facts.decision.mode,
        "modeSource": facts.decision.source,
        "operatorVersion": __version__,
        "agents": {"summary": "0/0", "desired": 0, "ready": 0, "updated": 0},
        "detector": {"state": "Absent"},
        "endpoint": {"state": "None"},
        **more,
    }
    settled = not any(c["type"] == "Progressing" and c["status"] == "True" for c in merged)
    if status == former:
        return Outcome(0, settled)
    try:
        await world.api.set_status(config, status)
    except ApiError as error:
        # Somebody changed the resource meanwhile, or it is gone: the next pass sees it as it is now.
        if error.status in (404, 409):
            return Outcome(0, False)
        raise
    for condition in conditions.transitions(merged, former.get("conditions") or []):
        bad = (condition["status"] == "True") == (condition["type"] in ("Degraded", "Stalled"))
        neutral = condition["type"] == "Progressing"
        kind = (
            "Warning" if bad and not neutral and condition["status"] != "Unknown" and _alarming(condition) else "Normal"
        )
        message = f"{condition['type']} is {condition['status']}: {condition['message']}"
        await _event(world, config, kind, condition["reason"], message)
    return Outcome(1, settled)


def _alarming(condition: Mapping[str, Any]) -> bool:
    return condition["type"] in ("Degraded", "Stalled") and condition["status"] == "True"


async def _report_cluster(world: World, config: Object, spec: Spec | None, summary: Mapping[str, Any]) -> int:
    """Keep the MonitoredCluster of this cluster and its status."""
    writes = 0
    values = to_values(spec, world.settings.namespace, world.settings.release) if spec else None
    content = planning.owned(
        {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "MonitoredCluster",
            "metadata": {
                "name": "local",
                "labels": {planning.PART_OF: "vedette", planning.MANAGED: MANAGED_BY},
            },
            "spec": {"clusterName": values.cluster.name, "detector": values.endpoint} if values else {},
        },
        config,
    )
    live = await world.api.get("MonitoredCluster", "local")
    if live is None or (spec is not None and planning._needed(content, live)):
        live = await world.api.apply(content)
        writes += 1
    former = live.get("status") or {}
    condition = conditions.covered_condition(summary)
    generation = live["metadata"]["generation"]
    merged = conditions.merge([condition], former.get("conditions") or [], generation, _now())
    status = {"observedGeneration": generation, "conditions": merged, **summary}
    if status == former:
        return writes
    try:
        await world.api.set_status(live, status)
    except ApiError as error:
        if error.status in (404, 409):
            return writes
        raise
    await _coverage_events(world, live, former, summary)
    return writes + 1


async def _coverage_events(world: World, live: Object, former: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Say which nodes were lost and which came back; one event for all, so that a large cluster is no storm."""
    before = {entry["node"] for entry in former.get("uncovered") or []}
    after = {entry["node"]: entry for entry in summary["uncovered"]}
    lost = [
        f"{name} ({', '.join(r['reason'] for r in after[name]['reasons'])})" for name in sorted(set(after) - before)
    ]
    back = sorted(before - set(after))
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        await _event(world, live, "Warning", "NodesNotCovered", f"{summary['summary']} nodes are covered; not: {shown}")
    if back:
        shown = ", ".join(back[:5]) + (f" and {len(back) - 5} more" if len(back) > 5 else "")
        await _event(
            world, live, "Normal", "NodesCovered", f"{summary['summary']} nodes are covered; again or gone: {shown}"
        )


async def _event(world: World, about: Object, kind: str, reason: str, message: str) -> None:
    at = _now()
    metadata = about["metadata"]
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": "default"},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": about["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": coverage.readable(message, 1000),
        "source": {"component": MANAGED_BY},
        "reportingComponent": MANAGED_BY,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
    try:
        await world.api.create_event(event)
    except ApiError as error:
        log.warning("an event could not be posted: %s", coverage.readable(error))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


__all__ = ["Decision", "Observed", "Outcome", "World", "finalize", "observe", "reconcile", "remove"]
