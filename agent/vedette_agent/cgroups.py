"""Where the host's cgroup hierarchies are mounted, also seen from inside a container.

A container has cgroup mounts of its own, which show its own part of each hierarchy: attached there, a program would
see the container's packets alone, and the paths of other processes would not be found below. The agent needs the whole,
which a pod mounts from the host at /host/cgroup or over /sys/fs/cgroup.

What tells them apart is the mount's root in /proc/self/mountinfo: ``/`` for the whole, a path for a part. With a cgroup
namespace (the rule on cgroup v2) paths are relative to the container's own cgroup: then ``/`` is the part and
``/../..`` the whole, here and in /proc/<pid>/cgroup (cgroup_namespaces(7)).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HOST_MOUNT = Path("/host/cgroup")
"""Where a pod may mount the host's /sys/fs/cgroup; looked at before all others."""

ROOT_INODE = 1
"""Inode of the topmost directory of a whole hierarchy (fs/kernfs/dir.c: ids of a root's nodes are given from 1)."""

_UPWARDS = re.compile(rb"(/\.\.)+\Z")
_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class CgroupMount:
    """One mount. ``hierarchy`` is 1 for the v1 hierarchy with the memory controller, 2 for v2."""

    hierarchy: int
    root: bytes
    path: bytes


def parse_mounts(mountinfo: bytes) -> list[CgroupMount]:
    """The mounts of the two hierarchies, in the order of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(b" - ")
        fields, kinds = head.split(b" "), tail.split(b" ")
        if len(fields) < 5 or len(kinds) < 3:
            continue
        root, path = (_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), value) for value in fields[3:5])
        if kinds[0] == b"cgroup2":
            found.append(CgroupMount(2, root, path))
        elif kinds[0] == b"cgroup" and b"memory" in kinds[2].split(b","):
            found.append(CgroupMount(1, root, path))
    return found


def choose(mounts: list[CgroupMount], hierarchy: int, below: bytes = b"") -> CgroupMount | None:
    """The mount that shows most of ``hierarchy``; the last one of equals, which lies over the others.

    Args:
        mounts: all of them.
        hierarchy: 1 or 2.
        below: only mounts at or below this directory; empty: ones below `HOST_MOUNT` first, then any.
    """
    host = os.fsencode(HOST_MOUNT)

    def rank(mount: CgroupMount) -> tuple[int, int]:
        whole = 0 if _UPWARDS.match(mount.root) else 1 if mount.root == b"/" else 2
        return 0 if _below(mount.path, host) else 1, whole

    wanted = [m for m in mounts if m.hierarchy == hierarchy and (not below or _below(m.path, below))]
    # A path can be mounted over: only its last mount is to be seen.
    visible = {mount.path: mount for mount in wanted}
    return min(visible.values(), key=rank, default=None)


def _below(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def find(hierarchy: int, below: Path | None = None) -> CgroupMount | None:
    """The host's mount of ``hierarchy`` as this process sees it; ``below``: only at or below this directory."""
    try:
        mountinfo = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return None
    return choose(parse_mounts(mountinfo), hierarchy, os.path.realpath(os.fsencode(below)) if below else b"")


def shows_all(mount: CgroupMount) -> bool:
    """Whether the mount shows the whole hierarchy of the machine, not a container's part."""
    with suppress(OSError):
        return os.stat(mount.path).st_ino == ROOT_INODE
    return False


def namespace_path(mount: CgroupMount) -> bytes:
    """Path, in the whole hierarchy, of the cgroup that is the root of this process's cgroup namespace.

    ``mount`` shows the whole hierarchy, and from there says how deep the namespace lies; at that depth the directory is
    searched for below which this process is. Empty where there is no such namespace, or it is not found.
    """
    depth = mount.root.count(b"/..")
    if not _UPWARDS.match(mount.root):
        return b""
    pid = os.getpid()
    with suppress(OSError):
        own = own_path(Path("/proc/self/cgroup").read_bytes(), mount.hierarchy)
        for directory in _directories(mount.path, depth):
            with suppress(OSError, ValueError):
                if pid in map(int, Path(os.fsdecode(directory + own), "cgroup.procs").read_bytes().split()):
                    return directory[len(mount.path) :]
    return b""


def _directories(top: bytes, depth: int) -> list[bytes]:
    """Directories exactly ``depth`` levels below ``top``."""
    level = [top]
    for _ in range(depth):
        below = []
        for parent in level:
            with suppress(OSError), os.scandir(parent) as entries:
                below += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        level = below
    return level


def own_path(content: bytes, hierarchy: int) -> bytes:
    """The path of a process in the hierarchy, from /proc/<pid>/cgroup; empty when it is in none."""
    for line in content.splitlines():
        _, controllers, path = [*line.split(b":", 2), b"", b""][:3]
        if (hierarchy == 2 and not controllers) or (hierarchy == 1 and b"memory" in controllers.split(b",")):
            return path
    return b""


def from_namespace(path: bytes, namespace: bytes) -> bytes:
    """A path of /proc/<pid>/cgroup as the whole hierarchy has it; ``namespace`` is what `namespace_path` found."""
    if not namespace or not path.startswith(b"/"):
        return path
    return os.path.normpath(namespace + path)
