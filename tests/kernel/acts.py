"""What is done in the virtual machine, and which records it must make there.

Each act runs as root in a process of its own and returns the records it must have made, as field values; a record is
looked for among those of the act's processes and of the event types that the act names. Only what is the same on every
kernel is written here; `expectations` holds what is not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUSYBOX = "/usr/bin/busybox"
HELPER = Path(__file__).with_name("helper")
"""tests/live/live_helper.c, laid beside this file in the virtual machine."""
LOOPBACK = bytes(12) + bytes([127, 0, 0, 1])
LOOPBACK6 = bytes(15) + b"\1"
OVERLAY, UPPER, NO_LOWER, UNLINKED, MEMFD, TMPFS = 1, 2, 4, 8, 16, 32
COMPAT, IO_URING = 2, 4
AT_FDCWD = -100

libc = ctypes.CDLL(None, use_errno=True)

Expected = list[dict[str, Any]]


@dataclass(frozen=True)
class Act:
    """Something to do; ``events`` are the types that are compared."""

    name: str
    events: tuple[str, ...]
    do: Callable[[Path], Expected]


ACTS: dict[str, Act] = {}


def act(*events: str) -> Callable[[Callable[[Path], Expected]], Callable[[Path], Expected]]:
    """Enter a function into `ACTS` by its name."""

    def enter(do: Callable[[Path], Expected]) -> Callable[[Path], Expected]:
        ACTS[do.__name__] = Act(do.__name__, events, do)
        return do

    return enter


def syscall(number: int, *arguments: Any) -> int:
    """What the kernel returned."""
    # All 64 bits of an argument count, and ctypes passes a plain int as 32.
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(number), *wide)
    return -ctypes.get_errno() if result == -1 else int(result)


def run(*command: str | Path, **options: Any) -> tuple[int, int]:
    """Run to the end; process id and exit status."""
    options.setdefault("stdout", subprocess.DEVNULL)
    with subprocess.Popen(command, **options) as process:
        process.wait()
    return process.pid, process.returncode


def waiting() -> int:
    """Process id of a child that waits to be killed."""
    pid = os.fork()
    if not pid:
        while True:
            libc.pause()
    return pid


def end(pid: int) -> None:
    """Kill a child and wait for it."""
    os.kill(pid, 9)
    os.waitpid(pid, 0)


# ---- processes ----


@act("exec", "exit", "fork")
def program_with_arguments(place: Path) -> Expected:
    pid, _ = run(BUSYBOX, "echo", "\udcff", "a b", cwd=place, stdin=subprocess.DEVNULL)
    me = {"pid": os.getpid()}
    return [
        {**me, "event": "fork", "child_pid": pid, "child_ns_pid": pid},
        {
            "event": "exec",
            "pid": pid,
            "ppid": os.getpid(),
            "path": BUSYBOX,
            "filename": BUSYBOX,
            "argv": f"{BUSYBOX}\0echo\0\xff\0a b\0",
            "argc": 4,
            "cwd": str(place),
            "ino": os.stat(BUSYBOX).st_ino,
            "ctime": os.stat(BUSYBOX).st_ctime_ns,
            "mode": os.stat(BUSYBOX).st_mode,
            "uid": 0,
            "caps": os_capabilities(),
            "file_bits": TMPFS,
            "stdin_kind": 8,
            "mnt_ns": os.stat("/proc/self/ns/mnt").st_ino,
            "pid_ns": os.stat("/proc/self/ns/pid").st_ino,
        },
        {"event": "exit", "pid": pid, "exit_code": 0},
        {"event": "exit", **me},
    ]


def os_capabilities() -> int:
    """Effective capabilities of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    raise AssertionError("no CapEff")


@act("exec", "exit")
def environment_script_and_status(place: Path) -> Expected:
    script = place / "script"
    script.write_text(f"#!{BUSYBOX} sh\nexit 7\n")
    script.chmod(0o755)
    pid, _ = run(script, env={"A": "1", "LD_PRELOAD": "/tmp/a.so", "B": "2"})
    return [
        {
            "event": "exec",
            "pid": pid,
            "path": BUSYBOX,
            "filename": str(script),
            "exec_bits": 1,
            "env": "LD_PRELOAD=/tmp/a.so\0",
        },
        {"event": "exit", "pid": pid, "exit_code": 7 << 8},
    ]


@act("exec")
def much_environment(place: Path) -> Expected:
    pid, _ = run(BUSYBOX, "true", env={f"V{n}": "1" for n in range(100)} | {"LD_PRELOAD": "/tmp/late.so"})
    return [{"event": "exec", "pid": pid, "exec_bits": 0, "env": "LD_PRELOAD=/tmp/late.so\0"}]


@act("open")
def deep_path(place: Path) -> Expected:
    directory = place / "/".join("d" * 100)
    directory.mkdir(parents=True)
    (directory / "file").write_bytes(b"")
    return [{"event": "open", "pid": os.getpid(), "path": str(directory / "file"), "flags": 0}]


@act("exec")
def set_user_id_program(place: Path) -> Expected:
    program = place / "su"
    shutil.copy(BUSYBOX, program)
    program.chmod(0o4755)
    pid, _ = run(program, "true", user=1000)
    return [{"event": "exec", "pid": pid, "uid": 1000, "euid": 0, "old_uid": 1000, "old_euid": 1000, "old_caps": 0}]


@act("exec")
def program_with_a_socket_for_its_terminal(place: Path) -> Expected:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        pid, _ = run(BUSYBOX, "true", stdin=client, stdout=client, stderr=client)
        return [
            {
                "event": "exec",
                "pid": pid,
                "stdin_kind": 5,
                "stdout_kind": 5,
                "sock_ino": os.fstat(client.fileno()).st_ino,
                "family": 2,
                "rport": server.getsockname()[1],
                "lport": client.getsockname()[1],
                "raddr": LOOPBACK,
            }
        ]


@act("memfd", "exec")
def program_in_memory(place: Path) -> Expected:
    fd = os.memfd_create("payload")
    os.write(fd, Path(BUSYBOX).read_bytes())
    pid, _ = run(f"/proc/self/fd/{fd}", "true", pass_fds=[fd])
    return [
        {"event": "memfd", "pid": os.getpid(), "name": "payload", "fd": fd, "result": fd},
        {"event": "exec", "pid": pid, "path": "memfd:payload", "file_bits": TMPFS | UNLINKED | MEMFD},
    ]


@act("exec")
def deleted_program(place: Path) -> Expected:
    program = place / "gone"
    shutil.copy(BUSYBOX, program)
    fd = os.open(program, os.O_RDONLY)
    program.unlink()
    pid, _ = run(f"/proc/self/fd/{fd}", "true", pass_fds=[fd])
    return [{"event": "exec", "pid": pid, "path": str(program), "file_bits": TMPFS | UNLINKED}]


@act("exec")
def programs_in_an_overlay(place: Path) -> Expected:
    for name in ("lower", "upper", "work", "merged"):
        (place / name).mkdir()
    for name in ("image", "changed"):
        shutil.copy(BUSYBOX, place / "lower" / name)
    layers = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
    merged = place / "merged"
    if libc.mount(b"overlay", os.fsencode(merged), b"overlay", 0, layers.encode()):
        raise OSError(ctypes.get_errno(), "overlay")
    shutil.copy(BUSYBOX, merged / "new")
    (merged / "changed").chmod(0o700)
    bits = {"image": OVERLAY, "changed": OVERLAY | UPPER, "new": OVERLAY | UPPER | NO_LOWER}
    found = []
    for name, wanted in bits.items():
        pid, _ = run(merged / name, "true")
        found.append({"event": "exec", "pid": pid, "path": str(merged / name), "file_bits": wanted})
    libc.umount2(os.fsencode(merged), 2)
    return found


@act("cgroup", "exec")
def first_program_of_a_cgroup(place: Path) -> Expected:
    group = Path("/sys/fs/cgroup") / f"pod-{os.getpid()}" / ("f" * 64)
    group.mkdir(parents=True)
    pid, _ = run(BUSYBOX, "sh", "-c", f"echo $$ > {group}/cgroup.procs && exec {BUSYBOX} true")
    number = group.stat().st_ino
    return [
        {"event": "exec", "pid": pid},
        {"event": "cgroup", "pid": pid, "cgroup": number, "path": f"/{group.relative_to('/sys/fs/cgroup')}"},
        {"event": "exec", "pid": pid, "cgroup": number},
    ]


@act("setuid")
def change_of_user(place: Path) -> Expected:
    os.setresuid(1000, 1000, 1000)
    with contextlib.suppress(PermissionError):
        os.setuid(0)
    return [
        {
            "event": "setuid",
            "pid": os.getpid(),
            "old_uid": 0,
            "old_euid": 0,
            "uid": 1000,
            "euid": 1000,
            "result": 0,
            "old_creds_unknown": 0,
        },
        {"event": "setuid", "pid": os.getpid(), "old_uid": 1000, "uid": 1000, "result": -errno.EPERM},
    ]


# ---- files ----


@act("open")
def open_for_writing_and_of_a_wanted_name(place: Path) -> Expected:
    file, shadow = place / "file", place / "shadow"
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o640))
    shadow.write_bytes(b"")
    for path in (file, shadow):
        os.close(os.open(path, os.O_RDONLY))
    with contextlib.suppress(OSError):
        os.open("no/such", os.O_WRONLY, dir_fd=os.open(place, os.O_RDONLY))
    me = {"event": "open", "pid": os.getpid()}
    return [
        {**me, "path": str(file), "ino": file.stat().st_ino, "mode": 0o100640, "file_bits": TMPFS},
        {**me, "path": str(shadow)},
        {**me, "path": str(shadow), "ino": shadow.stat().st_ino},
        {**me, "path": "no/such", "dir": str(place), "result": -errno.ENOENT, "fd": -1},
    ]


@act("open")
def open_by_a_32_bit_call(place: Path) -> Expected:
    (place / "shadow").write_bytes(b"")
    pid, status = run(HELPER, "open32", place / "shadow")
    assert status == 0
    return [
        {"event": "open", "pid": os.getpid()},
        {"event": "open", "pid": pid, "path": str(place / "shadow"), "flags": COMPAT},
    ]


@act("io_uring")
def open_and_remove_through_io_uring(place: Path) -> Expected:
    (place / "shadow").write_bytes(b"")
    opened, _ = run(HELPER, "uring_open", place / "shadow")
    removed, _ = run(HELPER, "uring_unlink", place / "shadow")
    return [
        {"event": "io_uring", "pid": opened, "flags": IO_URING, "opcode": 18, "path": str(place / "shadow")},
        {"event": "io_uring", "pid": removed, "flags": IO_URING, "opcode": 36, "path": str(place / "shadow")},
    ]


@act("rename", "link", "symlink", "chmod", "unlink")
def names(place: Path) -> Expected:
    os.chdir(place)
    Path("a").write_bytes(b"")
    os.rename("a", place / "b")
    os.link("b", "c")
    os.symlink("/etc/shadow", "d")
    os.chmod("c", 0o4755)
    os.unlink("c")
    me, here = {"pid": os.getpid(), "result": 0}, str(place)
    return [
        {**me, "event": "rename", "path": "a", "dir": here, "new_path": f"{here}/b"},
        {**me, "event": "link", "path": "b", "dir": here, "new_path": "c", "new_dir": here},
        {**me, "event": "symlink", "path": "/etc/shadow", "new_path": "d", "new_dir": here},
        {**me, "event": "chmod", "path": "c", "dir": here, "mode": 0o4755},
        {**me, "event": "unlink", "path": "c", "dir": here},
    ]


@act("mount", "umount")
def mounts(place: Path) -> Expected:
    target = os.fsencode(place)
    libc.mount(b"source", target, b"nosuchfs", 0, None)
    libc.mount(b"here", target, b"tmpfs", 2, None)
    libc.umount2(target, 2)
    syscall(430, b"nosuchfs", 0)  # fsopen
    me = {"pid": os.getpid()}
    return [
        {
            **me,
            "event": "mount",
            "source": "source",
            "target": str(place),
            "fstype": "nosuchfs",
            "result": -errno.ENODEV,
        },
        {**me, "event": "mount", "source": "here", "fstype": "tmpfs", "mount_flags": 2, "op": 1, "result": 0},
        {**me, "event": "umount", "target": str(place), "umount_flags": 2, "result": 0},
        {**me, "event": "mount", "fstype": "nosuchfs", "op": 4, "result": -errno.ENODEV},
    ]


# ---- sockets ----


@act("connect", "bind", "listen", "accept")
def connections(place: Path) -> Expected:
    me = {"pid": os.getpid()}
    found: Expected = []
    for family, host, packed in ((socket.AF_INET, "127.0.0.1", LOOPBACK), (socket.AF_INET6, "::1", LOOPBACK6)):
        with socket.create_server((host, 0), family=family) as server:
            port = server.getsockname()[1]
            with socket.create_connection((host, port)) as client, server.accept()[0] as accepted:
                local = client.getsockname()[1]
                there = {**me, "family": int(family), "sock_type": 1, "protocol": 6, "raddr": packed}
                found += [
                    {**me, "event": "bind", "family": int(family), "lport": port, "result": 0},
                    {**me, "event": "listen", "lport": port},
                    {
                        **there,
                        "event": "connect",
                        "rport": port,
                        "lport": local,
                        "result": 0,
                        "fd": client.fileno(),
                        "sock_ino": os.fstat(client.fileno()).st_ino,
                    },
                    {**there, "event": "accept", "rport": local, "lport": port, "fd": accepted.fileno()},
                ]
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((host, port))
        found.append({**there, "event": "connect", "rport": port, "result": -errno.ECONNREFUSED})
    return found


@act("connect")
def datagram_and_local_socket(place: Path) -> Expected:
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", 9))
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(str(place / "none"))
    me = {"event": "connect", "pid": os.getpid()}
    return [
        {**me, "family": 2, "sock_type": 2, "protocol": 17, "raddr": LOOPBACK, "rport": 9, "result": 0},
        {**me, "family": 1, "path": str(place / "none"), "result": -errno.ENOENT},
    ]


@act("dup")
def socket_as_standard_output(place: Path) -> Expected:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        os.dup2(client.fileno(), 1)
        return [
            {
                "event": "dup",
                "pid": os.getpid(),
                "old_fd": client.fileno(),
                "new_fd": 1,
                "rport": server.getsockname()[1],
            }
        ]


@act("connect", "io_uring")
def connections_by_other_ways(place: Path) -> Expected:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        compat, _ = run(HELPER, "connect32", "127.0.0.1", str(port))
        ring, _ = run(HELPER, "uring_connect", "127.0.0.1", str(port))
    there = {"family": 2, "raddr": LOOPBACK, "rport": port}
    return [
        {**there, "event": "connect", "pid": compat, "flags": COMPAT},
        {**there, "event": "io_uring", "pid": ring, "flags": IO_URING, "opcode": 16},
    ]


NAME = b"\7example\3org\0"


def question(number: int) -> bytes:
    """A DNS query for an IPv4 address."""
    return number.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + NAME + b"\0\1\0\1"


def answer(query: bytes) -> bytes:
    """An answer to it, 203.0.113.7."""
    return query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xcb\0\x71\7"


def _dns(family: socket.AddressFamily, host: str, packed: bytes, *, stream: bool) -> Expected:
    query = question(4242)
    reply = answer(query)
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:  # the resolver
        with contextlib.suppress(BaseException):
            if stream:
                server = socket.create_server((host, 53), family=family)
                os.write(told, b"x")
                peer, _ = server.accept()
                peer.recv(4096)
                peer.sendall(len(reply).to_bytes(2, "big") + reply)
                peer.recv(1)
            else:
                server = socket.socket(family, socket.SOCK_DGRAM)
                server.bind((host, 53))
                os.write(told, b"x")
                _, sender = server.recvfrom(4096)
                server.sendto(reply, sender)
        os._exit(0)
    os.read(ready, 1)
    with socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.connect((host, 53))
        local = client.getsockname()[1]
        os.write(client.fileno(), len(query).to_bytes(2, "big") + query if stream else query)
        assert client.recv(4096)
    os.waitpid(pid, 0)
    both = {
        "event": "dns",
        "pid": os.getpid(),
        "family": int(family),
        "protocol": 6 if stream else 17,
        "raddr": packed,
        "rport": 53,
        "lport": local,
    }
    return [{**both, "direction": 1, "payload": query}, {**both, "direction": 2, "payload": reply}]


@act("dns")
def dns_over_udp(place: Path) -> Expected:
    return _dns(socket.AF_INET, "127.0.0.1", LOOPBACK, stream=False)


@act("dns")
def dns_over_udp_and_ipv6(place: Path) -> Expected:
    return _dns(socket.AF_INET6, "::1", LOOPBACK6, stream=False)


@act("dns")
def dns_over_tcp(place: Path) -> Expected:
    return _dns(socket.AF_INET, "127.0.0.1", LOOPBACK, stream=True)


# ---- memory and other processes ----


@act("ptrace")
def attach_to_a_process(place: Path) -> Expected:
    target = waiting()
    syscall(101, 16, target, 0, 0)
    os.waitpid(target, 0)
    syscall(101, 16, 4_000_000, 0, 0)
    end(target)
    me = {"event": "ptrace", "pid": os.getpid(), "request": 16}
    return [
        {**me, "target_pid": target, "target_ns_pid": target, "result": 0},
        {**me, "target_pid": 0, "target_ns_pid": 4_000_000, "result": -errno.ESRCH},
    ]


class IoVector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@act("vm_read", "vm_write")
def memory_of_another_process(place: Path) -> Expected:
    target = waiting()
    buffer = ctypes.create_string_buffer(8)
    here, nowhere = IoVector(ctypes.addressof(buffer), 8), IoVector(8, 8)
    for number in (310, 311):
        syscall(number, target, ctypes.byref(here), 1, ctypes.byref(nowhere), 1, 0)
    end(target)
    me = {"pid": os.getpid(), "target_pid": target, "result": -errno.EFAULT}
    return [{**me, "event": "vm_read"}, {**me, "event": "vm_write"}]


@act("mprotect", "mmap")
def executable_memory(place: Path) -> Expected:
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    memory = libc.mmap(None, 4096, 3, 0x22, -1, 0)
    libc.mprotect(memory, 4096, 7)
    fd = os.memfd_create("code")
    os.write(fd, b"\xc3" * 4096)
    libc.mmap(None, 4096, 5, 2, fd, 0)
    stack, _ = run(HELPER, "mprotect_stack")
    return [
        {"event": "mprotect", "pid": os.getpid(), "addr": memory, "length": 4096, "prot": 7, "region": 0, "result": 0},
        {"event": "mmap", "pid": os.getpid(), "path": "memfd:code", "prot": 5, "map_flags": 2},
        {"event": "mprotect", "pid": stack, "prot": 7, "region": 1, "result": 0},
    ]


@act("userfaultfd", "module")
def rare_calls(place: Path) -> Expected:
    syscall(323, 0x7FFF)
    with (place / "evil.ko").open("wb+") as file:
        syscall(313, file.fileno(), b"a=1", 2)
    syscall(176, b"nosuch", 0o4000)
    me = {"pid": os.getpid()}
    return [
        {**me, "event": "userfaultfd", "uffd_flags": 0x7FFF, "result": -errno.EINVAL},
        {**me, "event": "module", "op": 2, "module_flags": 2, "params": "a=1", "path": str(place / "evil.ko")},
        {**me, "event": "module", "op": 3, "module_flags": 0o4000, "name": "nosuch"},
    ]
