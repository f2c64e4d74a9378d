"""What can go wrong for a person at the command line, each with what to do about it."""

from __future__ import annotations

import sys
from typing import IO, Any

import click

from vedette_cli.text import safe


class CommandError(click.ClickException):
    """A command could not do what was asked; printed on stderr, exit code 1.

    Attributes:
        reason: stable CamelCase word for scripts and tests.
        message: what was wrong and where.
        hint: what to do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message and the hint on stderr, control characters escaped."""
        stream = file or sys.stderr
        lines = [f"vedette: {safe(self.message, keep_newlines=True)}"]
        if self.hint:
            lines += [f"  {safe(line)}" for line in self.hint.splitlines()]
        print("\n".join(lines), file=stream)
