"""The command ``vedette``: the group, its order in the help, and what happens to errors."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from vedette_cli import __version__
from vedette_cli.errors import CommandError

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("vedette_cli.run:run", "Watch this host until stopped (root)."),
    "status": ("vedette_cli.status:status", "Show what is watched, what is missing and what was lost."),
    "findings": ("vedette_cli.findings:findings", "List, show, follow and export findings."),
    "events": ("vedette_cli.events:events", "Look at raw events, by filter or SQL."),
    "rules": ("vedette_cli.rules:rules", "List, show, check and test detection rules."),
    "nodes": ("vedette_cli.nodes:nodes", "List the nodes that report, and forget those that are gone."),
    "manifests": ("vedette_cli.manifests:manifests", "Print what to apply to a cluster."),
    "certificates": ("vedette_cli.certificates:certificates", "Make and renew the detector's certificates."),
    "version": ("vedette_cli.version:version", "Show versions."),
}
"""Name, where it lives and one line; modules load only when used, so that ``vedette --help`` stays quick."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of use, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command ``cmd_name``."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="vedette %(version)s")
def cli() -> None:
    """Runtime threat monitoring for this host: from kernel events to findings.

    \b
    sudo vedette run                    watch, print findings as they arrive
    vedette findings list --since 1d    what was found
    vedette findings show ID            everything about one finding
    vedette status                      is everything watched, was anything lost

    Exit codes: 0 done, 1 failed (or a check found something wrong), 2 wrong usage.
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command."""
    _utf8_output()
    try:
        cli.main(arguments, prog_name="vedette")
    except Exception as error:
        if os.environ.get("VEDETTE_TRACEBACK"):
            raise
        known = _explain(error)
        known.show()
        sys.exit(known.exit_code)


def _utf8_output() -> None:
    """Make output that the locale cannot encode appear as escapes instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")


def _explain(error: Exception) -> CommandError:
    """Return ``error`` as something to show: the detector's own errors carry a message for people."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, str):
        return CommandError(reason, str(error))
    return CommandError(
        "Unexpected",
        f"{type(error).__name__}: {error}",
        "This is a defect. VEDETTE_TRACEBACK=1 shows where it happened; please report it.",
    )
