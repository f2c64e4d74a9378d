"""``make bench``: run every benchmark, print each figure beside the machine's load, write ``build/bench.json``.

A benchmark is a module of this folder with ``run() -> dict``. Each runs in a process of its own, one after another, so
that none inherits another's memory or threads. What a module measures it says in its own first lines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEADLINES = (
    "engine_events_per_second_per_core",
    "agent_cpu_seconds_per_million_events",
    "syscall_overhead_ns",
    "agent_private_rss_mb",
    "dropped_events",
    "act_to_finding_ms_p50",
    "act_to_finding_ms_p99",
    "load_average",
)
"""Keys that `build/bench.json` always has; null where the benchmark could not be run."""


def modules() -> list[str]:
    """Benchmarks by name."""
    here = Path(__file__)
    found = [p.stem for p in sorted(here.parent.glob("*.py")) if p != here and "\ndef run(" in p.read_text()]
    return found


def run_module(name: str) -> tuple[dict[str, Any], str]:
    """Figures of one benchmark, or why there are none."""
    code = (
        "import importlib, json, sys\n"
        "found = importlib.import_module(sys.argv[1]).run()\n"
        "json.dump(found, open(sys.argv[2], 'w'))"
    )
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        command = [sys.executable, "-c", code, f"benchmarks.{name}", answer.name]
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, errors="backslashreplace")
        if done.returncode != 0:
            return {}, (done.stderr.strip() or "failed").splitlines()[-1]
        return json.load(answer), ""


def figures(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested figures, by dotted name."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from figures(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def shown(value: float) -> str:
    """A number for people."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.3g}"


def main() -> int:
    """Run all or the named benchmarks; 1 when one failed."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*modules(), []], help="only these")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args()
    merged: dict[str, Any] = dict.fromkeys(HEADLINES)
    failed: dict[str, str] = {}
    loads = [os.getloadavg()[0]]
    print(f"{os.cpu_count()} cores, Linux {os.uname().release}, load average {loads[0]:.2f} at the start")
    for name in options.names or modules():
        began, before = time.monotonic(), os.getloadavg()[0]
        found, why = run_module(name)
        after = os.getloadavg()[0]
        loads.append(after)
        print(f"\n{name}: {time.monotonic() - began:.0f} s, load average {before:.2f} to {after:.2f}")
        if why:
            failed[name] = why
            print(f"  failed: {why}")
        for key, value in figures(found):
            if "load_average" not in key:
                print(f"  {key:64} {shown(value):>14}   load {found.get('load_average', after):.2f}")
        merged.update({k: v for k, v in found.items() if k in HEADLINES and k != "load_average"})
        merged[name] = found
    merged["load_average"] = max(loads)
    merged["failed"] = failed
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(merged, indent=2) + "\n")
    print("\nheadlines (load average: the highest between the benchmarks)")
    for key in HEADLINES:
        value = merged[key]
        text = "-" if value is None else shown(value) if isinstance(value, int | float) else json.dumps(value)
        print(f"  {key:40} {text:>14}   load {merged['load_average']:.2f}")
    print(f"written to {options.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
