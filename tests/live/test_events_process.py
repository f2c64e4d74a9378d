"""exec, exit and fork as the kernel reports them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from live_collect import Collector, Record


def of(records: list[Record], event: str, pid: int) -> list[Record]:
    return [r for r in records if r.event == event and r.pid == pid]


def test_exec_tells_program_arguments_directory_and_parent(collect: Collector, tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def act() -> None:
        started.append(
            subprocess.Popen(
                ["/bin/echo", "0", "\udcff", "a\nb"], cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        )
        started[0].wait()

    records = collect(act)
    [event] = of(records, "exec", started[0].pid)
    assert event.path == os.fsencode(os.path.realpath("/bin/echo"))
    assert event.arguments == [b"/bin/echo", b"0", b"\xff", b"a\nb"]
    assert event.cwd == os.fsencode(tmp_path)
    assert event.filename == b"/bin/echo"
    assert (event.ppid, event.uid, event.argc, event.ino) == (os.getpid(), 0, 4, os.stat("/bin/echo").st_ino)
    assert event.stdin_kind == 8
    assert [r.exit_code for r in of(records, "exit", started[0].pid)] == [0]
    [fork] = [r for r in of(records, "fork", os.getpid()) if r.child_pid == started[0].pid]
    assert fork.child_start == event.start


def test_exit_carries_the_status_of_wait(collect: Collector) -> None:
    seen: list[int] = []

    def act() -> None:
        pid = os.fork()
        if not pid:
            os._exit(7)
        os.waitpid(pid, 0)
        seen.append(pid)

    assert [r.exit_code for r in of(collect(act), "exit", seen[0])] == [7 << 8]
