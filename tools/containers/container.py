"""A container from a cached root file system: overlayfs and runc, removed without a trace at the end."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tools.containers.place import add_addresses

CGROUP_PARENT = "vedette-test"

# What container engines grant by default (the list in the OCI bundle that containerd's CRI writes).
DEFAULT_CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ContainerError(RuntimeError):
    """A container could not be made or removed; the message holds runc's own words."""


def _config(
    cgroup: str,
    root: str,
    command: Sequence[str],
    capabilities: Sequence[str],
    mounts: Sequence[Mapping[str, Any]],
    *,
    privileged: bool,
    host_pid: bool,
) -> dict[str, Any]:
    """Build an OCI runtime configuration; pure.

    ``oomScoreAdj`` and CAP_SYS_RESOURCE are left out: a machine without CAP_SYS_RESOURCE refuses both.
    """
    namespaces = [{"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
    if not host_pid:
        namespaces.insert(0, {"type": "pid"})
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": [f"PATH={_PATH}", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"],
            "cwd": "/",
            "capabilities": {kind: list(capabilities) for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": False,
        },
        "root": {"path": root, "readonly": False},
        "hostname": "vedette-test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            },
            {
                # Engines mount /dev/shm noexec; workloads that ask for a memory-backed emptyDir get one without.
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "shm",
                "options": ["nosuid", "nodev", "mode=1777", "size=65536k"],
            },
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            *mounts,
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": privileged, "access": "rwm"}]},
            "maskedPaths": [] if privileged else ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": []
            if privileged
            else ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


class Container:
    """A running container; use as a context manager.

    Args:
        rootfs: Directory with the image's root file system; never written to.
        layers: Further read-only directories laid over it, as image layers are; topmost first.
        capabilities: Granted besides the usual ones; ``("ALL",)`` for what this process itself has.
        mounts: Further OCI mounts.
        privileged: All capabilities, no masked paths, every device allowed.
        host_pid: Share the host's pid namespace.
        addresses: Whether lo gets the documentation addresses of `place`.
    """

    def __init__(
        self,
        rootfs: Path,
        *,
        layers: Sequence[Path] = (),
        capabilities: Sequence[str] = (),
        mounts: Sequence[Mapping[str, Any]] = (),
        privileged: bool = False,
        host_pid: bool = False,
        command: Sequence[str] = ("/bin/sleep", "infinity"),
        addresses: bool = True,
    ) -> None:
        self.rootfs = rootfs
        self.layers = tuple(layers)
        self.capabilities = tuple(capabilities)
        self.mounts = tuple(mounts)
        self.privileged = privileged
        self.host_pid = host_pid
        self.command = tuple(command)
        self.addresses = addresses
        self.id = secrets.token_hex(32)
        self.name = self.id[:12]
        self.init_pid = 0
        self._directory: Path | None = None

    @property
    def container_id(self) -> str | None:
        """The 64-hex id, which is also the name of the container's cgroup."""
        return self.id

    @property
    def namespaces_pid(self) -> int:
        """The container's first process."""
        return self.init_pid

    @property
    def root(self) -> Path:
        """The container's root directory through its first process."""
        return Path(f"/proc/{self.init_pid}/root")

    @property
    def cgroup_path(self) -> str:
        """Path below the root of every cgroup hierarchy."""
        return f"/{CGROUP_PARENT}/{self.id}"

    def __enter__(self) -> Container:
        self._directory = Path(tempfile.mkdtemp(prefix="vedette-container-"))
        try:
            self._start(self._directory)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _runc(self, *arguments: str) -> list[str]:
        assert self._directory is not None
        return ["runc", "--root", str(self._directory / "runc"), *arguments]

    def _start(self, directory: Path) -> None:
        for name in ("upper", "work", "root", "runc"):
            (directory / name).mkdir()
        granted = DEFAULT_CAPABILITIES + self.capabilities
        if self.privileged or "ALL" in granted:
            granted = own_capabilities()
        config = _config(
            self.cgroup_path,
            str(directory / "root"),
            self.command,
            sorted(set(granted)),
            self.mounts,
            privileged=self.privileged,
            host_pid=self.host_pid,
        )
        (directory / "config.json").write_text(json.dumps(config, indent=1))
        lower = ":".join(str(layer) for layer in (*self.layers, self.rootfs))
        # The overlay is mounted in a mount namespace that only the container inherits: it goes away with the
        # container, even when this process is killed.
        script = 'mount -t overlay overlay -o "$1" "$2" && shift 2 && exec "$@"'
        options = f"lowerdir={lower},upperdir={directory / 'upper'},workdir={directory / 'work'}"
        run = self._runc("run", "--detach", "--bundle", str(directory), "--pid-file", str(directory / "pid"), self.id)
        with (directory / "log").open("w+b") as log:
            done = subprocess.run(
                [
                    *("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", options),
                    *(str(directory / "root"), *run),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
                timeout=60,
            )
            log.seek(0)
            words = log.read().decode("utf-8", "replace")
        if done.returncode != 0:
            raise ContainerError(f"runc run failed with {done.returncode}: {words.strip()}")
        self.init_pid = int((directory / "pid").read_text())
        if self.addresses:
            add_addresses(self.init_pid)

    def popen(
        self, command: Sequence[str], *, stdin: int | IO[Any] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start ``command`` in the container with ``runc exec``; stdout and stderr are pipes unless given."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen(
            self._runc("exec", self.id, *command),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            text=True,
            errors="replace",
            **options,
        )

    def run(
        self, command: Sequence[str], *, timeout_s: float = 20, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` in the container to its end and return what it printed."""
        arguments = [argument for name, value in (env or {}).items() for argument in ("--env", f"{name}={value}")]
        return subprocess.run(
            self._runc("exec", *arguments, self.id, *command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )

    def pids(self) -> list[int]:
        """Processes of the container, by the machine's pid numbers."""
        path = cgroup_roots()[0] / CGROUP_PARENT / self.id / "cgroup.procs"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def close(self) -> None:
        """Kill every process of the container and remove its files and cgroups."""
        if self._directory is None:
            return
        directory = self._directory
        subprocess.run(
            self._runc("delete", "--force", self.id),
            capture_output=True,
            check=False,
            timeout=30,
            stdin=subprocess.DEVNULL,
        )
        for root in cgroup_roots():
            remove_cgroup(root / CGROUP_PARENT / self.id)
            remove_cgroup(root / CGROUP_PARENT)
        shutil.rmtree(directory, ignore_errors=True)
        self._directory = None


def own_capabilities() -> tuple[str, ...]:
    """Names of this process's effective capabilities, as an OCI configuration spells them."""
    done = subprocess.run(["capsh", "--print"], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("Bounding set"))
    return tuple(name.upper() for name in line.partition("=")[2].split(",") if name)


def cgroup_roots() -> list[Path]:
    """Mount points of all cgroup hierarchies of this machine, the one that carries pids first."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in ("cgroup", "cgroup2"):
            roots.append(Path(left.split()[4]))
    return roots


def remove_cgroup(path: Path) -> None:
    """Remove a cgroup directory once its last process has gone; another container's may stay."""
    for _ in range(50):
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
        except OSError:
            if any(child.is_dir() for child in path.iterdir()):
                return
            time.sleep(0.02)
        else:
            return
