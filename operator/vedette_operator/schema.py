"""The custom resource definitions, generated from the model of the spec: two truths would drift apart.

``python -m vedette_operator.schema crds`` writes them; a test proves that the files are fresh. Bounds are there for
the API server too: it refuses rules (CEL) whose cost it cannot estimate, and it estimates by the greatest length of
texts, lists and maps.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

from vedette_operator.parsing import fields_of, plain
from vedette_operator.rendering import to_yaml
from vedette_operator.spec import GROUP, VERSION, Spec, StorageSpec
from vedette_operator.values import ConfigSource, Least, Pattern, Resources, Toleration

Json = dict[str, Any]

MAX_TEXT, MAX_ITEMS, MAX_ENTRIES = 1024, 64, 64


def _rule(rule: str, message: str, **more: Any) -> Json:
    return {"rule": rule, "message": message, **more}


_NO_MORE_THAN_LIMIT = (
    "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || "
    "quantity(string(self.requests[k])).compareTo(quantity(string(self.limits[k]))) <= 0)"
)
_RULES: dict[type, list[Json]] = {
    Resources: [_rule(_NO_MORE_THAN_LIMIT, "a request is more than its limit")],
    Toleration: [
        _rule("self.key != '' || self.operator == 'Exists'", "without a key the operator must be Exists"),
        _rule("self.operator != 'Exists' || self.value == ''", "value must be empty with the operator Exists"),
        _rule("!has(self.tolerationSeconds) || self.effect == 'NoExecute'", "tolerationSeconds needs effect NoExecute"),
    ],
    ConfigSource: [_rule("(self.configMap != '') != (self.secret != '')", "give either configMap or secret")],
    StorageSpec: [
        _rule(
            "string(self.size) == string(oldSelf.size)",
            "size cannot be changed: delete the resource, keep or delete the volume, and create it again",
        ),
        _rule(
            "has(self.className) == has(oldSelf.className) && "
            "(!has(self.className) || self.className == oldSelf.className)",
            "className cannot be changed: delete the resource, keep or delete the volume, and create it again",
        ),
    ],
}


def model_schema(kind: type) -> Json:
    """OpenAPI schema of a model, every field described, bounded and, where it has a default, defaulted."""
    hints = typing.get_type_hints(kind)
    properties, required = {}, []
    for name, found in fields_of(kind).items():
        schema = _schema(hints[found.name], found)
        properties[name] = {"description": found.metadata["doc"], **schema}
        if found.default is dataclasses.MISSING and found.default_factory is dataclasses.MISSING:
            required.append(name)
            continue
        factory = found.default_factory
        default = factory() if factory is not dataclasses.MISSING else found.default
        if default is not None:
            properties[name]["default"] = _given(plain(default))
    schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    if kind in _RULES:
        schema["x-kubernetes-validations"] = _RULES[kind]
    return schema


def _given(value: Any) -> Any:
    """A default as plain data, complete: the API server judges defaults by the rules before it fills them in."""
    if isinstance(value, dict):
        return {key: _given(item) for key, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list) else value


def _schema(hint: Any, found: dataclasses.Field[Any]) -> Json:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return _schema(next(a for a in arguments if a is not type(None)), found)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return model_schema(hint)
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "maxItems": MAX_ITEMS, "items": _schema(arguments[0], found)}
    if origin is not None and issubclass(origin, typing.Mapping):
        if arguments[1] is Any:
            return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        return {"type": "object", "maxProperties": MAX_ENTRIES, "additionalProperties": _schema(arguments[1], found)}
    if hint is bool:
        return {"type": "boolean"}
    check = found.metadata["check"]
    if hint is int:
        least = check.number if isinstance(check, Least) else -(1 << 31)
        return {"type": "integer", "format": "int32", "minimum": least, "maximum": (1 << 31) - 1}
    text: Json = {"maxLength": MAX_TEXT}
    if found.metadata["numbers"]:
        text["x-kubernetes-int-or-string"] = True
    else:
        text["type"] = "string"
    if isinstance(check, Pattern):
        text["pattern"] = f"^({check.expression})?$" if found.metadata["empty"] else f"^({check.expression})$"
    if not found.metadata["empty"]:
        text["minLength"] = 1
    return text


def _text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, "maxLength": 32768, **more}


def _count(description: str) -> Json:
    return {"type": "integer", "format": "int32", "minimum": 0, "description": description}


_CONDITIONS: Json = {
    "type": "array",
    "description": "What is so and what is not, one entry for each type.",
    "maxItems": 16,
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": _text("What it is about."),
            "status": {"type": "string", "description": "Whether it is so.", "enum": ["True", "False", "Unknown"]},
            "reason": _text("Why, in one word, for programs."),
            "message": _text("Why, in a sentence, and what to do."),
            "lastTransitionTime": {
                "type": "string",
                "format": "date-time",
                "description": "When status was last another one.",
            },
            "observedGeneration": {
                "type": "integer",
                "format": "int64",
                "description": "The generation of the resource that this was said of.",
            },
        },
    },
}
_GENERATION: Json = {
    "type": "integer",
    "format": "int64",
    "description": "The generation of the resource that the operator has seen last.",
}


def _object(description: str, properties: Json) -> Json:
    return {"type": "object", "description": description, "properties": properties}


_CONFIG_STATUS = _object(
    "What is, as the operator sees it.",
    {
        "observedGeneration": _GENERATION,
        "conditions": _CONDITIONS,
        "mode": _text("The mode that is in effect: Automatic, Manual or Disabled."),
        "modeSource": _text("Which setting decided the mode."),
        "operatorVersion": _text("Version of the operator that wrote this."),
        "agents": _object(
            "The agents.",
            {
                "summary": _text("Ready of desired."),
                "desired": _count("Nodes that are to have an agent."),
                "ready": _count("Agents that are ready."),
                "updated": _count("Agents of the newest form."),
                "image": _text("Image that they run."),
            },
        ),
        "detector": _object(
            "The detector.",
            {
                "state": _text("Ready, NotReady, External or Absent."),
                "url": _text("Where agents deliver."),
                "image": _text("Image that it runs."),
                "certificateNotAfter": _text("When its certificate ends.", format="date-time"),
            },
        ),
        "endpoint": _object(
            "The VPC endpoint.", {"state": _text("State of the endpoint; None: there is none, and none is wanted.")}
        ),
    },
)
_REASON_LIST: Json = {
    "type": "array",
    "maxItems": 16,
    "description": "What speaks against it.",
    "items": {
        "type": "object",
        "properties": {"reason": _text("In one word."), "message": _text("In a sentence.")},
    },
}
_COVERAGE_STATUS = _object(
    "Which nodes are covered, and which are not and why.",
    {
        "observedGeneration": _GENERATION,
        "conditions": _CONDITIONS,
        "coverage": {
            "type": "string",
            "description": "HEALTHY: every node that can be covered is; UNHEALTHY: one is not.",
            "enum": ["HEALTHY", "UNHEALTHY", "UNKNOWN"],
        },
        "summary": _text("Covered of nodes."),
        "nodes": _count("Nodes that are to be covered."),
        "covered": _count("Nodes that are."),
        "percentage": {
            "type": "integer",
            "format": "int32",
            "minimum": 0,
            "maximum": 100,
            "description": "Covered nodes in a hundred, rounded down.",
        },
        "unsupported": _count("Nodes that no agent can run on: Fargate, virtual and other machines than x86-64 Linux."),
        "reasons": {
            "type": "object",
            "description": "For how many nodes each reason holds.",
            "additionalProperties": {"type": "integer", "format": "int32"},
        },
        "uncovered": {
            "type": "array",
            "description": "Nodes that are not covered, by name, the first hundred.",
            "maxItems": 100,
            "items": {
                "type": "object",
                "required": ["node"],
                "properties": {
                    "node": _text("Name of the node."),
                    "pod": _text("The agent's pod, where there is one."),
                    "reasons": _REASON_LIST,
                },
            },
        },
    },
)


def _definition(
    kind: str, plural: str, singular: str, short: list[str], description: str, spec: Json, status: Json, more: Json
) -> Json:
    validations = more.pop("validations", None)
    schema: Json = {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this kind."},
            "kind": {"type": "string", "description": "Always " + kind + "."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    if validations:
        schema["x-kubernetes-validations"] = validations
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "vedette", "app.kubernetes.io/part-of": "vedette"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": singular,
                "shortNames": short,
                "categories": ["vedette"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": more["columns"],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Json:
    return {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}


def _condition(name: str, member: str) -> str:
    return f'.status.conditions[?(@.type=="{name}")].{member}'


def definitions() -> dict[str, Json]:
    """Every definition by the name of its file."""
    config = _definition(
        "RuntimeMonitoringConfig",
        "runtimemonitoringconfigs",
        "runtimemonitoringconfig",
        ["rmc"],
        "Runtime threat monitoring of this cluster: an agent on every node, and the detector that they report to.",
        {"description": "What is wanted.", "default": {}, **model_schema(Spec)},
        _CONFIG_STATUS,
        {
            "validations": [
                _rule(
                    "self.metadata.name == 'default'", "there is one RuntimeMonitoringConfig, and its name is default"
                )
            ],
            "columns": [
                _column("Mode", ".status.mode"),
                _column("Ready", _condition("Ready", "status")),
                _column("Agents", ".status.agents.summary"),
                _column("Detector", ".status.detector.state"),
                _column("Endpoint", ".status.endpoint.state"),
                _column("Age", ".metadata.creationTimestamp", "date"),
                _column("Reason", _condition("Ready", "reason"), priority=1),
                _column("Message", _condition("Ready", "message"), priority=1),
            ],
        },
    )
    config["spec"]["versions"][0]["schema"]["openAPIV3Schema"].pop("required")
    monitored = _definition(
        "MonitoredCluster",
        "monitoredclusters",
        "monitoredcluster",
        ["mc"],
        "One cluster that is watched, and how far. The operator makes the one named local, for its own cluster.",
        _object(
            "Which cluster it is.",
            {
                "clusterName": _text("Name of the cluster, as findings have it."),
                "detector": _text("Where its agents deliver."),
            },
        ),
        _COVERAGE_STATUS,
        {
            "columns": [
                _column("Coverage", ".status.coverage"),
                _column("Nodes", ".status.summary"),
                _column("Percent", ".status.percentage", "integer"),
                _column("Age", ".metadata.creationTimestamp", "date"),
                _column("Message", _condition("Covered", "message"), priority=1),
            ]
        },
    )
    return {"runtimemonitoringconfig.yaml": config, "monitoredcluster.yaml": monitored}


HEADER = "# Generated from operator/vedette_operator/spec.py by: python -m vedette_operator.schema crds\n"


def main() -> None:
    """Write the definitions into the directory that the command line names."""
    directory = Path(sys.argv[1])
    for name, content in definitions().items():
        (directory / name).write_text(HEADER + to_yaml([content]), "utf-8")


if __name__ == "__main__":
    main()
