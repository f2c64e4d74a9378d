"""``make demo-host``: attack this machine harmlessly, and watch the findings arrive.

Starts Vedette on this host with a data directory of its own, carries out behaviours of ``tools/attacks`` in throw-away
containers and on the host (everything stays in network namespaces without a way out), prints each finding when it is in
the store, and ends with a table. Exit code 1 when a finding that must come does not, or one comes that must not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tools.attacks import CATALOGUE, Behaviour, Performed, by_name, ensure_programs, open_place, perform
from tools.attacks.catalogue import THREAT_LIST
from tools.containers import ensure_rootfs
from tools.demo.script import ATTACKS, ORDINARY
from vedette_cli import detector_client
from vedette_cli.errors import CommandError
from vedette_cli.findings import process_line, where
from vedette_cli.location import Location
from vedette_cli.output import band, severity_style
from vedette_cli.supervisor import check_host
from vedette_cli.text import safe
from vedette_detector.store import Filters, Finding, Store

START_TIMEOUT_S = 60.0
PATIENCE_S = 6.0
"""How long an expected finding may take before it counts as missing."""
QUIET_S = 1.0
"""How long an ordinary behaviour is watched for findings afterwards."""
POLL_S = 0.005


@dataclass(frozen=True)
class Arrival:
    """A finding as a reader of the store saw it: new, or repeated.

    Attributes:
        seen_ns: when the reader saw it, ns since the epoch; at most `POLL_S` after the commit.
        latency_ms: from the kernel's time of the act to ``seen_ns``.
    """

    finding: Finding
    seen_ns: int

    @property
    def latency_ms(self) -> float:
        """Milliseconds from the act to a reader of the store."""
        return (self.seen_ns - self.finding.last_seen_ns) / 1e6


@dataclass
class Outcome:
    """What came of one behaviour."""

    behaviour: Behaviour
    explanation: str
    arrivals: list[Arrival] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether all came that must, and nothing else."""
        return not self.missing and not self.unexpected


class Watcher:
    """Reads the store all the time, as any consumer of findings would, and keeps what arrives."""

    def __init__(self, location: Location) -> None:
        self._store = Store(location.database_url, read_only=True)
        self._cursor = self._store.cursor()
        self._arrivals: list[Arrival] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(POLL_S):
            found, self._cursor = self._store.since(self._cursor, Filters(archived=None))
            now = time.time_ns()
            self._arrivals += [Arrival(finding, now) for finding in found]

    def of(self, behaviour: Behaviour, container_id: str | None, since_ns: int) -> list[Arrival]:
        """Arrivals that belong to a behaviour: in its container, or on the host since it began."""
        return [a for a in list(self._arrivals) if belongs(a.finding, behaviour, container_id, since_ns)]

    def others(self, known: Sequence[Arrival]) -> list[Arrival]:
        """Arrivals that are not among ``known``."""
        ids = {(a.finding.id, a.finding.revision) for a in known}
        return [a for a in list(self._arrivals) if (a.finding.id, a.finding.revision) not in ids]

    def close(self) -> None:
        """Stop reading."""
        self._done.set()
        self._thread.join(timeout=5)
        self._store.close()


def belongs(finding: Finding, behaviour: Behaviour, container_id: str | None, since_ns: int) -> bool:
    """Whether a finding is about what ``behaviour`` did; pure.

    The machine may do other things meanwhile, so a finding on the host counts only with a type that was to be expected.
    """
    if container_id is not None:
        return finding.resource_type == "Container" and finding.resource_id == container_id
    mine = finding.resource_type == "Instance" and finding.last_seen_ns >= since_ns
    return mine and finding.type in (*behaviour.findings, behaviour.look_alike)


def play(behaviour: Behaviour, explanation: str, watcher: Watcher, show: Console) -> Outcome:
    """Carry one behaviour out and wait for what it must bring."""
    outcome = Outcome(behaviour, explanation)
    shown: set[tuple[str, int]] = set()
    with open_place(behaviour) as place:
        began_ns = time.time_ns()
        done: list[Performed] = []
        acting = threading.Thread(target=lambda: done.append(perform(behaviour, place)))
        acting.start()
        deadline = float("inf")
        while True:
            outcome.arrivals = watcher.of(behaviour, place.container_id, began_ns)
            for arrival in outcome.arrivals:
                mark = (arrival.finding.id, arrival.finding.revision)
                if mark not in shown and arrival.finding.id not in {i for i, _ in shown}:
                    show.print(finding_line(arrival), no_wrap=True, overflow="ellipsis")
                shown.add(mark)
            types = {a.finding.type for a in outcome.arrivals}
            if not acting.is_alive():
                if deadline == float("inf"):
                    acting.join()
                    deadline = time.monotonic() + (PATIENCE_S if behaviour.findings else QUIET_S)
                if behaviour.findings and set(behaviour.findings) <= types:
                    break
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
    outcome.missing = tuple(t for t in behaviour.findings if t not in types)
    outcome.unexpected = tuple(sorted(types - set(behaviour.findings)))
    return outcome


def finding_line(arrival: Arrival) -> Text:
    finding = arrival.finding
    line = Text("   → ", "dim")
    line.append(f"{arrival.latency_ms:>5.0f} ms  ", "green")
    line.append(f"{band(finding.severity):>6} {finding.severity:.1f}", severity_style(finding.severity))
    line.append(f"  {safe(finding.type)}", "bold")
    line.append(f"  {safe(where(finding), limit=40)}  ")
    line.append(safe(process_line(finding.document), limit=80))
    return line


def table_of(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("BEHAVIOUR", no_wrap=True)
    table.add_column("WHERE")
    table.add_column("FINDING", no_wrap=True)
    table.add_column("ACT → STORED", justify="right", no_wrap=True)
    for outcome in outcomes:
        if outcome.behaviour.findings:
            found = ", ".join(outcome.behaviour.findings)
            text = Text(f"{found}" if not outcome.missing else f"MISSING: {', '.join(outcome.missing)}")
        else:
            text = Text("none, as it should be", "dim")
        if outcome.unexpected:
            text = Text(f"UNEXPECTED: {', '.join(outcome.unexpected)}")
        first = next((a for a in outcome.arrivals if a.finding.type in outcome.behaviour.findings), None)
        mark = Text("✔", "green") if outcome.good else Text("✘", "bold red")
        latency = f"{first.latency_ms:.0f} ms" if first else "-"
        text.style = text.style if outcome.good else "bold red"
        table.add_row(mark, outcome.behaviour.name, outcome.behaviour.where, text, latency)
    return table


@contextlib.contextmanager
def running(location: Location, lists: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run Vedette on this host; stopped in order at the end, whatever happens."""
    command = [
        *(sys.executable, "-m", "vedette_cli", "run", "--quiet"),
        *("--data-dir", str(location.data_dir), "--run-dir", str(location.run_dir), "--threat-lists", str(lists)),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_watched(location: Location, process: subprocess.Popen[bytes], log: Path) -> dict[str, object]:
    """Wait until the agent has reported loaded hooks; returns the node's status."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"Vedette did not start:\n{log.read_text(errors='replace')}")
        try:
            nodes = detector_client.get(location.socket, "/v1/status").get("nodes") or []
        except CommandError:
            nodes = []
        for node in nodes:
            if isinstance(node, dict) and any(h.get("state") == "loaded" for h in node.get("hooks") or []):
                return node
        time.sleep(0.05)
    raise SystemExit(f"no agent reported within {START_TIMEOUT_S:.0f} s:\n{log.read_text(errors='replace')}")


def chosen(names: Sequence[str], everything: bool) -> list[tuple[Behaviour, str]]:
    """The behaviours to play with their explanations."""
    if everything:
        return [(b, b.title) for b in CATALOGUE]
    texts = dict((*ATTACKS, *ORDINARY))
    if names:
        return [(by_name(name), texts.get(name, by_name(name).title)) for name in names]
    return [(by_name(name), text) for name, text in (*ATTACKS, *ORDINARY)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make demo-host", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="behaviours to play instead of the usual ones (see --list)")
    parser.add_argument("--all", action="store_true", help="play the whole catalogue")
    parser.add_argument("--list", action="store_true", help="list the catalogue and end")
    parser.add_argument("--data-dir", type=Path, help="keep findings here (default: a temporary directory, removed)")
    options = parser.parse_args()
    terminal = sys.stdout.isatty()
    show = Console(markup=False, highlight=False, emoji=False, width=None if terminal else 130)
    if options.list:
        for behaviour in CATALOGUE:
            print(f"{behaviour.name:36} {behaviour.where:10} {behaviour.title}")
        return 0
    try:
        check_host()
    except CommandError as error:
        error.show()
        return 1
    plays = chosen(options.names, options.all)
    temporary = Path(tempfile.mkdtemp(prefix="vedette-demo-"))
    temporary.chmod(0o755)
    location = Location(options.data_dir or temporary / "data", temporary / "run")
    lists = temporary / "lists"
    lists.mkdir()
    (lists / "demo.txt").write_text(THREAT_LIST)
    log = temporary / "vedette.log"
    show.print(Rule("Vedette demo", style="bold"))
    show.print("Preparing containers and programs ...", style="dim")
    ensure_rootfs()
    ensure_programs()
    outcomes: list[Outcome] = []
    others: list[Arrival] = []
    try:
        began = time.monotonic()
        with running(location, lists, log) as process:
            node = wait_until_watched(location, process, log)
            watcher = Watcher(location)
            raw_hooks = node.get("hooks")
            hooks = raw_hooks if isinstance(raw_hooks, list) else []
            loaded = sum(1 for h in hooks if h.get("state") == "loaded")
            show.print(
                f"Vedette watches {os.uname().nodename} (Linux {os.uname().release}), {time.monotonic() - began:.1f} s "
                f"after its start: {loaded} of {len(hooks)} hooks loaded."
            )
            for number, (behaviour, explanation) in enumerate(plays, 1):
                show.print()
                heading = Text(f"{number:>2}/{len(plays)}  ", "dim")
                heading.append(explanation, "bold")
                heading.append(f"  [{behaviour.name}, {behaviour.where}]", "dim")
                show.print(heading, no_wrap=True, overflow="ellipsis")
                outcome = play(behaviour, explanation, watcher, show)
                outcomes.append(outcome)
                for missing in outcome.missing:
                    show.print(f"   ✘ no {missing} within {PATIENCE_S:.0f} s", style="bold red")
                if not behaviour.findings and not outcome.unexpected:
                    show.print("     quiet, as it should be", style="dim")
            time.sleep(0.2)
            others = watcher.others([a for o in outcomes for a in o.arrivals])
            watcher.close()
            status = detector_client.get(location.socket, "/v1/status")
        show.print()
        show.print(Rule("behaviour → finding → time from act to stored finding", style="bold"))
        show.print(table_of(outcomes))
        show.print()
        latencies = sorted(a.latency_ms for o in outcomes for a in o.arrivals if a.finding.count == 1)
        if latencies:
            middle, last, load = latencies[len(latencies) // 2], latencies[-1], os.getloadavg()[0]
            show.print(f"median {middle:.0f} ms, slowest {last:.0f} ms, load average {load:.1f}")
        for node_status in status.get("nodes") or []:
            for entry in node_status.get("ledger") or []:
                show.print(
                    f"ledger: {entry.get('emitted', 0):,} events emitted, {entry.get('received', 0):,} received, "
                    f"{entry.get('dropped', 0):,} dropped, {entry.get('spool_lost_events', 0):,} lost"
                )
        if others:
            show.print(f"{len(others)} further findings came of other things on this machine:", style="dim")
            for arrival in others[:10]:
                show.print(finding_line(arrival), no_wrap=True, overflow="ellipsis")
        bad = [o for o in outcomes if not o.good]
        good = len(outcomes) - len(bad)
        show.print(
            f"{good} of {len(outcomes)} behaviours judged as expected" + ("." if not bad else ": see ✘ above."),
            style="bold green" if not bad else "bold red",
        )
        if bad:
            show.print(f"Vedette's own log:\n{log.read_text(errors='replace')[-3000:]}", style="dim")
        elif options.data_dir:
            show.print(f"Look closer: .venv/bin/vedette findings list --data-dir {options.data_dir}")
        return 1 if bad else 0
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
