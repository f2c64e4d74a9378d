"""Points in time as people write them, and as tables show them. Everything is UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhdw])", re.ASCII)


def parse_when(text: str, now: datetime | None = None) -> datetime:
    """Return the UTC moment that ``text`` names: ``10m`` (ago), ``1h30m``, ``now``, a date, or an ISO 8601 time.

    A time without an offset is UTC.

    Raises:
        ValueError: it is none of these.
    """
    now = now or datetime.now(UTC)
    text = text.strip()
    if text == "now":
        return now
    try:
        if _DURATION.fullmatch(text):
            return now - timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text)))
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is not a time. Give an age (30s, 10m, 2h, 1d), 'now', or a UTC time (2026-01-31T12:00:00)"
        ) from None


class When(click.ParamType[datetime]):
    """Click type of ``--since`` and ``--until``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Convert to an aware UTC datetime, or end with a usage error."""
        if isinstance(value, datetime):
            return value
        try:
            return parse_when(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def show_time(moment: datetime | str | None, *, fraction: bool = False) -> str:
    """Return ``2026-01-31 12:00:00`` (and milliseconds) of a datetime or an ISO 8601 text; ``-`` for none."""
    if moment is None or moment == "":
        return "-"
    if isinstance(moment, str):
        try:
            parsed = datetime.fromisoformat(moment)
        except ValueError:
            return moment
    else:
        parsed = moment
    parsed = parsed.astimezone(UTC)
    text = parsed.strftime("%Y-%m-%d %H:%M:%S")
    return f"{text}.{parsed.microsecond // 1000:03d}" if fraction else text


def show_age(seconds: float) -> str:
    """Return a short age: ``5s``, ``3m``, ``2h``, ``4d``."""
    if seconds < 0:
        return "0s"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size * 2:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def show_count(value: float | int) -> str:
    """Return a number with thin grouping: ``1,234,567``."""
    return f"{value:,.0f}"


def show_bytes(value: float) -> str:
    """Return bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
