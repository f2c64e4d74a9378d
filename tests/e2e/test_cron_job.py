"""A CronJob makes its first pod within a minute of the session's beginning: looked at near its end, nothing waits."""

from __future__ import annotations

from e2e_kinds import find
from e2e_world import World, kubernetes, workload_part


def test_finding_names_the_cron_job(kinds: World) -> None:
    finding = find(kinds, "report")

    named = kubernetes(finding)["workload"]
    assert (named["kind"], named["name"], named["type"]) == ("CronJob", "report", "cronjobs")
    assert workload_part(finding)["name"].startswith("report-")
