"""Builds ``sources/*.c`` statically, once, into a directory that is laid over the containers' root file system.

The programs become part of the image that way: running one is no finding by itself, only what it does is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tools.containers.rootfs import locked

SOURCES = Path(__file__).parent / "sources"
_FLAGS = ("-O1", "-static", "-Wall", "-Wextra", "-Werror")

DIRECTORY = "opt/attacks"
"""Where the programs are, below the layer's root."""

QUIET_NAMES: tuple[str, ...] = (
    "usr/local/bin/xmrig",
    "usr/local/bin/nmap",
    "usr/local/bin/masscan",
    "usr/local/bin/tcpdump",
    "usr/local/bin/sliver-client",
    "usr/local/bin/chisel",
    "usr/local/bin/worker",
    "usr/local/bin/xmrigger-docs",
    "usr/local/bin/hydra-operator",
    "usr/local/bin/nmapper",
    "usr/bin/runc-shim-test",
    "home/dev/hydra-docs/build",
)
"""Names under which the program that does nothing is found: tools and miners, and words that merely resemble them."""

FILES: dict[str, tuple[int, str]] = {
    "opt/attacks/linpeas.sh": (0o755, "#!/bin/sh\nexit 0\n"),
    "opt/attacks/example.ko": (0o644, "not a module\n"),
    "opt/attacks/entrypoint.sh": (
        0o755,
        '#!/bin/sh\necho "listen = 80" > /etc/app.conf\nchmod 600 /etc/app.conf\nexec /bin/true\n',
    ),
}


def layer_key() -> str:
    """Name of the cache entry: 16 hex digits over sources, flags and files."""
    digest = hashlib.sha256("\0".join((*_FLAGS, *QUIET_NAMES, repr(sorted(FILES.items())))).encode())
    for source in sorted(SOURCES.glob("*.c")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def ensure_programs() -> Path:
    """Return the directory of the layer with the programs in `DIRECTORY`, building it when it is not cached.

    Raises:
        RuntimeError: the compiler is missing or refused a source; the message holds its output.
    """
    with locked("programs") as cache:
        target = cache / f"programs-{layer_key()}"
        if target.is_dir():
            return target
        building = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
        try:
            building.chmod(0o755)
            directory = building / DIRECTORY
            directory.mkdir(parents=True)
            for source in sorted(SOURCES.glob("*.c")):
                done = subprocess.run(
                    ["gcc", *_FLAGS, "-o", str(directory / source.stem), str(source), "-lutil"],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode != 0:
                    raise RuntimeError(f"{source}:\n{done.stderr}")
            for name in QUIET_NAMES:
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                # A file of its own, not a link: otherwise all of them would be one inode.
                shutil.copyfile(directory / "quiet", building / name)
                os.chmod(building / name, 0o755)
            for name, (mode, text) in FILES.items():
                (building / name).write_text(text)
                (building / name).chmod(mode)
            building.rename(target)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        return target
