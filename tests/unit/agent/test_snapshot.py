"""The snapshot reads the real /proc, and hostile lines of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vedette_agent import snapshot
from vedette_agent.cgroups import own_path
from vedette_agent.snapshot import (
    Cgroups,
    Snapshotter,
    parse_inet,
    parse_stat,
    parse_status,
    parse_unix,
    take,
)
from vedette_events.encode import decode_event
from vedette_events.schema import Common, FileBits, StdioKind


def everything(**options: Any) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for count, records in take(**options):
        at = 0
        for _ in range(count):
            size = int.from_bytes(records[at : at + 4], "little")
            found.append(decode_event(records[at : at + size]))
            at += size
        assert at == len(records)
    return found


def test_this_process_is_in_it_as_it_is() -> None:
    events = everything()
    (own,) = [v for name, v in events if name == "exec" and v["pid"] == os.getpid()]

    info = os.stat("/proc/self/exe")
    assert own["flags"] & Common.SNAPSHOT
    assert own["path"] == os.readlink(b"/proc/self/exe")
    assert own["argv"].startswith(Path("/proc/self/cmdline").read_bytes()[:4096])
    assert (own["ino"], own["ctime"], own["mode"]) == (info.st_ino, info.st_ctime_ns, info.st_mode)
    assert own["cwd"] == os.getcwdb()
    assert (own["ppid"], own["uid"], own["euid"]) == (os.getppid(), os.getuid(), os.geteuid())
    assert own["pid_ns"] == os.stat("/proc/self/ns/pid").st_ino
    assert own["mnt_ns"] == os.stat("/proc/self/ns/mnt").st_ino
    assert own["start"] <= own["time"]


def test_parents_come_before_children_and_cgroups_before_their_processes() -> None:
    events = everything()
    named: set[int] = set()
    starts = []
    for name, values in events:
        if name == "cgroup":
            named.add(values["cgroup"])
        elif name == "exec":
            assert values["cgroup"] in named or values["cgroup"] == 0
            starts.append(values["start"])
    assert starts == sorted(starts)


def test_the_cgroup_is_the_inode_of_its_directory() -> None:
    cgroups = Cgroups.find()
    path = cgroups.path_of(Path("/proc/self/cgroup").read_bytes())
    assert cgroups.mount is not None

    assert cgroups.id_of(path) == os.stat(cgroups.mount + b"/" + path.lstrip(b"/")).st_ino


def test_standard_descriptors_are_told_apart(tmp_path: Path) -> None:
    left, right = socket.socketpair()
    with left, right, (tmp_path / "out").open("wb") as out:
        child = subprocess.Popen(["sleep", "100"], stdin=left, stdout=out, stderr=subprocess.DEVNULL)
        try:
            (values,) = [v for name, v in everything() if name == "exec" and v["pid"] == child.pid]
            assert values["stdin_ino"] == os.fstat(left.fileno()).st_ino
        finally:
            child.kill()
            child.wait()

    kinds = [StdioKind(values[f"{stream}_kind"]) for stream in ("stdin", "stdout", "stderr")]
    assert kinds == [StdioKind.UNIX, StdioKind.FILE, StdioKind.NULL]


def test_a_shell_on_a_socket_is_seen_with_both_addresses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, address = server.accept()
        with accepted:
            child = subprocess.Popen(["sleep", "100"], stdin=client, stdout=client)
            try:
                events = everything()
            finally:
                child.kill()
                child.wait()
        port = server.getsockname()[1]
        inode = os.fstat(server.fileno()).st_ino

    (values,) = [v for name, v in events if name == "exec" and v["pid"] == child.pid]
    assert values["stdin_kind"] == values["stdout_kind"] == StdioKind.INET
    assert (values["rport"], values["lport"], values["raddr"][12:]) == (port, address[1], b"\x7f\0\0\x01")
    (listener,) = [v for name, v in events if name == "listen" and v["sock_ino"] == inode]
    assert (listener["pid"], listener["lport"], listener["family"]) == (os.getpid(), port, socket.AF_INET)


def test_a_program_whose_file_is_gone_is_marked(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    child = subprocess.Popen([program, "100"])
    try:
        program.unlink()
        (values,) = [v for name, v in everything() if name == "exec" and v["pid"] == child.pid]
    finally:
        child.kill()
        child.wait()

    assert values["path"] == os.fsencode(program)
    assert FileBits(values["file_bits"]) & FileBits.UNLINKED


def test_a_program_in_memory_is_marked() -> None:
    script = "import os;f=os.memfd_create('x');os.write(f,open('/bin/sleep','rb').read());os.execve(f,['s','100'],{})"
    child = subprocess.Popen([sys.executable, "-c", script])
    try:
        while b"memfd" not in os.readlink(f"/proc/{child.pid}/exe").encode():
            assert child.poll() is None
        (values,) = [v for name, v in everything() if name == "exec" and v["pid"] == child.pid]
    finally:
        child.kill()
        child.wait()

    assert FileBits(values["file_bits"]) & FileBits.MEMFD
    assert values["path"] == b"/memfd:x"


def test_exact_starts_are_used_when_they_belong_to_the_process() -> None:
    (own,) = [v for name, v in everything() if name == "exec" and v["pid"] == os.getpid()]
    exact = own["start"] + 1_234_567

    (again,) = [v for n, v in everything(exact={os.getpid(): exact}) if n == "exec" and v["pid"] == os.getpid()]
    assert again["start"] == exact
    (other,) = [v for n, v in everything(exact={os.getpid(): 10**18}) if n == "exec" and v["pid"] == os.getpid()]
    assert other["start"] == own["start"]


@pytest.mark.parametrize(
    "name", [b"plain", b"with space", b") R 1 1 (", b"((", b"", b"new\nline", b"\xff\x00\x1b[2J", b"a) S 7 8 9"]
)
def test_a_process_may_call_itself_anything(name: bytes) -> None:
    fields = b"S 77 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 1 2 3"
    entry = parse_stat(b"42 (" + name + b") " + fields + b"\n")

    assert (entry.pid, entry.ppid, entry.comm) == (42, 77, name)
    assert entry.start == 12345 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert not entry.kernel_thread


@given(st.binary(max_size=300))
def test_no_stat_line_breaks_the_reader(content: bytes) -> None:
    try:
        parse_stat(content)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"0::/", {2: b"/"}),
        (b"0::/a:b\n4:memory:/x", {2: b"/a:b", 1: b"/x"}),
        (b"4:cpu,memory:/kubepods/pod1\n0::/", {1: b"/kubepods/pod1", 2: b"/"}),
        (b"3:memoryx:/no", {1: b"", 2: b""}),
    ],
)
def test_cgroup_paths(line: bytes, expected: dict[int, bytes]) -> None:
    assert {h: own_path(line, h) for h in expected} == expected


def test_inet_lines() -> None:
    table = b"""  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
"""
    ((inode, entry),) = parse_inet(table, socket.AF_INET, 1, 6)

    assert inode == 4711
    assert (entry.laddr[12:], entry.lport, entry.listening) == (b"\x7f\0\0\x01", 8080, True)


def test_the_name_of_a_unix_socket_ends_no_snapshot() -> None:
    with socket.socket(socket.AF_UNIX) as hostile, socket.socket() as inet:
        inet.bind(("127.0.0.1", 0))
        inet.listen()
        inode = os.fstat(inet.fileno()).st_ino
        # A line too short, and one that calls the other socket a unix socket.
        hostile.bind(f"\0evil\nx\n0000000000000000: 00000002 00000000 00010000 0001 01 {inode} /x".encode())
        events = everything()

    assert [v["lport"] for name, v in events if name == "listen" and v["sock_ino"] == inode] != []
    assert [v for name, v in events if name == "exec" and v["pid"] == os.getpid()] != []


@given(st.lists(st.binary(max_size=60), max_size=4).map(b"\n".join))
def test_no_line_breaks_the_reader_of_unix_sockets(lines: bytes) -> None:
    genuine = b"0000000000000000: 00000002 00000000 00010000 0001 01 4711 /run/x y"
    assert dict(parse_unix(b"Num\n" + lines + b"\n" + genuine))[4711].sock_type == 1


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_snapshot_that_waits_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch, cancelled: bool) -> None:
    monkeypatch.setattr(snapshot, "TIMEOUT_S", 0.0)
    snapshotter = Snapshotter(os.getuid() or 65534, os.getgid() or 65534)
    os.kill(snapshotter._pid, signal.SIGSTOP)
    snapshotter.start(None)
    if cancelled:
        snapshotter.cancel()
    while not snapshotter.finished:
        assert snapshotter.poll() == []

    assert snapshotter.failed
    with pytest.raises(ChildProcessError):
        os.waitpid(snapshotter._pid, 0)


def test_status_of_a_container_process_has_the_innermost_id() -> None:
    status = b"Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nNSpid:\t900\t12\t1\nCapEff:\t00000000a80425fb\n"

    assert parse_status(status) == {"uid": 1, "euid": 2, "gid": 5, "egid": 6, "caps": 0xA80425FB, "ns_pid": 1}
