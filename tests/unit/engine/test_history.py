"""History: processes through exec, fork, exit, snapshot and pid reuse; writers; bounds."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette_detector.engine.history import HistorySettings, NodeHistory
from vedette_events.columns import split_batch
from vedette_events.encode import encode_event

Make = Callable[..., NodeHistory]
S = 10**9


def exec_(pid: int, start: int, time: int, path: str, ppid: int = 1, parent_start: int = 0, **more: Any) -> bytes:
    return encode_event(
        "exec", pid=pid, start=start, time=time, path=path, argv=[path], ppid=ppid, parent_start=parent_start, **more
    )


def fork(pid: int, start: int, child: int, time: int, **more: Any) -> bytes:
    return encode_event("fork", pid=pid, start=start, time=time, child_pid=child, child_start=time, **more)


def exit_(pid: int, start: int, time: int) -> bytes:
    return encode_event("exit", pid=pid, start=start, time=time)


def test_a_process_is_what_it_last_executed_before_the_moment(make_history: Make) -> None:
    history = make_history([exec_(7, 5, 10, "/bin/sh"), exec_(7, 5, 20, "/bin/cat"), exec_(7, 5, 30, "/bin/ls")])
    answers = [history.process(7, 5, at) for at in (9, 10, 19, 20, 25, 30, None)]
    assert [p.path if p else None for p in answers] == [
        None, b"/bin/sh", b"/bin/sh", b"/bin/cat", b"/bin/cat", b"/bin/ls", b"/bin/ls",
    ]  # fmt: skip


def test_records_out_of_order_and_in_any_batch_do_not_matter(make_history: Make) -> None:
    records = [exec_(7, 5, 20, "/bin/cat"), fork(1, 1, 8, 25), exec_(7, 5, 10, "/bin/sh"), exec_(8, 25, 26, "/bin/b")]
    for seed in range(10):
        random.Random(seed).shuffle(records)
        history = make_history(*[[record] for record in records])
        found = [history.process(7, 5, 15), history.process(7, 5, 22), history.process(8, 25, 30)]
        assert [p.path for p in found if p] == [b"/bin/sh", b"/bin/cat", b"/bin/b"]


def test_a_forked_child_inherits_the_program_its_parent_had_then(make_history: Make) -> None:
    history = make_history(
        [
            exec_(7, 5, 10, "/bin/sh", uid=0),
            fork(7, 5, 8, 15, uid=33, child_ns_pid=3),
            exec_(7, 5, 20, "/bin/other"),
            fork(8, 15, 9, 25),
        ]
    )
    child, grandchild = history.process(8, 15, 30), history.process(9, 25, 30)
    assert child is not None
    assert grandchild is not None
    assert (child.path, child.pid, child.ppid, child.ns_pid, child.uid) == (b"/bin/sh", 8, 7, 3, 33)
    assert child.inherited
    assert grandchild.path == b"/bin/sh"
    assert [p.pid for p in history.lineage(grandchild)] == [8, 7]


def test_a_reused_pid_is_another_process(make_history: Make) -> None:
    history = make_history([exec_(7, 5, 10, "/bin/first"), exit_(7, 5, 12), exec_(7, 50, 55, "/bin/second")])
    paths = {
        (start, at): getattr(history.process(7, start, at), "path", None)
        for start, at in ((5, 60), (50, 60), (None, 60), (None, 20), (50, 20))
    }
    assert paths == {
        (5, 60): b"/bin/first",
        (50, 60): b"/bin/second",
        (None, 60): b"/bin/second",
        (None, 20): b"/bin/first",
        (50, 20): None,
    }


def test_a_snapshot_holds_from_the_start_of_its_process(make_history: Make) -> None:
    history = make_history([exec_(7, 5, 1000, "/usr/sbin/sshd", flags="SNAPSHOT"), exec_(7, 5, 2000, "/bin/sh")])
    assert [getattr(history.process(7, 5, at), "path", None) for at in (4, 500, 1500, 2500)] == [
        None,
        b"/usr/sbin/sshd",
        b"/usr/sbin/sshd",
        b"/bin/sh",
    ]


def test_lineage_names_who_created_a_process_not_who_adopted_it(make_history: Make) -> None:
    history = make_history(
        [
            exec_(1, 1, 2, "/sbin/init", ppid=0),
            exec_(7, 5, 10, "/bin/dropper", ppid=1, parent_start=1),
            fork(7, 5, 8, 15),
            exit_(7, 5, 16),
            exec_(8, 15, 20, "/tmp/daemon", ppid=1, parent_start=1),
        ]
    )
    daemon = history.process(8, 15, 30)
    assert daemon is not None
    assert [p.path for p in history.lineage(daemon)] == [b"/bin/dropper", b"/sbin/init"]
    assert history.lineage(daemon)[0].uuid == daemon.parent_uuid


def test_lineage_ends_at_32_ancestors_and_at_circles(make_history: Make) -> None:
    chain = [exec_(n, n, 100 + n, f"/bin/p{n}", ppid=n - 1, parent_start=n - 1) for n in range(2, 60)]
    circle = [exec_(101, 101, 300, "/bin/a", 102, 102), exec_(102, 102, 299, "/bin/b", 101, 101)]
    history = make_history(chain, circle)
    last, odd = history.process(59, 59), history.process(101, 101)
    assert last is not None
    assert odd is not None
    assert [p.pid for p in history.lineage(last)] == list(range(58, 26, -1))
    assert len(history.lineage(odd)) <= 1


def test_last_writer_finds_open_rename_and_link_before_the_moment(make_history: Make) -> None:
    def open_(time: int, ino: int, path: str, oflags: int, result: int = 3) -> bytes:
        return encode_event("open", time=time, ino=ino, dev=2, path=path, oflags=oflags, result=result, pid=time)

    history = make_history(
        [
            open_(10, 77, "/app/tool", 0o1),
            open_(12, 77, "/app/tool", 0o0),
            open_(14, 77, "/app/tool", 0o2, result=-13),
            open_(20, 88, "/tmp/x.new", 0o101),
            encode_event("rename", time=30, pid=30, path="x.new", dir="/tmp", new_path="../app/./tool", new_dir="/tmp"),
            encode_event("rename", time=40, pid=40, result=-1, path="/y", new_path="/app/tool"),
            open_(50, 99, "/app/tool", 0o1001),
        ]
    )

    def writer(ino: int, path: bytes | None, until: int | None) -> int | None:
        found = history.last_writer(2, ino, path=path, until=until)
        return found.pid if found else None

    assert writer(77, None, 45) == 10
    assert writer(77, b"/app/tool", 45) == 30
    assert writer(88, b"/app/tool", 45) == 30
    assert writer(88, None, 45) == 20
    assert writer(77, None, 5) is None
    assert history.last_writer(3, 77) is None
    assert writer(12345, b"/tmp/x.new", 45) == 20


def test_events_are_found_newest_first_by_all_conditions(make_history: Make) -> None:
    def connect(time: int, pid: int, port: int, cgroup: int = 1) -> bytes:
        return encode_event("connect", time=time, pid=pid, start=pid * 10, rport=port, family=2, cgroup=cgroup)

    history = make_history(
        [connect(10, 1, 80), connect(30, 1, 443), connect(20, 1, 80, cgroup=2)],
        [connect(15, 2, 80), connect(40, 1, 22)],
    )
    assert [e.time for e in history.events("connect")] == [40, 30, 20, 15, 10]
    assert [e.time for e in history.events("connect", pid=1, since=15, until=30)] == [30, 20]
    assert [e.time for e in history.events("connect", cgroup=2)] == [20]
    assert [e.time for e in history.events("connect", start=20)] == [15]
    assert [e.time for e in history.events("connect", mask=lambda rows: rows["rport"] == 80, limit=2)] == [20, 15]
    assert history.events("accept") == []


def test_old_events_go_and_living_processes_stay(make_history: Make) -> None:
    window = HistorySettings(window_s=60)
    history = make_history(
        [
            exec_(1, 1, 2, "/sbin/init", ppid=0),
            exec_(5, 3, 4, "/bin/dead-parent", ppid=1, parent_start=1),
            fork(5, 3, 6, 5),
            exec_(6, 5, 6, "/usr/bin/daemon", ppid=5, parent_start=3),
            exit_(5, 3, 7),
            exec_(9, 8, 9, "/bin/short", ppid=1, parent_start=1),
            exit_(9, 8, 10),
            encode_event("open", time=11, path="/old", oflags=1),
        ],
        *[[encode_event("open", time=n * 10 * S, path="/new", oflags=1)] for n in range(1, 30)],
        settings=window,
    )
    daemon = history.process(6, 5)
    assert daemon is not None
    assert daemon.path == b"/usr/bin/daemon"
    assert [p.path for p in history.lineage(daemon)] == [b"/bin/dead-parent", b"/sbin/init"]
    assert history.process(9, 8) is None
    assert {e.time for e in history.events("open", limit=100)} <= set(range(22 * 10 * S, 30 * 10 * S, 10 * S))
    assert len(history.events("open")) >= 6


def test_a_process_whose_exit_was_lost_goes_when_its_pid_is_taken_over(make_history: Make) -> None:
    history = make_history(
        [exec_(9, 8, 9, "/bin/lost"), exec_(9, 20, 21, "/bin/newer")],
        *[[encode_event("open", time=n * 10 * S, path="/new", oflags=1)] for n in range(1, 30)],
        settings=HistorySettings(window_s=60),
    )
    assert history.process(9, 8) is None
    newer = history.process(9, 20)
    assert newer is not None
    assert newer.path == b"/bin/newer"


def test_a_fork_bomb_and_a_storm_stay_within_the_bounds() -> None:
    bounds = HistorySettings(window_s=600, event_bytes=4 << 20, process_bytes=3 << 20)
    history = NodeHistory("node", bytes(16), bounds)
    history.append(split_batch(exec_(2, 1, 2, "/usr/bin/patient", ppid=1)), 0)
    history.append(split_batch(encode_event("rename", time=3, path="/a", new_path="/b")), 0)
    pid, time = 100, 10
    for _ in range(120):
        records = []
        for _ in range(500):
            time += 1000
            pid = 100 + (pid - 99) % 30000
            records.append(fork(2, 1, pid, time, cgroup=pid % 1000))
            records.append(exec_(pid, time, time + 10, "/bin/bomb-" + "x" * 100, ppid=2, parent_start=1))
            records.append(encode_event("open", time=time, pid=pid, path="/tmp/" + "y" * 100, oflags=1))
        history.append(split_batch(b"".join(records)), 0)
    assert history.nbytes <= (4 + 3) << 20
    newest = history.process(pid, None)
    assert newest is not None
    assert newest.path.startswith(b"/bin/bomb-")
    patient = history.process(2, 1)
    assert patient is not None
    assert [p.path for p in history.lineage(newest)] == [b"/usr/bin/patient"]
    # A storm of opens does not push out the events of other types.
    assert [e.time for e in history.events("rename")] == [3]


def test_a_thousand_containers_keep_their_names(make_history: Make) -> None:
    ids = {n: f"{n:064x}" for n in range(1, 1001)}
    history = make_history(
        [encode_event("cgroup", time=n, cgroup=n, path=f"/kubepods/burstable/pod/{ids[n]}") for n in ids]
    )
    found = {n: getattr(history.container(n), "container_id", None) for n in ids}
    assert found == ids
    assert history.container(5000) is None


def test_names_are_bounded(make_history: Make) -> None:
    bounds = HistorySettings(names=10)
    history = make_history(
        [encode_event("cgroup", time=n, cgroup=n, path=f"/{n}") for n in range(1, 30)],
        [encode_event("file_hash", time=1, ino=n, dev=1, ctime=n, sha256=bytes([n]) * 32) for n in range(1, 30)],
        settings=bounds,
    )
    assert [n for n in range(1, 30) if history.cgroup_path(n) is not None] == list(range(20, 30))
    assert history.file_hash(1, 29, 29) == "1d" * 32
    assert history.file_hash(1, 5, 5) is None


def test_small_batches_are_merged_and_still_found(make_history: Make) -> None:
    batches = [
        [exec_(n, n, n + 1, f"/bin/program-{n}", 1, 1), encode_event("open", time=n, pid=n, path=f"/f{n}", oflags=1)]
        for n in range(2, 600)
    ]
    history = make_history(*batches)
    assert history.describe()["rows"] == {"exec": 598, "open": 598}
    assert len(history._stores["exec"].segments) < 60
    for n in (2, 17, 300, 599):
        process = history.process(n, n)
        assert process is not None
        assert process.path == f"/bin/program-{n}".encode()
        assert process.argv == (f"/bin/program-{n}".encode(),)
        (event,) = history.events("open", pid=n)
        assert event.path == f"/f{n}".encode()


@dataclass
class Model:
    """What a plain, complete record of everything says."""

    execs: list[tuple[int, int, int, str]]
    forks: list[tuple[int, int, int, int, int]]

    def path(self, pid: int, start: int, at: int) -> str | None:
        done = [(time, path) for p, s, time, path in self.execs if (p, s) == (pid, start) and time <= at]
        if done:
            return max(done)[1]
        for parent, parent_start, child, child_start, time in self.forks:
            if (child, child_start) == (pid, start):
                return self.path(parent, parent_start, time)
        return None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), per_batch=st.integers(1, 40), window_s=st.sampled_from((600.0, 0.001)))
def test_history_agrees_with_a_plain_model_about_living_processes(seed: int, per_batch: int, window_s: float) -> None:
    rng = random.Random(seed)
    model = Model([], [])
    living = [(1, 1)]
    records = [exec_(1, 1, 1, "/sbin/init", ppid=0)]
    model.execs.append((1, 1, 1, "/sbin/init"))
    time = 10
    for _ in range(200):
        time += rng.randrange(2, 50_000)
        pid, start = rng.choice(living)
        action = rng.random()
        if action < 0.45:
            child = rng.randrange(2, 40)
            if all(child != p for p, _ in living):
                records.append(fork(pid, start, child, time))
                model.forks.append((pid, start, child, time, time))
                living.append((child, time))
        elif action < 0.75:
            path = f"/bin/{rng.randrange(10)}"
            records.append(exec_(pid, start, time, path, ppid=1, parent_start=1))
            model.execs.append((pid, start, time, path))
        elif (pid, start) != (1, 1):
            records.append(exit_(pid, start, time))
            living.remove((pid, start))
    history = NodeHistory("node", bytes(16), HistorySettings(window_s=window_s))
    for at in range(0, len(records), per_batch):
        part = records[at : at + per_batch]
        rng.shuffle(part)
        history.append(split_batch(b"".join(part)), 0)
    for pid, start in living:
        found = history.process(pid, start, time)
        expected = model.path(pid, start, time)
        assert (found.path.decode() if found else None) == expected


@pytest.mark.parametrize("count", [0, 1, 5])
def test_rows_taken_from_a_segment_keep_their_tails(make_history: Make, count: int) -> None:
    history = make_history([exec_(n, n, n + 1, "/bin/" + "x" * n) for n in range(1, 11)])
    segment = history._stores["exec"].segments[0]
    rows = np.arange(9, 9 - count, -1)
    taken = segment.take(rows)
    assert [taken.tail("path", i) for i in range(count)] == [b"/bin/" + b"x" * (n + 1) for n in rows.tolist()]
    assert [taken.tail("argv", i) for i in range(count)] == [b"/bin/" + b"x" * (n + 1) + b"\0" for n in rows.tolist()]
