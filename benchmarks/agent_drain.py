"""What the agent costs and bears: CPU time per million events, memory, drops under a storm, time from act to sent.

    sudo python benchmarks/agent_drain.py [--rate 500000] [--seconds 60] [--json]

The real agent on this kernel, sending to a stub in this process that reads only the batches' headers. The storm comes
from `agent_load.c`: datagram connects to addresses that never repeat, so that none is deduplicated, from as many
processes as there are processors. Storm, agent and stub share the processors: the rate that was *reached* is reported
beside the one asked for. Every figure has the load average of its time beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "live"))

from agent_process import AgentWorld, compile_load


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def private_mb(pid: int) -> float:
    """Memory that only this process holds, in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024 / 1e6


def storm(load: Path, rate: float, seconds: float, *options: str) -> dict[str, Any]:
    """One storm against one agent."""
    world = AgentWorld()
    world.detector.keep_records = False
    try:
        world.start(*options)
        assert world.process is not None
        pid = world.process.pid
        time.sleep(2.0)  # the snapshot and the hashing of what runs already are not part of the figure
        idle_mb, before = private_mb(pid), cpu_seconds(pid)
        workers = min(os.cpu_count() or 1, max(1, round(rate / 100_000)))
        count = int(rate * seconds / workers)
        command = [str(load), "storm"]
        started = time.monotonic()
        running = [
            subprocess.Popen(
                [*command, str(i << 26), str(count), str(rate / workers), str(seconds)], stdout=subprocess.DEVNULL
            )
            for i in range(workers)
        ]
        largest_mb = idle_mb
        while any(process.poll() is None for process in running):
            largest_mb = max(largest_mb, private_mb(pid))
            time.sleep(0.2)
        elapsed = time.monotonic() - started
        time.sleep(0.3)
        spent = cpu_seconds(pid) - before
        load_average = os.getloadavg()[0]
        world.stop()
        kernel = world.detector.batches[-1].counters
        events = sum(b.count for b in world.detector.batches if b.ring_to > b.ring_from)
        return {
            "rate_asked": rate,
            "rate_reached": round((kernel.emitted + kernel.dropped) / elapsed),
            "seconds": round(elapsed, 1),
            "events": events,
            "lost_between_kernel_and_detector": kernel.emitted - events,
            "dropped": kernel.dropped,
            "cpu_seconds": round(spent, 2),
            "cpu_seconds_per_million": round(spent / events * 1e6, 3),
            "cpu_share_of_a_core": round(spent / elapsed, 4),
            "private_mb_idle": round(idle_mb, 1),
            "private_mb_largest": round(largest_mb, 1),
            "batches": len(world.detector.batches),
            "compressed_bytes_per_event": round(sum(b.payload_size for b in world.detector.batches) / events, 1),
            "load_average": round(load_average, 2),
        }
    finally:
        world.close()


def latency(rounds: int = 200) -> dict[str, Any]:
    """Milliseconds from the kernel's time of an exec to the arrival of its batch, on a host that does little else."""
    world = AgentWorld()
    try:
        world.start()
        time.sleep(2.0)
        for number in range(rounds):
            subprocess.run(["/bin/true", f"latency-{number}"], check=True)
            time.sleep(0.05 + 0.013 * (number % 5))
        world.stop()
        found = []
        for records, arrived in zip(world.detector.records, world.detector.arrived, strict=True):
            for name, values in world.decode(records):
                if name == "exec" and values["argv"].startswith(b"/bin/true\0latency-"):
                    found.append((arrived - values["time"]) / 1e6)
        found.sort()
        return {
            "act_to_sent_ms_p50": round(statistics.median(found), 1),
            "act_to_sent_ms_p99": round(found[int(len(found) * 0.99)], 1),
            "samples": len(found),
            "load_average": round(os.getloadavg()[0], 2),
        }
    finally:
        world.close()


def run(rate: float = 500_000, seconds: float = 60.0) -> dict[str, Any]:
    """Measure everything; the keys at the top are those of ``build/bench.json``."""
    with tempfile.TemporaryDirectory() as directory:
        load = compile_load(Path(directory))
        little = storm(load, 1_000, min(seconds, 15.0))
        middle = storm(load, 100_000, min(seconds, 15.0))
        full = storm(load, rate, seconds)
    times = latency()
    return {
        "agent_cpu_seconds_per_million_events": full["cpu_seconds_per_million"],
        "agent_private_rss_mb": full["private_mb_largest"],
        "dropped_events": full["dropped"],
        "agent": {"1000_per_s": little, "100000_per_s": middle, "storm": full, "latency": times},
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures for people."""
    for name, values in found["agent"].items():
        print(f"agent, {name.replace('_', ' ')}  (load average {values['load_average']})")
        for key, value in values.items():
            if key != "load_average":
                print(f"    {key.replace('_', ' '):34} {value:>14,}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500_000, help="events per second of the storm")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it lasts")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = run(arguments.rate, arguments.seconds)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
