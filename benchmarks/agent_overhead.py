"""What watching costs the watched: CPU time of single system calls with and without the agent.

    sudo python benchmarks/agent_overhead.py [--rounds 7] [--json]

Each round measures without the agent, then with it, so that whatever else the machine does hits both alike; the medians
over the rounds are compared. CPU time (user and system, children included) and not elapsed time, in ns per call:

    open     open(2) of a file that no rule asks for, and close(2): filtered in the kernel
    connect  connect(2) of a datagram socket to an address not seen before: an event each
    exec     posix_spawn and wait of /bin/true: fork, exec and exit events
    getppid  a call that nothing looks at: what the hook itself costs
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

COUNTS = {"open": 150_000, "connect": 200_000, "exec": 400, "getppid": 1_500_000}


def one_round(load: Path) -> dict[str, float]:
    """CPU ns per call of each loop, now."""
    return {
        name: float(subprocess.run([load, name, str(count)], capture_output=True, check=True, text=True).stdout)
        for name, count in COUNTS.items()
    }


def run(rounds: int = 7) -> dict[str, Any]:
    """Measure; the keys at the top are those of ``build/bench.json``."""
    without: list[dict[str, float]] = []
    watched: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as directory:
        load = compile_load(Path(directory))
        world = AgentWorld()
        world.detector.keep_records = False
        try:
            for _ in range(rounds):
                without.append(one_round(load))
                world.start()
                time.sleep(1.0)
                watched.append(one_round(load))
                world.stop()
        finally:
            world.close()
    found = {}
    for name in COUNTS:
        off = statistics.median(values[name] for values in without)
        on = statistics.median(values[name] for values in watched)
        found[name] = {
            "without": round(off),
            "with": round(on),
            "overhead": round(on - off),
            "ratio": round(on / off, 2),
            "least_without": round(min(values[name] for values in without)),
            "least_with": round(min(values[name] for values in watched)),
        }
    return {
        "syscall_overhead_ns": {name: values["overhead"] for name, values in found.items()},
        "syscalls": found,
        "syscalls_load_average": round(os.getloadavg()[0], 2),
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures for people."""
    print(f"CPU ns per call, medians  (load average {found['syscalls_load_average']})")
    print(f"    {'':8} {'without':>10} {'with':>10} {'overhead':>10} {'ratio':>6}")
    for name, values in found["syscalls"].items():
        columns = "".join(f" {values[column]:>10,}" for column in ("without", "with", "overhead"))
        print(f"    {name:8}{columns} {values['ratio']:>6}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds to take the median of")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    found = run(arguments.rounds)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
