"""Bring a directory that becomes part of an image into its final state: pruned, compiled, reproducible.

    python3 tidy.py /opt/vedette
    python3 tidy.py /image /image     # the second: what is not part of the final paths

Runs inside a build stage, on the Python that the image will have.

- what only serves to compile against, or to test, the larger packages goes: half of pyarrow
- bytecode is made for every module, since a read-only root file system never gets any, and is tied to no time stamp
- what installers note about where and when they installed goes
"""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import sys
from pathlib import Path

PRUNED: tuple[str, ...] = (
    "pyarrow/tests",
    "pyarrow/include",
    "pyarrow/src",
    "pyarrow/libarrow_flight*",
    "pyarrow/_flight*",
    "pyarrow/libarrow_substrait*",
    "pyarrow/_substrait*",
    "pyarrow/libarrow_python_flight*",
    "pyarrow/*.pxd",
    "pyarrow/includes",
    "numpy/_core/include",
    "numpy/_core/lib",
    "zstandard/_cffi*",
    "*.dist-info/direct_url.json",
    "*.dist-info/uv_cache.json",
    "*.dist-info/uv_build.json",
    "*.dist-info/INSTALLER",
    "*.dist-info/REQUESTED",
)
"""Below site-packages. zstandard: the binding for other Pythons than CPython. RECORD files name them still."""


def prune(site_packages: Path) -> int:
    """Remove what matches `PRUNED`; returns how many bytes that were."""
    removed = 0
    for pattern in PRUNED:
        for path in sorted(site_packages.glob(pattern)):
            files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.is_symlink()]
            removed += sum(p.stat().st_size for p in files)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return removed


def compile_modules(directory: Path, prefix: str | None = None) -> bool:
    """Make bytecode that is taken as it is, whatever the module's time stamp. False when a module does not compile."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    done = compileall.compile_dir(
        directory,
        quiet=1,
        force=True,
        invalidation_mode=mode,
        workers=1,
        stripdir=prefix,
        prependdir="/" if prefix else None,
    )
    return bool(done)


def set_times(directory: Path, seconds: int) -> None:
    """Give every file and directory the same time."""
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            os.utime(os.path.join(parent, name), (seconds, seconds), follow_symlinks=False)


def main() -> int:
    """Command line; returns the exit status."""
    directory = Path(sys.argv[1])
    removed = sum(prune(path) for path in directory.glob("lib/python3*/site-packages"))
    for path in directory.rglob("__pycache__"):
        shutil.rmtree(path)
    prefix = sys.argv[2] if len(sys.argv) > 2 else None
    libraries = [path for path in directory.glob("**/lib/python3*") if path.is_dir()]
    failed = [str(path) for path in libraries if not compile_modules(path, prefix)]
    (directory / ".lock").unlink(missing_ok=True)
    set_times(directory, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
    print(f"{directory}: pruned {removed >> 20} MiB{f'; modules do not compile in {failed}' if failed else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
