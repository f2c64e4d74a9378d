"""Where Vedette's data and sockets are, as every command finds them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

DEFAULT_DATA_DIR = Path("/var/lib/vedette")
DEFAULT_RUN_DIR = Path("/run/vedette")

DATA_DIR_HELP = (
    f"Where findings, events and the spool are kept. [default: that of the running Vedette, or {DEFAULT_DATA_DIR}]"
)


@dataclass(frozen=True)
class Location:
    """One installation on this host.

    Attributes:
        data_dir: holds ``detector/`` (findings.db, journal) and ``agent/`` (spool).
        run_dir: holds ``detector.sock``, ``run.json`` and the pins of the BPF programs.
        store_url: SQLAlchemy URL; empty for the SQLite file in the data directory.
    """

    data_dir: Path
    run_dir: Path
    store_url: str = ""

    @property
    def detector_dir(self) -> Path:
        """The detector's own directory."""
        return self.data_dir / "detector"

    @property
    def agent_dir(self) -> Path:
        """The agent's own directory."""
        return self.data_dir / "agent"

    @property
    def socket(self) -> Path:
        """Where the detector listens."""
        return self.run_dir / "detector.sock"

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL, the default filled in."""
        return self.store_url or f"sqlite:///{self.detector_dir / 'findings.db'}"

    @property
    def record(self) -> Path:
        """File in which a running Vedette says who and where it is."""
        return self.run_dir / "run.json"


def find(data_dir: Path | None, run_dir: Path, store_url: str | None) -> Location:
    """Fill in what was not given: from the running Vedette's record, else the defaults."""
    recorded: dict[str, Any] = {}
    if data_dir is None:
        try:
            content = json.loads((run_dir / "run.json").read_text())
            recorded = content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            recorded = {}
        data_dir = Path(str(recorded.get("data_dir", DEFAULT_DATA_DIR)))
    if store_url is None:
        store_url = str(recorded.get("store_url", ""))
    return Location(data_dir.absolute(), run_dir.absolute(), store_url)


def location_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options ``--data-dir``, ``--run-dir`` and ``--store``; it receives one ``location``."""

    @click.option("--data-dir", type=click.Path(path_type=Path), envvar="VEDETTE_DATA_DIR", help=DATA_DIR_HELP)
    @click.option(
        "--run-dir",
        type=click.Path(path_type=Path),
        envvar="VEDETTE_RUN_DIR",
        default=DEFAULT_RUN_DIR,
        show_default=True,
        help="Where the running Vedette has its socket.",
    )
    @click.option(
        "--store",
        "store_url",
        envvar="VEDETTE_STORE",
        metavar="URL",
        help="Database of findings, an SQLAlchemy URL. [default: SQLite in the data directory]",
    )
    @functools.wraps(command)
    def with_location(data_dir: Path | None, run_dir: Path, store_url: str | None, **rest: Any) -> Any:
        return command(location=find(data_dir, run_dir, store_url), **rest)

    return with_location
