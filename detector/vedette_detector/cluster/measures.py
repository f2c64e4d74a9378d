"""Metrics of the watches, in Prometheus' text format."""

from __future__ import annotations

from vedette_detector.cluster.context import KubernetesContext
from vedette_detector.metrics import metric


def render(context: KubernetesContext) -> str:
    """What `KubernetesContext.state` says, for machines."""
    state = context.state()
    watches = state["watches"]
    return "".join(
        (
            metric(
                "vedette_kubernetes_connected",
                "gauge",
                "1 while the API server answers the watch of a resource.",
                [({"resource": w["resource"]}, float(w["connected"])) for w in watches],
            ),
            metric(
                "vedette_kubernetes_synced",
                "gauge",
                "1 once a whole list of a resource has been read.",
                [({"resource": w["resource"]}, float(w["synced"])) for w in watches],
            ),
            metric(
                "vedette_kubernetes_objects",
                "gauge",
                "Objects known of a resource, those that are gone left out.",
                [({"resource": w["resource"]}, float(w["objects"])) for w in watches],
            ),
            metric(
                "vedette_kubernetes_contact_age_seconds",
                "gauge",
                "Time since the API server last said anything on the watch of a resource.",
                [
                    ({"resource": w["resource"]}, w["last_contact_s"])
                    for w in watches
                    if w["last_contact_s"] is not None
                ],
            ),
            metric(
                "vedette_kubernetes_lists_total",
                "counter",
                "Whole lists read of a resource.",
                [({"resource": w["resource"]}, float(w["lists"])) for w in watches],
            ),
            metric(
                "vedette_kubernetes_events_total",
                "counter",
                "Changes that a watch brought.",
                [({"resource": w["resource"]}, float(w["events"])) for w in watches],
            ),
            metric(
                "vedette_kubernetes_failures_total",
                "counter",
                "Lists and watches that failed.",
                [({"resource": w["resource"]}, float(w["failures"])) for w in watches],
            ),
            metric(
                "vedette_kubernetes_lookups_total",
                "counter",
                "Findings' lookups of a container, by whether its pod was known.",
                [
                    ({"pod": "known"}, float(state["lookups"] - state["unknown"])),
                    ({"pod": "unknown"}, float(state["unknown"])),
                ],
            ),
            metric(
                "vedette_kubernetes_waits_total",
                "counter",
                "Times that findings waited for a pod to become known, by what came of it.",
                [
                    ({"result": "known"}, float(state["waits"] - state["waits_in_vain"])),
                    ({"result": "vain"}, float(state["waits_in_vain"])),
                ],
            ),
            metric(
                "vedette_kubernetes_wait_seconds_total",
                "counter",
                "Time that findings waited for pods in all.",
                [({}, float(state["waited_seconds"]))],
            ),
        )
    )
