"""Everything that an installation can be made of: one frozen, typed, validated model.

`parse` turns plain data (a values file, the options of a command, the spec of a resource) into `Values`, or names every
mistake in it. The model holds no secrets: certificates and keys are handed to the renderer apart from it, everything
else secret is a reference to a Secret of the cluster. This module knows neither templates nor the cluster.
"""

# ruff: noqa: RUF009 - `field` is dataclasses.field with the metadata that every field must have.

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from vedette_operator.errors import Problem, ValuesError
from vedette_operator.parsing import Check, field, parse_model
from vedette_operator.syntax import (
    dns_label_problem,
    dns_name_problem,
    duration_s,
    label_key_problem,
    label_value_problem,
    quantity,
    quantity_problem,
)

Quantities = Mapping[str, str]
LogLevel = Literal["debug", "info", "warning", "error"]

RESERVED_LABELS = "app.kubernetes.io/"
"""Labels below this prefix are ours: selectors and pruning depend on them."""

RESERVED_ANNOTATIONS = "vedette.dev/"
"""Annotations below this prefix are ours."""


@dataclass(frozen=True)
class Pattern:
    """A check that a regular expression makes; the schema of the resource takes the expression over."""

    expression: str
    what: str

    def __call__(self, text: str) -> str:
        """What is wrong with ``text``."""
        return "" if re.fullmatch(self.expression, text) else f"{text!r} is not {self.what}"


@dataclass(frozen=True)
class Least:
    """A check for a least number."""

    number: int

    def __call__(self, value: int) -> str:
        """What is wrong with ``value``."""
        return "" if value >= self.number else f"must be at least {self.number}, is {value}"


_pattern, _least = Pattern, Least


def _duration_problem(text: str) -> str:
    try:
        return "" if duration_s(text) > 0 else "must be longer than nothing"
    except ValueError as error:
        return str(error)


def _size_problem(text: str) -> str:
    problem = quantity_problem(text)
    if problem:
        return problem
    return "" if quantity(text) >= 1 << 20 else f"{text!r} is less than 1Mi"


def _cidr_problem(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        return f"{text!r} is not a network such as 10.0.0.0/16: {error}"
    return ""


def _url_problem(text: str) -> str:
    try:
        url = urlsplit(text)
        good = url.scheme == "https" and bool(url.hostname) and url.port is not None and not url.path.strip("/")
    except ValueError:
        good = False
    if not good or not re.fullmatch(r"[A-Za-z0-9:/.\[\]-]+", text):
        return f"{text!r} is not of the form https://host:port"
    return ""


def _account_problem(text: str) -> str:
    namespace, colon, name = text.partition(":")
    if not colon or dns_label_problem(namespace) or dns_name_problem(name):
        return f"{text!r} is not of the form namespace:name"
    return ""


def _one_line(text: str) -> str:
    return "must be one line" if re.search(r"[\x00-\x1f\x7f]", text) else ""


def _not_ours(prefix: str, syntax: Check) -> Check:
    def check(key: str) -> str:
        if syntax(key):
            return syntax(key)
        return f"{key!r}: keys beginning with {prefix} are set by Vedette" if key.startswith(prefix) else ""

    return check


def _unavailable_problem(text: str) -> str:
    match = re.fullmatch(r"([1-9][0-9]{0,3})(%?)", text)
    if match is None or (match[2] and int(match[1]) > 100):
        return f"{text!r} is neither a number of nodes nor a percentage such as 10%"
    return ""


_registry = _pattern(
    r"[a-z0-9]+([._-][a-z0-9]+)*(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*",
    "a registry, with or without a path, such as registry.example.com/security",
)
_repository = _pattern(r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*", "the name of an image")
_tag = _pattern(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", "an image tag")
_digest = _pattern(r"sha256:[0-9a-f]{64}", "a digest such as sha256:<64 hex digits>")
_path = _pattern(r"(/[A-Za-z0-9._-]*[A-Za-z0-9_-][A-Za-z0-9._-]*)+", "an absolute path of plain names")
_label_key = _not_ours(RESERVED_LABELS, label_key_problem)
_annotation_key = _not_ours(RESERVED_ANNOTATIONS, label_key_problem)


@dataclass(frozen=True)
class Image:
    """One image; the digest wins over the tag."""

    repository: str = field("Name of the image in the registry.", check=_repository, empty=False)
    tag: str = field("Tag; empty: the one of `images.tag`.", "", check=_tag)
    digest: str = field("`sha256:…`; pins the image whatever its tags say.", "", check=_digest)


@dataclass(frozen=True)
class Images:
    """Where images come from."""

    registry: str = field("Registry, with a path if there is one.", "localhost", check=_registry)
    tag: str = field("Tag of all images that have none of their own.", "dev", check=_tag, empty=False)
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = field("When nodes fetch images.", "IfNotPresent")
    pull_secrets: tuple[str, ...] = field(
        "Secrets of type `kubernetes.io/dockerconfigjson` in the namespace.", (), check=dns_name_problem, empty=False
    )
    agent: Image = field("The agent's image.", lambda: Image("vedette-agent"))
    detector: Image = field("The detector's image.", lambda: Image("vedette-detector"))

    def reference(self, image: Image) -> str:
        """The reference that goes into a pod."""
        name = f"{self.registry}/{image.repository}" if self.registry else image.repository
        return f"{name}@{image.digest}" if image.digest else f"{name}:{image.tag or self.tag}"


@dataclass(frozen=True)
class Cluster:
    """Which cluster this is, as findings name it."""

    name: str = field(
        "Name of the cluster.", "", check=_pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "a cluster's name")
    )
    arn: str = field(
        "ARN of the cluster, on EKS.",
        "",
        check=_pattern(r"arn:[a-z0-9-]+:[a-z0-9-]+:[a-z0-9-]*:[0-9]{0,12}:[A-Za-z0-9/._:-]+", "an ARN"),
    )
    account_id: str = field(
        "AWS account of findings, twelve digits.", "", check=_pattern(r"[0-9]{12}", "twelve digits")
    )
    region: str = field("Region of findings.", "", check=_pattern(r"[a-z0-9-]{1,64}", "a region"))
    partition: Literal["aws", "aws-cn", "aws-us-gov"] = field("AWS partition of findings' ARNs.", "aws")
    domain: str = field("DNS domain of the cluster.", "cluster.local", check=dns_name_problem, empty=False)


@dataclass(frozen=True)
class Resources:
    """Requests and limits of a container."""

    requests: Quantities = field(
        "What is set aside.", dict, check=quantity_problem, numbers=True, keys=label_key_problem
    )
    limits: Quantities = field("What is the most.", dict, check=quantity_problem, numbers=True, keys=label_key_problem)


@dataclass(frozen=True)
class Toleration:
    """As in a pod."""

    key: str = field("Taint's key; empty with `Exists`: every taint.", "", check=label_key_problem)
    operator: Literal["Exists", "Equal"] = field("How the taint's value is compared.", "Equal")
    value: str = field("Taint's value.", "", check=label_value_problem)
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = field("Taint's effect; empty: all.", "")
    toleration_seconds: int | None = field("How long `NoExecute` is tolerated.", None, check=_least(0))


@dataclass(frozen=True)
class ConfigSource:
    """A ConfigMap or a Secret of the namespace whose keys are files; exactly one of the two."""

    config_map: str = field("Name of a ConfigMap.", "", check=dns_name_problem)
    secret: str = field("Name of a Secret.", "", check=dns_name_problem)


@dataclass(frozen=True)
class SecretKey:
    """One key of a Secret of the namespace."""

    secret: str = field("Name of the Secret.", check=dns_name_problem, empty=False)
    key: str = field("Key in it.", check=_pattern(r"[A-Za-z0-9._-]{1,253}", "a key of a Secret"), empty=False)


def _everywhere() -> tuple[Toleration, ...]:
    return (Toleration(operator="Exists"),)


def _linux() -> dict[str, str]:
    return {"kubernetes.io/os": "linux"}


def _real_nodes() -> dict[str, Any]:
    """Nodes that are machines with a kernel which the programs are built for.

    A toleration of everything also tolerates the taints that keep DaemonSets off nodes that are no machines: EKS on
    Fargate, virtual kubelets, simulated nodes. Their pods would be pending for ever.
    """
    expressions = [
        {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
        {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]},
        {"key": "eks.amazonaws.com/compute-type", "operator": "NotIn", "values": ["fargate"]},
        {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet", "kwok"]},
    ]
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
        }
    }


def _agent_resources() -> Resources:
    # Measured: 23 MB of private memory in a storm, 18 MB of BPF maps and ring. No limit of CPU: an agent that is
    # throttled for a tenth of a second loses events.
    return Resources({"cpu": "50m", "memory": "96Mi"}, {"memory": "256Mi"})


def _detector_resources() -> Resources:
    return Resources({"cpu": "250m", "memory": "512Mi"}, {"memory": "2Gi"})


@dataclass(frozen=True)
class Agent:
    """The agent on every node."""

    log_level: LogLevel = field("Least level of log lines.", "info")
    spool_limit: str = field(
        "Most that waits on a node's disk for the detector; the oldest batches go beyond it.",
        "256Mi",
        check=_size_problem,
        numbers=True,
        empty=False,
    )
    hash_mib_per_second: int = field("Most MiB of new executables hashed in a second; 0: none.", 32, check=_least(0))
    ec2_metadata: bool = field("On EC2, ask the metadata service which instance this is.", True)
    host_path: str = field(
        "Directory of the node that holds the spool.", "/var/lib/vedette/agent", check=_path, empty=False
    )
    cgroup_path: str = field("Where the node has its cgroups.", "/sys/fs/cgroup", check=_path, empty=False)
    app_armor_profile: Literal["RuntimeDefault", "Unconfined"] = field(
        "With the runtime's own profile the node's own processes are not hashed; `Unconfined` needs Kubernetes 1.30.",
        "RuntimeDefault",
    )
    se_linux_type: str = field(
        "SELinux type of the agent, where the one of ordinary containers may not load BPF programs; empty: theirs.",
        "",
        check=_pattern(r"[a-z][a-z0-9_]{0,62}", "an SELinux type such as spc_t"),
    )
    resources: Resources = field("Requests and limits.", _agent_resources)
    tolerations: tuple[Toleration, ...] = field("Taints that agents tolerate.", _everywhere)
    node_selector: Mapping[str, str] = field(
        "Labels that a node must have.", dict, check=label_value_problem, keys=label_key_problem
    )
    affinity: Mapping[str, Any] = field(
        "Affinity, as in a pod; by default only nodes that are x86-64 machines with Linux.", _real_nodes
    )
    priority_class_name: str = field("Priority class; empty: none.", "system-node-critical", check=dns_name_problem)
    max_unavailable: str = field(
        "How many agents are replaced at a time, a number or a percentage.",
        "10%",
        check=_unavailable_problem,
        numbers=True,
        empty=False,
    )
    labels: Mapping[str, str] = field(
        "Further labels of the DaemonSet and its pods.", dict, check=label_value_problem, keys=_label_key
    )
    annotations: Mapping[str, str] = field(
        "Further annotations of the DaemonSet and its pods.", dict, keys=_annotation_key
    )


@dataclass(frozen=True)
class External:
    """A detector outside this cluster."""

    url: str = field("Where it listens: https://host:port.", check=_url_problem, empty=False)
    system_certificates: bool = field(
        "Trust the certificate authorities of the agent's image in place of the CA ConfigMap.", False
    )


@dataclass(frozen=True)
class Storage:
    """The detector's volume."""

    class_name: str | None = field(
        "Storage class; not set: the cluster's default; empty: a volume made by hand.", None, check=dns_name_problem
    )
    size: str = field(
        "Size of the volume; it cannot be changed here later.", "10Gi", check=_size_problem, numbers=True, empty=False
    )


@dataclass(frozen=True)
class Retention:
    """How long things are kept."""

    findings: str = field("A finding, after it was last seen.", "90d", check=_duration_problem, empty=False)
    events: str = field("Raw events.", "7d", check=_duration_problem, empty=False)
    events_size: str = field("Most that raw events take.", "4Gi", check=_size_problem, numbers=True, empty=False)


@dataclass(frozen=True)
class Redaction:
    """Secrets in arguments of processes that are not to be kept."""

    patterns: tuple[str, ...] | None = field(
        "RE2 patterns, the first group of a match is replaced; not set: the built-in ones.", None, check=_one_line
    )
    options: tuple[str, ...] | None = field(
        "Options whose next argument is a secret; not set: the built-in ones.", None, check=_one_line, empty=False
    )


@dataclass(frozen=True)
class Detector:
    """The detector."""

    external: External | None = field("A detector elsewhere, in place of one in this cluster.", None)
    log_level: LogLevel = field("Least level of log lines.", "info")
    bind_address: Literal["0.0.0.0", "::"] = field(  # noqa: S104 - every address of a pod
        "Where it listens; `::` in a cluster whose pods have IPv6 addresses.",
        "0.0.0.0",  # noqa: S104
    )
    workers: int = field("Engine processes; 0: one for each core of the node.", 2, check=_least(0))
    storage: Storage = field("Its volume.", Storage)
    retention: Retention = field("How long things are kept.", Retention)
    redaction: Redaction = field("What is not to be kept.", Redaction)
    builtin_rules: bool = field("Load the rules that come with Vedette.", True)
    rules: tuple[ConfigSource, ...] = field("Sigma rules of your own; read again when they change.", ())
    threat_lists: tuple[ConfigSource, ...] = field("Threat lists; read again when they change.", ())
    store_url: SecretKey | None = field("SQLAlchemy URL of a PostgreSQL database; not set: SQLite on the volume.", None)
    admin_service_accounts: tuple[str, ...] | None = field(
        "Who may read status and coverage, `namespace:name`; not set: the operator.",
        None,
        check=_account_problem,
        empty=False,
    )
    service_account_annotations: Mapping[str, str] = field(
        "Annotations of its ServiceAccount, such as an IAM role.", dict, keys=_annotation_key
    )
    resources: Resources = field("Requests and limits.", _detector_resources)
    tolerations: tuple[Toleration, ...] = field("Taints that it tolerates.", ())
    node_selector: Mapping[str, str] = field(
        "Labels that its node must have.", _linux, check=label_value_problem, keys=label_key_problem
    )
    affinity: Mapping[str, Any] = field("Affinity, as in a pod.", dict)
    priority_class_name: str = field("Priority class; empty: none.", "", check=dns_name_problem)
    labels: Mapping[str, str] = field(
        "Further labels of the StatefulSet and its pod.", dict, check=label_value_problem, keys=_label_key
    )
    annotations: Mapping[str, str] = field(
        "Further annotations of the StatefulSet and its pod.", dict, keys=_annotation_key
    )


@dataclass(frozen=True)
class Tls:
    """Objects that hold certificates."""

    secret: str = field(
        "Secret with `tls.crt` and `tls.key` of the detector.",
        "vedette-detector-tls",
        check=dns_name_problem,
        empty=False,
    )
    ca_config_map: str = field(
        "ConfigMap with the `ca.crt` that agents trust.", "vedette-ca", check=dns_name_problem, empty=False
    )


@dataclass(frozen=True)
class NetworkPolicies:
    """What the network lets through, where it enforces policies."""

    enabled: bool = field("Whether policies are made.", True)
    sources: tuple[str, ...] = field(
        "Networks that may reach the detector, such as those of the nodes; empty: any (a token is needed anyway).",
        (),
        check=_cidr_problem,
        empty=False,
    )
    egress_ports: tuple[int, ...] = field(
        "TCP ports that the detector may connect to: the API server's, before and after translation; a database's.",
        (443, 6443),
        check=lambda port: "" if 1 <= port <= 65535 else f"{port} is not a port",
    )


@dataclass(frozen=True)
class Values:
    """The whole."""

    namespace: str = field("Namespace of everything.", "vedette-system", check=dns_label_problem, empty=False)
    create_namespace: bool = field("Whether the namespace itself is among the manifests.", True)
    managed_by: str = field(
        "Label `app.kubernetes.io/managed-by`.", "vedette-manifests", check=label_value_problem, empty=False
    )
    cluster: Cluster = field("Which cluster this is.", Cluster)
    images: Images = field("Where images come from.", Images)
    agent: Agent = field("The agent on every node.", Agent)
    detector: Detector = field("The detector.", Detector)
    tls: Tls = field("Objects that hold certificates.", Tls)
    network_policies: NetworkPolicies = field("Network policies.", NetworkPolicies)
    labels: Mapping[str, str] = field(
        "Further labels of every object.", dict, check=label_value_problem, keys=_label_key
    )
    annotations: Mapping[str, str] = field("Further annotations of every object.", dict, keys=_annotation_key)

    @property
    def endpoint(self) -> str:
        """Where agents deliver."""
        if self.detector.external:
            return self.detector.external.url.rstrip("/")
        return f"https://vedette-detector.{self.namespace}.svc:8443"

    @property
    def dns_names(self) -> tuple[str, ...]:
        """Names of the detector's service, for its certificate; the one that agents use comes first."""
        return service_names(self.namespace, self.cluster.domain)


def service_names(namespace: str, domain: str = "cluster.local") -> tuple[str, ...]:
    """DNS names of the detector's service, the one that agents use first."""
    service = "vedette-detector"
    return (
        f"{service}.{namespace}.svc",
        f"{service}.{namespace}.svc.{domain}",
        f"{service}.{namespace}",
        service,
    )


def parse(data: Any) -> Values:
    """Make values of plain data, defaults filled in.

    Raises:
        ValuesError: with every mistake and the path of its field.
    """
    values, problems = parse_model(Values, data)
    if values is not None and not problems:
        problems += cross_problems(values)
    if problems or values is None:
        raise ValuesError(problems)
    return values


def cross_problems(values: Values) -> list[Problem]:
    """What is wrong with fields that are good each for itself."""
    problems = []

    def wrong(path: str, message: str) -> None:
        problems.append(Problem(path, message))

    for part, resources in (("agent", values.agent.resources), ("detector", values.detector.resources)):
        for name in sorted(set(resources.requests) & set(resources.limits)):
            if quantity(resources.requests[name]) > quantity(resources.limits[name]):
                wrong(f"{part}.resources.requests.{name}", f"is more than the limit of {resources.limits[name]}")
    for part, tolerations in (("agent", values.agent.tolerations), ("detector", values.detector.tolerations)):
        for index, item in enumerate(tolerations):
            path = f"{part}.tolerations[{index}]"
            if not item.key and item.operator != "Exists":
                wrong(path, "without a key the operator must be Exists")
            if item.operator == "Exists" and item.value:
                wrong(f"{path}.value", "must be empty with the operator Exists")
            if item.toleration_seconds is not None and item.effect != "NoExecute":
                wrong(f"{path}.tolerationSeconds", "needs the effect NoExecute")
    for part, affinity in (("agent", values.agent.affinity), ("detector", values.detector.affinity)):
        for name in sorted(set(affinity) - {"nodeAffinity", "podAffinity", "podAntiAffinity"}):
            wrong(f"{part}.affinity.{name}", "is not one of nodeAffinity, podAffinity, podAntiAffinity")
    detector = values.detector
    for name, sources in (("rules", detector.rules), ("threatLists", detector.threat_lists)):
        for index, source in enumerate(sources):
            if bool(source.config_map) == bool(source.secret):
                wrong(f"detector.{name}[{index}]", "needs either configMap or secret")
            elif source in sources[:index]:
                wrong(f"detector.{name}[{index}]", "is there twice")
    if quantity(detector.retention.events_size) > quantity(detector.storage.size) * 8 / 10:
        wrong("detector.retention.eventsSize", f"is more than 80 % of the volume of {detector.storage.size}")
    return problems
