"""The detector's metrics in Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vedette_detector.intake import Intake
from vedette_detector.liveness import Liveness

_SESSIONS_SHOWN = 5000


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    """All digits: a counter that moves in steps has no rate, and a moment in seconds is hours off."""
    return str(int(value)) if value == int(value) else repr(value)


def metric(name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> str:
    """One metric with its samples: labels and value."""
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        shown = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
        lines.append(f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


def render(intake: Intake, journal_bytes: int, liveness: Liveness) -> str:
    """All metrics."""
    statistics = intake.statistics
    newest = list(intake.newest.values())[:_SESSIONS_SHOWN]
    nodes = liveness.nodes
    silent = sum(liveness.silent(node) for node in nodes)
    results = {"applied": statistics.batches, "resent": statistics.resent, "rejected": statistics.rejected}
    lost = [
        ({"node": a.node, "where": where}, float(value))
        for a in newest
        for where, value in (("kernel", a.dropped), ("spool", a.spool_lost_events), ("ring", a.ring_lost_events))
    ]
    return "".join(
        (
            metric(
                "vedette_batches_total",
                "counter",
                "Batches received, by what became of them.",
                [({"result": k}, float(v)) for k, v in results.items()],
            ),
            metric(
                "vedette_requests_refused_total",
                "counter",
                "Requests answered with 503 because too much waited.",
                [({}, float(statistics.refused))],
            ),
            metric(
                "vedette_events_total",
                "counter",
                "Events applied, by type.",
                [({"type": k}, float(v)) for k, v in sorted(statistics.events_by_type.items())],
            ),
            metric("vedette_detections_total", "counter", "Confirmed hits.", [({}, float(statistics.detections))]),
            metric(
                "vedette_findings_total",
                "counter",
                "Findings written.",
                [
                    ({"change": "created"}, float(statistics.findings_created)),
                    ({"change": "updated"}, float(statistics.findings_updated)),
                ],
            ),
            metric(
                "vedette_rule_errors_total",
                "counter",
                "Rules and detectors that failed on an event.",
                [({}, float(statistics.unit_errors))],
            ),
            metric(
                "vedette_group_seconds_total",
                "counter",
                "Time spent on groups of batches, journal and commit included.",
                [({}, statistics.group_seconds)],
            ),
            metric("vedette_groups_total", "counter", "Groups committed or failed.", [({}, float(statistics.groups))]),
            metric(
                "vedette_engine_seconds_total",
                "counter",
                "Time spent by the engine.",
                [({}, statistics.engine_seconds)],
            ),
            metric(
                "vedette_waiting_bytes",
                "gauge",
                "Batches that wait to be applied.",
                [({}, float(intake.waiting_bytes))],
            ),
            metric("vedette_journal_bytes", "gauge", "Size of the raw event journal.", [({}, float(journal_bytes))]),
            metric(
                "vedette_healthy",
                "gauge",
                "1 when the last group could be made durable.",
                [({}, float(intake.last_error is None and intake.stalled_s is None))],
            ),
            metric(
                "vedette_nodes",
                "gauge",
                "Nodes heard of, by whether their heartbeat is recent.",
                [({"state": "silent"}, float(silent)), ({"state": "reporting"}, float(len(nodes) - silent))],
            ),
            metric(
                "vedette_gap_seconds_total",
                "counter",
                "Time between two agents of a node in which none watched.",
                [({"node": node}, seconds) for node, seconds in list(intake.gap_seconds.items())[:_SESSIONS_SHOWN]],
            ),
            metric(
                "vedette_gaps_total",
                "counter",
                "How often a node was without an agent.",
                [({"node": node}, float(count)) for node, count in list(intake.gaps.items())[:_SESSIONS_SHOWN]],
            ),
            metric("vedette_lost_events", "gauge", "Events lost in each node's newest session, by where.", lost),
            metric(
                "vedette_outstanding_events",
                "gauge",
                "Events emitted by each node's kernel in its newest session that have neither arrived nor been lost.",
                [({"node": a.node}, float(a.outstanding)) for a in newest],
            ),
        )
    )
