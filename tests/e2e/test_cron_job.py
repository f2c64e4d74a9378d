"""A CronJob makes its first pod within a minute of the session's beginning: looked at near its end, nothing waits."""

from __future__ import annotations

from typing import Any

from e2e_kinds import NAMESPACE, pods_of
from e2e_world import World, eventually, kubernetes, pod_part, workload_part


def test_finding_names_the_cron_job(kinds: World) -> None:
    def find() -> dict[str, Any] | None:
        found = (f for f in kinds.findings.all() if kubernetes(f).get("workload", {}).get("name") == "report")
        return next(found, None)

    finding = eventually(find, "a finding about the CronJob", 90, 0.3)

    # All of its pods do the same and are told of in one finding, with the last one's name.
    named = kubernetes(finding)["workload"]
    assert (named["kind"], named["name"], named["type"]) == ("CronJob", "report", "cronjobs")
    assert workload_part(finding)["name"].startswith("report-")
    assert kubernetes(finding)["namespace"] == NAMESPACE
    assert pod_part(finding)["uid"] in {pod["metadata"]["uid"] for pod in pods_of(kinds, "report")}
