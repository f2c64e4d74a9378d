"""Values to manifests: a pure function from `Values` to plain objects, and their byte-stable YAML.

Text of a user reaches a template through the filter ``tojson`` only, which writes it as one quoted YAML scalar (or a
whole map or list in flow form), so nothing in a value can add a field. A name that a template uses and nobody gave is
an error, not nothing. What comes out is parsed and validated before anyone sees it.

The same values give the same bytes, in every process and release that has the same templates: what changes nothing must
restart nothing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
import yaml

from vedette_operator.errors import ManifestError, Problem
from vedette_operator.parsing import plain
from vedette_operator.syntax import duration_s, quantity
from vedette_operator.validation import problems_of
from vedette_operator.values import ConfigSource, Values

Object = dict[str, Any]
"""One Kubernetes object as plain data."""

NAME = "vedette"
CONFIG_HASH = "vedette.dev/config-hash"
"""Annotation of a pod template: digest of what the pods read once, at start."""


@dataclass(frozen=True)
class TlsMaterial:
    """Certificates to put into the manifests, PEM; what is empty is expected to be in the cluster already."""

    ca: str = ""
    certificate: str = ""
    key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Manifest:
    """One rendered object.

    Attributes:
        template: name of the template without its ending, such as ``agent-daemonset``.
        component: ``agent``, ``detector`` or ``shared``.
        content: the object.
    """

    template: str
    component: str
    content: Object

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.content["kind"])

    @property
    def name(self) -> str:
        """The object's name."""
        return str(self.content["metadata"]["name"])


_SHARED = ("namespace", "priority-quota", "networkpolicy-default")
_AGENT = ("agent-serviceaccount", "ca-configmap", "agent-daemonset")
_DETECTOR = (
    "networkpolicy-detector",
    "detector-serviceaccount",
    "detector-clusterrole",
    "detector-clusterrolebinding",
    "detector-configmap",
    "detector-secret",
    "detector-service",
    "detector-poddisruptionbudget",
    "detector-statefulset",
)
ORDER = (*_SHARED, *_AGENT[:-1], *_DETECTOR, _AGENT[-1])
"""Templates in the order in which their objects are to be applied: what others refer to first, agents last."""


def component_of(template: str) -> str:
    """Which part a template belongs to: ``agent``, ``detector`` or ``shared``."""
    if template in _AGENT:
        return "agent"
    return "detector" if template in _DETECTOR else "shared"


def render(
    values: Values, tls: TlsMaterial | None = None, *, observed: Mapping[str, str] | None = None
) -> list[Manifest]:
    """Make every object of an installation, in the order in which to apply them.

    Args:
        values: what to install.
        tls: certificates to put in; without, the objects named in ``values.tls`` must exist.
        observed: digests of the content of Secrets that are read once (``Secret/name``: digest); part of the config
            hash, so that their change restarts the pods that read them.

    Raises:
        ManifestError: a template made something that is no proper object.
    """
    tls = tls or TlsMaterial()
    context = _context(values, tls, observed or {})
    manifests = []
    problems = []
    for name in ORDER:
        if not _wanted(name, values, tls):
            continue
        content = _parse(name, _template(name).render(context))
        _drop_empty(content)
        manifests.append(Manifest(name, component_of(name), content))
        problems += [Problem(f"{name}: {p.path}", p.message) for p in problems_of(content, values.namespace)]
    identities = [(m.content["apiVersion"], m.kind, m.name) for m in manifests if not problems]
    problems += [Problem("", f"{kind} {name} is there twice") for _, kind, name in _repeated(identities)]
    if problems:
        raise ManifestError(problems)
    return manifests


def to_yaml(objects: Iterable[Object]) -> str:
    """Objects as a stream of YAML documents, ASCII, always the same bytes for the same objects."""
    return "".join(
        "---\n"
        + yaml.dump(
            content,
            Dumper=_Dumper,
            default_flow_style=False,
            sort_keys=False,
            allow_unicode=False,
            width=1 << 20,
        )
        for content in objects
    )


def digest(data: Any) -> str:
    """SHA-256 of plain data, whatever the order of its keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _wanted(template: str, values: Values, tls: TlsMaterial) -> bool:
    external = values.detector.external
    if template == "namespace":
        return values.create_namespace
    if template == "priority-quota":
        return bool(_critical_classes(values))
    if template == "ca-configmap":
        return bool(tls.ca) and not (external and external.system_certificates)
    if template == "networkpolicy-default":
        return values.network_policies.enabled
    if component_of(template) == "detector" and external:
        return False
    if template == "networkpolicy-detector":
        return values.network_policies.enabled
    if template == "detector-secret":
        return bool(tls.certificate and tls.key)
    return True


def _context(values: Values, tls: TlsMaterial, observed: Mapping[str, str]) -> dict[str, Any]:
    """Everything that templates may name, as plain data, decided."""
    agent, detector = values.agent, values.detector
    settings = detector_settings(values)
    sources = [*_sources("rules", detector.rules), *_sources("threat-lists", detector.threat_lists)]
    config_hash = digest({"settings": settings, "observed": dict(observed)})
    return {
        "namespace": values.namespace,
        "labels": _labels(values, ""),
        "annotations": dict(values.annotations),
        "namespace_labels": {
            **_labels(values, ""),
            **{f"pod-security.kubernetes.io/{mode}": "privileged" for mode in ("enforce", "audit", "warn")},
        },
        "pull_policy": values.images.pull_policy,
        "pull_secrets": list(values.images.pull_secrets),
        "critical_classes": _critical_classes(values),
        "ca_config_map": values.tls.ca_config_map,
        "ca_pem": tls.ca,
        "tls_secret": values.tls.secret,
        "tls_certificate": base64.b64encode(tls.certificate.encode()).decode(),
        "tls_key": base64.b64encode(tls.key.encode()).decode(),
        "sources": list(values.network_policies.sources),
        "egress_ports": list(values.network_policies.egress_ports),
        "agent": {
            "labels": _labels(values, "agent"),
            "workload_labels": {**_labels(values, "agent"), **agent.labels},
            "pod_labels": {**_pod_labels("agent"), **agent.labels},
            "selector": _selector("agent"),
            "annotations": {**values.annotations, **agent.annotations},
            "pod_annotations": dict(agent.annotations),
            "image": values.images.reference(values.images.agent),
            "arguments": agent_arguments(values),
            "ca_mounted": not (detector.external and detector.external.system_certificates),
            "max_unavailable": _number_or_text(agent.max_unavailable),
            "host_path": agent.host_path,
            "unconfined": agent.app_armor_profile == "Unconfined",
            "se_linux_type": agent.se_linux_type,
            "cgroup_path": agent.cgroup_path,
            **_scheduling(agent),
        },
        "detector": {
            "labels": _labels(values, "detector"),
            "workload_labels": {**_labels(values, "detector"), **detector.labels},
            "pod_labels": {**_pod_labels("detector"), **detector.labels},
            "selector": _selector("detector"),
            "annotations": {**values.annotations, **detector.annotations},
            "pod_annotations": {**detector.annotations, CONFIG_HASH: config_hash},
            "service_account_annotations": {**values.annotations, **detector.service_account_annotations},
            "image": values.images.reference(values.images.detector),
            "arguments": detector_arguments(values, [source["path"] for source in sources]),
            "settings": settings,
            "sources": sources,
            "store_url": plain(detector.store_url),
            "storage_class": detector.storage.class_name,
            "storage_size": detector.storage.size,
            **_scheduling(detector),
        },
    }


def agent_arguments(values: Values) -> list[str]:
    """The agent's command line. ``$(NODE_NAME)`` is replaced by the kubelet."""
    agent, external = values.agent, values.detector.external
    return [
        "--node=$(NODE_NAME)",
        f"--endpoint={values.endpoint}",
        "--token-file=/var/run/secrets/vedette/token",
        *([] if external and external.system_certificates else ["--ca-file=/etc/vedette/ca/ca.crt"]),
        "--spool-dir=/var/lib/vedette/agent/spool",
        f"--spool-limit={_bytes(agent.spool_limit)}",
        # Pins need a bpffs, and mounting or writing one needs CAP_SYS_ADMIN.
        "--pin-dir=",
        f"--hash-mib-per-s={agent.hash_mib_per_second}",
        *([] if agent.ec2_metadata else ["--no-ec2-metadata"]),
        "--log-format=json",
        f"--log-level={agent.log_level}",
    ]


def detector_arguments(values: Values, source_paths: Sequence[str]) -> list[str]:
    """The detector's command line: what the manifests themselves decide. The rest is `detector_settings`."""
    detector, namespace = values.detector, values.namespace
    admins = detector.admin_service_accounts
    if admins is None:
        admins = (f"{namespace}:vedette-operator",)
    host = f"[{detector.bind_address}]" if ":" in detector.bind_address else detector.bind_address
    return [
        f"--listen=https://{host}:8443",
        "--listen=unix:///run/vedette/detector.sock",
        "--tls-cert=/etc/vedette/tls/tls.crt",
        "--tls-key=/etc/vedette/tls/tls.key",
        "--token-review=true",
        "--token-audience=vedette",
        f"--agent-service-account={namespace}:vedette-agent",
        *(f"--admin-service-account={account}" for account in admins),
        "--kubernetes=in-cluster",
        *(f"--{path.split('/')[3]}={path}" for path in source_paths),
    ]


def detector_settings(values: Values) -> dict[str, str]:
    """The detector's settings as environment variables, which its ConfigMap holds."""
    detector, cluster = values.detector, values.cluster
    given = {
        "ACCOUNT_ID": cluster.account_id,
        "BUILTIN_RULES": "" if detector.builtin_rules else "false",
        "CLUSTER": cluster.name,
        "CLUSTER_ARN": cluster.arn,
        "FINDING_RETENTION_S": str(duration_s(detector.retention.findings)),
        "JOURNAL_BYTES": str(_bytes(detector.retention.events_size)),
        "JOURNAL_S": str(duration_s(detector.retention.events)),
        "LOG_LEVEL": detector.log_level,
        "PARTITION": cluster.partition,
        "REGION": cluster.region,
        "WORKERS": str(detector.workers),
    }
    settings = {f"VEDETTE_{name}": text for name, text in given.items() if text}
    # An empty list is a wish, too: nothing is redacted. The detector reads one entry a line.
    if detector.redaction.patterns is not None:
        settings["VEDETTE_REDACTION"] = "\n".join(detector.redaction.patterns)
    if detector.redaction.options is not None:
        settings["VEDETTE_REDACTED_OPTIONS"] = "\n".join(detector.redaction.options)
    return dict(sorted(settings.items()))


def _sources(folder: str, sources: Sequence[ConfigSource]) -> list[dict[str, str]]:
    found = []
    for index, source in enumerate(sources):
        kind, name = ("configmap", source.config_map) if source.config_map else ("secret", source.secret)
        found.append(
            {
                "volume": f"{folder}-{index}",
                "path": f"/etc/vedette/{folder}/{kind}-{name}",
                "config_map": source.config_map,
                "secret": source.secret,
            }
        )
    return found


def _selector(component: str) -> dict[str, str]:
    return {"app.kubernetes.io/component": component, "app.kubernetes.io/name": NAME}


def _pod_labels(component: str) -> dict[str, str]:
    # Without managed-by: that another hand manages the pods must not restart them.
    return {**_selector(component), "app.kubernetes.io/part-of": NAME}


def _labels(values: Values, component: str) -> dict[str, str]:
    ours = _pod_labels(component) if component else {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": NAME}
    return {**values.labels, **ours, "app.kubernetes.io/managed-by": values.managed_by}


def _scheduling(part: Any) -> dict[str, Any]:
    wanted = plain(part.resources)
    return {
        "resources": {name: content for name, content in wanted.items() if content},
        "tolerations": [
            {name: content for name, content in item.items() if content not in ("", None)}
            for item in plain(part.tolerations)
        ],
        "node_selector": dict(part.node_selector),
        "affinity": plain(part.affinity),
        "priority_class": part.priority_class_name,
    }


def _critical_classes(values: Values) -> list[str]:
    parts = [values.agent.priority_class_name]
    if not values.detector.external:
        parts.append(values.detector.priority_class_name)
    return sorted({name for name in parts if name.startswith("system-")})


def _bytes(text: str) -> int:
    return int(quantity(text))


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _repeated(items: Sequence[Any]) -> list[Any]:
    return sorted({item for item in items if items.count(item) > 1})


# libyaml's where it is there: an operator renders at every pass, and this is half of the time.
_LOADER: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _parse(name: str, text: str) -> Object:
    try:
        documents = [document for document in yaml.load_all(text, Loader=_LOADER) if document is not None]
    except yaml.YAMLError as error:
        raise ManifestError([Problem(name, f"is not YAML: {error}")]) from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ManifestError([Problem(name, f"must make one object, made {len(documents)} documents")])
    return documents[0]


def _drop_empty(content: Any) -> None:
    """Remove labels and annotations that are empty, as the API server would show them."""
    if isinstance(content, dict):
        metadata = content.get("metadata")
        if isinstance(metadata, dict):
            for name in ("labels", "annotations"):
                if metadata.get(name) == {}:
                    del metadata[name]
        for child in content.values():
            _drop_empty(child)
    elif isinstance(content, list):
        for child in content:
            _drop_empty(child)


_JSON_ESCAPE = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|\\.")


def quoted(value: Any) -> str:
    """``value`` as YAML in flow form on one line: JSON, but for characters beyond 16 bits.

    JSON writes those as two surrogates, which YAML reads as two characters that are none.

    Raises:
        jinja2.UndefinedError: the value is missing.
        TypeError, ValueError: it is not plain data.
    """
    if isinstance(value, jinja2.Undefined):
        raise jinja2.UndefinedError(f"a value is missing: {value._undefined_name}")

    def one_character(match: re.Match[str]) -> str:
        if not match[1]:
            return match[0]
        return f"\\U{0x10000 + ((int(match[1], 16) & 0x3FF) << 10) + (int(match[2], 16) & 0x3FF):08x}"

    return _JSON_ESCAPE.sub(one_character, json.dumps(value, sort_keys=True, allow_nan=False))


@functools.cache
def environment() -> jinja2.Environment:
    """The Jinja environment of the templates."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - YAML, not HTML; each value goes through `quoted`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["tojson"] = quoted
    return made


def _source(name: str) -> str | None:
    path = resources.files("vedette_operator") / "templates" / name
    return path.read_text("utf-8") if path.is_file() else None


def _template(name: str) -> jinja2.Template:
    return environment().get_template(f"{name}.yaml.j2")


class _Dumper(yaml.SafeDumper):
    """Writes text so that every reader of YAML, 1.1 and 1.2, takes it for text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything out where it is: `&id001` is not for people."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists in maps, as people write manifests."""
        return super().increase_indent(flow, False)


_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9._/-]*(?:[:@][A-Za-z0-9._/-]+)*\Z")
_NOT_TEXT = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "inf", "nan"))
_LINES = re.compile(r"(?:[\x20-\x7e]*\n)+\Z")


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # PyYAML would write `y` and `1e3` plainly, which other readers take for true and a number.
    style: str | None = '"'
    if _PLAIN.match(text) and text.lower() not in _NOT_TEXT:
        style = None
    elif _LINES.match(text) and not re.search(r"^\s|\s\n", text):
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
