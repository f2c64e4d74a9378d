"""memfd, mmap, mprotect, userfaultfd, ptrace, process_vm_*, set*id and modules as the kernel reports them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_collect import Collector, Record

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def syscall(number: int, *arguments: Any) -> int:
    result = libc.syscall(number, *arguments)
    return -ctypes.get_errno() if result == -1 else int(result)


def mine(records: list[Record], event: str) -> list[Record]:
    return [r for r in records if r.event == event and r.pid == os.getpid()]


def in_child(action: Callable[[], Any]) -> int:
    """Run in a child and return its pid."""
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            action()
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_memfd_create_and_executable_mapping_of_it(collect: Collector) -> None:
    fds: list[int] = []

    def act() -> None:
        fds.append(os.memfd_create("pay\nload", 1))
        os.write(fds[0], b"\xc3" * 4096)
        libc.mmap(None, 4096, 5, 2, fds[0], 0)

    records = collect(act)
    [made] = mine(records, "memfd")
    assert (made.name, made.memfd_flags, made.fd, made.result) == (b"pay\nload", 1, fds[0], fds[0])
    [mapped] = mine(records, "mmap")
    assert mapped.path == b"memfd:pay\nload"
    assert (mapped.prot, mapped.map_flags, mapped.length) == (5, 2, 4096)
    assert mapped.file_bits & 0x18 == 0x18  # UNLINKED, MEMFD
    os.close(fds[0])


def test_executable_mapping_of_an_ordinary_file_is_no_event(collect: Collector, tmp_path: Path) -> None:
    (tmp_path / "lib").write_bytes(b"\xc3" * 4096)

    def act() -> None:
        with (tmp_path / "lib").open("rb") as file:
            assert libc.mmap(None, 4096, 5, 2, file.fileno(), 0) not in (None, ctypes.c_void_p(-1).value)

    assert mine(collect(act), "mmap") == []


def test_executable_mapping_of_a_deleted_file(collect: Collector, tmp_path: Path) -> None:
    (tmp_path / "lib").write_bytes(b"\xc3" * 4096)

    def act() -> None:
        with (tmp_path / "lib").open("rb") as file:
            (tmp_path / "lib").unlink()
            libc.mmap(None, 4096, 5, 2, file.fileno(), 0)

    [event] = mine(collect(act), "mmap")
    assert event.path == os.fsencode(tmp_path / "lib")
    assert event.file_bits & 0x18 == 8


@pytest.mark.parametrize(("prot", "seen"), [(7, True), (5, False), (3, False)], ids=["rwx", "r-x", "rw-"])
def test_mprotect_of_anonymous_memory(collect: Collector, prot: int, seen: bool) -> None:
    memory = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    found = mine(collect(lambda: libc.mprotect(address, 4096, prot)), "mprotect")
    assert [(r.addr, r.length, r.prot, r.region) for r in found] == ([(address, 4096, prot, 0)] if seen else [])


def test_mprotect_of_the_stack(collect: Collector, helper: Path) -> None:
    found = collect(lambda: subprocess.run([helper, "mprotect_stack"], check=True, stdout=subprocess.DEVNULL))
    [event] = [r for r in found if r.event == "mprotect" and r.comm == b"live_helper"]
    assert (event.region & 1, event.prot, event.result) == (1, 7, 0)


def test_all_mprotect_reports_what_only_becomes_executable(collect: Collector) -> None:
    memory = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with collect.filters(all_mprotect=True):
        found = mine(collect(lambda: libc.mprotect(address, 4096, 5)), "mprotect")
    assert [r.addr for r in found] == [address]


def test_userfaultfd_that_fails_too(collect: Collector) -> None:
    assert [(r.uffd_flags, r.result) for r in mine(collect(lambda: syscall(323, 0x7FFF)), "userfaultfd")] == [
        (0x7FFF, -errno.EINVAL)
    ]


@pytest.mark.parametrize("request_number", [16, 0x4206], ids=["attach", "seize"])
def test_ptrace_names_its_target(collect: Collector, request_number: int) -> None:
    target = subprocess.Popen(["/bin/sleep", "30"])

    def act() -> None:
        assert libc.ptrace(request_number, target.pid, None, None) == 0
        if request_number == 16:
            os.waitpid(target.pid, 0)
        libc.ptrace(7, target.pid, None, None)

    found = mine(collect(act), "ptrace")
    target.kill()
    target.wait()
    assert [(r.request, r.target_pid, r.target_ns_pid, r.result) for r in found] == [
        (request_number, target.pid, target.pid, 0)
    ]
    assert found[0].target_start > 0


def test_ptrace_of_nobody_and_traceme(collect: Collector) -> None:
    pid = 0

    def act() -> None:
        nonlocal pid
        libc.ptrace(16, 4_000_000, None, None)
        pid = in_child(lambda: libc.ptrace(0, 0, None, None))

    found = [r for r in collect(act) if r.event == "ptrace" and r.pid in (os.getpid(), pid)]
    assert [(r.pid, r.request, r.target_pid, r.target_ns_pid, r.result) for r in found] == [
        (os.getpid(), 16, 0, 4_000_000, -errno.ESRCH),
        (pid, 0, 0, 0, 0),
    ]


def test_the_target_is_found_from_inside_a_pid_namespace(collect: Collector) -> None:
    script = (
        "import ctypes, os, subprocess, time\n"
        "target = subprocess.Popen(['/bin/sleep', '30'])\n"
        "ctypes.CDLL(None).ptrace(16, target.pid, None, None)\n"
        "target.kill()\n"
    )

    def act() -> None:
        subprocess.run(["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", script], check=True)

    records = collect(act)
    [sleep] = [r for r in records if r.event == "exec" and r.path.endswith(b"/sleep") and r.ns_pid < 10]
    [event] = [r for r in records if r.event == "ptrace" and r.target_pid == sleep.pid]
    assert event.target_ns_pid == sleep.ns_pid < 10
    assert (event.target_pid, event.target_start) == (sleep.pid, sleep.start)


class IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@pytest.mark.parametrize(("number", "event"), [(310, "vm_read"), (311, "vm_write")])
def test_memory_of_another_process(collect: Collector, number: int, event: str) -> None:
    target = subprocess.Popen(["/bin/sleep", "30"])
    buffer = ctypes.create_string_buffer(8)
    here = IoVector(ctypes.addressof(buffer), 8)
    nowhere = IoVector(8, 8)
    found = mine(
        collect(lambda: syscall(number, target.pid, ctypes.byref(here), 1, ctypes.byref(nowhere), 1, 0)), event
    )
    target.kill()
    target.wait()
    assert [(r.target_pid, r.target_ns_pid, r.result) for r in found] == [(target.pid, target.pid, -errno.EFAULT)]


def test_ones_own_memory_is_no_event(collect: Collector) -> None:
    buffer = ctypes.create_string_buffer(8)
    here = IoVector(ctypes.addressof(buffer), 8)
    records = collect(lambda: syscall(310, os.getpid(), ctypes.byref(here), 1, ctypes.byref(here), 1, 0))
    assert mine(records, "vm_read") == []


def test_changes_of_user_and_group_tell_before_and_after(collect: Collector) -> None:
    pid = 0

    def act() -> None:
        nonlocal pid

        def change() -> None:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(1000, 65534, 65534)
            os.setuid(0)

        pid = in_child(change)

    found = [r for r in collect(act) if r.event == "setuid" and r.pid == pid]
    assert [(r.call, r.old_uid, r.old_euid, r.uid, r.euid, r.egid, r.result) for r in found] == [
        (7, 0, 0, 0, 0, 65534, 0),
        (3, 0, 0, 1000, 65534, 65534, 0),
        (1, 1000, 65534, 1000, 65534, 65534, -errno.EPERM),
    ]
    assert found[1].old_caps != 0
    assert found[1].caps == 0
    assert [r.old_creds_unknown for r in found] == [0, 0, 0]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda fd: syscall(313, fd, b"a=1", 2), {"op": 2, "module_flags": 2, "params": b"a=1"}),
        (lambda fd: syscall(175, b"\x7fELF", 4, b"b=2"), {"op": 1, "length": 4, "params": b"b=2"}),
        (lambda fd: syscall(176, b"nosuch", 0o4000), {"op": 3, "module_flags": 0o4000, "name": b"nosuch"}),
    ],
    ids=["finit", "init", "delete"],
)
def test_attempts_on_modules(
    collect: Collector, tmp_path: Path, action: Callable[[int], int], expected: dict[str, Any]
) -> None:
    with (tmp_path / "evil.ko").open("wb+") as file:
        [event] = mine(collect(lambda: action(file.fileno())), "module")
    assert {key: event.values[key] for key in expected} == expected
    assert event.result < 0
    assert event.path == (os.fsencode(tmp_path / "evil.ko") if event.op == 2 else b"")


def test_signals_do_not_disturb(collect: Collector) -> None:
    pid = 0

    def act() -> None:
        nonlocal pid
        pid = os.fork()
        if not pid:
            signal.pause()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    assert [r.exit_code for r in collect(act) if r.event == "exit" and r.pid == pid] == [9]
