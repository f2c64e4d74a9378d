"""The bound on the work that one node's candidates cause: who goes on, what is counted, what is said."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vedette_detector.detectors.reverse_shell import ReverseShell
from vedette_detector.engine import Detection, EngineContext, EngineSettings, Event, Mask, NodeHistory, Selector
from vedette_detector.engine.budget import Unexamined, WorkBudget
from vedette_detector.engine.engine import Engine, Outcome, UnitError
from vedette_detector.sigma.rule_tests import CONTAINER_CGROUP, encode_events, make_header

SECOND = 10**9
CONTAINER_ID = "cd" * 32


def spent(seconds: float, cgroup: int = 1) -> WorkBudget:
    budget = WorkBudget(1.0, 10.0)
    budget.advance(5 * SECOND)
    budget.charge(cgroup, seconds)
    return budget


def test_nobody_is_told_apart_before_the_budget_is_used_up() -> None:
    assert not spent(0.99).exhausted
    assert spent(1.0).exhausted


def test_of_one_kind_the_first_the_fourth_and_the_sixteenth_are_examined() -> None:
    budget = spent(1.0)
    examined = [n for n in range(1, 70) if budget.admits(7, 1, b"/bin/sh")]
    assert examined == [1, 4, 16, 64]
    assert budget.skipped(7, 1) == 65


def test_each_rule_container_and_program_is_a_kind_of_its_own() -> None:
    budget = spent(1.0)
    budget.charge(2, 0.5)
    kinds = [(7, 1, b"/bin/sh"), (8, 1, b"/bin/sh"), (7, 2, b"/bin/sh"), (7, 1, b"/bin/bash")]
    assert [budget.admits(*kind) for kind in kinds] == [True] * 4
    assert [budget.admits(*kind) for kind in kinds] == [False] * 4


def test_a_container_that_has_used_little_goes_on() -> None:
    budget = spent(1.0, cgroup=1)
    assert [budget.admits(7, 2, b"/bin/sh") for _ in range(10)] == [True] * 10
    budget.charge(2, 0.2)
    assert [budget.admits(7, 2, b"/bin/sh") for _ in range(3)] == [True, False, False]


def test_many_containers_together_get_the_budget_once_more() -> None:
    budget = spent(1.0, cgroup=1)
    for cgroup in range(2, 12):
        budget.charge(cgroup, 0.1)
    assert [budget.admits(7, 2, b"/bin/sh") for _ in range(3)] == [True, False, False]


def test_made_up_names_do_not_make_kinds_without_end() -> None:
    budget = spent(1.0)
    admitted = sum(budget.admits(7, 1, str(n).encode()) for n in range(100_000))
    assert 1024 < admitted < 1024 + 12
    assert admitted + budget.skipped(7, 1) == 100_000


def test_a_new_period_begins_with_a_full_budget_by_the_clock_of_the_node() -> None:
    budget = spent(1.0)
    budget.admits(7, 1, b"/bin/sh")
    assert not budget.admits(7, 1, b"/bin/sh")
    budget.advance(15 * SECOND - 1)
    assert budget.exhausted
    budget.advance(15 * SECOND)
    assert not budget.exhausted
    assert budget.skipped(7, 1) == 0


@dataclass
class Slow:
    """Takes a millisecond of CPU time for each exec and reports it."""

    asked: list[int] = field(default_factory=list)
    selectors: tuple[Selector, ...] = (Selector("exec", (Mask("pid", "ne", 0),)),)
    id: str = "slow"
    title: str = "Slow"
    finding_type: str = "Execution:Runtime/Test"

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        began = time.thread_time()
        while time.thread_time() - began < 0.001:
            pass
        self.asked.append(event.pid)
        return (context.detection(event, key=[str(event.pid)]),)


def flood(engine: Engine, count: int, at: int = 1000 * SECOND, **more: Any) -> Outcome:
    events: list[dict[str, Any]] = [
        {"event": "exec", "path": "/bin/sh", "pid": 1000 + n, "time": at + n, "container": True} for n in range(count)
    ]
    records, _ = encode_events([*events, *more.get("then", ())])
    return engine.process(make_header(), records)


def test_a_flood_in_one_container_is_sampled_counted_and_said() -> None:
    unit = Slow()
    engine = Engine(detectors=[unit], settings=EngineSettings(confirm_budget_s=0.04))
    quiet = [{"event": "exec", "path": "/usr/bin/id", "pid": 50 + n, "time": 1001 * SECOND} for n in range(3)]

    outcome = flood(engine, 300, then=quiet)

    assert {50, 51, 52} <= set(unit.asked), "what happens elsewhere on the node is examined all the same"
    assert outcome.candidates == 303
    (left,) = outcome.unexamined
    assert left.count == 303 - len(unit.asked) >= 200
    container = left.container_id
    assert left == Unexamined("slow", "exec", CONTAINER_CGROUP, container, "/bin/sh", left.count)
    assert container is not None
    assert outcome.errors == [UnitError("slow", "exec", "NotExamined: too many candidates at once", left.count)]
    # The sampled ones after the budget was used up tell how many were left out until then.
    notes = [note for detection in outcome.detections for note in detection.notes]
    assert notes[0].endswith(
        "candidates of this kind from the same place were not examined: they were too many within 10 s."
    )

    unit.asked.clear()
    later = flood(engine, 5, at=1020 * SECOND)
    assert later.unexamined == []
    assert unit.asked == [1000, 1001, 1002, 1003, 1004]


def test_a_flood_of_chained_shells_hides_no_shell_in_another_container() -> None:
    """Each shell's output is the next one's input: following the pipes costs most of all that a process can choose."""
    kinds = {"stdin_kind": 3, "stdout_kind": 3, "stderr_kind": 3}
    shells: list[dict[str, Any]] = [
        {
            **kinds,
            "event": "exec",
            "path": "/bin/bash",
            "argv": ["bash"],
            "pid": 2000 + n,
            "stdin_ino": 100 + n,
            "stdout_ino": 101 + n,
            "stderr_ino": 101 + n,
            "container": True,
        }
        for n in range(600)
    ]
    socket = {"family": 2, "raddr": "203.0.113.66", "rport": 4444, "sock_ino": 77}
    on_socket = {
        f"{end}_{what}": 5 if what == "kind" else 77
        for end in ("stdin", "stdout", "stderr")
        for what in ("kind", "ino")
    }
    attack: list[dict[str, Any]] = [
        {"event": "connect", "sock_type": 1, **socket, "cgroup_path": f"/docker/{CONTAINER_ID}"},
        {
            "event": "exec",
            "path": "/bin/bash",
            "argv": ["bash"],
            "pid": 90,
            **on_socket,
            **socket,
            "laddr": "198.51.100.1",
            "lport": 51000,
            "cgroup_path": f"/docker/{CONTAINER_ID}",
        },
    ]
    engine = Engine(detectors=[ReverseShell()], settings=EngineSettings(confirm_budget_s=0.05))

    outcome = engine.process(make_header(), encode_events([*shells, *attack])[0])

    assert [d.process["pid"] for d in outcome.detections] == [90]
    assert outcome.candidates == 601
    assert 0 < sum(left.count for left in outcome.unexamined) < 600
    assert {left.cgroup for left in outcome.unexamined} == {CONTAINER_CGROUP}


def test_an_ordinary_amount_of_candidates_is_examined_whole() -> None:
    unit = Slow()
    outcome = flood(Engine(detectors=[unit]), 100)
    assert outcome.unexamined == []
    assert len(unit.asked) == 100
    assert [d.notes for d in outcome.detections] == [[]] * 100
