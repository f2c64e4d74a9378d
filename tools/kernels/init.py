#!/usr/bin/python3 -IB
"""The first process of the virtual machine: mount what every system has, run the command, end the machine.

Standard output of the command goes to the second serial line, its standard error to the console.
"""

import ctypes
import os
import struct
import subprocess
import termios
from fcntl import ioctl
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, socket

libc = ctypes.CDLL(None, use_errno=True)
LINUX_REBOOT_CMD_RESTART = 0x01234567
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SYS_FINIT_MODULE = 313


def check(result: int, what: str) -> None:
    if result != 0:
        print(f"init: {what}: {os.strerror(ctypes.get_errno())}", flush=True)


def prepare() -> None:
    for kind, target in (
        (b"proc", b"/proc"),
        (b"sysfs", b"/sys"),
        (b"devtmpfs", b"/dev"),
        (b"tmpfs", b"/tmp"),
        (b"tmpfs", b"/run"),
        (b"cgroup2", b"/sys/fs/cgroup"),
    ):
        check(libc.mount(kind, target, kind, 0, None), f"mounting {target.decode()}")
    for name in ("/dev/shm", "/dev/pts"):
        os.makedirs(name, exist_ok=True)
    check(libc.mount(b"devpts", b"/dev/pts", b"devpts", 0, None), "mounting /dev/pts")
    for module in sorted(Path("/modules").glob("*.ko")):
        with module.open("rb") as file:
            check(libc.syscall(SYS_FINIT_MODULE, file.fileno(), b"", 0), str(module))
    with socket(AF_INET, SOCK_DGRAM) as control:
        ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


def run() -> int:
    line = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
    settings = termios.tcgetattr(line)
    settings[1] &= ~termios.OPOST  # newlines stay newlines
    termios.tcsetattr(line, termios.TCSANOW, settings)
    command = Path("/command").read_text().split("\0")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        status = subprocess.run(command, check=False, stdout=line, env=environment, cwd="/root").returncode
    except OSError as error:
        print(f"init: {command[0]}: {error.strerror}", flush=True)
        status = 127
    os.write(line, f"\nvedette-end {status}\n".encode())
    termios.tcdrain(line)
    return status


os.environ["PATH"] = "/usr/bin"
try:
    prepare()
    run()
finally:
    os.sync()
    libc.reboot(LINUX_REBOOT_CMD_RESTART)
