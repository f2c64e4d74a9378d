"""The root file system of the test containers: Debian minbase by mmdebstrap, made once and cached.

The cache lies outside the tree, in ``${XDG_CACHE_HOME:-~/.cache}/vedette``, in a directory named by a hash of
everything that decides the contents. An unfinished build never has that name: it is renamed into place at the end.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

SUITE = "bookworm"
FORMAT = "1"  # raised when this module makes the same packages into something different

BASE_PACKAGES: tuple[str, ...] = (
    "binutils",
    "busybox-static",
    "gawk",
    "lua5.4",
    "lua-socket",
    "netcat-openbsd",
    "netcat-traditional",
    "openssl",
    "php-cli",
    "procps",
    "python3",
    "ruby",
    "socat",
)
"""What the attack catalogue runs inside containers; everything else is in minbase (bash, perl, dpkg, mount, ...)."""

# Documentation and translations are half of the download's files and nobody reads them here.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/ri/*",
)


def cache_directory() -> Path:
    """Return ``${XDG_CACHE_HOME:-~/.cache}/vedette``, made if missing."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    directory = Path(base) / "vedette"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Hold an exclusive lock in the cache directory, which is yielded."""
    directory = cache_directory()
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def rootfs_key(packages: Iterable[str] = BASE_PACKAGES) -> str:
    """Name of the cache entry for ``packages``: 16 hex digits over all inputs."""
    inputs = "\n".join((FORMAT, SUITE, os.uname().machine, *_DPKG_OPTIONS, *sorted(set(packages))))
    return hashlib.sha256(inputs.encode()).hexdigest()[:16]


def ensure_rootfs(packages: Iterable[str] = BASE_PACKAGES, *, attempts: int = 4) -> Path:
    """Return the directory of a root file system that holds ``packages``, making it when it is not cached.

    Takes about a minute the first time and needs the Debian mirror of the machine's own apt configuration then.

    Args:
        packages: Debian package names besides minbase's own.
        attempts: How often the build is tried: a mirror or proxy in between sometimes answers with rubbish
            ("Clearsigned file isn't valid") and is well a few seconds later.

    Raises:
        RuntimeError: every attempt failed; the message holds the end of mmdebstrap's output.
    """
    wanted = sorted(set(packages))
    with locked("rootfs") as cache:
        target = cache / f"rootfs-{rootfs_key(wanted)}"
        if target.is_dir():
            return target
        if shutil.which("mmdebstrap") is None:
            raise RuntimeError("mmdebstrap is not installed: apt-get install mmdebstrap")
        output = ""
        for attempt in range(attempts):
            building = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
            building.chmod(0o755)
            command = [
                "mmdebstrap",
                "--variant=minbase",
                "--mode=root",
                f"--include={','.join(wanted)}",
                *(f"--dpkgopt={option}" for option in _DPKG_OPTIONS),
                "--aptopt=Acquire::Retries 3",
                SUITE,
                str(building),
            ]
            print(f"building the containers' root file system in {target} (about a minute, once)", file=sys.stderr)
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode == 0:
                building.rename(target)
                return target
            output = done.stderr
            shutil.rmtree(building, ignore_errors=True)
            time.sleep(2 * (attempt + 1))
        raise RuntimeError(f"mmdebstrap failed {attempts} times:\n{output[-3000:]}")
