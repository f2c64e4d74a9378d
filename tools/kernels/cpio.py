"""Write cpio archives of the form "newc", which the kernel unpacks into its first root file system.

Several archives one after another are one to the kernel, so the parts that seldom change are packed once
(Documentation/driver-api/early-userspace/buffer-format.rst). Device nodes need no privilege this way.
"""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path


class Archive:
    """An archive in memory; `close` ends it and gives its bytes."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._inode = 0
        self._made: set[str] = set()

    def _add(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        name = path.encode(errors="surrogateescape") + b"\0"
        self._inode += 1
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        self._write(b"070701" + b"".join(b"%08x" % field for field in fields) + name)
        self._write(data)

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self._out.write(bytes(-self._out.tell() % 4))

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory, with those above it."""
        path = path.strip("/")
        if not path or path in self._made:
            return
        self.directory(path.rpartition("/")[0])
        self._made.add(path)
        self._add(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A plain file."""
        self.directory(path.strip("/").rpartition("/")[0])
        self._add(path.strip("/"), stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self.directory(path.strip("/").rpartition("/")[0])
        self._add(path.strip("/"), stat.S_IFLNK | 0o777, target.encode(errors="surrogateescape"))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """A device node."""
        self.directory(path.strip("/").rpartition("/")[0])
        self._add(path.strip("/"), stat.S_IFCHR | 0o600, device=(major, minor))

    def tree(self, source: Path, path: str, wanted: Callable[[Path], bool] = lambda _: True) -> None:
        """The plain files below ``source`` for which ``wanted`` holds, below ``path``."""
        for entry in sorted(source.rglob("*")):
            if entry.is_file() and wanted(entry):
                self.file(f"{path}/{entry.relative_to(source)}", entry.read_bytes(), entry.stat().st_mode & 0o777)

    def tar(self, archive: tarfile.TarFile, wanted: Callable[[str], bool] = lambda _: True) -> None:
        """What a tar archive holds, hard links as copies, device nodes left out."""
        for member in archive:
            path = member.name.removeprefix(".").strip("/")
            if not path or not wanted(path):
                continue
            if member.isdir():
                self.directory(path, member.mode & 0o7777)
            elif member.issym():
                self.link(path, member.linkname)
            elif member.isreg() or member.islnk():
                source = archive.extractfile(member)
                assert source is not None
                self.file(path, source.read(), member.mode & 0o7777)

    def close(self) -> bytes:
        """The finished archive."""
        self._inode = -1
        self._add("TRAILER!!!", 0)
        self._out.write(bytes(-self._out.tell() % 512))
        return self._out.getvalue()
