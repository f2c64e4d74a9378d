"""``vedette version``."""

from __future__ import annotations

import platform
from importlib.metadata import version as installed
from typing import Any

import click

from vedette_cli import __version__
from vedette_cli.output import Format, output_option, print_data, print_line


def versions() -> dict[str, Any]:
    """Return the versions that matter in a report of a problem."""
    from vedette_events.schema import SCHEMA_VERSION

    return {
        "vedette": __version__,
        "parts": {name: installed(f"vedette-{name}") for name in ("events", "agent", "detector", "cli")},
        "event_schema": SCHEMA_VERSION,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
    }


@click.command()
@output_option()
def version(form: Format) -> None:
    """Show the versions of Vedette, of the event schema, of Python and of the kernel."""
    data = versions()
    if form != "table":
        print_data(data, form)
        return
    print_line(("vedette ", "bold"), data["vedette"])
    print_line(
        f"event schema {data['event_schema']}, Python {data['python']}, Linux {data['kernel']} {data['architecture']}"
    )
