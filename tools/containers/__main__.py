"""``python -m tools.containers``: make the cached root file system; with arguments, run a command in a container."""

from __future__ import annotations

import sys

from tools.containers.container import Container
from tools.containers.rootfs import ensure_rootfs


def main() -> int:
    """Return the command's exit status, 0 without one."""
    rootfs = ensure_rootfs()
    if len(sys.argv) == 1:
        print(rootfs)
        return 0
    with Container(rootfs) as container:
        done = container.run(sys.argv[1:], timeout_s=600)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
