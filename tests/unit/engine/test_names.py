"""The index of file names: it finds every row that a look at each path finds, however many share a name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_detector.engine.history import NodeHistory
from vedette_events.columns import split_batch
from vedette_events.encode import encode_event

SECOND = 10**9
Make = Callable[..., NodeHistory]

names = st.sampled_from([b"a", b"b", b"a.b", b"A", b"", b"..", b".", b"a\xff"])
paths = st.lists(names, min_size=1, max_size=4).map(b"/".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(paths, min_size=1, max_size=30), names)
def test_rows_by_file_name_are_those_that_end_in_it(given_paths: list[bytes], leaf: bytes) -> None:
    records = [encode_event("unlink", time=1 + n, path=path) for n, path in enumerate(given_paths)]
    segment = NodeHistory("node").append(split_batch(b"".join(records)), 0)["unlink"]
    wanted = [row for row, path in enumerate(given_paths) if path.rsplit(b"/", 1)[-1] == leaf]
    # Searched again and again, a column is sorted: the answer stays the same.
    for _ in range(4):
        assert segment.rows_named("path", leaf).tolist() == wanted
    assert segment.rows_named("nothing", leaf).tolist() == []


@pytest.mark.parametrize("count", [1, 15, 16, 17, 400])
def test_the_last_writer_is_found_among_many_files_of_one_name(make_history: Make, count: int) -> None:
    records = [
        encode_event("rename", time=SECOND + n, pid=100 + n, path="t", new_path=f"/d{n}/index", result=0)
        for n in range(count)
    ]
    records.append(encode_event("rename", time=5 * SECOND, pid=7, path="t", new_path="/d0/./x/../index", result=0))
    records.append(encode_event("rename", time=6 * SECOND, pid=8, path="t", new_path="/d0/index", result=-13))
    history = make_history(records)
    for _ in range(3):  # from the index, and then from what it keeps
        newest = history.last_writer(0, 0, path=b"/d0/index")
        assert newest is not None
        assert newest.pid == 7, "the path is compared joined; a rename that failed wrote nothing"
        before = history.last_writer(0, 0, path=b"/d0/index", until=2 * SECOND)
        assert before is not None
        assert before.pid == 100
        last = history.last_writer(0, 0, path=b"/d%d/index" % (count - 1), until=4 * SECOND)
        assert last is not None
        assert last.pid == 99 + count
        assert history.last_writer(0, 0, path=b"/elsewhere/index") is None
