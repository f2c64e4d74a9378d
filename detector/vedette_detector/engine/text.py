r"""Turning bytes that an attacker chose into text that is safe to show, and joining paths without a file system.

Everything that leaves the engine as text went through `safe_text`: no control character, no terminal escape, no
invalid UTF-8, no bidirectional override survives; each is written as ``\xNN`` or ``\uNNNN``. A backslash stays as
it is, so the text is for reading; the exact bytes stay in the raw event store.
"""

from __future__ import annotations

import re
import unicodedata

_PLAIN = re.compile(rb"[ -~]*\Z")
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def safe_text(raw: bytes) -> str:
    r"""Decode ``raw`` for people: printable as it is, everything else escaped.

    Control and format characters (terminal escapes, newlines, bidirectional overrides) become ``\xNN`` or
    ``\uNNNN``, bytes that are not UTF-8 become ``\xNN``.
    """
    if _PLAIN.match(raw):
        return raw.decode("ascii")
    out = []
    for char in raw.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif unicodedata.category(char) in _UNSAFE_CATEGORIES:
            out.append(f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
        else:
            out.append(char)
    return "".join(out)


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
