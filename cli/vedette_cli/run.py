"""``vedette run``: watch this host until stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vedette_cli import detector_client
from vedette_cli.errors import CommandError
from vedette_cli.findings import PAGE, losses, print_arrival
from vedette_cli.location import Location, location_options
from vedette_cli.output import console, note
from vedette_cli.status import problems
from vedette_cli.supervisor import (
    Supervisor,
    agent_command,
    check_host,
    detector_command,
    locked,
    make_directories,
)
from vedette_cli.text import safe

if TYPE_CHECKING:
    from vedette_detector.store import Store

LOSS_CHECK_S = 10.0
"""How often the ledger is looked at for new losses."""

DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@location_options
@click.option(
    "--rules", multiple=True, type=DIRECTORY, metavar="DIR", help="Sigma rules of your own, beside the built-in ones."
)
@click.option(
    "--threat-lists", multiple=True, type=DIRECTORY, metavar="DIR", help="Lists of hostile addresses, domains, hashes."
)
@click.option("--node", help="Name of this host in findings. [default: the host name]")
@click.option("--workers", type=click.IntRange(0), default=0, help="Engine processes. [default: one for each core]")
@click.option("--quiet", is_flag=True, help="Do not print findings.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="warning", show_default=True
)
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How findings are printed: a line for people, or JSON Lines.",
)
def run(
    location: Location,
    rules: tuple[Path, ...],
    threat_lists: tuple[Path, ...],
    node: str | None,
    workers: int,
    quiet: bool,
    log_level: str,
    form: str,
) -> None:
    """Watch this host and print each new finding on stdout as it arrives.

    Runs the detector and the agent, starts either again when it dies, and stops both on Ctrl-C or SIGTERM. Needs root
    and a kernel with type information (BTF). Rules and threat lists are read again when their files change.

    \b
    sudo vedette run
    sudo vedette run --threat-lists /etc/vedette/lists --rules /etc/vedette/rules
    sudo vedette run -o json >> /var/log/vedette.jsonl
    """
    check_host()
    make_directories(location)
    with locked(location):
        if location.store_url:
            check_store(location.store_url)
        supervisor = Supervisor(
            location,
            detector_command(location, rules=rules, threat_lists=threat_lists, workers=workers, log_level=log_level),
            agent_command(location, node=node or os.uname().nodename, log_level=log_level),
            log,
        )
        arrivals = Arrivals(location, print_them=not quiet, form="json" if form == "json" else "table")
        announcement = Announcement(location)

        def tick() -> None:
            announcement.tick()
            arrivals.tick()

        code = supervisor.run(tick=tick)
        unmount_pins(location)
        arrivals.tick(last=True)
        arrivals.close()
    if code == 0:
        log("stopped")
    sys.exit(code)


def log(line: str) -> None:
    """Print one line about what Vedette does on stderr."""
    console(sys.stderr).print(f"vedette: {safe(line, limit=2000)}", style="dim", soft_wrap=True)


def check_store(url: str) -> None:
    """Open another database than the default once, so that a wrong URL or password is said at once.

    Raises:
        DetectorError: it cannot be used; the message says why.
    """
    from vedette_detector.store import Store

    Store(url, timeout_s=5.0).close()


def unmount_pins(location: Location) -> None:
    """Unmount the bpffs that the agent mounted for its pins; it has no right to, once it is no longer root.

    Pins that a killed agent left are gone with it, and with them its programs: nothing stays in the kernel.
    """
    pins = location.run_dir / "bpf"
    if pins.is_mount():
        done = subprocess.run(["umount", str(pins)], capture_output=True, text=True, check=False)
        if done.returncode:
            note(f"{pins} could not be unmounted: {done.stderr.strip()}")


class Announcement:
    """Says once that the host is watched: when the agent has reported its hooks; and what is not watched."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._next = 0.0
        self._done = False

    def tick(self) -> None:
        """Ask the detector, twice a second at most, until an agent has reported to it."""
        if self._done or time.monotonic() < self._next or not self._location.socket.exists():
            return
        self._next = time.monotonic() + 0.5
        try:
            data = detector_client.get(self._location.socket, "/v1/status")
        except CommandError:
            return
        nodes = [n for n in data.get("nodes") or [] if not n.get("silent") and n.get("hooks")]
        if not nodes:
            return
        self._done = True
        hooks = nodes[0]["hooks"]
        loaded = sum(1 for hook in hooks if hook.get("state") == "loaded")
        log(f"watching {nodes[0].get('node')}, {loaded} of {len(hooks)} hooks; data in {self._location.data_dir}")
        for problem in problems(data):
            note(problem)


class Arrivals:
    """Prints findings that are new since the start, and losses."""

    def __init__(self, location: Location, *, print_them: bool, form: str) -> None:
        self._location = location
        self._print = print_them
        self._form = form
        self._store: Store | None = None
        self._cursor = 0
        self._next_loss_check = 0.0
        self._started_ns = time.time_ns()
        self._told: set[str] = set()

    def tick(self, *, last: bool = False) -> None:
        """Print what arrived since the call before."""
        from vedette_detector.errors import DetectorError
        from vedette_detector.store import Filters, Store

        try:
            if self._store is None:
                # The detector makes the database; until it listens there may be none, or one of an older version.
                if not self._location.socket.exists():
                    return
                self._store = Store(self._location.database_url, read_only=True, timeout_s=1.0)
                self._cursor = 0
            while True:
                found, self._cursor = self._store.since(self._cursor, Filters(archived=None), limit=PAGE)
                for finding in found:
                    if self._print and finding.created_at_ns >= self._started_ns and finding.id not in self._told:
                        self._told.add(finding.id)
                        print_arrival(finding, "json" if self._form == "json" else "table")
                if len(found) < PAGE:
                    break
            now = time.monotonic()
            if last or now >= self._next_loss_check:
                self._next_loss_check = now + LOSS_CHECK_S
                for line in losses(self._store, self._started_ns):
                    if line not in self._told:
                        self._told.add(line)
                        note(line)
        except DetectorError as error:
            # The detector has the same trouble and says so; findings are printed when the store works again.
            if last:
                note(f"findings could not be read at the end: {error}")

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
