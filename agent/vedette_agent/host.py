"""What the agent says about its host, and about itself."""

from __future__ import annotations

import http.client
import json
import os
import resource
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

_METADATA_ADDRESS = "169.254.169.254"
_METADATA_TIMEOUT_S = 1.0
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO in include/linux/proc_ns.h
_IDENTITY = ("instanceId", "region", "availabilityZone", "accountId", "imageId", "instanceType", "privateIp")


def _line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def boot_id() -> bytes:
    """The kernel's random id of this boot, 16 bytes."""
    return bytes.fromhex(_line("/proc/sys/kernel/random/boot_id").replace("-", ""))


def namespace(kind: str, process: str = "self") -> int:
    """Inode of the ``pid``, ``mnt`` or ``uts`` namespace of a process; 0 when it cannot be told."""
    with suppress(OSError):
        return os.stat(f"/proc/{process}/ns/{kind}").st_ino
    return 0


def _host_process(kind: str) -> str:
    """A process of the host's that may be looked at: the first, else the kernel's second; empty: none.

    Looking at them takes CAP_SYS_PTRACE, and in a container the host's pid namespace. There are machines that let
    nobody look at the first.
    """
    return next((process for process in ("1", "2") if namespace(kind, process)), "")


def host_namespace(kind: str) -> int:
    """Inode of the host's namespace of that kind as far as it can be told, else of this process's own."""
    return namespace(kind, _host_process(kind)) or namespace(kind)


def in_host_pid_namespace() -> bool:
    """Whether this process is in the machine's first pid namespace, in whose numbers the kernel side reports."""
    return namespace("pid") in (0, _FIRST_PID_NAMESPACE)


def _host_file(path: str) -> str:
    """A one-line file of the host's, also from a container: through the root directory of a process of the host."""
    if host_namespace("mnt") == namespace("mnt"):
        return _line(path)
    return _line(f"/proc/{_host_process('mnt')}/root{path}")


def private_rss_bytes() -> int:
    """Memory that only this process holds: private pages, clean and dirty (Linux 4.14 and later)."""
    total = 0
    for line in _line("/proc/self/smaps_rollup").splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:", "Private_Hugetlb:")):
            total += int(line.split()[1]) * 1024
    return total


def cpu_seconds() -> float:
    """CPU time, user and system, that this process has taken."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def describe() -> dict[str, Any]:
    """Name, machine id, kernel and architecture of the host.

    A container has a machine id of its own image's, or none, and unless it shares the host's network a host name of its
    own too; the kernel tells a namespace's name only to those inside, so the host's configured one has to do then.
    """
    name = os.uname()
    own_name = host_namespace("uts") == namespace("uts")
    return {
        "hostname": name.nodename if own_name else _host_file("/etc/hostname") or name.nodename,
        "machine_id": _host_file("/etc/machine-id"),
        "kernel": name.release,
        "arch": name.machine,
    }


def is_ec2() -> bool:
    """Whether the firmware says that this is an EC2 instance (Nitro: the vendor; Xen: the version and the uuid)."""
    if _line("/sys/class/dmi/id/sys_vendor") == "Amazon EC2":
        return True
    return "amazon" in _line("/sys/class/dmi/id/bios_version").lower()


class Ec2Identity(threading.Thread):
    """Asks the instance metadata service once, in the background; `document` is None until it has answered.

    Version 2 of the service only: a session token first (AWS, "Use the Instance Metadata Service").
    """

    def __init__(self, address: str = _METADATA_ADDRESS, port: int = 80) -> None:
        super().__init__(name="ec2-metadata", daemon=True)
        self._address = (address, port)
        self.document: dict[str, Any] | None = None

    def run(self) -> None:
        """The thread's body: three attempts, then none."""
        for attempt in range(3):
            if attempt:
                threading.Event().wait(5.0 * attempt)
            with suppress(OSError, http.client.HTTPException, ValueError):
                self.document = self._ask()
                return

    def _ask(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection(*self._address, timeout=_METADATA_TIMEOUT_S)
        try:
            connection.request("PUT", "/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
            answer = connection.getresponse()
            token = answer.read(4096).decode("ascii")
            if answer.status != 200:
                raise ValueError(f"no session token: status {answer.status}")
            headers = {"X-aws-ec2-metadata-token": token}
            connection.request("GET", "/latest/dynamic/instance-identity/document", headers=headers)
            answer = connection.getresponse()
            identity = json.loads(answer.read(65536))
            if answer.status != 200 or not isinstance(identity, dict):
                raise ValueError(f"no identity document: status {answer.status}")
            return {name: str(identity[name]) for name in _IDENTITY if name in identity}
        finally:
            connection.close()
