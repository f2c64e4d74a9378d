"""Processes outside any container, with a network namespace and a directory of their own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tools.containers.place import add_addresses


class HostSandbox:
    """A place on the host itself: the host's files and cgroup, but no way out to any network.

    The mount namespace is private too, so that whatever an attack mounts is gone afterwards.
    """

    def __init__(self) -> None:
        self.name = "host"
        self.root = Path("/")
        self._holder: subprocess.Popen[bytes] | None = None
        self.directory = Path("/nonexistent")

    @property
    def container_id(self) -> str | None:
        """None: this is no container."""
        return None

    @property
    def namespaces_pid(self) -> int:
        """The process that keeps the network namespace."""
        assert self._holder is not None
        return self._holder.pid

    def __enter__(self) -> HostSandbox:
        self.directory = Path(tempfile.mkdtemp(prefix="vedette-host-"))
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._holder.stdout is not None
        try:
            self._holder.stdout.readline()  # the namespaces exist from here on
            add_addresses(self._holder.pid)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _inside(self, command: Sequence[str]) -> list[str]:
        pid = self.namespaces_pid
        return ["nsenter", f"--net=/proc/{pid}/ns/net", f"--mount=/proc/{pid}/ns/mnt", *command]

    def popen(
        self, command: Sequence[str], *, stdin: int | IO[Any] | None = None, **options: Any
    ) -> subprocess.Popen[str]:
        """Start ``command``; stdout and stderr are pipes unless given."""
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen(
            self._inside(command),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            text=True,
            errors="replace",
            cwd=self.directory,
            **options,
        )

    def run(
        self, command: Sequence[str], *, timeout_s: float = 20, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` to its end and return what it printed."""
        settings = [f"{name}={value}" for name, value in (env or {}).items()]
        return subprocess.run(
            self._inside(["env", "--", *settings, *command] if settings else command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
            cwd=self.directory,
        )

    def close(self) -> None:
        """End the holder and remove the directory."""
        if self._holder is not None:
            self._holder.send_signal(signal.SIGKILL)
            self._holder.wait()
            if self._holder.stdout is not None:
                self._holder.stdout.close()
            self._holder = None
        shutil.rmtree(self.directory, ignore_errors=True)
