"""``vedette findings``: list, show, watch, export, archive."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from vedette_cli.errors import CommandError
from vedette_cli.location import Location, location_options
from vedette_cli.output import (
    Column,
    Format,
    band,
    is_terminal,
    note,
    output_option,
    print_data,
    print_json_line,
    print_line,
    print_table,
    severity_style,
)
from vedette_cli.text import safe
from vedette_cli.when import When, show_count, show_time

if TYPE_CHECKING:
    from vedette_detector.store import Filters, Finding, Store

POLL_S = 0.2
"""How often a follower asks the store for changes; one indexed query each."""

PAGE = 500
"""Findings fetched at once by export."""

SEVERITIES = {"low": 1.0, "medium": 4.0, "high": 7.0, "critical": 9.0}


class Severity(click.ParamType[float]):
    """Click type of ``--severity``: a band's name (its lower bound) or a number."""

    name = "severity"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert to the least severity wanted, or end with a usage error."""
        text = str(value).lower()
        if text in SEVERITIES:
            return SEVERITIES[text]
        try:
            number = float(text)
        except ValueError:
            number = -1
        if not 0 <= number <= 10:
            self.fail(f"{value!r} is neither low, medium, high, critical nor a number from 1 to 10", param, ctx)
        return number


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options by which findings are chosen."""
    for option in reversed(
        (
            click.option(
                "--type", "types", multiple=True, metavar="TYPE", help="Finding type; part of one, or with *."
            ),
            click.option(
                "--severity", type=Severity(), metavar="LEAST", help="low, medium, high, critical or a number."
            ),
            click.option("--since", type=When(), help="Last seen at or after: 10m, 2h, 1d (ago) or a UTC time."),
            click.option("--until", type=When(), help="First seen at or before."),
            click.option("--container", metavar="ID", help="Beginning of a container's id."),
            click.option("--host", is_flag=True, help="Only those of processes outside containers."),
            click.option("--namespace", help="Only those of pods in this Kubernetes namespace."),
            click.option("--node", help="Only those of this node."),
            click.option("--archived", is_flag=True, help="Archived ones instead of current ones."),
            click.option("--all", "everything", is_flag=True, help="Archived ones too."),
        )
    ):
        command = option(command)
    return command


def make_filters(
    types: tuple[str, ...] = (),
    severity: float | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    container: str | None = None,
    host: bool = False,
    namespace: str | None = None,
    node: str | None = None,
    archived: bool = False,
    everything: bool = False,
) -> Filters:
    """Return the store's filters for the options."""
    from vedette_detector.store import Filters

    if host + bool(container) + bool(namespace) > 1:
        raise click.UsageError("--host, --container and --namespace exclude each other.")
    return Filters(
        types=tuple(t if "*" in t or ":" in t else f"*{t}*" for t in types),
        min_severity=severity,
        since_ns=nanoseconds(since),
        until_ns=nanoseconds(until),
        archived=None if everything else archived,
        node=node,
        resource_type="Instance" if host else "EKSCluster" if namespace else None,
        resource=f"{namespace}/" if namespace else container,
    )


def nanoseconds(moment: datetime | None) -> int | None:
    """Return ns since the epoch."""
    return None if moment is None else int(moment.timestamp() * 1_000_000) * 1000


def open_store(location: Location, *, write: bool = False) -> Store:
    """Open the database of findings of ``location``.

    Raises:
        CommandError: NoFindingsYet, when there is none, or NotAllowed.
    """
    from vedette_detector.store import Store

    if not location.store_url:
        path = location.detector_dir / "findings.db"
        try:
            with path.open("rb"):
                pass
        except FileNotFoundError:
            raise CommandError(
                "NoFindingsYet",
                f"there is no database of findings at {path}",
                "Start Vedette with: sudo vedette run\n"
                "If it runs with another --data-dir, give the same here or set VEDETTE_DATA_DIR.",
            ) from None
        except OSError as error:
            hint = "Run as root: sudo vedette findings ..."
            raise CommandError("NotAllowed", f"cannot read {path}: {error.strerror}", hint) from None
    return Store(location.database_url, read_only=not write)


@click.group()
def findings() -> None:
    """List, show, follow, export and archive findings.

    \b
    vedette findings list                            current findings, newest first
    vedette findings list --severity high --since 1d
    vedette findings list --type reverseshell -o json
    vedette findings show 3f9c2a                     the beginning of an id is enough
    vedette findings watch                           print findings as they arrive
    vedette findings export > findings.jsonl         GuardDuty format, one per line
    vedette findings archive 3f9c2a                  done with it
    """


@findings.command("list")
@location_options
@filter_options
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="At most so many.")
@output_option()
def list_findings(location: Location, limit: int, form: Format, **chosen: Any) -> None:
    """List findings, the one seen last first.

    JSON and YAML give whole findings in GuardDuty's format.

    \b
    vedette findings list --type 'Execution:*' --severity medium
    vedette findings list --container 4f1d --since 2h
    vedette findings list -o json | jq '.[].type'
    """
    filters = make_filters(**chosen)
    store = open_store(location)
    found = store.list(filters, limit=limit + 1)
    more, found = len(found) > limit, found[:limit]
    if form != "table":
        print_data([f.document for f in found], form)
    elif found:
        print_table(COLUMNS, (row(f) for f in found))
    else:
        print_line("No findings" + (" match." if any(chosen.values()) else "."))
    if more:
        note(f"only the newest {limit} are shown; --limit shows more")
    for line in losses(store, filters.since_ns):
        note(line)
    store.close()


COLUMNS = (
    Column("SEVERITY", style=lambda cell: severity_style(float(cell.split()[-1])), keep=True),
    Column("TYPE", style="bold"),
    Column("WHERE"),
    Column("PROCESS"),
    Column("COUNT", right=True, keep=True),
    Column("LAST SEEN (UTC)", keep=True),
    Column("ID", keep=True),
)


PROCESS_WIDTH = 160
"""Terminal cells of a process in a list; ``show`` has all of it."""


def row(finding: Finding) -> tuple[str, ...]:
    """Return a finding's cells for `COLUMNS`."""
    return (
        f"{band(finding.severity)} {finding.severity:.1f}",
        finding.type,
        where(finding),
        safe(process_line(finding.document), limit=PROCESS_WIDTH),
        show_count(finding.count),
        show_time(moment(finding.last_seen_ns)),
        finding.id[:8],
    )


def moment(ns: int | None) -> datetime | None:
    """Return the UTC datetime of ns since the epoch."""
    from datetime import UTC

    return None if ns is None else datetime.fromtimestamp(ns / 1e9, UTC)


def where(finding: Finding) -> str:
    """Return a short name of the resource: ``container 4f1d2c3b9a8e``, ``host web-1`` or ``pod prod/web-1 (app)``."""
    if finding.resource_type == "EKSCluster":
        return pod_line(finding.document)
    details = dig(finding.document, "resource", "containerDetails")
    if finding.resource_type == "Instance" or not isinstance(details, dict):
        return f"host {finding.node}"
    name = details.get("name")
    short = str(details.get("id", finding.resource_id))[:12]
    return f"container {name} ({short})" if name and name != details.get("id") else f"container {short}"


def pod_line(document: dict[str, Any]) -> str:
    """Return a pod's name with its container's; what is only supposed of the container has a question mark."""
    workload = dig(document, "resource", "kubernetesDetails", "kubernetesWorkloadDetails")
    workload = workload if isinstance(workload, dict) else {}
    if not workload.get("name"):
        return f"pod {workload.get('uid', '?')} (not known)"
    container = dig(extras(document), "kubernetes", "container")
    container = container if isinstance(container, dict) else {}
    name = container.get("name") or container.get("kind") or "?"
    supposed = "?" if container.get("inferred") and name != "?" else ""
    return f"pod {workload.get('namespace')}/{workload['name']} ({name}{supposed})"


def process_line(document: dict[str, Any]) -> str:
    """Return how the process was called, with its pid."""
    process = dig(document, "service", "runtimeDetails", "process")
    if not isinstance(process, dict):
        return "-"
    arguments = dig(extras(document), "arguments", "process")
    path = str(process.get("executablePath") or process.get("name") or "?")
    called = path
    if isinstance(arguments, list) and len(arguments) > 1:
        # The first argument is what the caller claims; the path is what the kernel ran.
        called = f"{path} {' '.join(quoted(str(a)) for a in arguments[1:])}"
    return f"{called} ({process.get('pid', '?')})"


def quoted(argument: str) -> str:
    """Return ``argument`` as a shell would need it."""
    return "'" + argument.replace("'", "'\\''") + "'" if not argument or set(argument) & set(" '\"\\$`") else argument


def extras(document: dict[str, Any]) -> dict[str, Any]:
    """Return what Vedette adds to GuardDuty's format."""
    added = document.get("vedette")
    return added if isinstance(added, dict) else {}


def dig(data: Any, *keys: str) -> Any:
    """Return the value under nested ``keys``, None if any is missing."""
    for key in keys:
        if not isinstance(data, dict):
            return None
        data = data.get(key)
    return data


def losses(store: Store, since_ns: int | None) -> list[str]:
    """Return a line for each kind of loss that may hide findings since ``since_ns``; empty when nothing was lost."""
    from vedette_detector.ledger import NoteKind

    serious = {
        NoteKind.KERNEL_DROPS: "{events} events were dropped because the kernel's ring was full",
        NoteKind.SPOOL_LOSS: "{events} events were given up because the agent's spool was full or a batch was refused",
        NoteKind.BATCHES_MISSING: "{batches} batches of events never arrived",
        NoteKind.WITHOUT_AGENT: "for some time no agent watched",
        NoteKind.COUNTERS_WENT_BACK: "an agent's counters went back: somebody may have tampered with it",
    }
    sums: dict[tuple[str, NoteKind], tuple[int, int, int]] = {}
    for entry in store.notes(limit=2000):
        if entry.kind in serious and (since_ns is None or entry.at_ns >= since_ns):
            events, batches, last = sums.get((entry.node, entry.kind), (0, 0, 0))
            sums[entry.node, entry.kind] = (events + entry.events, batches + entry.batches, max(last, entry.at_ns))
    return [
        f"{node}: {serious[kind].format(events=show_count(events), batches=show_count(batches))}"
        f" (last at {show_time(moment(last))}): findings may be missing; see vedette status"
        for (node, kind), (events, batches, last) in sorted(sums.items())
    ]


@findings.command("show")
@click.argument("finding_id", metavar="ID")
@location_options
@click.option("--occurrences", is_flag=True, help="Every kept occurrence too (the last 20 by default).")
@click.option("--events", "related", is_flag=True, help="The events around it too.")
@output_option()
def show_finding(location: Location, finding_id: str, occurrences: bool, related: bool, form: Format) -> None:
    """Show everything about one finding. The beginning of its ID is enough.

    \b
    vedette findings show 3f9c2a --events
    vedette findings show 3f9c2a -o json
    """
    from vedette_cli.finding_page import print_finding

    store = open_store(location)
    finding = store.get(finding_id)
    if finding is None:
        raise CommandError(
            "FindingNotFound", f"there is no finding {finding_id}", "List them with: vedette findings list --all"
        )
    kept = store.occurrences(finding.id) if occurrences else []
    if form != "table":
        data = finding.document if not occurrences else {**finding.document, "occurrences": [o.document for o in kept]}
        print_data(data, form)
    else:
        print_finding(finding, kept, with_events=related)
    store.close()


@findings.command("watch")
@location_options
@filter_options
@click.option("--new", "only_new", is_flag=True, help="Leave out repeats of a finding that was there before.")
@output_option()
def watch(location: Location, only_new: bool, form: Format, **chosen: Any) -> None:
    """Print findings as they arrive, one line each, until stopped (Ctrl-C).

    Without --since begins now. -o json prints one finding a line, in GuardDuty's format.

    \b
    vedette findings watch --severity high
    vedette findings watch -o json | jq -c '{type, severity}'
    """
    if form == "yaml":
        raise click.UsageError("watch prints lines: use -o table or -o json.")
    filters = make_filters(**chosen)
    store = open_store(location)
    cursor = store.cursor() if filters.since_ns is None else 0
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        # The exception ends a write that blocks; the event ends the loop where the exception was swallowed, as Python
        # does with one raised in a destructor.
        stopping.set()
        raise KeyboardInterrupt

    # A reader that closes the pipe, or a service manager that stops it, ends this quietly.
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, stop)
    if is_terminal() and form == "table":
        note("waiting for findings; Ctrl-C stops")
    seen: set[str] = set()
    try:
        for found in follow(store, cursor, filters, stopping):
            for finding in found:
                fresh = finding.id not in seen and finding.count == 1
                if not only_new or fresh:
                    print_arrival(finding, form)
                seen.add(finding.id)
    except KeyboardInterrupt:
        pass
    finally:
        store.close()


def follow(store: Store, cursor: int, filters: Filters, stopping: threading.Event) -> Iterator[list[Finding]]:
    """Yield findings as they are made or repeated, in that order, until ``stopping`` is set."""
    while not stopping.is_set():
        found, cursor = store.since(cursor, filters, limit=PAGE)
        if found:
            yield found
        if len(found) < PAGE:
            stopping.wait(POLL_S)


def print_arrival(finding: Finding, form: Format) -> None:
    """Print one finding as one line."""
    if form == "json":
        print_json_line(finding.document)
        return
    severity = f"{band(finding.severity):<8} {finding.severity:>4.1f}"
    repeat = f"  x{show_count(finding.count)}" if finding.count > 1 else ""
    print_line(
        (show_time(moment(finding.last_seen_ns), fraction=True)[11:], "dim"),
        "  ",
        (severity, severity_style(finding.severity)),
        "  ",
        (finding.type, "bold"),
        "  ",
        where(finding),
        "  ",
        safe(process_line(finding.document), limit=PROCESS_WIDTH),
        repeat,
        (f"  {finding.id[:8]}", "dim"),
    )


@findings.command("export")
@location_options
@filter_options
@click.option(
    "--occurrences", is_flag=True, help="One record for each kept occurrence instead of one for each finding."
)
@click.option("--limit", type=click.IntRange(1), help="At most so many findings. [default: all]")
def export(location: Location, occurrences: bool, limit: int | None, **chosen: Any) -> None:
    """Write findings to stdout as JSON Lines, in GuardDuty's finding format (schema 2.0).

    What GuardDuty does not have is under the key "vedette" of each finding.

    \b
    vedette findings export --since 7d > findings.jsonl
    vedette findings export --occurrences --type cryptominer
    """
    filters = make_filters(**chosen)
    store = open_store(location)
    for finding in _pages(store, filters, limit):
        if occurrences:
            for occurrence in store.occurrences(finding.id):
                print_json_line(occurrence.document)
        else:
            print_json_line(finding.document)
    for line in losses(store, filters.since_ns):
        note(line)
    store.close()


def _pages(store: Store, filters: Filters, limit: int | None) -> Iterator[Finding]:
    done = 0
    seen: set[str] = set()
    while limit is None or done < limit:
        wanted = PAGE if limit is None else min(PAGE, limit - done)
        found = store.list(filters, limit=wanted, offset=done)
        # A finding that repeats meanwhile moves to the front and shifts the pages by one: it must not come twice.
        yield from (f for f in found if f.id not in seen)
        seen.update(f.id for f in found)
        done += len(found)
        if len(found) < wanted:
            return


def _archive(location: Location, ids: Iterable[str], archived: bool) -> None:
    store = open_store(location, write=True)
    whole = []
    missing = []
    for beginning in ids:
        finding = store.get(beginning)
        whole.append(finding.id) if finding else missing.append(beginning)
    if missing:
        raise CommandError("FindingNotFound", f"there is no finding {', '.join(missing)}; nothing was changed")
    changed = store.archive(whole, archived, time.time_ns())
    print_line(f"{changed} {'archived' if archived else 'taken back'}")
    store.close()


@findings.command("archive")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@location_options
def archive(location: Location, ids: tuple[str, ...]) -> None:
    """Archive findings: they leave the list, but stay stored and are counted on."""
    _archive(location, ids, True)


@findings.command("unarchive")
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@location_options
def unarchive(location: Location, ids: tuple[str, ...]) -> None:
    """Take archived findings back into the list."""
    _archive(location, ids, False)
