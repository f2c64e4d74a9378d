"""PrivilegeEscalation:Runtime/ContainerMountsHostDirectory: a container mounts what belongs to the host."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, ClassVar

from vedette_detector.detectors.detector import Detector
from vedette_detector.detectors.processes import in_container
from vedette_detector.engine.context import EngineContext
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event, flag_names
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.text import safe_text
from vedette_events.schema import MountOp

_MS_REMOUNT, _MS_BIND, _MS_MOVE, _MS_PROPAGATION = 32, 4096, 8192, 0b1111 << 17
_MS_NAMES = {1: "MS_RDONLY", 2: "MS_NOSUID", 4: "MS_NODEV", 8: "MS_NOEXEC", 4096: "MS_BIND", 8192: "MS_MOVE"}
_MS_NAMES |= {16384: "MS_REC", 32: "MS_REMOUNT"}

DISK_FILE_SYSTEMS: frozenset[bytes] = frozenset(
    {b"ext2", b"ext3", b"ext4", b"xfs", b"btrfs", b"vfat", b"exfat", b"ntfs", b"ntfs3", b"f2fs", b"jfs", b"reiserfs"}
    | {b"squashfs", b"erofs", b"iso9660", b"udf", b"zfs", b"bcachefs", b"hfsplus", b"gfs2", b"ocfs2", b"nilfs2"}
)
_HARMLESS_DEVICES = re.compile(
    rb"/dev/(?:pts|shm|mqueue|null|zero|full|random|urandom|tty|console|ptmx|fuse|fd|std\w+|hugepages)(?:/|\Z)"
)
_HOST_DIRECTORIES = re.compile(
    rb"/(?:host|hostfs|host-?root|rootfs|host-fs|mnt/host|node-?root)(?:/|\Z)"
    rb"|/(?:\S*/)?proc/(?:\d+|self/fd|[^/]+/task/\d+)/(?:root|cwd)(?:/|\Z)"
    rb"|/var/lib/(?:kubelet|docker|containerd|containers|rancher)(?:/|\Z)|/etc/kubernetes(?:/|\Z)"
    rb"|/run/(?:containerd|docker|crio|k3s)(?:/|\Z)"
)

_HOST_BEGINNINGS = frozenset(
    b"\0" + beginning
    for beginning in (
        *(b"/host", b"/rootfs", b"/mnt/host", b"/node", b"/var/lib/kubelet", b"/var/lib/docker", b"/var/lib/containe"),
        *(b"/var/lib/rancher", b"/etc/kubernetes", b"/run/containerd", b"/run/docker", b"/run/crio", b"/run/k3s"),
    )
)
"""What `_HOST_DIRECTORIES` can begin with, ways through /proc left out."""
_MOUNTS = (Mask("op", "eq", MountOp.MOUNT), Mask("mount_flags", "no_bits", _MS_REMOUNT))


def is_host_source(source: bytes, fstype: bytes, flags: int) -> str | None:
    """Tell why a mount's source is the host's; None when it is not, or not for certain.

    A bind mount shows only the path inside the container, so a host directory is recognised by where such
    directories are usually mounted, or by a way through another process's root.
    """
    if flags & _MS_BIND or flags & _MS_MOVE:
        return "a directory of the host" if _HOST_DIRECTORIES.match(source) else None
    if fstype in DISK_FILE_SYSTEMS:
        return "a disk"
    if source.startswith(b"/dev/") and not _HARMLESS_DEVICES.match(source) and not fstype.startswith(b"fuse"):
        return "a device"
    return None


def _flags(value: int) -> list[str]:
    return [name for bit, name in _MS_NAMES.items() if value & bit]


class ContainerMountsHostDirectory(Detector):
    """A container mounts a disk or a directory of the host; attempts count."""

    id = "container-mounts-host-directory"
    title = "A container mounts a file system of the host"
    description = (
        "mount(2), or the newer fsopen, fsconfig, open_tree and move_mount, from a container with a disk, a block "
        "device or a host directory as source; also when the kernel refused it."
    )
    finding_types = ("PrivilegeEscalation:Runtime/ContainerMountsHostDirectory",)
    severity = 5.0
    # Containers start with a hundred harmless mounts each: what `is_host_source` needs is asked for here.
    selectors = (
        Selector("mount", _MOUNTS, (AnyLiteral(("fstype",), frozenset(b"\0" + x + b"\0" for x in DISK_FILE_SYSTEMS)),)),
        Selector(
            "mount",
            (*_MOUNTS, Mask("mount_flags", "no_bits", _MS_BIND | _MS_MOVE)),
            (AnyLiteral(("source",), frozenset({b"\0/dev/"})),),
        ),
        *(
            Selector("mount", masks, literals)
            for masks in (
                (*_MOUNTS, Mask("mount_flags", "any_bits", _MS_BIND | _MS_MOVE)),
                (Mask("op", "eq", MountOp.OPEN_TREE), Mask("mount_flags", "any_bits", 1)),
            )
            for literals in (
                (AnyLiteral(("source",), _HOST_BEGINNINGS),),
                (
                    AnyLiteral(("source",), frozenset({b"/proc/"})),
                    AnyLiteral(("source",), frozenset({b"/root", b"/cwd"})),
                ),
            )
        ),
        Selector(
            "mount",
            (Mask("op", "eq", MountOp.FSOPEN), Mask("result", "lt", 0)),
            (AnyLiteral(("fstype",), frozenset(b"\0" + x + b"\0" for x in DISK_FILE_SYSTEMS)),),
        ),
        Selector(
            "mount",
            (Mask("op", "eq", MountOp.FSCONFIG),),
            (AnyLiteral(("fstype",), frozenset({b"\0source\0"})),),
        ),
    )
    triage = (
        "Was the container meant to have CAP_SYS_ADMIN or devices? See what the process did after the mount: writes to "
        "cron, ssh keys, /etc of the mounted file system. A failed attempt is still an attempt."
    )
    falsepositives = (
        "CSI drivers and node agents mount volumes from privileged containers: that is their work. Suppress by image.",
        "Image builders and containers in containers bind-mount their own directories; those are not reported.",
    )
    tags = ("attack.privilege_escalation", "attack.t1611")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Judge the source; leave out what the container runtime mounts while it sets the container up."""
        source, fstype, flags, target = event.source, event.fstype, event.mount_flags, event.target
        related: list[Event] = []
        if event.op == MountOp.MOUNT:
            if flags & _MS_REMOUNT or (flags & _MS_PROPAGATION and not flags & _MS_BIND):
                return
        elif event.op == MountOp.OPEN_TREE:
            if not flags & 1:  # OPEN_TREE_CLONE: without it nothing is mounted
                return
            flags, fstype = _MS_BIND, b""
        elif event.op == MountOp.FSOPEN:
            # A successful one is judged with its source, by fsconfig.
            if event.result >= 0 or fstype not in DISK_FILE_SYSTEMS:
                return
            flags = 0
        else:
            if fstype != b"source":
                return
            opened = history.events(
                "mount",
                pid=event.pid,
                start=event.start,
                until=event.time,
                mask=lambda rows: (rows["op"] == MountOp.FSOPEN) & (rows["result"] == event.fs_fd),
                limit=1,
            )
            related += opened
            fstype, flags = (opened[0].fstype if opened else b""), 0
        why = is_host_source(source, fstype, flags)
        if why is None or not in_container(event, history):
            return
        process = event.process
        words = {
            "mountSource": safe_text(source),
            "mountTarget": safe_text(target),
            "fileSystemType": safe_text(fstype),
        }
        names = _flags(flags)
        yield context.detection(
            event,
            description=f"{process.name} in a container {'mounted' if event.result >= 0 else 'tried to mount'} {why}"
            f"{' (' + words['mountSource'] + ')' if source else ''} by {flag_names(MountOp, event.op)}.",
            key=(process.name, words["mountSource"]),
            context={name: value for name, value in words.items() if value} | ({"flags": names} if names else {}),
            related=related,
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "a disk",
            "match": True,
            "events": [
                {
                    "event": "mount",
                    "op": 1,
                    "source": "/dev/sda1",
                    "target": "/mnt",
                    "fstype": "ext4",
                    "container": True,
                }
            ],
        },
        {
            "name": "an attempt without a known file system",
            "match": True,
            "events": [
                {
                    "event": "mount",
                    "op": 1,
                    "source": "/dev/nvme0n1p1",
                    "target": "/mnt",
                    "result": -19,
                    "container": True,
                }
            ],
        },
        {
            "name": "the root of a host process",
            "match": True,
            "events": [
                {
                    "event": "mount",
                    "op": 1,
                    "source": "/proc/1/root",
                    "target": "/mnt",
                    "mount_flags": 4096,
                    "container": True,
                }
            ],
        },
        {
            "name": "fsopen and fsconfig",
            "match": True,
            "events": [
                {"event": "mount", "op": 4, "fstype": "xfs", "result": 5, "container": True},
                {"event": "mount", "op": 5, "fstype": "source", "source": "/dev/vdb", "fs_fd": 5, "container": True},
            ],
        },
        {
            "name": "fsopen refused",
            "match": True,
            "events": [{"event": "mount", "op": 4, "fstype": "ext4", "result": -1, "container": True}],
        },
        {
            "name": "a clone of a mounted host directory",
            "match": True,
            "events": [{"event": "mount", "op": 3, "source": "/host/etc", "mount_flags": 1, "container": True}],
        },
        {
            "name": "tmpfs, proc and an own directory",
            "match": False,
            "events": [
                {"event": "mount", "op": 1, "source": "tmpfs", "target": "/t", "fstype": "tmpfs", "container": True}
            ],
        },
        {
            "name": "a bind mount of the container's own directory",
            "match": False,
            "events": [
                {"event": "mount", "op": 1, "source": "/srv/a", "target": "/b", "mount_flags": 4096, "container": True}
            ],
        },
        {
            "name": "a remount",
            "match": False,
            "events": [
                {"event": "mount", "op": 1, "source": "/dev/sda1", "target": "/", "mount_flags": 33, "container": True}
            ],
        },
        {
            "name": "the host mounts its disk",
            "match": False,
            "events": [{"event": "mount", "op": 1, "source": "/dev/sda1", "target": "/mnt", "fstype": "ext4"}],
        },
        {
            "name": "runc sets a container up",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/sbin/runc", "argv": ["runc", "init"]},
                {
                    "event": "mount",
                    "op": 1,
                    "source": "/dev/sdb",
                    "target": "/data",
                    "fstype": "ext4",
                    "container": True,
                },
            ],
        },
        {
            "name": "runc enters the cgroup before it re-executes itself, and sets the container up by a child",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/sbin/runc", "argv": ["runc", "create"], "pid": 900, "mnt_ns": 1},
                {
                    "event": "exec",
                    "path": "/",
                    "argv": ["runc", "init"],
                    "pid": 901,
                    "ppid": 900,
                    "container": True,
                    "pid_ns": 0xEFFFFFFC,
                    "mnt_ns": 1,
                },
                {"event": "fork", "pid": 901, "child_pid": 902, "container": True},
                {"event": "fork", "pid": 902, "child_pid": 1000, "container": True},
                {
                    "event": "mount",
                    "op": 1,
                    "source": "/var/lib/kubelet/pods/0/volumes/kubernetes.io~projected/token",
                    "target": "/proc/self/fd/6",
                    "mount_flags": 20481,
                    "container": True,
                },
            ],
        },
    )
