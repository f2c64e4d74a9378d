"""``vedette nodes``: which nodes the detector knows, and forgetting one that is gone."""

from __future__ import annotations

from typing import Any

import click

from vedette_cli import detector_client
from vedette_cli.location import Location, location_options
from vedette_cli.output import Column, Format, output_option, print_data, print_line, print_table
from vedette_cli.when import show_age, show_count


@click.group()
def nodes() -> None:
    """List the nodes that agents have reported from, and forget those that are gone."""


@nodes.command("list")
@location_options
@output_option()
def list_nodes(location: Location, form: Format) -> None:
    """List the nodes.

    \b
    vedette nodes list
    vedette nodes list -o json | jq -r '.[] | select(.state == "silent").node'
    """
    data = detector_client.get(location.socket, "/v1/status")
    found = [summary(node) for node in data.get("nodes") or []]
    if form != "table":
        print_data(found, form)
        return
    print_table(
        (
            Column("NODE", keep=True),
            Column("STATE", style=lambda cell: "green" if cell == "reporting" else "red", keep=True),
            Column("HEARD OF"),
            Column("AGENT"),
            Column("KERNEL"),
        ),
        [
            (
                node["node"],
                node["state"],
                f"{show_age(node['heartbeat_age_s'])} ago" if node["heartbeat_age_s"] is not None else "never",
                node["agent_version"] or "-",
                node["kernel"] or "-",
            )
            for node in found
        ],
    )
    forgotten = data.get("forgotten")
    if isinstance(forgotten, dict):
        lost = sum(forgotten.get(name) or 0 for name in ("dropped", "spool_lost_events", "ring_lost_events"))
        sessions, events = show_count(forgotten.get("sessions", 0)), show_count(forgotten.get("received", 0))
        print_line(f"forgotten nodes: {sessions} sessions, {events} events received, {show_count(lost)} lost")


def summary(node: dict[str, Any]) -> dict[str, Any]:
    """Return what a list shows of a node of the status document."""
    host = node.get("host")
    return {
        "node": str(node.get("node", "?")),
        "state": "silent" if node.get("silent") else "reporting",
        "heartbeat_age_s": node.get("heartbeat_age_s"),
        "agent_version": str(node.get("agent_version") or ""),
        "kernel": str(host.get("kernel") or "") if isinstance(host, dict) else "",
    }


@nodes.command()
@location_options
@click.argument("node")
def forget(location: Location, node: str) -> None:
    """Take NODE off the list: a host that is gone for good.

    Its findings stay. What it delivered and lost stays in the sums of forgotten nodes. A node that is not gone is
    listed again with its next heartbeat. The detector forgets by itself what has given no sign for --node-forget-s.
    """
    detector_client.post(location.socket, "/v1/nodes/forget", {"node": node})
    print_line(f"{node} is forgotten")
