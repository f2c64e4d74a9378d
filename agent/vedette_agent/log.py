"""One line per message on standard error, as JSON or as text; nothing in it can forge another line.

Values may hold bytes chosen by an attacker (paths, server answers). Everything outside printable ASCII is escaped in
both forms, so neither a terminal nor a line-based log collector can be misled.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
_ORDER: dict[str, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}


def escape(value: object) -> str:
    r"""``value`` as printable ASCII: bytes that are no text become ``\xNN``, control characters their escapes."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text.encode("unicode_escape").decode("ascii")


def format_line(form: str, level: str, message: str, fields: dict[str, Any], wall_s: float) -> str:
    """One log line without its newline; ``form`` is ``json`` or ``text``."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall_s)) + f".{int(wall_s % 1 * 1000):03d}Z"
    if form == "json":
        document: dict[str, Any] = {"time": stamp, "level": level, "message": message}
        for name, value in fields.items():
            plain = value is None or isinstance(value, (bool, int, float))
            document[name] = value if plain else escape(value)
        return json.dumps(document)
    parts = [stamp, level.upper().ljust(7), escape(message)]
    parts += [f"{name}={_quoted(value)}" for name, value in fields.items()]
    return " ".join(parts)


def _quoted(value: object) -> str:
    text = escape(value)
    return '"' + text.replace('"', '\\"') + '"' if not text or " " in text or '"' in text or "=" in text else text


class Log:
    """Writes lines of at least ``level``.

    A message that repeats (a detector that stays away) is written at most once per ``every_s`` when it is passed to
    `repeated`; the number of the ones left out goes with the next.
    """

    def __init__(self, form: str = "text", level: Level = "info", stream: TextIO | None = None) -> None:
        self._form = form
        self._level = _ORDER[level]
        self._stream = stream if stream is not None else sys.stderr
        self._last: dict[str, tuple[float, int]] = {}

    def __call__(self, level: Level, message: str, **fields: Any) -> None:
        """Write one line."""
        if _ORDER[level] < self._level:
            return
        try:
            self._stream.write(format_line(self._form, level, message, fields, time.time()) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a closed or full log must not stop the agent

    def repeated(self, level: Level, message: str, *, every_s: float = 30.0, **fields: Any) -> None:
        """Write one line, unless the same message was written less than ``every_s`` ago."""
        now = time.monotonic()
        at, left_out = self._last.get(message, (-every_s, 0))
        if now - at < every_s:
            self._last[message] = (at, left_out + 1)
            return
        self._last[message] = (now, 0)
        if left_out:
            fields["repeats"] = left_out
        self(level, message, **fields)
