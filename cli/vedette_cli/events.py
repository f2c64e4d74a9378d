"""``vedette events``: raw events, by filter or SQL."""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from vedette_cli.errors import CommandError
from vedette_cli.findings import nanoseconds, quoted
from vedette_cli.location import Location, location_options
from vedette_cli.output import (
    Column,
    Format,
    note,
    output_option,
    print_data,
    print_json_line,
    print_line,
    print_table,
)
from vedette_cli.text import safe
from vedette_cli.when import When, show_count, show_time

DEFAULT_SINCE = timedelta(minutes=10)
SHOWN_WIDTH = 300
"""Terminal cells of what an event is about."""


@click.command()
@location_options
@click.option("--since", type=When(), help="At or after: 10m, 2h, 1d (ago) or a UTC time. [default: 10m]")
@click.option("--until", type=When(), help="At or before.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="exec, connect, open, dns, ...; repeatable.")
@click.option("--pid", type=click.IntRange(0), help="Only of this process.")
@click.option("--process", metavar="TEXT", help="Only of processes with this in their name or executable's path.")
@click.option("--container", metavar="ID", help="Beginning of a container's id; 'host' for outside containers.")
@click.option("--node", help="Only of this node.")
@click.option("--limit", type=click.IntRange(1), help="The newest so many. [default: 100; SQL: 1000]")
@click.option("--sql", "statement", metavar="SELECT", help="Answer this DuckDB SQL instead; see below.")
@output_option()
def events(
    location: Location,
    since: datetime | None,
    until: datetime | None,
    types: tuple[str, ...],
    pid: int | None,
    process: str | None,
    container: str | None,
    node: str | None,
    limit: int | None,
    statement: str | None,
    form: Format,
) -> None:
    """Look at raw events: what processes did, whether or not it led to a finding.

    \b
    vedette events --type exec --since 5m
    vedette events --pid 4711 --since 1h
    vedette events --container 4f1d --type connect --type dns -o json
    vedette events --process curl

    With --sql every event type is a table (exec, open, connect, ...) and "events" holds what all types have in
    common. --since, --until and --node choose the time and node; the rest is for the WHERE clause. The documentation's
    event reference lists the columns; "wall" is the time.

    \b
    vedette events --sql "select comm, count(*) from exec group by comm order by 2 desc limit 10"
    vedette events --since 1d --sql "select wall, comm, raddr, rport from connect where rport = 4444"
    """
    if pid is not None and process is not None:
        raise click.UsageError("--pid and --process exclude each other.")
    directory = location.detector_dir / "journal"
    check_readable(directory)
    since = since or datetime.now(UTC) - DEFAULT_SINCE
    if statement is not None:
        if types or pid is not None or process or container:
            raise click.UsageError("with --sql, say in its WHERE what --type, --pid, --process or --container would.")
        answer_sql(directory, statement, since, until, node, limit or 1000, form)
        return
    from vedette_detector.events_query import EventQuery, Problems, rows

    wanted = EventQuery(
        since_ns=nanoseconds(since),
        until_ns=nanoseconds(until),
        types=types,
        node=node,
        container=container,
        process=str(pid) if pid is not None else process,
    )
    limit = limit or 100
    problems = Problems()
    # Of the newest events only so many are held, however many there are.
    newest: collections.deque[dict[str, Any]] = collections.deque(maxlen=limit)
    total = 0
    for event in rows(directory, wanted, problems):
        newest.append(event)
        total += 1
    if form != "table":
        print_data(list(newest), form)
    elif newest:
        print_table(COLUMNS, (row(event) for event in newest))
    else:
        print_line("No events match.")
    if total > limit:
        note(f"the newest {show_count(limit)} of {show_count(total)} events are shown; --limit shows more")
    tell(problems)


COLUMNS = (
    Column("TIME (UTC)", keep=True),
    Column("TYPE", style="bold", keep=True),
    Column("CONTAINER"),
    Column("PROCESS", keep=True),
    Column("RESULT", right=True, keep=True),
    Column("WHAT"),
)


def check_readable(directory: Path) -> None:
    """Verify that there is a journal to read.

    Raises:
        CommandError: NoEventsYet or NotAllowed.
    """
    try:
        next(directory.iterdir(), None)
    except FileNotFoundError:
        raise CommandError(
            "NoEventsYet",
            f"there are no events at {directory}",
            "Start Vedette with: sudo vedette run\n"
            "If it runs with another --data-dir, give the same here or set VEDETTE_DATA_DIR.",
        ) from None
    except OSError as error:
        hint = "Run as root: sudo vedette events ..."
        raise CommandError("NotAllowed", f"cannot read {directory}: {error.strerror}", hint) from None


def row(event: dict[str, Any]) -> tuple[str, ...]:
    """Return an event's cells for `COLUMNS`."""
    return (
        show_time(str(event.get("wall", "")), fraction=True),
        str(event.get("type", "?")),
        str(event.get("container") or "-")[:12],
        f"{event.get('comm', '?')}[{event.get('pid', '?')}]",
        str(event.get("result", "")),
        safe(about(event), limit=SHOWN_WIDTH),
    )


def about(event: dict[str, Any]) -> str:
    """Return what an event is about, in one line."""
    kind = event.get("type")
    if kind == "exec":
        argv = event.get("argv") or []
        return " ".join([str(event.get("path", "")), *(quoted(str(a)) for a in argv[1:])])
    if kind == "dns":
        return f"{event.get('direction', '')} {event.get('question', '')} {address(event, 'r')}"
    if "raddr" in event and kind != "exec":
        path = event.get("path")
        return str(path) if path else f"{address(event, 'l')} -> {address(event, 'r')}"
    if kind == "fork":
        return f"child {event.get('child_pid')}"
    if kind == "exit":
        return f"status {event.get('exit_code', 0)}"
    texts = [str(event[k]) for k in ("op", "request", "path", "new_path", "source", "target", "name") if event.get(k)]
    if event.get("target_pid"):
        texts.append(f"pid {event['target_pid']}")
    flags = [str(event[k]) for k in ("oflags", "prot", "mode") if event.get(k)]
    return " ".join([*texts, *(f"({f})" for f in flags[:1])])


def address(event: dict[str, Any], side: str) -> str:
    """Return ``address:port`` of the local (l) or remote (r) side."""
    host, port = event.get(f"{side}addr") or "?", event.get(f"{side}port")
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def answer_sql(
    directory: Path,
    statement: str,
    since: datetime,
    until: datetime | None,
    node: str | None,
    limit: int,
    form: Format,
) -> None:
    """Print the answer to one SELECT."""
    from vedette_detector.events_query import sql

    if statement == "-":
        statement = sys.stdin.read()
    answer = sql(directory, statement, since_ns=nanoseconds(since), until_ns=nanoseconds(until), node=node)
    more = False

    def bounded(found: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        nonlocal more
        for number, values in enumerate(found):
            if number == limit:
                more = True
                return
            yield values

    if form == "table":
        cells = ([cell(value) for value in values] for values in bounded(answer.rows))
        print_table([Column(safe(name, limit=60).upper()) for name in answer.columns], cells)
    elif form == "json":
        for values in bounded(answer.rows):
            print_json_line(dict(zip(answer.columns, map(plain, values), strict=True)))
    else:
        found = [dict(zip(answer.columns, map(plain, values), strict=True)) for values in bounded(answer.rows)]
        print_data(found, form)
    if more:
        note(f"only the first {show_count(limit)} rows are shown; --limit shows more")
    tell(answer.problems)


def plain(value: Any) -> Any:
    """Return a value of an SQL answer as JSON knows it."""
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if isinstance(value, datetime) else value


def cell(value: Any) -> str:
    """Return a value of an SQL answer as text."""
    if isinstance(value, datetime):
        return show_time(value.replace(tzinfo=UTC) if value.tzinfo is None else value, fraction=True)
    return "-" if value is None else str(plain(value))


def tell(problems: Any) -> None:
    """Say what could not be read."""
    if problems.unreadable_batches:
        reasons = ", ".join(sorted(problems.reasons))
        note(f"{show_count(problems.unreadable_batches)} batches could not be read ({reasons}): events are missing")
