"""The journal of received batches: recovery, bounds, what rebuilds history."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.detector.detector_parts import BOOT, SECOND, SESSION, WALL_OFFSET, batch, scan
from vedette_detector.errors import JournalError, StorageFullError
from vedette_detector.journal import Entry, Journal, iter_entries, read_batch, read_entries, segments, select_history
from vedette_events.framing import BatchFlags, decode_header, encode_batch

KEY = ("node-a", BOOT, SESSION)


def put(journal: Journal, *batches: bytes) -> None:
    journal.append([(decode_header(b)[0], b) for b in batches])


def sequences(directory: Path) -> list[int]:
    return [e.sequence for e in iter_entries(directory)]


def test_what_was_appended_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    batches = [batch(n) for n in range(1, 6)]
    put(journal, *batches[:2])
    put(journal, *batches[2:])
    assert [read_batch(e) for e in iter_entries(tmp_path)] == batches


def test_a_closed_segment_is_found_by_its_index_and_without_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    put(journal, *(batch(n) for n in range(1, 4)))
    journal.close()
    (path,) = segments(tmp_path)
    by_index = read_entries(path)
    path.with_suffix(".idx").write_text('{"version": 1, "size": "nonsense"}')
    assert read_entries(path) == by_index
    path.with_suffix(".idx").write_text("not JSON")
    assert read_entries(path) == by_index
    path.with_suffix(".idx").unlink()
    assert read_entries(path) == by_index
    assert [e.sequence for e in by_index] == [1, 2, 3]


@pytest.mark.parametrize("kept", [1, 30, 120, 150, 200], ids=lambda n: f"{n} bytes of the last batch")
def test_a_torn_tail_is_cut(tmp_path: Path, kept: int) -> None:
    journal = Journal(tmp_path)
    journal.open()
    put(journal, batch(1), batch(2))
    whole = journal.size
    (path,) = segments(tmp_path)
    with path.open("ab") as file:
        file.write(batch(3)[:kept])
    again = Journal(tmp_path)
    recovery = again.open({KEY: 3})
    assert (recovery.batches, recovery.cut_bytes) == (2, kept)
    assert path.stat().st_size == whole
    put(again, batch(3))
    assert sequences(tmp_path) == [1, 2, 3]


def test_a_damaged_batch_is_dropped_and_what_follows_is_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    put(journal, batch(1), batch(2), batch(3))
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(batch(1)) + len(batch(2)) - 1] ^= 0xFF
    path.write_bytes(data)
    recovery = Journal(tmp_path).open()
    assert (recovery.batches, recovery.dropped, recovery.cut_bytes) == (2, 1, 0)
    assert sequences(tmp_path) == [1, 3]


def test_batches_that_were_never_applied_are_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    put(journal, batch(1), batch(1, node="node-b"), batch(2), batch(2, node="node-b"))
    recovery = Journal(tmp_path).open({KEY: 2, ("node-b", BOOT, SESSION): 1})
    assert (recovery.batches, recovery.dropped) == (3, 1)
    found = [(e.node, e.sequence) for e in iter_entries(tmp_path)]
    assert found == [("node-a", 1), ("node-b", 1), ("node-a", 2)]
    assert [read_batch(e) for e in iter_entries(tmp_path)] == [batch(1), batch(1, node="node-b"), batch(2)]


def test_batches_of_forgotten_sessions_stay_except_at_the_end(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=1)
    journal.open()
    put(journal, batch(1, session=SESSION - 9))
    put(journal, batch(1), batch(2))
    put(journal, batch(1, session=SESSION + 9))
    journal.close()
    recovery = Journal(tmp_path).open({KEY: 1})
    assert (recovery.batches, recovery.dropped) == (2, 2)
    assert [(e.session, e.sequence) for e in iter_entries(tmp_path)] == [(SESSION - 9, 1), (SESSION, 1)]


def test_history_leaves_out_what_was_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, refused={(KEY, 2)})
    journal.open()
    put(journal, batch(1), batch(2), batch(3))
    assert list(journal.history({KEY: 3}, 600.0)) == [batch(1), batch(3)]
    assert sequences(tmp_path) == [1, 2, 3]


def test_the_journal_says_when_it_begins(tmp_path: Path) -> None:
    now = 1000.0
    journal = Journal(tmp_path, segment_bytes=1, limit_s=100.0, clock=lambda: now)
    journal.open()
    assert journal.begins_ns == 1000 * SECOND
    for number in range(1, 4):
        put(journal, batch(number))
        now += 10
    assert journal.begins_ns == 1000 * SECOND
    journal.close()
    for number, path in enumerate(segments(tmp_path)):
        os.utime(path, (0, 2000 + number))
    # What an earlier process began when is not known of the oldest; of the next it is, when that one goes.
    now = 2100.5
    again = Journal(tmp_path, segment_bytes=1, limit_s=100.0, clock=lambda: now)
    again.open()
    assert again.begins_ns == 0
    assert again.enforce() == 1
    assert again.begins_ns == 2000 * SECOND


def test_a_batch_that_was_written_twice_is_read_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    put(journal, batch(1), batch(1), batch(2))
    assert sequences(tmp_path) == [1, 2]


def test_bounds_remove_the_oldest_segments_and_keep_the_open_one(tmp_path: Path) -> None:
    now = 1000.0
    journal = Journal(tmp_path, segment_bytes=1, limit_bytes=10**9, limit_s=100.0, clock=lambda: now)
    journal.open()
    for number in range(1, 5):
        put(journal, batch(number))
    assert len(segments(tmp_path)) == 4
    assert journal.enforce() == 0
    journal.limit_bytes = journal.size - 1
    assert journal.enforce() == 1
    now = 1200.0
    assert journal.enforce() == 2
    assert sequences(tmp_path) == [4]


def test_a_segment_that_fills_slowly_is_closed_by_age(tmp_path: Path) -> None:
    now = 1000.0
    journal = Journal(tmp_path, limit_s=100.0, clock=lambda: now)
    journal.open()
    put(journal, batch(1))
    now += 1.9
    put(journal, batch(2))
    assert len(segments(tmp_path)) == 1
    now += 0.2
    put(journal, batch(3))
    assert len(segments(tmp_path)) == 2
    now += 100.5
    assert journal.enforce() == 1
    assert sequences(tmp_path) == [3]


def test_a_clock_set_back_removes_nothing(tmp_path: Path) -> None:
    now = 1_000_000.0
    journal = Journal(tmp_path, segment_bytes=1, limit_s=100.0, clock=lambda: now)
    journal.open()
    put(journal, batch(1))
    put(journal, batch(2))
    now = 0.0
    assert journal.enforce() == 0
    assert sequences(tmp_path) == [1, 2]


def test_a_range_of_time_follows_the_node_clock_of_each_batch(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    put(journal, batch(1), batch(2, wall_offset_ns=WALL_OFFSET - 3600 * SECOND), batch(3))
    at = WALL_OFFSET + SESSION + 3 * SECOND
    assert [e.sequence for e in iter_entries(tmp_path, at, at)] == [3]
    assert [e.sequence for e in iter_entries(tmp_path, None, at - 1800 * SECOND)] == [2]


def entries_for(*descriptions: tuple[str, int, int, int, int]) -> Iterator[Entry]:
    for number, (node, boot, session, last_s, flags) in enumerate(descriptions, 1):
        yield Entry(
            Path("x"), number, 1, node, bytes([boot]) * 16, session, number, 1, flags, 0, last_s, last_s * SECOND, 0
        )


def test_history_is_the_window_of_the_newest_boot_and_the_snapshots_of_its_newest_session() -> None:
    snapshot = int(BatchFlags.SNAPSHOT)
    entries = list(
        entries_for(
            ("a", 1, 1, 9000, 0),  # 1: an earlier boot
            ("a", 2, 5, 10, snapshot),  # 2: snapshot of an earlier session
            ("a", 2, 7, 20, snapshot),  # 3: snapshot of the newest session, older than the window
            ("a", 2, 7, 30, 0),  # 4: older than the window
            ("a", 2, 7, 901, 0),  # 5
            ("b", 1, 1, 5, 0),  # 6: another node has its own window
            ("a", 2, 7, 1000, 0),  # 7
        )
    )
    assert [e.sequence for e in select_history(entries, 100.0)] == [3, 5, 6, 7]


def test_history_leaves_out_what_is_not_applied(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open()
    put(journal, batch(1), batch(2), batch(3), batch(1, node="other"))
    assert list(journal.history({KEY: 2}, 600.0)) == [batch(1), batch(2)]
    applied = {KEY: 3, ("other", BOOT, SESSION): 1}
    assert list(journal.history(applied, 600.0, lambda node: node == "other")) == [batch(1, node="other")]


def test_a_failed_sync_takes_the_write_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.open()
    put(journal, batch(1))

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(JournalError) as raised:
            put(journal, batch(2))
    assert raised.value.reason == "JournalUnavailable"
    put(journal, batch(2))
    assert sequences(tmp_path) == [1, 2]


def test_a_full_disk_is_an_error_that_keeps_nothing_of_the_write(small_disk: Path) -> None:
    journal = Journal(small_disk / "journal")
    journal.open()
    put(journal, batch(1))
    noise = os.urandom(2 << 20).hex().encode()[: 4 << 20]
    large = encode_batch(decode_header(batch(2))[0], scan(2) + noise)
    with pytest.raises(StorageFullError, match="no space left; free space or lower --journal-bytes"):
        put(journal, large)
    assert sequences(small_disk / "journal") == [1]
    put(journal, batch(2))
    assert sequences(small_disk / "journal") == [1, 2]


@given(st.binary(max_size=400), st.integers(0, 3))
def test_whatever_lies_in_a_segment_the_journal_opens(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, good: int
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    path = directory / "0000000000000001.vdj"
    path.write_bytes(b"".join(batch(n) for n in range(1, good + 1)) + junk)
    journal = Journal(directory)
    assert journal.open().batches == good
    put(journal, batch(10))
    assert sequences(directory) == [*range(1, good + 1), 10]
    journal.close()
