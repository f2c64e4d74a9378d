"""What the machine must have: all that is missing in one line, with how to get it."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.localcluster.errors import PrerequisiteError

_COMMANDS = ("containerd", "runc", "iptables", "conntrack", "ip", "nsenter", "unshare", "mount", "gcc", "awk")
_CNI_DIRECTORIES = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
_CNI_PLUGINS = ("bridge", "host-local", "loopback", "portmap")


@dataclass(frozen=True)
class Machine:
    """What was found."""

    containerd: str
    runc: str
    cni_binaries: Path
    max_open_files: int


def _which(command: str) -> str | None:
    return shutil.which(command, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def check() -> Machine:
    """The machine's programs.

    Raises:
        PrerequisiteError: everything that is missing, in one line.
    """
    if platform.system() != "Linux":
        raise PrerequisiteError(f"the local cluster needs Linux; this is {platform.system()}")
    if os.geteuid() != 0:
        raise PrerequisiteError("the local cluster makes namespaces, mounts and cgroups: run it as root (sudo)")
    found = {command: _which(command) for command in _COMMANDS}
    missing = [command for command, path in found.items() if path is None]
    directory = next((d for d in _CNI_DIRECTORIES if all((d / p).exists() for p in _CNI_PLUGINS)), None)
    if directory is None:
        missing.append("CNI plugins")
    if missing or directory is None:
        raise PrerequisiteError(f"missing: {', '.join(missing)}. Install with: sudo tools/bootstrap.sh cluster")
    return Machine(
        containerd=found["containerd"] or "",
        runc=found["runc"] or "",
        cni_binaries=directory,
        max_open_files=min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1_000_000),
    )
