"""Build the BPF object with clang: ``python -m vedette_agent.bpf_build [--force]``.

The object lies beside its sources and is built when it is missing or when a source is newer. Debug information other
than BTF is stripped: half a megabyte remains. A second object beside it is for kernels before 5.17.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).parent / "bpf"
OBJECT = SOURCES / "vedette.bpf.o"


class BuildError(RuntimeError):
    """The object could not be built; ``reason`` is CompilerMissing or CompilerFailed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def base_of(target: Path) -> Path:
    """Where the variant for kernels before 5.17 lies: it reads with helpers only (core.h, VEDETTE_BASE)."""
    return target.with_name(target.name.removesuffix(".bpf.o") + ".base.bpf.o")


def is_stale(target: Path = OBJECT) -> bool:
    """Whether ``target`` is missing or older than a source."""
    if not target.exists():
        return True
    built = target.stat().st_mtime_ns
    return any(path.stat().st_mtime_ns > built for path in SOURCES.iterdir() if path.suffix in (".c", ".h"))


def build(target: Path = OBJECT, *, defines: tuple[str, ...] = ()) -> Path:
    """Compile ``vedette.bpf.c`` into ``target`` and return it; ``defines`` are preprocessor names to set.

    The result is renamed into place, so a reader never sees half an object.

    Raises:
        BuildError: clang is missing or refuses the source.
    """
    for tool in ("clang", "llvm-strip"):
        if shutil.which(tool) is None:
            raise BuildError("CompilerMissing", f"{tool} is not installed: apt install clang llvm libbpf-dev")
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    multiarch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86", "-Wall", "-Werror"]
    command += [f"-I/usr/include/{multiarch}", *(f"-D{name}" for name in defines)]
    try:
        for step in (
            [*command, "-c", str(SOURCES / "vedette.bpf.c"), "-o", str(unfinished)],
            ["llvm-strip", "-g", str(unfinished)],
        ):
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BuildError("CompilerFailed", f"{step[0]} failed:\n{done.stderr}")
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target


def ensure() -> Path:
    """The object's path, built first when it is stale and a compiler is there.

    Raises:
        BuildError: there is no object and it could not be built.
    """
    for target, defines in ((base_of(OBJECT), ("VEDETTE_BASE",)), (OBJECT, ())):
        if is_stale(target) and (not target.exists() or shutil.which("clang")):
            build(target, defines=defines)
    return OBJECT


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vedette_agent.bpf_build", description=__doc__)
    parser.add_argument("--force", action="store_true", help="build even when nothing has changed")
    arguments = parser.parse_args(argv)
    try:
        if arguments.force:
            base_of(OBJECT).unlink(missing_ok=True)
            OBJECT.unlink(missing_ok=True)
        path = ensure()
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
