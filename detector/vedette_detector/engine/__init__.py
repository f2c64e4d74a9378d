"""The detection engine: batches of records in, detections out.

split (C) → history (columns) → prefilter (numpy and multi-pattern search) → confirm (rules and detectors).
What rules and detectors need is importable from here.
"""

from vedette_detector.engine.context import EngineContext, EngineSettings, action_of, lineage_object, process_details
from vedette_detector.engine.detection import ContainerRef, Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import HistorySettings, NodeHistory, Process
from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.text import safe_text

__all__ = [
    "AnyLiteral",
    "ContainerRef",
    "Detection",
    "EngineContext",
    "EngineSettings",
    "Event",
    "HistorySettings",
    "Mask",
    "NodeHistory",
    "Process",
    "Selector",
    "action_of",
    "lineage_object",
    "process_details",
    "safe_text",
]
