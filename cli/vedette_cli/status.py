"""``vedette status``: is everything watched, and was anything lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from vedette_cli import detector_client
from vedette_cli.location import Location, location_options
from vedette_cli.output import Column, Format, output_option, print_data, print_line, print_table
from vedette_cli.text import safe
from vedette_cli.when import show_age, show_bytes, show_count, show_time

STALLED_AFTER_S = 15.0
"""Time without a batch after which events that the kernel has emitted count as stuck; an agent sends twice a second."""


@click.command()
@location_options
@click.option("--check", is_flag=True, help="Exit with 1 when a node is not fully watched or something was lost.")
@output_option()
def status(location: Location, check: bool, form: Format) -> None:
    """Show the running detector, its rules, and for each node: agent, hooks, ledger, spool, rates.

    The ledger accounts for every event: emitted by the kernel = received + on the way + lost. Losses of the last day
    are problems; older ones are shown and are none.

    \b
    vedette status
    vedette status --check && echo all is watched     for monitoring
    vedette status -o json | jq '.nodes[].hooks[] | select(.state != "loaded")'
    """
    data = detector_client.get(location.socket, "/v1/status")
    found = list(problems(data))
    if form != "table":
        print_data({**data, "problems": found}, form)
    else:
        print_status(data, time.time())
        print_line()
        if found:
            print_line((f"{len(found)} problem{'s' if len(found) > 1 else ''}", "bold red"))
            for problem in found:
                print_line("  - ", problem)
        else:
            print_line(("all is watched, nothing was lost within a day", "green"))
    if check and found:
        raise click.exceptions.Exit(1)


def seconds(value: Any) -> float | None:
    """Return a time of the status document as seconds since the epoch: ISO text, seconds or nanoseconds."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and value > 0:
        return value / 1e9 if value > 1e14 else float(value)
    return None


def problems(data: dict[str, Any]) -> Iterator[str]:
    """Yield what a person should know: silent agents, missing hooks, recent losses, broken rules.

    What is silent and what is recent the detector says: its clock is the one that counts.
    """
    detector = data.get("detector", {})
    if detector.get("healthy") is False:
        yield f"the detector is not well: {describe(detector.get('health'))}"
    if detector.get("reload_error"):
        yield f"rules or threat lists could not be read again: {detector['reload_error']}"
    rules = detector.get("rules")
    for failing in (rules.get("failing") or []) if isinstance(rules, dict) else []:
        yield f"{failing.get('unit')} failed on {failing.get('event')} events: {failing.get('message')}"
    for error in rule_errors(detector):
        yield f"rule not loaded: {error}"
    for entry in detector.get("threat_lists") or []:
        if isinstance(entry, dict):
            for error in entry.get("errors") or []:
                yield f"threat list: {error_text(error)}"
    yield from unwatched_objects(detector)
    nodes = data.get("nodes") or []
    if not nodes:
        yield "no agent has reported yet: nothing is watched"
    for node in nodes:
        name = node.get("node", "?")
        age = node.get("heartbeat_age_s")
        if age is None:
            yield f"{name}: no heartbeat of its agent has come yet"
        elif node.get("silent"):
            yield f"{name}: the agent has been silent for {show_age(age)}"
        else:
            yield from (f"{name}: {problem}" for problem in stuck(node, age))
        for hook in node.get("hooks") or []:
            if hook.get("state") != "loaded":
                why = f"{hook.get('hook')} {hook.get('state')}: {hook.get('reason')}"
                yield f"{name}: {hook.get('event')} is not watched ({why})"
        unpinned = [str(hook.get("hook")) for hook in node.get("hooks") or [] if pin_removed(hook)]
        if unpinned:
            yield (
                f"{name}: the pins of {len(unpinned)} hooks were removed, of {unpinned[0]} for one: what happens while "
                "the agent is not running is not seen. Find out who removed them, then restart the agent"
            )
        hashes = node.get("hashes")
        if isinstance(hashes, dict) and hashes.get("stopped"):
            yield (
                f"{name}: executables are not hashed any more: reading {show_count(hashes.get('hung') or 0)} of them "
                "hung, and their file systems do not answer yet"
            )
        yield from (f"{name}: {problem}" for problem in lost(node, "recent"))
        if gaps(node).get("too_long"):
            yield f"{name}: {describe_gaps(node)}"


def unwatched_objects(detector: dict[str, Any]) -> Iterator[str]:
    """Yield which objects of the cluster the detector does not see change: findings may not name their pods."""
    watches = (detector.get("kubernetes") or {}).get("watches") or []
    away = [w for w in watches if isinstance(w, dict) and not w.get("connected")]
    for watch in away[:1] if len(away) == len(watches) else away:
        what = "the cluster's objects" if len(away) == len(watches) else f"the cluster's {watch.get('resource')}"
        known = "what was known then is used" if watch.get("synced") else "none have been read yet"
        yield f"{what} cannot be watched since {watch.get('away_since')} ({watch.get('error') or 'no answer'}); {known}"


def pin_removed(hook: dict[str, Any]) -> bool:
    """Whether a hook works, but its pin in the bpffs is gone."""
    return hook.get("state") == "loaded" and "pin" in str(hook.get("reason") or "")


def describe_hashes(hashes: dict[str, Any]) -> str:
    """Return how many executables an agent has hashed, and why others not, as one line."""
    remote = hashes.get("remote")
    kinds = remote if isinstance(remote, dict) else {}
    not_hashed = (
        (hashes.get("unavailable"), "gone or unreadable"),
        *((count, f"on {safe(str(kind))}") for kind, count in kinds.items()),
        (hashes.get("hung"), "whose reading hung"),
    )
    why = ", ".join(f"{show_count(count)} {text}" for count, text in not_hashed if count)
    return f"{show_count(hashes.get('hashed') or 0)} files" + (f"; not: {why}" if why else "")


def gaps(node: dict[str, Any]) -> dict[str, Any]:
    """Return what the detector says of the times in which no agent watched the node."""
    found = node.get("gaps")
    return found if isinstance(found, dict) else {}


def describe_gaps(node: dict[str, Any]) -> str:
    """Return the times in which no agent watched the node as one line."""
    found = gaps(node)
    count, total, longest = (found.get(name) or 0 for name in ("count", "seconds", "longest_s"))
    several = f"{show_count(count)} times within a day, {total:.1f} s in all, {longest:.1f} s at most"
    return f"no agent watched {several if count != 1 else f'for {total:.1f} s within a day'}"


LOSSES = {
    "dropped_events": "{} events dropped, the kernel's ring was full",
    "spool_lost_events": "{} events given up by the agent (spool full or batch refused)",
    "ring_lost_events": "{} events lost with the ring of an agent that was killed",
    "unexplained_batches": "{} batches never came, and no agent says why",
    "refused_batches": "{} batches refused for good",
    "contradictions": "the account contradicts itself {} times",
}
"""What each kind of loss in the status document is called."""


def lost(node: dict[str, Any], period: str) -> Iterator[str]:
    """Yield what a node has lost: within a day (``recent``) or before that (``earlier``).

    A refused batch is counted by the detector that refused it and then by the agent that gave it up. It is told once.
    """
    losses = node.get("losses")
    counts = losses.get(period) if isinstance(losses, dict) else None
    if not isinstance(counts, dict):
        return
    given_up = counts.get("spool_lost_batches") or 0
    for kind, text in LOSSES.items():
        count = counts.get(kind) or 0
        if kind == "refused_batches":
            count -= given_up
        elif kind == "spool_lost_events" and not count and given_up:
            # The agent's own batches, a snapshot or hashes: no events of the kernel are in them.
            yield f"{show_count(given_up)} batches given up by the agent (spool full or batch refused)"
        if count > 0:
            yield text.format(show_count(count))


def stuck(node: dict[str, Any], heartbeat_age: float) -> Iterator[str]:
    """Yield what the kernel's counters in the heartbeat say beyond the last batch: an agent may report and not deliver.

    The ledger knows the counters of the last batch only. Where the agent's disk is full, or its draining hangs, no
    further batch tells that the ring overflows.
    """
    counters = node.get("counters")
    if not isinstance(counters, dict):
        return
    same = (e for e in node.get("ledger") or [] if e.get("session") == node.get("session"))
    entry: dict[str, Any] = next(same, {})

    def since(name: str) -> int:
        new, old = counters.get(name), entry.get(name)
        return (new if isinstance(new, int) else 0) - (old if isinstance(old, int) else 0)

    ages = [a for a in (node.get("last_batch_age_s"), node.get("agent_age_s")) if isinstance(a, int | float)]
    if not ages or min(ages) - heartbeat_age <= STALLED_AFTER_S:
        return
    age = show_age(min(ages) - heartbeat_age)
    if since("emitted") > 0:
        yield f"{show_count(since('emitted'))} events wait on the host, no batch has come for {age}"
    if since("dropped") > 0:
        yield f"{show_count(since('dropped'))} more events dropped since the last batch, the kernel's ring was full"


def describe(value: Any) -> str:
    """Return nested values as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {describe(item)}" for key, item in value.items() if item not in (None, "", [], {}))
    if isinstance(value, list):
        return "; ".join(describe(item) for item in value)
    return str(value)


def rule_errors(detector: dict[str, Any]) -> list[str]:
    """Return the errors of the rules as lines."""
    rules = detector.get("rules")
    return [error_text(e) for e in (rules.get("errors") or [])] if isinstance(rules, dict) else []


def error_text(error: Any) -> str:
    """Return an error of a rule or list, ``file:line: message``."""
    if not isinstance(error, dict):
        return str(error)
    place = ":".join(str(error[k]) for k in ("file", "line") if error.get(k) not in (None, ""))
    return f"{place}: {error.get('message') or error.get('reason') or ''}"


def print_status(data: dict[str, Any], now: float) -> None:
    """Print the status for people."""
    detector = data.get("detector", {})
    started = seconds(detector.get("started_at"))
    age = f", up {show_age(now - started)}" if started else ""
    print_line(("Detector", "bold"), f"  {detector.get('version', '?')}{age}, {detector.get('workers', '?')} workers")
    rules = detector.get("rules")
    if isinstance(rules, dict):
        loaded, wrong = rules.get("loaded", 0), len(rules.get("errors") or [])
        detectors = f", {show_count(rules['detectors'])} detectors" if rules.get("detectors") else ""
        print_line(f"  rules         {show_count(loaded)} loaded{detectors}" + (f", {wrong} errors" if wrong else ""))
    lists = detector.get("threat_lists") or []
    names = [str(entry.get("name", "?")) if isinstance(entry, dict) else str(entry) for entry in lists]
    print_line(f"  threat lists  {', '.join(names) if names else 'none'}")
    watches = (detector.get("kubernetes") or {}).get("watches") or []
    if watches:
        known = (f"{show_count(w.get('objects') or 0)} {w.get('resource')}" for w in watches if isinstance(w, dict))
        print_line(f"  cluster       {', '.join(known)}")
    counts = data.get("findings")
    if isinstance(counts, dict) and counts:
        print_line(
            "  findings      " + ", ".join(f"{show_count(v)} {k}" for k, v in counts.items() if isinstance(v, int))
        )
    for node in data.get("nodes") or []:
        print_node(node)


def print_node(node: dict[str, Any]) -> None:
    """Print one node."""
    host = node.get("host") or {}
    print_line()
    kernel = " ".join(str(host[k]) for k in ("kernel", "arch") if host.get(k))
    print_line((f"Node {safe(node.get('node', '?'))}", "bold"), f"  {kernel}")
    parts = [f"version {node.get('agent_version', '?')}"]
    if node.get("rss_bytes"):
        parts.append(show_bytes(float(node["rss_bytes"])))
    if node.get("cpu_seconds") is not None:
        parts.append(f"{float(node['cpu_seconds']):.1f} s of CPU")
    if node.get("heartbeat_age_s") is not None:
        parts.append(f"heard of {show_age(float(node['heartbeat_age_s']))} ago")
    print_line(f"  agent   {', '.join(parts)}")
    rates = node.get("rates")
    if isinstance(rates, dict) and rates:
        print_line(
            "  rates   "
            + ", ".join(f"{k.replace('_', ' ')} {show_count(v)}" for k, v in rates.items() if v is not None)
        )
    spool = node.get("spool")
    if isinstance(spool, dict):
        limit = f" of {show_bytes(float(spool['limit_bytes']))}" if spool.get("limit_bytes") else ""
        used, waiting = show_bytes(float(spool.get("bytes", 0))), show_count(spool.get("batches", 0))
        print_line(f"  spool   {used}{limit}, {waiting} batches waiting")
    hashes = node.get("hashes")
    if isinstance(hashes, dict):
        print_line("  hashes  ", describe_hashes(hashes))
    hooks = node.get("hooks") or []
    loaded = [h for h in hooks if h.get("state") == "loaded"]
    print_line(f"  hooks   {len(loaded)} of {len(hooks)} loaded")
    unpinned = sum(pin_removed(h) for h in loaded)
    if unpinned:
        print_line(f"          {unpinned} lost their pins and end with the agent")
    if len(loaded) < len(hooks):
        print_table(
            (Column("  EVENT NOT WATCHED"), Column("HOOK"), Column("STATE", style="yellow"), Column("REASON")),
            [
                (f"  {h.get('event')}", h.get("hook"), h.get("state"), h.get("reason"))
                for h in hooks
                if h.get("state") != "loaded"
            ],
        )
    ledger = node.get("ledger") or []
    if ledger:
        print_table(
            (
                Column("  LEDGER SINCE (UTC)"),
                Column("EMITTED", right=True, keep=True),
                Column("RECEIVED", right=True, keep=True),
                Column("ON THE WAY", right=True, keep=True),
                Column("LOST", right=True, keep=True),
                Column("DROPPED", right=True, keep=True),
                Column("DEDUPLICATED", right=True, keep=True),
                Column(
                    "BALANCE",
                    style=lambda cell: "green" if cell in ("balanced", "outstanding", "-") else "red",
                    keep=True,
                ),
            ),
            [*_earlier_row(node.get("ledger_before")), *(_ledger_row(entry) for entry in ledger)],
        )
    if gaps(node).get("count"):
        print_line("  gaps    ", describe_gaps(node))
    for text in lost(node, "earlier"):
        print_line("  earlier than a day: ", text)


_SHOWN = ("emitted", "received", "outstanding", "spool_lost_events", "dropped", "deduplicated")


def _earlier_row(sums: Any) -> list[tuple[str, ...]]:
    """The sums of the sessions that are not shown one by one."""
    if not isinstance(sums, dict):
        return []
    name = f"  {show_count(sums.get('sessions', 0))} sessions before"
    return [(name, *(show_count(sums.get(n, 0)) for n in _SHOWN), "-")]


def _ledger_row(entry: dict[str, Any]) -> tuple[str, ...]:
    first = seconds(entry.get("first_event_ns") or entry.get("first_batch_at_ns"))
    since = show_time(datetime.fromtimestamp(first, UTC)) if first else "-"
    return (f"  {since}", *(show_count(entry.get(n, 0)) for n in _SHOWN), str(entry.get("balance", "?")))
