"""Runs the images' root file systems under plain runc, with what a container runtime gives a pod like ours."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_process import AgentWorld

from tools.containers.container import cgroup_roots, remove_cgroup
from tools.images import archive

AGENT_CAPABILITIES = ("CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_SYS_PTRACE")
_CGROUP_PARENT = "vedette-image-test"

# Of what the runtimes' default profile refuses to a container without CAP_SYS_ADMIN, all that a program like ours could
# come to use. bpf and perf_event_open are let through there for CAP_BPF and CAP_PERFMON.
_REFUSED_SYSCALLS = (
    *("mount", "umount2", "move_mount", "fsopen", "open_tree", "pivot_root", "setns", "unshare", "clone3", "syslog"),
    *("add_key", "keyctl", "request_key", "init_module", "finit_module", "kexec_load", "open_by_handle_at", "quotactl"),
    *("sethostname", "setdomainname", "swapon", "userfaultfd", "io_uring_setup", "acct", "reboot", "settimeofday"),
)


def specification(
    root: Path,
    arguments: Sequence[str],
    image: archive.Image,
    *,
    user: int,
    capabilities: Sequence[str],
    mounts: Sequence[tuple[Path, str, bool]],
    host: bool,
    cgroup: str,
) -> dict[str, Any]:
    """The OCI configuration that a CRI runtime makes of our pods' security contexts; pure.

    As containerd does it, capabilities are effective and permitted for any user, never inheritable nor ambient: after
    the exec a user that is not root has none of them left.

    Args:
        root: the image's root file system.
        arguments: after the image's entry point; empty: the image's own.
        image: the image.
        user: user and group.
        capabilities: all that are granted.
        mounts: (source, destination, whether it may be written to), bound with all that is mounted below.
        host: hostPID and hostNetwork (and with it the host's name).
        cgroup: path of the cgroup.
    """
    config = image.config["config"]
    namespaces = [{"type": "ipc"}, {"type": "mount"}]
    if not host:
        namespaces += [{"type": "pid"}, {"type": "network"}, {"type": "uts"}]
    bound = [
        {
            "destination": destination,
            "type": "bind",
            "source": str(source),
            "options": ["rbind", "rprivate", "rw" if writable else "ro"],
        }
        for source, destination, writable in mounts
    ]
    quiet = ["nosuid", "noexec", "nodev"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": user, "gid": user},
            "args": [*config["Entrypoint"], *(arguments or config.get("Cmd") or [])],
            "env": config["Env"],
            "cwd": config.get("WorkingDir") or "/",
            "capabilities": {kind: list(capabilities) for kind in ("bounding", "effective", "permitted")},
            "noNewPrivileges": True,
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*quiet, "mode=1777"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [*quiet, "ro"]},
            *bound,
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    # ENOSYS for clone3, as the runtimes do: the C library then takes clone.
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                    {
                        "names": [name for name in _REFUSED_SYSCALLS if name != "clone3"],
                        "action": "SCMP_ACT_ERRNO",
                        "errnoRet": 1,
                    },
                ],
            },
        },
    }


class Bundle:
    """One container of an image: its directory, its ``runc`` and its end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.id = secrets.token_hex(32)
        self.directory = Path(tempfile.mkdtemp(prefix="vedette-image-"))
        self.cgroup = f"/{_CGROUP_PARENT}/{self.id}"

    def runc(self, *arguments: str) -> list[str]:
        """A command line of runc's."""
        return ["runc", "--root", str(self.directory / "runc"), *arguments]

    def command(self, specified: dict[str, Any]) -> list[str]:
        """The command that runs the container in the foreground."""
        (self.directory / "config.json").write_text(json.dumps(specified, indent=1))
        return self.runc("run", "--bundle", str(self.directory), self.id)

    def close(self) -> None:
        """Kill what is left and remove every trace."""
        subprocess.run(
            self.runc("delete", "--force", self.id), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        for top in cgroup_roots():
            remove_cgroup(top / _CGROUP_PARENT / self.id)
            remove_cgroup(top / _CGROUP_PARENT)
        shutil.rmtree(self.directory, ignore_errors=True)


class AgentImageWorld(AgentWorld):
    """As `AgentWorld`, with agents that run in containers of the image."""

    def __init__(self, root: Path, image: archive.Image) -> None:
        super().__init__()
        self.root = root
        self.image = image
        self.bundle: Bundle | None = None
        self.spool_volume = self.directory / "spool-volume"
        self.spool_volume.mkdir(mode=0o755)
        subprocess.run(["chown", "60700:60700", str(self.spool_volume)], check=True)

    @property
    def spool(self) -> Path:
        return self.spool_volume / "spool"

    def start(
        self, *options: str, entry: tuple[str, ...] = (), capabilities: Sequence[str] = AGENT_CAPABILITIES
    ) -> None:
        """Start a container and wait for the agent's heartbeat."""
        beats = len(self.detector.heartbeats)
        self.launch(*options, entry=entry, capabilities=capabilities)
        self.detector.wait_for(lambda: len(self.detector.heartbeats) > beats)

    def launch(
        self, *options: str, entry: tuple[str, ...] = (), capabilities: Sequence[str] = AGENT_CAPABILITIES
    ) -> None:
        """Start a container without waiting; ``entry`` comes before the image's entry point."""
        assert self.process is None
        if self.bundle is not None:
            self.bundle.close()
        self.bundle = Bundle(self.root)
        arguments = ["--node", "live", "--endpoint", "unix:///run/vedette/detector.sock", "--pin-dir", "", *options]
        specified = specification(
            self.root,
            arguments,
            self.image,
            user=60700,
            capabilities=capabilities,
            mounts=(
                (self.directory, "/run/vedette", False),
                (self.spool_volume, "/var/lib/vedette/agent", True),
                (Path("/sys/fs/cgroup"), "/host/cgroup", False),
            ),
            host=True,
            cgroup=self.bundle.cgroup,
        )
        specified["process"]["args"] = [*entry, *specified["process"]["args"]]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.bundle.command(specified), stdin=subprocess.DEVNULL, stderr=log, stdout=log
            )

    @property
    def agent_pid(self) -> int:
        """The agent's process id on the host."""
        assert self.bundle is not None
        state = subprocess.run(self.bundle.runc("state", self.bundle.id), capture_output=True, text=True, check=True)
        return int(json.loads(state.stdout)["pid"])

    def kill(self) -> None:
        """As the kernel's out-of-memory killer does it: at once, the whole container."""
        assert self.bundle is not None
        assert self.process is not None
        subprocess.run(self.bundle.runc("kill", self.bundle.id, "KILL"), capture_output=True, check=False)
        self.process.wait(20)
        self.process = None

    def wait(self) -> int:
        """Wait until the agent has ended by itself; returns its exit code."""
        assert self.process is not None
        code = self.process.wait(30)
        self.process = None
        return code

    def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None
        if self.bundle is not None:
            self.bundle.close()
        super().close()
