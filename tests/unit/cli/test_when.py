from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vedette_cli.when import parse_when, show_age, show_bytes, show_time

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        ("30s", NOW - timedelta(seconds=30)),
        ("10m", NOW - timedelta(minutes=10)),
        ("1h30m", NOW - timedelta(minutes=90)),
        ("1.5d", NOW - timedelta(hours=36)),
        ("2w", NOW - timedelta(days=14)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=UTC)),
        ("2026-01-30T10:00:00", datetime(2026, 1, 30, 10, tzinfo=UTC)),
        ("2026-01-30T10:00:00+02:00", datetime(2026, 1, 30, 8, tzinfo=UTC)),
        ("2026-01-30T10:00:00Z", datetime(2026, 1, 30, 10, tzinfo=UTC)),
    ],
)
def test_reads_ages_and_times(text: str, moment: datetime) -> None:
    assert parse_when(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "10", "10x", "-5m", "٣m", "2026-13-01", "9" * 40 + "d"])
def test_refuses_what_is_no_time_and_says_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_when(text, NOW)


@pytest.mark.parametrize(
    ("moment", "shown"),
    [
        (None, "-"),
        ("", "-"),
        ("2026-01-31T12:00:00.1239Z", "2026-01-31 12:00:00.123"),
        (datetime(2026, 1, 31, 14, tzinfo=UTC), "2026-01-31 14:00:00.000"),
        ("no time", "no time"),
    ],
)
def test_shows_times_in_utc(moment: datetime | str | None, shown: str) -> None:
    assert show_time(moment, fraction=True) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0s"), (5, "5s"), (119, "119s"), (120, "2m"), (7300, "2h"), (200000, "2d")]
)
def test_shows_ages(seconds: float, shown: str) -> None:
    assert show_age(seconds) == shown


@pytest.mark.parametrize(("size", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_shows_sizes(size: float, shown: str) -> None:
    assert show_bytes(size) == shown
