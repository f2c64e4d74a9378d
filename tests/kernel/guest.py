"""Runs in the virtual machine: loads the programs, performs the acts, prints what the kernel reported.

Once for each user named as argument, each time in a new process: "base" is root with the object for old kernels, "root"
is root and "agent" what the agent is in its container (uid 65534 with four capabilities), both with the object that
`loader.load` chooses. The acts are performed by root each time. Every line of standard output is a JSON object; bytes
are Latin-1 text.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from acts import ACTS

from vedette_agent import loader, prepare, privileges
from vedette_events import _native
from vedette_events.encode import decode_event

HERE = Path(__file__).parent
FILTERS = {"open_names": ["shadow"], "dedupe_ttl_ms": 0}
CONFIG = loader.Config(ring_bytes=16 << 20)


def plain(value: Any) -> Any:
    """The same as JSON knows it."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    raise TypeError(type(value).__name__)


def emit(line: dict[str, Any], to: Any = sys.stdout) -> None:
    """Write one line."""
    to.write(json.dumps(line, default=plain) + "\n")
    to.flush()


def records(programs: loader.Programs) -> list[dict[str, Any]]:
    """All records in the ring, decoded."""
    ring = _native.Ring(programs.ring_fd, programs.ring_size)
    found: list[dict[str, Any]] = []
    while True:
        data, position, count = ring.drain(1 << 20)
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "little")
            name, values = decode_event(data[at : at + size])
            found.append({"event": name, **values})
            at += size
        ring.commit(position)
        if not count:
            ring.close()
            return found


def watch(user: str, pins: Path, orders: Any, answers: Any) -> None:
    """Load, say so, wait until the acts are over, report."""
    prepare.raise_limits(0)
    prepare.mount_bpffs(pins, 65534 if user == "agent" else 0)
    if user == "agent":
        privileges.drop(65534, 65534)
    path = HERE / ("vedette.base.bpf.o" if user == "base" else "vedette.bpf.o")
    begun = time.monotonic()
    programs = loader.load(path, pins / "vedette", CONFIG)
    loaded = time.monotonic() - begun
    programs.set_filters(FILTERS)
    hooks = [[h.event, h.hook, h.state, h.reason] for h in programs.hooks]
    emit({"line": "loaded", "user": user, "hooks": hooks, "seconds": loaded, "uid": os.geteuid()}, answers)
    orders.readline()
    found = records(programs)
    for record in found:
        emit({"line": "record", "user": user, **record}, answers)
    emit({"line": "counters", "user": user, **programs.counters()}, answers)
    programs.close()
    again = loader.load(path, pins / "vedette", CONFIG)
    emit({"line": "again", "user": user, "reused": again.reused, "counters": again.counters()}, answers)
    again.detach()
    again.close()


def start(user: str) -> tuple[int, Any, Any]:
    """Start a process that watches; its id, where it takes orders, where it answers."""
    order_read, order_write = os.pipe()
    answer_read, answer_write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(order_write)
        os.close(answer_read)
        with os.fdopen(order_read) as orders, os.fdopen(answer_write, "w") as answers:
            try:
                watch(user, Path(f"/run/bpf-{user}"), orders, answers)
            except BaseException as error:
                traceback.print_exc()
                reason = getattr(error, "reason", type(error).__name__)
                emit({"line": "failed", "user": user, "reason": reason, "message": str(error)}, answers)
                log = "".join(loader._bpf().log)
                print(log[-20000:], file=sys.stderr)
        os._exit(0)
    os.close(order_read)
    os.close(answer_write)
    return pid, os.fdopen(order_write, "w"), os.fdopen(answer_read)


def perform(name: str) -> dict[str, Any]:
    """Perform an act in a process of its own; what it expects, or the error it ended with."""
    read, write = os.pipe()
    place = Path(tempfile.mkdtemp(prefix="act-"))
    place.chmod(0o755)
    pid = os.fork()
    if not pid:
        try:
            told: dict[str, Any] = {"expected": ACTS[name].do(place)}
        except BaseException:
            told = {"error": traceback.format_exc()}
        os.write(write, json.dumps(told, default=plain).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        told = json.loads(answer.read())
    os.waitpid(pid, 0)
    return {"line": "act", "name": name, "pid": pid, **told}


def main() -> None:
    """Everything, for both users."""
    for user in sys.argv[1:]:
        if user != "base" and os.uname().release.split("-")[0] >= "6":
            (HERE / "vedette.base.bpf.o").unlink(missing_ok=True)  # here the other one must do
        pid, orders, answers = start(user)
        first = answers.readline()
        sys.stdout.write(first)
        if json.loads(first)["line"] == "loaded":
            acts = [perform(name) for name in ACTS]
            time.sleep(0.2)
            orders.write("report\n")
            orders.flush()
            sys.stdout.writelines(answers)
            for line in acts:
                emit({**line, "user": user})
        os.waitpid(pid, 0)


main()
