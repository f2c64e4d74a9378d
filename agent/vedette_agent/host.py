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
_IDENTITY = ("instanceId", "region", "availabilityZone", "accountId", "imageId", "instanceType", "privateIp")


def _line(path: str) -> str:
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def boot_id() -> bytes:
    """The kernel's random id of this boot, 16 bytes."""
    return bytes.fromhex(_line("/proc/sys/kernel/random/boot_id").replace("-", ""))


def namespace(kind: str) -> int:
    """Inode of this process's ``pid`` or ``mnt`` namespace."""
    with suppress(OSError):
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    return 0


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
    """Name, machine id, kernel and architecture of the host."""
    name = os.uname()
    return {
        "hostname": name.nodename,
        "machine_id": _line("/etc/machine-id"),
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
