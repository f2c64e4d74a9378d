"""What the first process of a container owes its processes: to collect those that nobody else waits for.

A process whose parent is gone is given to process 1, and stays a zombie until that waits for it. In the detector's
container these are the remains of ``kubectl exec``. The detector's own children, the engine's workers, are waited for
by asyncio within milliseconds; so only what has been a zombie at two looks is collected here.
"""

from __future__ import annotations

import os
from pathlib import Path


def zombies(parent: int, proc: Path = Path("/proc")) -> frozenset[int]:
    """Children of ``parent`` that have ended and that nobody has waited for."""
    found = set()
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name, in parentheses, may hold any character, parentheses and spaces too (proc_pid_stat(5)).
            state, ppid = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except (OSError, ValueError):
            continue  # gone meanwhile
        if state == b"Z" and int(ppid) == parent:
            found.add(int(entry.name))
    return frozenset(found)


class Orphans:
    """Collects orphans; does nothing where this is not process 1."""

    def __init__(self, *, first: bool | None = None) -> None:
        self._first = os.getpid() == 1 if first is None else first
        self._seen: frozenset[int] = frozenset()

    def collect(self) -> int:
        """Collect what was a zombie at the last call already; returns how many those were."""
        if not self._first:
            return 0
        now = zombies(os.getpid())
        collected = 0
        for pid in now & self._seen:
            try:
                collected += os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                continue
        self._seen = now
        return collected
