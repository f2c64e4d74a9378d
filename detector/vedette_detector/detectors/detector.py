"""What a detector is: selectors that say when it is asked, and `Detector.confirm`, which decides by looking back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from vedette_detector.engine.context import EngineContext
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.selector import Selector


class Detector(ABC):
    """Base of all detectors; one instance per engine.

    Attributes:
        id: stable identifier, shown as the finding's rule.
        title: one line.
        description: what it sees, one or two sentences.
        finding_types: the types it can raise, the usual one first.
        severity: of the usual case.
        selectors: when `confirm` is called.
        open_names: file names whose opens for reading the agent must report for this detector.
        triage: what a person looks at.
        falsepositives: ordinary behaviour that may be reported.
        tags: ATT&CK tags as Sigma writes them.
        tests: positive and negative tests in the form of a rule file's.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str] = ""
    finding_types: ClassVar[tuple[str, ...]]
    severity: ClassVar[float] = 5.0
    selectors: Sequence[Selector]
    open_names: ClassVar[tuple[str, ...]] = ()
    triage: ClassVar[str] = ""
    falsepositives: ClassVar[tuple[str, ...]] = ()
    tags: ClassVar[tuple[str, ...]] = ()
    tests: ClassVar[tuple[dict[str, Any], ...]] = ()

    def __reduce__(self) -> tuple[type[Detector], tuple[()]]:
        """Pickle as the class alone: a worker process begins with an empty state of its own."""
        return type(self), ()

    @abstractmethod
    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Decide about an event that passed a selector."""
