"""exec, exit and fork as the kernel reports them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from live_collect import Collector, Record

from vedette_agent import loader

LOOPBACK = bytes(12) + bytes([127, 0, 0, 1])
MOUNTS = Path("/proc/self/mounts")


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


def run(collect: Collector, *command: str | bytes, **options: Any) -> Record:
    """The exec record of ``command``, the last one if it runs another program in its place."""
    pids: list[int] = []

    def act() -> None:
        options.setdefault("stdout", subprocess.DEVNULL)
        process = subprocess.Popen(command, **options)
        process.wait()
        pids.append(process.pid)

    return of(collect(act), "exec", pids[0])[-1]


def test_arguments_beyond_the_limit_are_cut_and_said_to_be(collect: Collector) -> None:
    event = run(collect, "/bin/true", "x" * 3000, "y" * 3000)
    assert len(event.argv) == 4096
    assert event.argv.startswith(b"/bin/true\0" + b"x" * 3000 + b"\0yyy")
    assert event.argv.endswith(b"y\0")
    assert event.flags & 1
    assert event.argc == 3


def test_more_than_255_arguments(collect: Collector) -> None:
    assert run(collect, "/bin/true", *["a"] * 299).argc == 255


def test_loader_variables_and_no_others_are_told(collect: Collector) -> None:
    environment = {"A": "1", "LD_PRELOAD": "/tmp/a.so", "LONG": "z" * 5000, "LD_AUDIT": "/tmp/b.so", "LD_DEBUG_X": "1"}
    environment["LD_LIBRARY_PATH"] = "/tmp/" + "l" * 400
    event = run(collect, "/bin/true", env=environment, stderr=subprocess.DEVNULL)
    assert event.env.split(b"\0") == [
        b"LD_PRELOAD=/tmp/a.so",
        b"LD_AUDIT=/tmp/b.so",
        b"LD_LIBRARY_PATH=/tmp/" + b"l" * 400,
        b"",
    ]
    assert event.exec_bits & 8 == 0


def test_too_much_environment_is_said(collect: Collector) -> None:
    event = run(collect, "/bin/true", env={f"V{n}": "1" for n in range(700)} | {"LD_PRELOAD": "/late"})
    assert event.exec_bits & 8
    assert event.env == b""


def test_a_script_is_told_as_such(collect: Collector, tmp_path: Path) -> None:
    script = tmp_path / "run\xff.sh"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    event = run(collect, str(script))
    assert event.exec_bits & 1
    assert event.filename == os.fsencode(script)
    assert event.path == os.fsencode(os.path.realpath("/bin/sh"))


def test_a_deleted_program_and_a_memfd(collect: Collector, tmp_path: Path) -> None:
    program = tmp_path / "gone"
    shutil.copy("/bin/true", program)
    fd = os.open(program, os.O_RDONLY)
    program.unlink()
    event = run(collect, f"/proc/self/fd/{fd}", pass_fds=[fd])
    os.close(fd)
    assert event.path == os.fsencode(program)
    assert event.file_bits & 0x18 == 8

    fd = os.memfd_create("payload")
    os.write(fd, Path("/bin/true").read_bytes())
    event = run(collect, f"/proc/self/fd/{fd}", pass_fds=[fd])
    os.close(fd)
    assert event.path == b"memfd:payload"
    assert event.file_bits & 0x18 == 0x18


def test_setuid_programs_carry_the_credentials_before(collect: Collector, tmp_path: Path) -> None:
    program = tmp_path / "su"
    shutil.copy("/bin/true", program)
    program.chmod(0o4755)
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    event = run(collect, str(program), user=1000)
    assert (event.uid, event.euid, event.old_uid, event.old_euid) == (1000, 0, 1000, 1000)
    assert event.exec_bits & (2 | 16) == 16
    assert event.file_bits & 64
    assert (event.caps != 0, event.old_caps) == (True, 0)


def test_standard_descriptors_are_told(collect: Collector, tmp_path: Path) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    read_end, write_end = os.pipe()
    with client, accepted, server:
        event = run(collect, "/bin/true", stdin=read_end, stdout=client, stderr=client)
        assert (event.stdin_kind, event.stdout_kind, event.stderr_kind) == (3, 5, 5)
        assert event.stdin_ino == os.fstat(read_end).st_ino
        assert event.stdout_ino == event.stderr_ino == event.sock_ino == os.fstat(client.fileno()).st_ino
        assert (event.family, event.sock_type, event.fd) == (2, 1, 1)
        assert (event.lport, event.rport) == (client.getsockname()[1], server.getsockname()[1])
        assert (event.laddr, event.raddr) == (LOOPBACK, LOOPBACK)
    os.close(read_end)
    os.close(write_end)

    one, other = socket.socketpair()
    master, slave = os.openpty()
    with one, other, (tmp_path / "out").open("wb") as file:
        event = run(collect, "/bin/true", stdin=slave, stdout=one, stderr=file)
    os.close(master)
    os.close(slave)
    assert (event.stdin_kind, event.stdout_kind, event.stderr_kind) == (2, 6, 1)
    assert event.fd == 65535


def test_closed_descriptors_are_none(collect: Collector) -> None:
    event = run(collect, "/bin/sh", "-c", "exec /bin/true <&- 2>&-", stdout=subprocess.DEVNULL)
    assert event.stdin_kind == 0


def test_a_program_in_the_upper_layer(collect: Collector, tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    shutil.copy("/bin/true", tmp_path / "lower" / "image")
    shutil.copy("/bin/true", tmp_path / "lower" / "changed")
    script = (
        f"mount -t overlay overlay -o lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work "
        f"{tmp_path}/merged && cd {tmp_path}/merged && cp /bin/true new && chmod 700 changed && "
        "./image && ./changed && ./new"
    )
    records = collect(lambda: subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True))
    inside = os.fsencode(tmp_path / "merged")
    bits = {r.path.rpartition(b"/")[2]: r.file_bits & 7 for r in records if r.event == "exec" and inside in r.path}
    assert bits == {b"image": 1, b"changed": 1 | 2, b"new": 1 | 2 | 4}


def test_a_directory_outside_the_root_is_unreachable(collect: Collector, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy("/bin/busybox" if Path("/bin/busybox").exists() else "/bin/true", root / "program")
    libraries = [path for path in ("/lib", "/lib64", "/usr") if Path(path).exists()]
    binds = " && ".join(f"mkdir -p {root}{path} && mount --rbind {path} {root}{path}" for path in libraries)
    code = f"import os; os.chdir('/'); os.chroot('{root}'); os.execv('/program', ['/program', 'true'])"
    script = f'{binds} && exec {sys.executable} -c "{code}"'
    records = collect(lambda: subprocess.run(["unshare", "--mount", "sh", "-c", script], check=False, stdout=-3))
    [event] = [r for r in records if r.event == "exec" and r.path == os.fsencode(root / "program")]
    assert event.filename == b"/program"
    assert (event.cwd, event.exec_bits & 4) == (b"/", 4)
    assert run(collect, "/bin/true", cwd="/").exec_bits & 4 == 0


def test_pid_and_namespaces(collect: Collector) -> None:
    records = collect(lambda: subprocess.run(["unshare", "--pid", "--mount", "--fork", "/bin/true"], check=True))
    [event] = [r for r in records if r.event == "exec" and r.filename == b"/bin/true" and r.ns_pid == 1]
    assert event.pid > 1
    assert event.pid_ns not in (0, os.stat("/proc/self/ns/pid").st_ino)
    assert event.mnt_ns not in (0, os.stat("/proc/self/ns/mnt").st_ino)
    [fork] = [r for r in records if r.event == "fork" and r.child_pid == event.pid]
    assert fork.child_ns_pid == 1
    plain = run(collect, "/bin/true")
    assert (plain.ns_pid, plain.pid_ns) == (plain.pid, os.stat("/proc/self/ns/pid").st_ino)


def test_a_process_whose_first_thread_ends_first_exits_once(collect: Collector, helper: Path) -> None:
    pids: list[int] = []

    def act() -> None:
        process = subprocess.Popen([helper, "leader_exits_first"])
        process.wait()
        pids.append(process.pid)

    assert [r.exit_code for r in of(collect(act), "exit", pids[0])] == [3 << 8]


def test_threads_are_no_forks(collect: Collector) -> None:
    def act() -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()

    assert of(collect(act), "fork", os.getpid()) == []
    assert of(collect(act), "exit", os.getpid()) == []


def test_the_first_event_of_a_cgroup_is_preceded_by_its_path(collect: Collector) -> None:
    hierarchy = loader.memory_hierarchy()
    root = Path(loader.cgroup2_mount())
    if hierarchy == 1:
        [root] = [
            Path(line.split()[1]) for line in MOUNTS.read_text().splitlines() if " cgroup " in line and "memory" in line
        ]
    group = root / f"vedette-test-{os.getpid()}" / ("f" * 64)
    group.mkdir(parents=True)
    try:
        enter = f"echo $$ > {group}/cgroup.procs && exec /bin/true"
        records = collect(lambda: subprocess.run(["sh", "-c", enter], check=True))
        number = group.stat().st_ino
    finally:
        for directory in (group, group.parent):
            directory.rmdir()
    inside = [r for r in records if r.cgroup == number]
    assert [r.event for r in inside[:2]] == ["cgroup", "exec"]
    assert inside[0].path == os.fsencode("/" + str(group.relative_to(root)))
    assert inside[0].hierarchy == hierarchy
    assert inside[1].path == os.fsencode(os.path.realpath("/bin/true"))
