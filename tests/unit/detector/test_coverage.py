"""Which nodes are covered, as a table; and the document and metrics of a running detector."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.detector.detector_parts import BOOT, SESSION, batch, running
from vedette_detector import coverage_report
from vedette_detector.config import Settings
from vedette_detector.coverage import Judgement, Lost, NodeFacts, Reason, hooks_of, judge, summary
from vedette_detector.metrics import metric
from vedette_events.framing import Counters

HOOKS = [
    {"event": "exec", "hook": "sched_process_exec", "state": "loaded", "reason": ""},
    {"event": "dns", "hook": "net_dev_queue", "state": "loaded", "reason": ""},
    {"event": "dns", "hook": "cgroup_skb/ingress", "state": "loaded", "reason": ""},
    {"event": "io_uring", "hook": "io_uring_submit_req", "state": "loaded", "reason": ""},
    {"event": "io_uring", "hook": "sys_exit:io_uring_setup", "state": "missing", "reason": "not needed"},
]
WELL = NodeFacts("n", {"hooks": HOOKS, "spool": {"batches": 1}}, 3.0, True, 1.0, in_cluster=True, ready=True)


def hooks(**states: str) -> dict[str, Any]:
    changed = [
        {**h, "state": states.get(h["hook"].split("/")[0], h["state"]), "reason": h["reason"] or "r"} for h in HOOKS
    ]
    return {"hooks": changed}


@pytest.mark.parametrize(
    ("facts", "reasons", "warnings"),
    [
        (WELL, [], []),
        (replace(WELL, in_cluster=None, ready=None), [], []),
        (NodeFacts("n", in_cluster=True), ["NoAgent"], []),
        (NodeFacts("n"), ["NoAgent"], []),
        (NodeFacts("n", in_cluster=True, ready=False), ["NoAgent"], ["NodeNotReady"]),
        (replace(WELL, heartbeat_age_s=30.0), [], []),
        (replace(WELL, heartbeat_age_s=30.1), ["AgentSilent"], []),
        (replace(WELL, heartbeat_age_s=500.0, heard_since_start=False), ["AgentSilent"], []),
        (replace(WELL, ready=False), [], ["NodeNotReady"]),
        (replace(WELL, in_cluster=False), [], ["NodeUnknown"]),
        (replace(WELL, heartbeat={}), ["HooksMissing"], []),
        (replace(WELL, heartbeat=hooks(sched_process_exec="failed")), ["HooksMissing"], []),
        (replace(WELL, heartbeat=hooks(cgroup_skb="missing")), [], ["HooksDegraded"]),
        (replace(WELL, heartbeat=hooks(cgroup_skb="missing", net_dev_queue="missing")), ["HooksMissing"], []),
        (
            replace(WELL, heartbeat=hooks(cgroup_skb="missing", sched_process_exec="failed")),
            ["HooksMissing"],
            ["HooksDegraded"],
        ),
        (replace(WELL, lost=Lost(dropped_events=1)), ["EventsLost"], []),
        (replace(WELL, lost=Lost(spool_lost_events=1, spool_lost_batches=1)), ["EventsLost"], []),
        (replace(WELL, lost=Lost(unexplained_batches=1)), ["EventsLost"], []),
        (replace(WELL, lost=Lost(refused_batches=1)), ["EventsLost"], []),
        (replace(WELL, batch_age_s=61.0), ["DeliveryStuck"], []),
        (replace(WELL, batch_age_s=None), ["DeliveryStuck"], []),
        (replace(WELL, batch_age_s=61.0, heartbeat={"hooks": HOOKS, "spool": {"batches": 0}}), [], []),
        (replace(WELL, batch_age_s=61.0, lost=Lost(dropped_events=1)), ["EventsLost", "DeliveryStuck"], []),
        (replace(WELL, heartbeat_age_s=31.0, lost=Lost(dropped_events=1)), ["AgentSilent"], []),
    ],
)
def test_a_node_is_covered_or_the_reason_is_named(facts: NodeFacts, reasons: list[str], warnings: list[str]) -> None:
    judgement = judge(facts, silent_after_s=30.0, started_s=1000.0)
    assert [r.reason for r in judgement.reasons] == reasons
    assert [w.reason for w in judgement.warnings] == warnings
    assert (judgement.covered, judgement.gone) == (not reasons, False)
    assert all(r.message for r in (*judgement.reasons, *judgement.warnings))


def test_after_a_restart_of_the_detector_nobody_is_called_silent_at_once() -> None:
    facts = replace(WELL, heartbeat_age_s=500.0, heard_since_start=False)
    for started, reason in ((5.0, "NotHeardSinceStart"), (30.0, "NotHeardSinceStart"), (30.1, "AgentSilent")):
        assert [r.reason for r in judge(facts, silent_after_s=30.0, started_s=started).reasons] == [reason]


def test_a_node_that_left_the_cluster_is_missed_by_nobody() -> None:
    left = judge(replace(WELL, in_cluster=False, heartbeat_age_s=31.0), silent_after_s=30.0, started_s=1000.0)
    assert left == Judgement("n", gone=True)
    assert not left.covered
    other = Judgement("m", (Reason("NoAgent", "x"), Reason("EventsLost", "y")))
    assert summary([left, other, Judgement("o")]) == {
        "nodes": 2,
        "covered": 1,
        "uncovered": 1,
        "reasons": {"EventsLost": 1, "NoAgent": 1},
    }


def test_messages_say_what_and_where() -> None:
    facts = replace(
        WELL,
        heartbeat=hooks(cgroup_skb="missing", net_dev_queue="failed"),
        lost=Lost(dropped_events=7, refused_batches=2),
    )
    reasons = judge(facts, silent_after_s=30.0, started_s=1000.0).reasons
    assert [r.message for r in reasons] == [
        "not watched: dns (net_dev_queue failed: r); dns (cgroup_skb/ingress missing: r)",
        "within the last 10 min: 7 events dropped because the kernel's ring was full, 2 batches refused",
    ]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "hooks": _VALUES
            | st.lists(st.dictionaries(st.sampled_from(["event", "hook", "state", "reason"]), _VALUES), max_size=5),
            "spool": _VALUES | st.fixed_dictionaries({"batches": _VALUES}),
        },
    )
)
def test_any_heartbeat_can_be_judged(heartbeat: dict[str, Any]) -> None:
    judgement = judge(replace(WELL, heartbeat=heartbeat), silent_after_s=30.0, started_s=1000.0)
    json.dumps([r.as_dict() for r in judgement.reasons], allow_nan=False)
    assert all(h["event"] and h["state"] for h in hooks_of(heartbeat))


# A running detector


HEARTBEAT = {
    "node": "node-a",
    "boot_id": BOOT.hex(),
    "session": SESSION,
    "agent_version": "0.1.0",
    "hooks": HOOKS,
    "spool": {"batches": 0},
}


async def test_the_coverage_document_and_its_metrics(settings: Settings) -> None:
    async with running(settings) as (_, client):
        assert (await client.get("/v1/coverage"))[1]["summary"] == {
            "nodes": 0,
            "covered": 0,
            "uncovered": 0,
            "reasons": {},
        }
        async with client.session.post("http://d/v1/heartbeat", json=HEARTBEAT) as answer:
            assert answer.status == 200
        await client.post(batch(1), batch(2))
        await client.post(batch(1, node="node-b", counters=Counters(emitted=9, dropped=4)))
        status, document = await client.get("/v1/coverage")
        assert status == 200
        assert document["kubernetes"] == {"watched": False, "synced": None}
        first, second = document["nodes"]
        assert (first["node"], first["covered"], first["reasons"], first["warnings"]) == ("node-a", True, [], [])
        assert first["agent"] == {"version": "0.1.0", "session": SESSION, "started_at": None}
        assert first["hooks"] == {"loaded": 4, "missing": []}
        assert 0 <= first["heartbeat"]["age_s"] < 60
        assert 0 <= first["batch"]["age_s"] < 60
        ledger = first["ledger"]
        assert {k: v for k, v in ledger.items() if v} == {"sessions": 1, "emitted": 2, "received": 2}
        told = {"outstanding", "deduplicated", "dropped", "spool_lost_events", "missing_batches", "unexplained_batches"}
        assert told <= ledger.keys()
        assert first["cluster"] == {"known": None, "ready": None}
        assert (second["node"], second["covered"]) == ("node-b", False)
        assert [r["reason"] for r in second["reasons"]] == ["NoAgent"]
        assert second["ledger"]["dropped"] == 4
        _, text = await client.get("/metrics")
        assert 'vedette_node_covered{node="node-a"} 1\n' in text
        assert 'vedette_node_covered{node="node-b"} 0\n' in text
        assert 'vedette_nodes_uncovered{reason="NoAgent"} 1\n' in text


async def test_a_database_that_hangs_does_not_hold_up_the_metrics(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage_report, "PATIENCE_S", 0.1)
    monkeypatch.setattr(coverage_report, "KEPT_S", 0.0)
    async with running(settings) as (service, client):
        async with client.session.post("http://d/v1/heartbeat", json=HEARTBEAT) as answer:
            assert answer.status == 200
        assert 'vedette_node_covered{node="node-a"} 1\n' in (await client.get("/metrics"))[1]
        goes_on = threading.Event()
        hanging = asyncio.create_task(service.intake.in_store_thread(goes_on.wait))
        assert 'vedette_node_covered{node="node-a"} 1\n' in (await client.get("/metrics"))[1]
        assert not hanging.done()
        goes_on.set()
        await hanging


async def test_lost_events_uncover_a_node(settings: Settings) -> None:
    async with running(settings) as (_, client):
        async with client.session.post("http://d/v1/heartbeat", json=HEARTBEAT) as answer:
            assert answer.status == 200
        await client.post(batch(1, counters=Counters(emitted=1, dropped=4)))
        (node,) = (await client.get("/v1/coverage"))[1]["nodes"]
        assert node["reasons"] == [
            {
                "reason": "EventsLost",
                "message": "within the last 10 min: 4 events dropped because the kernel's ring was full",
            }
        ]


async def test_a_new_session_does_not_make_up_for_what_the_one_before_has_lost(settings: Settings) -> None:
    async with running(settings) as (_, client):
        async with client.session.post("http://d/v1/heartbeat", json=HEARTBEAT) as answer:
            assert answer.status == 200
        await client.post(batch(1), batch(4))
        await client.post(batch(1, session=SESSION + 1))
        (node,) = (await client.get("/v1/coverage"))[1]["nodes"]
        message = "within the last 10 min: 2 batches missing without an explanation"
        assert node["reasons"] == [{"reason": "EventsLost", "message": message}]


async def test_after_a_restart_what_is_known_of_nodes_is_still_told(settings: Settings) -> None:
    async with running(settings) as (_, client), client.session.post("http://d/v1/heartbeat", json=HEARTBEAT) as answer:
        assert answer.status == 200
    async with running(replace(settings, silent_after_s=1e-9)) as (service, client):
        (node,) = (await client.get("/v1/coverage"))[1]["nodes"]
        assert (node["node"], node["agent"]["version"], node["covered"]) == ("node-a", "0.1.0", False)
        assert [r["reason"] for r in node["reasons"]] == ["AgentSilent"]
        assert service.liveness.nodes == ["node-a"]


@pytest.mark.parametrize(
    ("value", "shown"), [(123_456_789.0, "123456789"), (1_795_228_801.25, "1795228801.25"), (0.0, "0")]
)
def test_metrics_are_told_with_all_their_digits(value: float, shown: str) -> None:
    assert metric("m", "counter", "Text.", [({}, value)]).splitlines()[-1] == f"m {shown}"
