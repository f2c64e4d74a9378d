"""Make text that an attacker chose safe to show.

Paths, arguments, process and domain names come from whoever runs the process. A terminal must never interpret them:
escape sequences move the cursor and set titles, bidirectional marks reorder what is read, newlines forge lines. What a
terminal or an eye could misread is therefore written as an escape.
"""

from __future__ import annotations

from rich.cells import cell_len, chop_cells

from vedette_detector.text import spell

ELLIPSIS = "…"


def _escape(character: str) -> str:
    code = ord(character)
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\x1b": "\\e"}.get(character)
    if named is not None:
        return named
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, decoded with surrogateescape
        return f"\\x{code - 0xDC00:02x}"
    return spell(character)


def safe(text: object, *, limit: int | None = None, keep_newlines: bool = False) -> str:
    """Return ``text`` with every character escaped that is not plainly printable.

    `str.isprintable` is false for controls (C0, C1, DEL), format characters (bidirectional marks, zero-width ones),
    surrogates, line separators and unassigned code points.

    Args:
        text: anything; ``str()`` of it is shown.
        limit: greatest number of terminal cells of the result, the ellipsis included; None for no bound.
        keep_newlines: for text of our own that has lines.
    """
    string = str(text)
    # Escaping makes text longer, never shorter: what lies beyond the bound needs not be looked at.
    cut = limit is not None and len(string) > limit * 4
    if cut and limit is not None:
        string = string[: limit * 4]
    if not string.isprintable():
        string = "".join(c if c.isprintable() or (keep_newlines and c == "\n") else _escape(c) for c in string)
    return shorten(string, limit, cut) if limit is not None else string


def shorten(string: str, limit: int, cut: bool = False) -> str:
    """Return ``string`` in at most ``limit`` terminal cells, ending in an ellipsis if something is left out."""
    if not cut and cell_len(string) <= limit:
        return string
    if limit <= 1:
        return ELLIPSIS[:limit]
    pieces = chop_cells(string, limit - 1)
    return (pieces[0] if pieces else "") + ELLIPSIS
