"""Argument vectors and paths as bytes: splitting, joining and normalising without a file system."""

from __future__ import annotations


def split_args(raw: bytes) -> list[bytes]:
    """Split an ``args`` tail: strings each ended by NUL. A last string without NUL (truncated) counts."""
    if not raw:
        return []
    parts = raw.split(b"\0")
    if raw.endswith(b"\0"):
        parts.pop()
    return parts


def normalise(path: bytes) -> bytes:
    """Remove empty and ``.`` components and resolve ``..`` by name alone; symbolic links are not followed.

    The result of an absolute path is absolute and never climbs above the root; leading ``..`` of a relative path stay.
    """
    absolute = path.startswith(b"/")
    out: list[bytes] = []
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if out and out[-1] != b"..":
                out.pop()
                continue
            if absolute:
                continue
        out.append(part)
    joined = b"/".join(out)
    return b"/" + joined if absolute else joined


def join_path(directory: bytes, path: bytes) -> bytes:
    """Join and normalise what was passed to a call with the directory that it was relative to."""
    if not path:
        return normalise(directory) if directory else b""
    if path.startswith(b"/") or not directory:
        return normalise(path)
    return normalise(directory + b"/" + path)
