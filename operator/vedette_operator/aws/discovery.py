"""Where the cluster lives: region, account, VPC, subnets and, on EKS, its name.

What was given wins; the rest comes from the nodes' provider ids and labels, from EKS, and from the instances.
The instance metadata service is not asked: pods should not reach it (hop limit 1), and a node knows less than the API.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vedette_operator.aws.calls import aws_errors
from vedette_operator.aws.errors import AwsError
from vedette_operator.aws.session import Clients
from vedette_operator.aws.spec import EndpointFields, EndpointSpec, default_service_names

_INSTANCE = re.compile(r"aws:///?(?P<zone>[a-z0-9-]*)/(?P<instance>i-[0-9a-f]{8,})")
_FARGATE = re.compile(r"aws:///?(?P<zone>[a-z0-9-]*)/[^/]+/fargate-")
# Local and wavelength zones (us-west-2-lax-1a) carry more after the region, hence the shortest match.
_REGION_OF_ZONE = re.compile(r"[a-z]{2,4}(?:-[a-z]+)+?-\d+")

_NAME_LABELS = ("alpha.eksctl.io/cluster-name",)
_OWNED = "kubernetes.io/cluster/"


@dataclass(frozen=True)
class NodeFacts:
    """Of a node: ``spec.providerID`` and ``metadata.labels``."""

    provider_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hints:
    """What the nodes alone say."""

    regions: frozenset[str] = frozenset()
    instance_ids: tuple[str, ...] = ()
    cluster_names: frozenset[str] = frozenset()
    other_providers: frozenset[str] = frozenset()


def read_nodes(nodes: Iterable[NodeFacts]) -> Hints:
    """Hints from nodes. Pure. Fargate nodes say the region only: their instances are AWS's own."""
    regions, names, others = set(), set(), set()
    instances: list[str] = []
    for node in nodes:
        found = _INSTANCE.match(node.provider_id)
        zone = node.labels.get("topology.kubernetes.io/zone", "")
        if found:
            instances.append(found["instance"])
            zone = found["zone"] or zone
        elif fargate := _FARGATE.match(node.provider_id):
            zone = fargate["zone"] or zone
        elif node.provider_id:
            others.add(node.provider_id.split(":", 1)[0])
            continue
        else:
            continue
        region = node.labels.get("topology.kubernetes.io/region", "") or region_of_zone(zone)
        if region:
            regions.add(region)
        names |= {node.labels[label] for label in _NAME_LABELS if node.labels.get(label)}
    return Hints(frozenset(regions), tuple(sorted(instances)), frozenset(names), frozenset(others))


def region_of_zone(zone: str) -> str:
    """``eu-central-1`` of ``eu-central-1a``; empty where the zone has no such form."""
    found = _REGION_OF_ZONE.match(zone)
    return found[0] if found else ""


def region_for(fields: EndpointFields, hints: Hints) -> str:
    """The region to work in.

    Raises:
        AwsError: It is not known, or nodes are in several.
    """
    if fields.region:
        return fields.region
    if len(hints.regions) > 1:
        raise _unknown(f"Nodes are in several regions ({', '.join(sorted(hints.regions))}); set endpoint.region.")
    region = (
        next(iter(hints.regions), "") or os.environ.get("AWS_REGION", "") or os.environ.get("AWS_DEFAULT_REGION", "")
    )
    if not region:
        providers = f" (nodes are of {', '.join(sorted(hints.other_providers))})" if hints.other_providers else ""
        raise _unknown(f"No node says in which AWS region it is{providers}; set endpoint.region and endpoint.vpcId.")
    return region


def complete(
    clients: Clients, fields: EndpointFields, hints: Hints, *, user: str, cluster_name: str = ""
) -> EndpointSpec:
    """Find out what ``fields`` leave open.

    Raises:
        AwsError: Something can neither be found nor was given; the message says what to set.
    """
    with aws_errors("sts"):
        identity = clients.client("sts").get_caller_identity()
    account = str(identity["Account"])
    vpc_id, subnets = fields.vpc_id, fields.subnet_ids
    names = {fields.cluster_name or cluster_name} - {""} or set(hints.cluster_names)
    tried: list[str] = []
    if not vpc_id or not subnets:
        instances = (
            _instances(clients, hints.instance_ids[:50]) if hints.instance_ids and (not vpc_id or not names) else []
        )
        if not names:
            names = {name for item in instances for name in _names_of(item)}
        if len(names) > 1 and not vpc_id:
            raise _unknown(f"Nodes are of several clusters ({', '.join(sorted(names))}); set endpoint.clusterName.")
        eks = _eks(clients, next(iter(names)), tried) if len(names) == 1 else None
        if eks and vpc_id in ("", eks["vpcId"]):
            subnets = subnets or tuple(sorted(eks.get("subnetIds", ())))
            vpc_id = vpc_id or eks["vpcId"]
        in_vpcs = {item.get("VpcId", "") for item in instances} - {""}
        if not vpc_id and len(in_vpcs) > 1:
            raise _unknown(f"Nodes are in several VPCs ({', '.join(sorted(in_vpcs))}); set endpoint.vpcId.")
        vpc_id = vpc_id or next(iter(in_vpcs), "")
        subnets = subnets or tuple(sorted({item["SubnetId"] for item in instances if item.get("VpcId") == vpc_id}))
    if not vpc_id:
        why = "; ".join(tried) or (
            "the nodes' instances are not in this account" if hints.instance_ids else "no node is an EC2 instance"
        )
        raise _unknown(
            f"The VPC of the cluster cannot be found ({why}); set endpoint.vpcId, or endpoint.clusterName on EKS."
        )
    return EndpointSpec(
        user=user,
        region=clients.region,
        account_id=account,
        vpc_id=vpc_id,
        service_names=(fields.service_name,) if fields.service_name else default_service_names(clients.region),
        mode=fields.mode,
        endpoint_id=fields.endpoint_id,
        subnet_ids=subnets,
        subnets_given=bool(fields.subnet_ids),
        private_dns=fields.private_dns,
        account_ids=fields.account_ids if fields.account_ids or fields.organization_id else (account,),
        organization_id=fields.organization_id,
        deletion_policy=fields.deletion_policy,
        repair_vpc_dns=fields.repair_vpc_dns,
        cluster_name=fields.cluster_name or cluster_name or next(iter(names), ""),
        tags=fields.tags,
    )


def _eks(clients: Clients, name: str, tried: list[str]) -> dict[str, Any] | None:
    """``resourcesVpcConfig`` of the EKS cluster; None where there is none of that name (a cluster of another kind)."""
    try:
        with aws_errors("eks"):
            answer = clients.client("eks").describe_cluster(name=name)
    except AwsError as error:
        if error.code == "ResourceNotFoundException":
            tried.append(f"EKS has no cluster {name} in {clients.region}")
            return None
        raise
    found: dict[str, Any] = answer["cluster"].get("resourcesVpcConfig", {})
    return found if found.get("vpcId") else None


def _instances(clients: Clients, ids: Iterable[str]) -> list[dict[str, Any]]:
    # A filter, since naming ids fails as a whole when one of them has just been terminated.
    filters = [{"Name": "instance-id", "Values": list(ids)}]
    with aws_errors():
        pages = clients.ec2.get_paginator("describe_instances").paginate(Filters=filters)
        return [item for page in pages for group in page.get("Reservations", ()) for item in group.get("Instances", ())]


def _names_of(instance: Mapping[str, Any]) -> set[str]:
    tags = {tag["Key"]: tag.get("Value", "") for tag in instance.get("Tags", ())}
    for key in ("aws:eks:cluster-name", "eks:cluster-name"):
        if tags.get(key):
            return {tags[key]}
    return {key.removeprefix(_OWNED) for key in tags if key.startswith(_OWNED)}


def _unknown(message: str) -> AwsError:
    return AwsError("DiscoveryFailed", message, stalled=True, retry_after_s=300.0)
