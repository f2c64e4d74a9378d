"""One finding as a page for a person: what, where, who, what to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vedette_cli.findings import dig, extras, moment, process_line, quoted, where
from vedette_cli.output import band, console, is_terminal, print_line, severity_style
from vedette_cli.text import safe
from vedette_cli.when import show_count, show_time

if TYPE_CHECKING:
    from vedette_detector.store import Finding, Occurrence

LABEL = 12
"""Width of the column of labels."""

VALUE_LIMIT = 2000
"""Terminal cells of one value; -o json has everything."""

Line = tuple[str, str]
"""Label (empty: continues the one above) and value."""


def print_finding(finding: Finding, occurrences: Sequence[Occurrence], *, with_events: bool) -> None:
    """Print the page."""
    document = finding.document
    severity = f"{band(finding.severity)} {finding.severity:.1f}"
    print_line(
        (severity, severity_style(finding.severity)),
        "  ",
        (finding.type, "bold"),
        ("  archived" if finding.archived else "", "dim"),
    )
    print_line((finding.title, "bold"))
    _paragraph(str(document.get("description", "")))
    print_line()
    _lines(summary(finding))
    notes = [str(n) for n in extras(document).get("notes") or []]
    if notes:
        _heading("Know that")
        for text in notes:
            _paragraph(text, bullet="- ")
    triage = str(extras(document).get("triage") or "").strip()
    if triage:
        _heading("What to look at")
        for text in triage.splitlines():
            _paragraph(text)
    around = [e for e in extras(document).get("relatedEvents") or [] if isinstance(e, dict)]
    if around and with_events:
        _heading("Events around it")
        for event in around:
            print_line("  ", event_line(event))
    if occurrences:
        _heading(f"Occurrences (the last {len(occurrences)} of {show_count(finding.count)})")
        for occurrence in occurrences:
            print_line(
                "  ",
                show_time(moment(occurrence.seen_at_ns), fraction=True),
                "  ",
                safe(process_line(occurrence.document), limit=200),
            )
    hints = []
    if around and not with_events:
        hints.append("--events shows what happened around it")
    if finding.count > 1 and not occurrences:
        hints.append(f"--occurrences shows the last of its {show_count(finding.count)} occurrences")
    if hints:
        print_line()
        print_line(("; ".join(hints), "dim"))


def summary(finding: Finding) -> list[Line]:
    """Return the facts of a finding as labelled lines."""
    document = finding.document
    first, last = (show_time(moment(ns), fraction=True) for ns in (finding.first_seen_ns, finding.last_seen_ns))
    lines: list[Line] = [
        ("Id", finding.id),
        ("Seen", f"{last} UTC" if finding.count == 1 else f"{show_count(finding.count)} times, {first} to {last} UTC"),
        ("Where", f"{where(finding)}, node {finding.node}" if finding.resource_type != "Instance" else where(finding)),
    ]
    lines += kubernetes_lines(document)
    container = dig(document, "resource", "containerDetails")
    if isinstance(container, dict):
        lines += [("", f"{key}: {container[key]}") for key in ("id", "image", "containerRuntime") if container.get(key)]
    process = dig(document, "service", "runtimeDetails", "process")
    if isinstance(process, dict):
        lines += process_lines("Process", process, dig(extras(document), "arguments", "process"))
        lineage = process.get("lineage")
        if isinstance(lineage, list) and lineage:
            lines += labelled(
                "Started by", (_ancestor(depth, a) for depth, a in enumerate(lineage) if isinstance(a, dict))
            )
    lines += action_lines(dig(document, "service", "action"))
    context = dig(document, "service", "runtimeDetails", "context")
    if isinstance(context, dict) and context:
        rest = {}
        for key, value in context.items():
            if isinstance(value, dict) and ("executablePath" in value or "pid" in value):
                title = {"modifyingProcess": "Written by", "targetProcess": "Target"}.get(key, str(key))
                lines += process_lines(title, value, dig(extras(document), "arguments", key))
            else:
                rest[key] = value
        lines += labelled("Context", flatten(rest))
    evidence = dig(document, "service", "evidence")
    if isinstance(evidence, dict) and evidence:
        lines += labelled("Evidence", flatten(evidence))
    added = extras(document).get("context")
    if isinstance(added, dict) and added:
        lines += labelled("More", flatten(added))
    key = extras(document).get("aggregationKey")
    if isinstance(key, list) and key:
        lines.append(("Counted by", ", ".join(map(str, key))))
    if extras(document).get("ruleId"):
        lines.append(("Rule", str(extras(document)["ruleId"])))
    return lines


KINDS = {"init": "init container", "sidecar": "sidecar", "ephemeral": "ephemeral container", "sandbox": "sandbox"}
SHOWN_PODS = 10


def kubernetes_lines(document: dict[str, Any]) -> list[Line]:
    """Return what is known of the pod, the workload, the container and the node."""
    kubernetes = extras(document).get("kubernetes")
    if not isinstance(kubernetes, dict):
        return []
    workload = dig(document, "resource", "kubernetesDetails", "kubernetesWorkloadDetails")
    workload = workload if isinstance(workload, dict) else {}
    lines: list[Line] = []
    if workload.get("name"):
        pod = kubernetes.get("pod") or {}
        marks = [mark for mark in ("static", "deleted") if pod.get(mark)]
        lines.append(("Pod", " ".join([str(workload["name"]), *([f"({', '.join(marks)})"] if marks else [])])))
        owner = kubernetes.get("workload") or {}
        if owner and owner.get("kind") != "Pod":
            lines.append(("", f"of {owner.get('kind')} {owner.get('name')}"))
        lines.append(("", f"namespace: {workload.get('namespace', '?')}"))
        if workload.get("serviceAccountName"):
            lines.append(("", f"service account: {workload['serviceAccountName']}"))
        shared = [name for name in ("hostNetwork", "hostPID", "hostIPC") if workload.get(name)]
        if shared:
            lines.append(("", f"shares with its node: {', '.join(n.removeprefix('host') for n in shared)}"))
        mounted = [dig(v, "hostPath", "path") for v in workload.get("volumes") or [] if dig(v, "hostPath", "path")]
        if mounted:
            lines.append(("", f"has of its node: {', '.join(map(str, mounted))}"))
    lines += _container_lines(kubernetes.get("container"), workload.get("containers"))
    node = kubernetes.get("node")
    if isinstance(node, dict):
        more = [str(node[key]) for key in ("instanceType", "zone", "osImage") if node.get(key)]
        lines.append(("Node", str(node.get("name", "?")) + (f" ({', '.join(more)})" if more else "")))
    pods = [p for p in kubernetes.get("pods") or [] if isinstance(p, dict)]
    if len(pods) > 1:
        total = len(pods) + int(kubernetes.get("morePods") or 0)
        shown = [
            f"{p.get('name')} on {p.get('node')}, {show_count(p.get('count', 1))} times" for p in pods[:SHOWN_PODS]
        ]
        rest = [f"and {show_count(total - SHOWN_PODS)} more"] if total > SHOWN_PODS else []
        lines += labelled("Pods", [*shown, *rest])
    return lines + labelled("Missing", kubernetes.get("missing") or [])


def _container_lines(container: Any, listed: Any) -> list[Line]:
    if not isinstance(container, dict):
        return []
    kind = KINDS.get(str(container.get("kind")), "")
    name = container.get("name") or container.get("kind") or "not known"
    title = f"{name}{f' ({kind})' if kind and container.get('name') else ''}"
    if container.get("inferred") and container.get("kind"):
        title += ", as far as can be told: the kubelet had not reported it"
    if container.get("earlierRun"):
        title += ", an earlier run"
    lines: list[Line] = [("Container", title)]
    if container.get("candidates"):
        lines.append(("", f"one of: {', '.join(map(str, container['candidates']))}"))
    first = listed[0] if container.get("name") and isinstance(listed, list) and listed else {}
    for key, value in (
        ("image", first.get("image")),
        ("image id", container.get("imageId")),
        ("id", container.get("id")),
        ("runtime", first.get("containerRuntime")),
    ):
        if value:
            lines.append(("", f"{key}: {value}"))
    security = first.get("securityContext") or {}
    if security.get("privileged"):
        lines.append(("", "privileged"))
    elif security.get("allowPrivilegeEscalation"):
        lines.append(("", "may gain privileges (allowPrivilegeEscalation)"))
    added = dig(container, "securityContext", "capabilitiesAdded")
    if added:
        lines.append(("", f"added capabilities: {', '.join(map(str, added))}"))
    return lines


def labelled(label: str, values: Any) -> list[Line]:
    """Return ``values`` as lines of which the first carries the label."""
    return [(label if index == 0 else "", str(value)) for index, value in enumerate(values)]


def process_lines(label: str, process: dict[str, Any], arguments: Any = None) -> list[Line]:
    """Return what is known of a process."""
    user = process.get("user") or process.get("userId", "?")
    identity = f"pid {process.get('pid', '?')}"
    if process.get("namespacePid") not in (None, 0, process.get("pid")):
        identity += f" ({process['namespacePid']} in its container)"
    identity += f", user {user}"
    if process.get("euid") not in (None, process.get("userId")):
        identity += f" acting as {process['euid']}"
    if process.get("startTime"):
        identity += f", started {show_time(_time(process['startTime']), fraction=True)} UTC"
    values = [str(process.get("executablePath") or process.get("name") or "?"), identity]
    if isinstance(arguments, list) and arguments:
        values.append("arguments: " + " ".join(quoted(str(a)) for a in arguments))
    if process.get("pwd"):
        values.append(f"directory: {process['pwd']}")
    if process.get("executableSha256"):
        values.append(f"sha256: {process['executableSha256']}")
    return labelled(label, values)


def _time(value: Any) -> Any:
    """GuardDuty's JSON has times as text or as seconds since the epoch."""
    return moment(int(value * 1e9)) if isinstance(value, int | float) else str(value)


def _ancestor(depth: int, ancestor: dict[str, Any]) -> str:
    branch = "  " * depth + ("└ " if depth else "")
    path = ancestor.get("executablePath") or ancestor.get("name") or "?"
    return f"{branch}{path} (pid {ancestor.get('pid', '?')}, user {ancestor.get('userId', '?')})"


def action_lines(action: Any) -> list[Line]:
    """Return a network connection or DNS request in words."""
    if not isinstance(action, dict):
        return []
    connection = action.get("networkConnectionAction")
    if isinstance(connection, dict):
        remote = dig(connection, "remoteIpDetails", "ipAddressV4") or dig(connection, "remoteIpDetails", "ipAddressV6")
        port = dig(connection, "remotePortDetails", "port")
        direction = str(connection.get("connectionDirection", "")).lower()
        local = dig(connection, "localIpDetails", "ipAddressV4") or dig(connection, "localIpDetails", "ipAddressV6")
        text = f"{direction} {connection.get('protocol', '')} {local or '?'} to {remote or '?'} port {port}"
        return [("Connection", " ".join(text.split()))]
    request = action.get("dnsRequestAction")
    if isinstance(request, dict):
        return [("DNS request", f"{request.get('domain', '?')} ({request.get('protocol', '?')})")]
    return labelled("Action", flatten(action))


def flatten(data: Any, prefix: str = "") -> Iterator[str]:
    """Yield ``key.key: value`` for every scalar in nested data."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from flatten(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(data, list):
        if all(not isinstance(item, dict | list) for item in data):
            yield f"{prefix}: {', '.join(map(str, data))}"
        else:
            for index, item in enumerate(data):
                yield from flatten(item, f"{prefix}[{index}]")
    elif data is not None:
        yield f"{prefix}: {data}" if prefix else str(data)


def event_line(event: dict[str, Any]) -> str:
    """Return one raw event as a line: when, what, who, and the values that are set."""
    shown = {"time", "wall", "type", "pid", "comm", "size", "start", "cgroup", "tid", "node"}
    rest = " ".join(f"{k}={_value(v)}" for k, v in event.items() if k not in shown and v not in (None, "", 0, [], {}))
    when = str(event.get("wall") or event.get("time", ""))
    who = f"{event.get('comm', '?')}[{event.get('pid', '?')}]"
    return f"{show_time(when, fraction=True)}  {event.get('type', '?'):<10} {who}  {safe(rest, limit=400)}"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(str, value)) + "]"
    return str(value)


def _heading(text: str) -> None:
    print_line()
    print_line((text, "bold"))


def _width() -> int:
    return min(console().width, 120) if is_terminal() else 120


def _paragraph(text: str, bullet: str = "") -> None:
    wrapped = textwrap.wrap(
        safe(text, limit=VALUE_LIMIT), _width() - 2, subsequent_indent=" " * len(bullet), initial_indent=bullet
    )
    for line in wrapped or [""]:
        print_line("  " + line if text else "")


def _lines(lines: Sequence[Line]) -> None:
    for label, value in lines:
        pieces = textwrap.wrap(safe(value, limit=VALUE_LIMIT), max(_width() - LABEL, 40), drop_whitespace=False) or [""]
        for index, piece in enumerate(pieces):
            print_line((f"{label if index == 0 else '':<{LABEL}}", "cyan"), piece)
