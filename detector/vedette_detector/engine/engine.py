"""From a batch of records to detections."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from vedette_detector.engine.budget import Unexamined, WorkBudget
from vedette_detector.engine.context import EngineContext, EngineSettings
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.prefilter import Prefilter
from vedette_detector.engine.segments import Array, Segment
from vedette_detector.engine.selector import Selector
from vedette_detector.text import safe_text
from vedette_detector.threat_lists import ThreatLists
from vedette_events.columns import split_batch
from vedette_events.framing import BatchHeader, decode_batch

log = logging.getLogger(__name__)


class Unit(Protocol):
    """What the engine runs: a rule, or a detector in Python. Selectors say when, `confirm` decides."""

    @property
    def id(self) -> str:
        """The rule's UUID or the detector's name."""
        ...

    @property
    def title(self) -> str:
        """One line."""
        ...

    @property
    def selectors(self) -> Sequence[Selector]:
        """When to ask."""
        ...

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Decide about one event that passed a selector."""
        ...


Screen = Callable[[str, Segment, Array, NodeHistory], Array]
"""A unit's optional ``screen(event type, columns, rows, history)``: those of the rows that are worth an `Event`. Rows
are numbers, shape (N,), ascending.

For conditions that no selector can say; what it drops, `confirm` must pass over."""


class RuleSource(Protocol):
    """Anything that holds rules: `vedette_detector.sigma.loader.Ruleset`."""

    @property
    def rules(self) -> Sequence[Unit]:
        """The rules."""
        ...


@dataclass(frozen=True)
class UnitError:
    """A rule or detector that failed on an event; the others went on."""

    unit: str
    event_type: str
    message: str
    count: int = 1


@dataclass
class Outcome:
    """What came of one batch.

    Attributes:
        detections: confirmed hits, in order of rows within each type.
        event_count: records in the batch.
        by_type: records by event type.
        errors: units that failed.
        candidates: (event, unit) pairs that passed the prefilter and the unit's own screen.
        unexamined: those of them that were passed over because the node had used up its budget (`WorkBudget`); the
            same counts are in ``errors``, by unit.
        seconds: time taken by split, history, prefilter and confirm.
    """

    detections: list[Detection] = field(default_factory=list)
    event_count: int = 0
    by_type: dict[str, int] = field(default_factory=dict)
    errors: list[UnitError] = field(default_factory=list)
    candidates: int = 0
    unexamined: list[Unexamined] = field(default_factory=list)
    seconds: float = 0.0


def _program(name: str, segment: Segment, row: int) -> bytes:
    """What the acting process runs, as far as the event itself tells."""
    return segment.tail("path", row) if name == "exec" else bytes(segment.rows["comm"][row])


def _note(skipped: int, period_s: float) -> str:
    return (
        f"{skipped} further candidates of this kind from the same place were not examined: "
        f"they were too many within {period_s:.0f} s."
    )


class Engine:
    """Rules, detectors and the histories of the nodes that this engine is responsible for. Not thread-safe."""

    def __init__(
        self,
        ruleset: RuleSource | None = None,
        threat_lists: ThreatLists | None = None,
        settings: EngineSettings | None = None,
        detectors: Sequence[Unit] = (),
    ) -> None:
        self.settings = settings or EngineSettings()
        self._threats = threat_lists or ThreatLists()
        self._histories: OrderedDict[str, NodeHistory] = OrderedDict()
        self._budgets: WeakKeyDictionary[NodeHistory, WorkBudget] = WeakKeyDictionary()
        self._batches = 0
        self.replace_rules(ruleset, detectors)

    def replace_rules(self, ruleset: RuleSource | None, detectors: Sequence[Unit] = ()) -> None:
        """Swap rules and detectors; histories stay."""
        self._units: list[Unit] = [*(ruleset.rules if ruleset is not None else ()), *detectors]
        self._prefilter = Prefilter([unit.selectors for unit in self._units])
        screens = {number: getattr(unit, "screen", None) for number, unit in enumerate(self._units)}
        self._screens: dict[int, Screen] = {number: screen for number, screen in screens.items() if screen is not None}

    def replace_threat_lists(self, threat_lists: ThreatLists) -> None:
        """Swap the threat lists; histories stay."""
        self._threats = threat_lists

    def history(self, node: str, boot_id: bytes) -> NodeHistory:
        """The history of a node; a new boot begins a new one."""
        found = self._histories.get(node)
        if found is None or found.boot_id != boot_id:
            self.forget(node)
            found = self._histories[node] = NodeHistory(node, boot_id, self.settings.history)
        self._histories.move_to_end(node)
        return found

    def process_frame(self, frame: bytes, replay: bool = False) -> Outcome:
        """Take one framed batch: check, decompress, process.

        Raises:
            vedette_events.framing.BatchError: the frame or a record in it is malformed.
        """
        header, records = decode_batch(frame)
        return self.process(header, records, replay)

    def process(self, header: BatchHeader, records: bytes, replay: bool = False) -> Outcome:
        """Take one batch.

        Args:
            header: the batch's header: node, boot and schema version.
            records: the batch's records, decompressed.
            replay: fill the history only, decide nothing (rebuilding after a restart).

        Raises:
            vedette_events.framing.BatchError: a record is malformed; history is unchanged.
        """
        began = time.perf_counter()
        batch = split_batch(records, header.schema_version)
        history = self.history(header.node, header.boot_id)
        segments = history.append(batch, header.wall_offset_ns)
        outcome = Outcome(by_type={name: len(segment.rows) for name, segment in segments.items()})
        outcome.event_count = sum(outcome.by_type.values())
        if not replay:
            self._decide(segments, history, outcome)
        self._batches += 1
        if self._batches % 64 == 0:
            self._keep_bounds()
        outcome.seconds = time.perf_counter() - began
        return outcome

    def _decide(self, segments: dict[str, Segment], history: NodeHistory, outcome: Outcome) -> None:
        context = EngineContext(self._threats, self.settings)
        budget = self._budgets.setdefault(
            history, WorkBudget(self.settings.confirm_budget_s, self.settings.confirm_period_s)
        )
        budget.advance(history.now)
        errors: dict[tuple[str, str, str], int] = {}
        seen: set[int] = set()
        passed_over: dict[tuple[int, str, int], tuple[bytes, int]] = {}
        for name, segment in segments.items():
            row = -1
            event: Event | None = None
            for candidate, number in self._screened(name, segment, history):
                outcome.candidates += 1
                if budget.exhausted:
                    cgroup, program = int(segment.rows["cgroup"][candidate]), _program(name, segment, candidate)
                    if not budget.admits(number, cgroup, program):
                        count = passed_over.get((number, name, cgroup), (b"", 0))[1]
                        passed_over[(number, name, cgroup)] = (program, count + 1)
                        continue
                began = time.thread_time()
                if candidate != row or event is None:
                    row, event = candidate, Event(name, segment, candidate, history)
                unit = self._units[number]
                context.enter(unit)
                try:
                    for detection in unit.confirm(event, history, context):
                        # The context hands out the same object again for repeats within the batch.
                        if id(detection) not in seen:
                            seen.add(id(detection))
                            outcome.detections.append(detection)
                            if budget.exhausted and (skipped := budget.skipped(number, event.cgroup)):
                                detection.notes.append(_note(skipped, budget.period_s))
                except Exception as e:  # one faulty unit must not stop the others, whatever it raises
                    message = f"{type(e).__name__}: {safe_text(str(e).encode('utf-8', 'replace'))}"
                    if (unit.id, name, message) not in errors:
                        log.warning("rule %s failed on a %s event: %s", unit.id, name, message, exc_info=True)
                    errors[(unit.id, name, message)] = errors.get((unit.id, name, message), 0) + 1
                budget.charge(event.cgroup, time.thread_time() - began)
        outcome.errors = [UnitError(*key, count=count) for key, count in errors.items()]
        self._report_passed_over(passed_over, history, outcome)

    def _report_passed_over(
        self, passed_over: dict[tuple[int, str, int], tuple[bytes, int]], history: NodeHistory, outcome: Outcome
    ) -> None:
        """Say what was not examined: in the outcome for each container, and as an error of the unit."""
        by_unit: dict[tuple[str, str], int] = {}
        for (number, name, cgroup), (program, count) in passed_over.items():
            container = history.container(cgroup)
            container_id = container.container_id if container is not None else None
            unit = self._units[number].id
            outcome.unexamined.append(Unexamined(unit, name, cgroup, container_id, safe_text(program), count))
            by_unit[(unit, name)] = by_unit.get((unit, name), 0) + count
        for (unit, name), count in by_unit.items():
            node = safe_text(history.node.encode("utf-8", "surrogateescape"))
            log.warning("%d %s events of %s were not examined for %s: too many at once", count, name, node, unit)
            outcome.errors.append(UnitError(unit, name, "NotExamined: too many candidates at once", count))

    def _screened(self, name: str, segment: Segment, history: NodeHistory) -> list[tuple[int, int]]:
        """The (row, unit) pairs of the prefilter without those that the unit's own screen drops, in order of rows."""
        pairs: list[tuple[int, int]] = []
        for number, selected in self._prefilter.select(name, segment, self._threats).items():
            rows = selected
            screen = self._screens.get(number)
            if screen is not None:
                try:
                    rows = screen(name, segment, rows, history)
                except Exception:  # a faulty screen lets everything through; `confirm` decides
                    log.warning("the screen of %s failed on %s events", self._units[number].id, name, exc_info=True)
            pairs += [(row, number) for row in rows.tolist()]
        pairs.sort()
        return pairs

    def _keep_bounds(self) -> None:
        """Hold the sum of all histories below the bound: the largest give way first."""
        sizes = {node: history.nbytes for node, history in self._histories.items()}
        total = sum(sizes.values())
        if total <= self.settings.all_nodes_bytes:
            return
        share = self.settings.all_nodes_bytes // max(len(sizes), 1)
        for node in sorted(sizes, key=lambda n: -sizes[n]):
            if total <= self.settings.all_nodes_bytes:
                break
            total -= self._histories[node].shrink(share)

    def describe(self) -> dict[str, Any]:
        """Sizes of every node's history, for status pages."""
        return {node: history.describe() for node, history in self._histories.items()}

    def forget(self, node: str) -> None:
        """Drop a node's history (the node is gone)."""
        history = self._histories.pop(node, None)
        if history is not None:
            history.clear()
