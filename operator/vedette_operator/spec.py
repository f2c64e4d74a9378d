"""The resource RuntimeMonitoringConfig as a frozen, typed, validated model, and which setting decides its mode.

`parse_spec` turns ``spec`` of a resource into `Spec` or names every mistake in it with its path. The API server judges
most of it beforehand by the schema, which is generated from this model (`vedette_operator.schema`); what no schema can
say, and what a schema of another release let through, is judged here. Pure.
"""

# ruff: noqa: RUF009 - `field` is dataclasses.field with the metadata that every field must have.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from vedette_operator.errors import Problem, ProblemsError
from vedette_operator.parsing import field, parse_model
from vedette_operator.syntax import label_value_problem
from vedette_operator.values import (
    Agent,
    Cluster,
    Detector,
    Images,
    NetworkPolicies,
    Storage,
    Tls,
    Values,
    _annotation_key,
    _label_key,
    _registry,
    _tag,
    cross_problems,
)

GROUP = "vedette.dev"
VERSION = "v1alpha1"
NAME = "default"
"""The one RuntimeMonitoringConfig that there can be."""
MANAGED_BY = "vedette-operator"
MANAGEMENT_ANNOTATION = f"{GROUP}/agent-management"
SKIP_CLEANUP_ANNOTATION = f"{GROUP}/skip-cleanup"

Mode = Literal["Automatic", "Manual", "Disabled"]


class SpecError(ProblemsError):
    """The spec is not one that can be carried out; trying again is pointless until it changes."""

    reason = "InvalidSpec"


@dataclass(frozen=True)
class AgentSpec(Agent):
    """The agent, and who manages it."""

    management: Literal["Automatic", "Manual"] = field(
        "`Automatic`: the operator deploys, repairs, upgrades and removes agent and detector. `Manual`: it touches "
        "neither and reports coverage all the same. The annotation `vedette.dev/agent-management` wins over this.",
        "Automatic",
    )


@dataclass(frozen=True)
class ImagesSpec(Images):
    """Where images come from; by default where the operator's own release has them."""

    registry: str = field("Registry, with a path if there is one; empty: the operator's own.", "", check=_registry)
    tag: str = field(
        "Tag of all images that have none of their own; empty: the operator's own release.", "", check=_tag
    )


@dataclass(frozen=True)
class StorageSpec(Storage):
    """The detector's volume, and what becomes of it."""

    deletion_policy: Literal["Retain", "Delete"] = field(
        "What becomes of the volume with the findings on it when monitoring is disabled or this resource is deleted.",
        "Retain",
    )


@dataclass(frozen=True)
class DetectorSpec(Detector):
    """The detector."""

    storage: StorageSpec = field("Its volume.", StorageSpec)


@dataclass(frozen=True)
class TlsSpec(Tls):
    """Certificates between agents and detector."""

    certificates: Literal["Managed", "Existing"] = field(
        "`Managed`: the operator makes an authority and the detector's certificate and renews them in time. "
        "`Existing`: Secret and ConfigMap are made by somebody else, such as cert-manager.",
        "Managed",
    )


@dataclass(frozen=True)
class Spec:
    """What is wanted."""

    mode: Literal["Enabled", "Disabled"] = field("`Disabled` removes everything that the operator made.", "Enabled")
    cluster: Cluster = field("Which cluster this is, as findings name it.", Cluster)
    images: ImagesSpec = field("Where images come from.", ImagesSpec)
    agent: AgentSpec = field("The agent on every node.", AgentSpec)
    detector: DetectorSpec = field("The detector.", DetectorSpec)
    tls: TlsSpec = field("Certificates between agents and detector.", TlsSpec)
    network_policies: NetworkPolicies = field("Network policies.", NetworkPolicies)
    labels: Mapping[str, str] = field(
        "Further labels of every object.", dict, check=label_value_problem, keys=_label_key
    )
    annotations: Mapping[str, str] = field("Further annotations of every object.", dict, keys=_annotation_key)


@dataclass(frozen=True)
class Release:
    """What the operator brings itself: where its own images are."""

    registry: str = "localhost"
    tag: str = "dev"


@dataclass(frozen=True)
class Decision:
    """The mode that is in effect, and what decided it.

    Attributes:
        mode: in effect.
        source: ``spec.mode``, ``spec.agent.management`` or the annotation.
        problem: why a given annotation was not followed; empty when there is none or it was.
    """

    mode: Mode
    source: str
    problem: str = ""


def parse_spec(data: Any, namespace: str, release: Release) -> Spec:
    """Make a spec of plain data, defaults filled in as the schema does.

    Raises:
        SpecError: with every mistake and the path of its field.
    """
    spec, problems = parse_model(Spec, data)
    if spec is not None and not problems:
        problems += cross_problems(to_values(spec, namespace, release))
    if problems or spec is None:
        raise SpecError([Problem(f"spec.{p.path}" if p.path else "spec", p.message) for p in problems])
    return spec


def to_values(spec: Spec, namespace: str, release: Release) -> Values:
    """What the renderer is to make of a spec. The namespace is the operator's own, and not the operator's to make."""
    images = replace(spec.images, registry=spec.images.registry or release.registry, tag=spec.images.tag or release.tag)
    shared = {f.name: getattr(spec, f.name) for f in fields(Values) if hasattr(spec, f.name)}
    return Values(**{**shared, "images": images}, namespace=namespace, create_namespace=False, managed_by=MANAGED_BY)


def decide(spec: Mapping[str, Any], annotations: Mapping[str, str]) -> Decision:
    """Which mode is in effect: Disabled before all, then the annotation, then ``spec.agent.management``.

    Works on plain data, so that also an invalid spec has a mode: with Manual a mistake elsewhere makes nothing happen,
    with Disabled it does not keep things from being removed.
    """
    if spec.get("mode") == "Disabled":
        return Decision("Disabled", "spec.mode")
    agent = spec.get("agent")
    given = agent.get("management") if isinstance(agent, Mapping) else None
    decided: Mode = "Manual" if given == "Manual" else "Automatic"
    wish = annotations.get(MANAGEMENT_ANNOTATION)
    if wish is None:
        return Decision(decided, "spec.agent.management")
    wishes: dict[str, Mode] = {"automatic": "Automatic", "manual": "Manual"}
    if wish.strip().lower() in wishes:
        return Decision(wishes[wish.strip().lower()], f"annotation {MANAGEMENT_ANNOTATION}")
    problem = f"the annotation {MANAGEMENT_ANNOTATION} must be automatic or manual, is {wish[:40]!r}"
    return Decision(decided, "spec.agent.management", problem)
