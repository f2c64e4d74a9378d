"""From an act to its stored finding: how long a reader of the store waits.

Runs the whole pipeline as a user does (``vedette run``) on a data directory of its own. A small program connects UDP
sockets to one address of a listed network after another, inside a network namespace without a way out, and notes the
time before each call. Each makes a finding of its own; a reader polls the store as any consumer would. The latency is
from the one to the other, commit and poll included.

Twice: on the machine as it is, and while another program makes 200,000 events a second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.attacks.catalogue import C2_LISTED_NETWORK, THREAT_LIST
from tools.containers import HostSandbox
from tools.demo.host import Arrival, Watcher, running, wait_until_watched
from vedette_cli import detector_client
from vedette_cli.location import Location

ACTS = 120
PAUSE_S = 0.12
STORM_RATE = 200_000
WARM_UP_S = 2.0
PATIENCE_S = 10.0

ACT = """
import socket, sys, time
first, count, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
for n in range(count):
    address = f"2001:db8:bad::{first + n:x}"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        began = time.time_ns()
        s.connect((address, 443))
    print(address, began, flush=True)
    time.sleep(pause)
"""


def build_load(directory: Path) -> Path:
    """Compile the load generator of the agent's benchmark."""
    program = directory / "agent_load"
    source = Path(__file__).with_name("agent_load.c")
    subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)
    return program


@contextlib.contextmanager
def storm(program: Path, seconds: float) -> Iterator[None]:
    """Make events at `STORM_RATE` meanwhile."""
    count = int(STORM_RATE * seconds)
    process = subprocess.Popen(
        [str(program), "storm", "0", str(count), str(STORM_RATE)], stdout=subprocess.PIPE, text=True
    )
    try:
        time.sleep(WARM_UP_S)
        yield
    finally:
        process.terminate()
        process.communicate()


def act(place: HostSandbox, first: int, count: int) -> dict[str, int]:
    """Connect to one address after another; returns when each call began (ns since the epoch) by address."""
    command = [sys.executable, "-I", "-S", "-c", ACT, str(first), str(count), str(PAUSE_S)]
    output, errors = place.popen(command).communicate(timeout=count * (PAUSE_S + 1))
    times = {address: int(began) for address, began in (line.split() for line in output.splitlines())}
    if len(times) != count:
        raise SystemExit(f"the acts failed: {errors}")
    return times


def address_of(arrival: Arrival) -> str | None:
    """The remote address that a finding is about."""
    action = arrival.finding.document.get("service", {}).get("action", {}).get("networkConnectionAction", {})
    address = action.get("remoteIpDetails", {}).get("ipAddressV6")
    return str(address) if address else None


def measure(place: HostSandbox, watcher: Watcher, first: int, count: int = ACTS) -> list[float]:
    """Latencies in ms, one for each act.

    Raises:
        SystemExit: an act has no finding.
    """
    times = act(place, first, count)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        seen: dict[str, int] = {}
        for arrival in watcher.others([]):
            address = address_of(arrival)
            if address is not None:
                seen.setdefault(address, arrival.seen_ns)
        missing = [address for address in times if address not in seen]
        if not missing:
            return [(seen[address] - began) / 1e6 for address, began in times.items()]
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(missing)} of {count} acts have no finding after {PATIENCE_S:.0f} s")
        time.sleep(0.05)


def percentiles(values: Sequence[float], suffix: str) -> dict[str, float]:
    """Median, 99th percentile and greatest, under the keys of ``build/bench.json``."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        f"act_to_finding_ms_p50{suffix}": cuts[49],
        f"act_to_finding_ms_p99{suffix}": cuts[98],
        f"act_to_finding_ms_max{suffix}": max(values),
        f"load_average{suffix or '_idle'}": os.getloadavg()[0],
    }


def ledger(location: Location) -> dict[str, int]:
    """Sums over the sessions of the ledger."""
    entries = [e for n in detector_client.get(location.socket, "/v1/status")["nodes"] for e in n.get("ledger") or []]
    return {k: sum(int(e.get(k, 0)) for e in entries) for k in ("emitted", "received", "dropped", "spool_lost_events")}


def run(count: int = ACTS) -> dict[str, Any]:
    """Measure both; keys for ``build/bench.json``."""
    temporary = Path(tempfile.mkdtemp(prefix="vedette-latency-"))
    temporary.chmod(0o755)
    location = Location(temporary / "data", temporary / "run")
    (temporary / "lists").mkdir()
    (temporary / "lists" / "list.txt").write_text(THREAT_LIST)
    log = temporary / "log"
    out: dict[str, Any] = {}
    try:
        load = build_load(temporary)
        with running(location, temporary / "lists", log) as process, HostSandbox() as place:
            wait_until_watched(location, process, log)
            place.run(["ip", "-6", "route", "add", "local", C2_LISTED_NETWORK, "dev", "lo"])
            watcher = Watcher(location)
            time.sleep(WARM_UP_S)
            measure(place, watcher, 10_000, 10)  # the first findings warm caches, as a running service has them
            out |= percentiles(measure(place, watcher, 20_000, count), "")
            before = ledger(location)
            began = time.monotonic()
            with storm(load, WARM_UP_S + count * (PAUSE_S + 0.05) + 10):
                out |= percentiles(measure(place, watcher, 30_000, count), "_storm")
                seconds = time.monotonic() - began
                after = ledger(location)
            out["storm_events_per_second"] = (after["received"] - before["received"]) / seconds
            out["storm_dropped_events"] = after["dropped"] - before["dropped"]
            watcher.close()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acts", type=int, default=ACTS)
    print(json.dumps(run(parser.parse_args().acts), indent=2))


if __name__ == "__main__":
    main()
