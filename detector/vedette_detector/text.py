"""Text that an attacker chose, made fit for JSON, logs, terminals and pages.

Paths, arguments, names and whatever a container's files say are bytes of the attacker's choice. `safe_text` keeps what
is readable and spells out the rest: control characters, invalid UTF-8, and the characters that reorder or hide text
(Unicode bidirectional controls and line separators, https://trojansource.codes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import re2  # type: ignore[import-untyped]

LIMIT = 4096
"""Characters kept of one text."""


def spell(character: str) -> str:
    """How an unprintable character is written."""
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def safe_text(value: bytes | str, limit: int = LIMIT) -> str:
    r"""Readable form of ``value``, at most ``limit`` characters before the mark that says how many are missing.

    `str.isprintable` is false for controls (C0, C1, DEL), format characters (bidirectional marks, zero-width ones),
    surrogates, line separators and unassigned code points: these are spelled out, and so are bytes that are not UTF-8.
    A backslash stays as it is, so the text is for reading; the exact bytes stay in the journal.
    """
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
    if not text.isprintable():
        text = "".join(c if c.isprintable() else spell(c) for c in text)
    if len(text) > limit:
        return f"{text[:limit]}…[+{len(text) - limit}]"
    return text


def safe(value: Any, *, limit: int = LIMIT, items: int = 256, depth: int = 12) -> Any:
    """JSON-safe copy of nested ``value``: texts through `safe_text`, collections bounded, other objects as text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | str):
        return safe_text(value, limit)
    if depth == 0:
        return "…"
    if isinstance(value, dict):
        return {
            safe_text(str(k), 256): safe(v, limit=limit, items=items, depth=depth - 1)
            for k, v in list(value.items())[:items]
        }
    if isinstance(value, Iterable):
        return [safe(v, limit=limit, items=items, depth=depth - 1) for v in list(value)[:items]]
    return safe_text(str(value), limit)


REDACTED = "[redacted]"


class Redactor:
    """Removes secrets from argument vectors and command lines."""

    def __init__(self, patterns: Sequence[str], options: Sequence[str]) -> None:
        """Compile ``patterns`` (RE2) and remember ``options`` whose next argument is a secret.

        Raises:
            ValueError: a pattern is not valid RE2.
        """
        self._patterns = []
        for pattern in patterns:
            try:
                self._patterns.append(re2.compile(pattern))
            except re2.error as error:
                raise ValueError(f"redaction pattern {pattern!r}: {error}") from None
        self._options = frozenset(options)

    def text(self, value: str) -> str:
        """``value`` with what the patterns match replaced."""
        for pattern in self._patterns:
            pieces, end = [], 0
            for match in pattern.finditer(value):
                start, stop = match.span(1) if pattern.groups and match.group(1) is not None else match.span()
                if start < end or start == stop:
                    continue
                pieces += [value[end:start], REDACTED]
                end = stop
            if pieces:
                value = "".join(pieces) + value[end:]
        return value

    def arguments(self, values: Sequence[str]) -> list[str]:
        """An argument vector with secrets replaced, as inline values and as the argument after an option."""
        result: list[str] = []
        hide = False
        for value in values:
            result.append(REDACTED if hide else self.text(value))
            hide = value in self._options
        return result

    def tree(self, value: Any) -> Any:
        """Nested JSON ``value`` with every text and every list of texts redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {k: self.tree(v) for k, v in value.items()}
        if isinstance(value, list):
            if value and all(isinstance(v, str) for v in value):
                return self.arguments(value)
            return [self.tree(v) for v in value]
        return value
