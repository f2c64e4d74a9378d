"""One pass over the VPC endpoint: find out, observe, plan, carry out, and say in a condition what is so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vedette_operator.aws.calls import Carried, carry_out, observe, observe_owned
from vedette_operator.aws.discovery import Hints, NodeFacts, complete, read_nodes, region_for
from vedette_operator.aws.errors import AwsError
from vedette_operator.aws.observed import Endpoint, Observed
from vedette_operator.aws.plan import Plan, Status, Verdict, make_plan, plan_removal
from vedette_operator.aws.session import Clients
from vedette_operator.aws.spec import EndpointFields, EndpointSpec, user_tag

MAX_ROUNDS = 4
"""Rounds of observing, planning and acting in a pass: making takes two, releasing what was used before another two."""

MAX_MESSAGE = 1024
_UNSEEN_PASSES = 8


@dataclass(frozen=True)
class EndpointResult:
    """What a pass found and did.

    Attributes:
        status: Of the condition ``EndpointAvailable``.
        reason: Stable CamelCase word.
        message: What is so and what to do, at most 1,024 characters.
        stalled: A person must act; trying again alone cannot help.
        progressing: AWS is at work.
        retry_after_s: When to run the next pass, in seconds; None: at the usual time.
        changes: What this pass changed in AWS, in words; empty for a pass that changed nothing.
        warnings: What deviates without stopping the endpoint from working.
        record: To be stored with the resource's status and passed to the next pass.
        done: Removal is finished.
    """

    status: Status
    reason: str
    message: str
    stalled: bool = False
    progressing: bool = False
    retry_after_s: float | None = None
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    done: bool = False


async def reconcile_endpoint(
    fields: EndpointFields,
    *,
    nodes: Iterable[NodeFacts],
    user: str,
    cluster_name: str = "",
    record: Mapping[str, Any] | None = None,
) -> EndpointResult:
    """Bring the endpoint to what ``fields`` ask for. Never raises for what AWS does; blocking calls run in a thread.

    Args:
        fields: ``spec.endpoint``.
        nodes: Some nodes of the cluster (fifty are plenty); they say where it lives.
        user: What identifies this cluster for ever, such as the UID of the namespace ``kube-system``.
        cluster_name: Name for people, and EKS's name where it is one and ``clusterName`` is not given.
        record: ``record`` of the last result.
    """
    return await asyncio.to_thread(
        reconcile_now, fields, nodes=tuple(nodes), user=user, cluster_name=cluster_name, record=record or {}
    )


async def remove_endpoint(
    fields: EndpointFields,
    *,
    nodes: Iterable[NodeFacts],
    user: str,
    cluster_name: str = "",
    record: Mapping[str, Any] | None = None,
) -> EndpointResult:
    """End this cluster's use; the last user's end deletes the endpoint, then its group. Call again until ``done``."""
    return await asyncio.to_thread(
        remove_now, fields, nodes=tuple(nodes), user=user, cluster_name=cluster_name, record=record or {}
    )


def reconcile_now(
    fields: EndpointFields,
    *,
    nodes: Iterable[NodeFacts],
    user: str,
    cluster_name: str = "",
    record: Mapping[str, Any],
) -> EndpointResult:
    """As :func:`reconcile_endpoint`, blocking."""
    if fields.mode == "None":
        if not record.get("id") and not record.get("securityGroupId"):
            return EndpointResult(
                "True", "NotWanted", "No VPC endpoint is asked for (endpoint.mode is None).", done=True
            )
        result = remove_now(fields, nodes=nodes, user=user, cluster_name=cluster_name, record=record)
        if not result.done:
            return result
        told = f"No VPC endpoint is asked for (endpoint.mode is None). {result.message}"
        return replace(result, status="True", reason="NotWanted", message=told)
    problems = fields.problems()
    if problems:
        return _failed(
            AwsError("InvalidEndpointSpec", "spec.endpoint: " + "; ".join(problems), stalled=True), (), record
        )
    clients: Clients | None = None
    changes: list[str] = []
    book = dict(record)
    try:
        hints = read_nodes(nodes)
        clients = _clients(fields, hints, book)
        spec = complete(clients, fields, hints, user=user, cluster_name=cluster_name)
        return _rounds(clients, spec, changes, book)
    except AwsError as error:
        return _failed(error, changes, book)
    finally:
        if clients is not None:
            clients.close()


def _rounds(clients: Clients, spec: EndpointSpec, changes: list[str], book: dict[str, Any]) -> EndpointResult:
    seen, plan = Observed(), Plan(Verdict("Unknown", "WaitingForAws", ""))
    for _ in range(MAX_ROUNDS):
        seen = observe(clients, spec)
        plan = make_plan(spec, seen)
        _remember(book, spec, plan, seen)
        if not plan.steps:
            break
        carried = carry_out(clients, plan, str(book.get("salt", "")))
        changes += carried.changes
        _remember_made(book, carried, spec)
        if carried.error:
            raise carried.error
        if carried.endpoint_id:
            # It is AWS's turn. The next observation might not show it yet, and a second creation would be needless.
            break
    return _result(plan.verdict, plan, changes, book)


def remove_now(
    fields: EndpointFields,
    *,
    nodes: Iterable[NodeFacts],
    user: str,
    cluster_name: str = "",
    record: Mapping[str, Any],
) -> EndpointResult:
    """As :func:`remove_endpoint`, blocking. ``cluster_name`` is not needed: what is ours is found by its tag."""
    book = dict(record)
    if fields.mode != "Managed" and not book.get("id") and not book.get("securityGroupId"):
        return EndpointResult("False", "Removed", "Nothing was made in AWS for this cluster.", done=True)
    clients: Clients | None = None
    changes: list[str] = []
    tag = user_tag(user)
    try:
        try:
            clients = _clients(fields, read_nodes(nodes), book, prefer_record=True)
        except AwsError:
            if not book:
                # Without a region nothing can have been made: every creation writes its region down first.
                return EndpointResult("False", "Removed", "Nothing was made in AWS for this cluster.", done=True)
            raise
        plan = Plan(Verdict("Unknown", "WaitingForAws", ""))
        for _ in range(MAX_ROUNDS):
            seen = observe_owned(clients, tag, str(book.get("vpcId") or fields.vpc_id))
            plan = plan_removal(tag, seen, fields.deletion_policy == "Retain", {fields.endpoint_id} - {""})
            if not plan.steps:
                break
            carried = carry_out(clients, plan)
            changes += carried.changes
            if carried.error:
                raise carried.error
        if plan.done:
            book = {}
        result = _result(plan.verdict, plan, changes, book)
        return replace(result, done=plan.done)
    except AwsError as error:
        return _failed(error, changes, book)
    finally:
        if clients is not None:
            clients.close()


def _clients(fields: EndpointFields, hints: Hints, book: Mapping[str, Any], *, prefer_record: bool = False) -> Clients:
    recorded = str(book.get("region", ""))
    return Clients(recorded if prefer_record and recorded else region_for(fields, hints))


def _remember(book: dict[str, Any], spec: EndpointSpec, plan: Plan, seen: Observed) -> None:
    """Bring the record up to what was observed.

    ``confirmed`` says that the endpoint of the record was seen. One that was seen and is gone was deleted: its id
    becomes the salt of the next token. One that was never seen may only not be visible yet, so its token is used
    again, for some passes.
    """
    known = str(book.get("id", ""))
    endpoint: Endpoint | None = plan.endpoint
    if endpoint is None and known and not any(item.id == known for item in seen.endpoints):
        book["unseen"] = int(book.get("unseen", 0)) + 1
        if book.get("confirmed") or book["unseen"] > _UNSEEN_PASSES:
            book["salt"] = known
            for name in ("id", "confirmed", "unseen", "state", "dnsNames", "subnetIds"):
                book.pop(name, None)
    book |= {"region": spec.region, "vpcId": spec.vpc_id}
    if plan.group is not None:
        book["securityGroupId"] = plan.group.id
    if endpoint is not None:
        book.pop("unseen", None)
        book |= {
            "id": endpoint.id,
            "state": endpoint.state,
            "serviceName": endpoint.service_name,
            "subnetIds": list(endpoint.subnet_ids),
            "dnsNames": list(endpoint.dns_names),
            "confirmed": True,
        }


def _remember_made(book: dict[str, Any], carried: Carried, spec: EndpointSpec) -> None:
    if carried.group_id:
        book["securityGroupId"] = carried.group_id
    if carried.endpoint_id and carried.endpoint_id != book.get("id"):
        book |= {"id": carried.endpoint_id, "state": carried.endpoint_state or "pending", "confirmed": False}
        book["serviceName"] = spec.service_names[0]


def _result(verdict: Verdict, plan: Plan, changes: Iterable[str], book: Mapping[str, Any]) -> EndpointResult:
    message = verdict.message
    extra = [text for text in plan.warnings if text not in message]
    if extra and verdict.reason != "ExistingEndpointDeviates":
        message = " ".join([message, *extra])
    return EndpointResult(
        status=verdict.status,
        reason=verdict.reason,
        message=_bounded(message),
        stalled=verdict.stalled,
        progressing=verdict.progressing,
        retry_after_s=verdict.retry_after_s,
        changes=tuple(changes),
        warnings=plan.warnings,
        record=dict(book),
    )


def _failed(error: AwsError, changes: Iterable[str], book: Mapping[str, Any]) -> EndpointResult:
    settling = error.reason in ("WaitingForAws", "SecurityGroupInUse")
    return EndpointResult(
        # What AWS would not tell is not known; what it refused to make is not there.
        status="Unknown" if error.operation.startswith(("Describe", "Get")) or not error.operation else "False",
        reason=error.reason,
        message=_bounded(error.message),
        stalled=error.stalled,
        progressing=settling,
        retry_after_s=error.retry_after_s,
        changes=tuple(changes),
        record=dict(book),
    )


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
