"""Fetch and boot kernels: ``python -m tools.kernels fetch [FAMILY…] [--refresh] | run FAMILY COMMAND…``."""

from __future__ import annotations

import argparse
import sys

from tools.kernels.debian import FAMILIES, KernelError, ensure_kernel, ensure_rootfs
from tools.kernels.machine import MachineError, boot


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.kernels", description="Debian's kernels in virtual machines")
    actions = parser.add_subparsers(dest="action", required=True)
    fetch = actions.add_parser("fetch", help="fetch kernels and make the root file system")
    fetch.add_argument("family", nargs="*", default=FAMILIES)
    fetch.add_argument("--refresh", action="store_true", help="look for newer ones")
    run = actions.add_parser("run", help="boot a kernel and run a command in it")
    run.add_argument("family")
    run.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    try:
        if arguments.action == "fetch":
            ensure_rootfs()
            for family in arguments.family:
                kernel = ensure_kernel(family, refresh=arguments.refresh)
                print(f"{family:8} {kernel.release} ({kernel.version})")
            return 0
        finished = boot(ensure_kernel(arguments.family), arguments.command)
    except (KernelError, MachineError) as error:
        print(error, file=sys.stderr)
        return 1
    sys.stderr.write(finished.console)
    sys.stdout.write(finished.output.decode(errors="replace"))
    print(f"exit status {finished.status} after {finished.seconds:.0f} s", file=sys.stderr)
    return finished.status


if __name__ == "__main__":
    sys.exit(main())
