"""What commands print: tables for people, JSON or YAML for programs.

Three ways a table can come out:

* on a terminal: coloured, cut to the terminal's width;
* piped or redirected: aligned columns, no colour, nothing cut, no trailing blanks;
* ``-o json`` and ``-o yaml``: ASCII only, so that no text of an attacker can act on a terminal.

Nothing here interprets markup: text is text.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import click
import yaml
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from vedette_cli.text import safe, shorten

Format = Literal["table", "json", "yaml"]

GAP = "  "

LEAST_WIDTH = 22
"""Terminal cells below which a column is not narrowed for the sake of others."""

CELL_LIMIT = 4096
"""Greatest number of terminal cells of one cell where nothing else bounds it."""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: heading, upper case by custom.
        style: rich style, or a function from the cell's text to one.
        right: aligned to the right.
        keep: never narrowed on a terminal.
    """

    title: str
    style: str | Callable[[str], str] = ""
    right: bool = False
    keep: bool = False


def console(stream: TextIO | None = None, *, width: int | None = None) -> Console:
    """Console on ``stream`` (stdout by default) that interprets neither markup nor emoji names."""
    file = stream or sys.stdout
    return Console(file=file, markup=False, highlight=False, emoji=False, soft_wrap=False, width=width)


def is_terminal() -> bool:
    """Whether stdout is a terminal that shows styles; a forced width counts as none."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> None:
    """Print ``rows`` with headings; every cell is made safe first."""
    cells = [[safe(value, limit=CELL_LIMIT) for value in row] for row in rows]
    natural = [max([len(c.title), *(cell_len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    terminal = is_terminal()
    widths = fit(columns, natural, console().width) if terminal else natural
    for number, row in enumerate([[c.title for c in columns], *cells]):
        line = Text()
        for index, (column, width) in enumerate(zip(columns, widths, strict=True)):
            cell = shorten(row[index], width)
            style = "bold" if number == 0 else _style(column, row[index])
            padding = " " * (width - cell_len(cell))
            line.append(padding if column.right else "")
            line.append(cell, style)
            line.append("" if column.right else padding)
            line.append(GAP if index < len(columns) - 1 else "")
        line.rstrip()
        if terminal:
            console().print(line, no_wrap=True, overflow="ellipsis", crop=True)
        else:
            click.echo(line.plain)


def fit(columns: Sequence[Column], natural: Sequence[int], width: int) -> list[int]:
    """Return the columns' widths on a terminal of ``width``: the widest that may shrink shrink first; pure."""
    widths = list(natural)
    excess = sum(widths) + len(GAP) * (len(widths) - 1) - width
    shrinkable = [i for i, column in enumerate(columns) if not column.keep]
    for index in sorted(shrinkable, key=lambda i: -natural[i]):
        if excess > 0:
            taken = min(excess, max(widths[index] - LEAST_WIDTH, 0))
            widths[index] -= taken
            excess -= taken
    return widths


def _style(column: Column, cell: str) -> str:
    return column.style(cell) if callable(column.style) else column.style


def print_line(*parts: str | tuple[str, str]) -> None:
    """Print one line of (text, style) parts, each made safe; styles only on a terminal, never cut or wrapped."""
    line = Text()
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else part
        line.append(safe(text), style)
    target = console()
    if is_terminal():
        target.print(line, soft_wrap=True)
    else:
        click.echo(line.plain)


def print_data(data: Any, form: Format) -> None:
    """Print ``data`` as one JSON or YAML document in ASCII."""
    if form == "json":
        click.echo(json.dumps(data, indent=2, default=str))
    else:
        click.echo(yaml.safe_dump(_plain(data), sort_keys=False, allow_unicode=False, width=120).rstrip("\n"))


def print_json_line(data: Any) -> None:
    """Print ``data`` as one line of JSON Lines, ASCII, and flush, for readers that follow."""
    click.echo(json.dumps(data, separators=(",", ":"), default=str))
    sys.stdout.flush()


def _plain(data: Any) -> Any:
    """Only what YAML's safe dumper knows."""
    return json.loads(json.dumps(data, default=str))


def note(text: str) -> None:
    """Print a remark on stderr, so that it never gets into data."""
    target = console(sys.stderr)
    line = Text("note: ", "yellow")
    line.append(safe(text))
    target.print(line, soft_wrap=True)


def severity_style(severity: float) -> str:
    """Style of a severity on a terminal."""
    return {"Critical": "bold white on red", "High": "bold red", "Medium": "yellow", "Low": "cyan"}[band(severity)]


def band(severity: float) -> str:
    """GuardDuty's name of a severity: Low 1.0-3.9, Medium 4.0-6.9, High 7.0-8.9, Critical 9.0-10.0."""
    if severity >= 9:
        return "Critical"
    if severity >= 7:
        return "High"
    return "Medium" if severity >= 4 else "Low"


def output_option(default: Format = "table") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The ``-o/--output`` option that every command which shows something has."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(["table", "json", "yaml"]),
        default=default,
        show_default=True,
        help="table for people; json and yaml for programs (complete, ASCII).",
    )
