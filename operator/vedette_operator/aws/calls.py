"""The calls: reading what is there, and carrying out the steps of a plan.

Every call is one that may be repeated: creating is protected by an idempotency token (endpoint) or a unique name
(security group), the rest by what it says. The order of steps is the plan's.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from botocore import exceptions as aws

from vedette_operator.aws import plan as steps
from vedette_operator.aws.errors import AwsError, explain
from vedette_operator.aws.observed import Endpoint, Group, Observed, Service, Subnet, Vpc
from vedette_operator.aws.session import Clients
from vedette_operator.aws.spec import EndpointSpec

# A name of our own in UUID space (RFC 9562 §5.5), so that tokens are the same after a restart.
TOKEN_SPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "vpc-endpoint.vedette.dev")


@contextmanager
def aws_errors(service: str = "ec2") -> Iterator[None]:
    """Turn what boto3 raises into :class:`AwsError`."""
    try:
        yield
    except (aws.BotoCoreError, aws.ClientError) as error:
        raise explain(error, service=service) from error


def observe(clients: Clients, spec: EndpointSpec) -> Observed:
    """Read everything that :func:`plan.make_plan` looks at."""
    with aws_errors():
        ec2 = clients.ec2
        vpc = _vpc(ec2, spec.vpc_id)
        seen = observe_owned(clients, spec.user_tag, spec.vpc_id)
        endpoints = {item.id: item for item in seen.endpoints}
        if spec.endpoint_id and spec.endpoint_id not in endpoints:
            # One that was given may be in another VPC, which is a mistake to be named.
            found = _pages(ec2, "describe_vpc_endpoints", "VpcEndpoints", _filters("vpc-endpoint-id", spec.endpoint_id))
            endpoints |= {item["VpcEndpointId"]: Endpoint.read(item) for item in found}
        groups = {item.id: item for item in seen.groups}
        if spec.mode == "Existing" and spec.endpoint_id in endpoints:
            foreign = [name for name in endpoints[spec.endpoint_id].group_ids if name not in groups]
            if foreign:
                found = _pages(ec2, "describe_security_groups", "SecurityGroups", _filters("group-id", *foreign))
                groups |= {item["GroupId"]: Group.read(item) for item in found}
        subnets = _pages(ec2, "describe_subnets", "Subnets", _filters("vpc-id", spec.vpc_id)) if vpc else []
        return replace(
            seen,
            service=_service(ec2, spec.service_names) if vpc else None,
            vpc=vpc,
            subnets=tuple(sorted((Subnet.read(item) for item in subnets), key=lambda item: item.id)),
            endpoints=tuple(sorted(endpoints.values(), key=lambda item: item.id)),
            groups=tuple(sorted(groups.values(), key=lambda item: item.id)),
        )


def observe_owned(clients: Clients, user_tag: str, vpc_id: str = "") -> Observed:
    """Read what carries this user's tag in the region and, in a known VPC, all endpoints and our group."""
    with aws_errors():
        ec2 = clients.ec2
        endpoints: dict[str, Endpoint] = {}
        groups: dict[str, Group] = {}
        for item in _pages(ec2, "describe_security_groups", "SecurityGroups", _filters("tag-key", user_tag)):
            groups[item["GroupId"]] = Group.read(item)
        vpcs = {vpc_id, *(group.vpc_id for group in groups.values())} - {""}
        for name in sorted(vpcs):
            found = _pages(
                ec2,
                "describe_security_groups",
                "SecurityGroups",
                _filters("vpc-id", name, "group-name", f"VedetteManagedSecurityGroup-{name}"),
            )
            groups |= {item["GroupId"]: Group.read(item) for item in found}
        wanted = [_filters("tag-key", user_tag), *(_filters("vpc-id", name) for name in sorted(vpcs))]
        for filters in wanted:
            for item in _pages(ec2, "describe_vpc_endpoints", "VpcEndpoints", filters):
                endpoints[item["VpcEndpointId"]] = Endpoint.read(item)
        live = {key: item for key, item in endpoints.items() if item.state != "deleted"}
        # Network interfaces decide only over a group that nothing else holds any more.
        alone = [
            group
            for group in groups.values()
            if group.ours
            and not group.users - {user_tag}
            and not any(group.id in item.group_ids for item in live.values())
        ]
        interfaces = {}
        for group in alone:
            found = _pages(ec2, "describe_network_interfaces", "NetworkInterfaces", _filters("group-id", group.id))
            interfaces[group.id] = tuple(
                f"{item['NetworkInterfaceId']} ({item.get('Description') or 'no description'})" for item in found
            )
        return Observed(
            endpoints=tuple(sorted(live.values(), key=lambda item: item.id)),
            groups=tuple(sorted(groups.values(), key=lambda item: item.id)),
            interfaces=interfaces,
        )


def _service(ec2: Any, names: tuple[str, ...]) -> Service | None:
    for name in names:
        try:
            details = ec2.describe_vpc_endpoint_services(ServiceNames=[name])["ServiceDetails"]
        except aws.ClientError as error:
            if error.response.get("Error", {}).get("Code") != "InvalidServiceName":
                raise
            continue
        if details:
            return Service.read(details[0])
    return None


def _vpc(ec2: Any, vpc_id: str) -> Vpc | None:
    found = _pages(ec2, "describe_vpcs", "Vpcs", _filters("vpc-id", vpc_id))
    if not found:
        return None
    on = [
        ec2.describe_vpc_attribute(VpcId=vpc_id, Attribute=name)[key]["Value"]
        for name, key in (("enableDnsSupport", "EnableDnsSupport"), ("enableDnsHostnames", "EnableDnsHostnames"))
    ]
    return Vpc.read(found[0], *on)


def _filters(*pairs: str) -> list[dict[str, Any]]:
    """``name, value, …``: values after a name of which one must match; names are the even ones but for lists of ids."""
    if pairs[0] == "group-id":
        return [{"Name": "group-id", "Values": list(pairs[1:])}]
    return [{"Name": pairs[at], "Values": [pairs[at + 1]]} for at in range(0, len(pairs), 2)]


def _pages(ec2: Any, operation: str, key: str, filters: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for page in ec2.get_paginator(operation).paginate(Filters=filters) for item in page.get(key, [])]


@dataclass
class Carried:
    """What carrying out did: words for people, and the ids of what was made."""

    changes: list[str] = field(default_factory=list)
    group_id: str = ""
    endpoint_id: str = ""
    endpoint_state: str = ""
    error: AwsError | None = None


def carry_out(clients: Clients, plan: steps.Plan, salt: str = "") -> Carried:
    """Carry out the steps in order; stops at the first that AWS refuses and says which (``error``).

    Args:
        clients: Of the region of the plan.
        plan: The plan.
        salt: Goes into the idempotency token; changes when an endpoint made earlier is known to be gone.
    """
    carried = Carried()
    for step in plan.steps:
        try:
            with aws_errors():
                _carry_out(clients.ec2, step, salt, carried)
        except AwsError as error:
            carried.error = error
            break
    return carried


def client_token(step: steps.CreateEndpoint, salt: str = "") -> str:
    """Idempotency token of a creation: the same for the same request, so that a lost answer makes no second endpoint.

    EC2 answers a repeated token with the first result for a day or more, even when that endpoint has since been
    deleted (https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html); ``salt`` tells the incarnations
    apart.
    """
    parts = (
        step.vpc_id,
        step.service_name,
        step.subnet_ids,
        step.group_id,
        step.policy,
        step.private_dns,
        sorted(step.tags.items()),
        salt,
    )
    return str(uuid.uuid5(TOKEN_SPACE, repr(parts)))


def _carry_out(ec2: Any, step: steps.Step, salt: str, carried: Carried) -> None:
    match step:
        case steps.RepairVpcDns():
            change = _repair_dns(ec2, step)
        case steps.CreateGroup():
            change = _create_group(ec2, step, carried)
        case steps.AllowInbound():
            change = _allow(ec2, step, carried)
        case steps.RevokeInbound():
            change = _revoke(ec2, step)
        case steps.CreateEndpoint():
            change = _create_endpoint(ec2, step, salt, carried)
        case steps.ModifyEndpoint():
            change = _modify(ec2, step, carried)
        case steps.Tag():
            change = _tag(ec2, step)
        case steps.Untag():
            change = _untag(ec2, step)
        case steps.DeleteEndpoint():
            change = _delete_endpoint(ec2, step)
        case steps.DeleteGroup():
            change = _delete_group(ec2, step)
    carried.changes.append(change)


def _repair_dns(ec2: Any, step: steps.RepairVpcDns) -> str:
    ec2.modify_vpc_attribute(VpcId=step.vpc_id, **{step.attribute: {"Value": True}})
    return f"turned on {step.attribute[0].lower()}{step.attribute[1:]} of {step.vpc_id}"


def _create_group(ec2: Any, step: steps.CreateGroup, carried: Carried) -> str:
    made = ec2.create_security_group(
        GroupName=step.name,
        Description=f"TCP 443 from {step.vpc_id} to the VPC endpoints that Vedette made",
        VpcId=step.vpc_id,
        TagSpecifications=_tag_specifications("security-group", step.tags),
    )
    carried.group_id = made["GroupId"]
    return f"created security group {made['GroupId']} ({step.name})"


def _allow(ec2: Any, step: steps.AllowInbound, carried: Carried) -> str:
    group = step.group_id or carried.group_id
    rules = sorted(step.rules, key=repr)
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule.request() for rule in rules])
    return f"let TCP 443 in from {', '.join(rule.source for rule in rules)} at {group}"


def _revoke(ec2: Any, step: steps.RevokeInbound) -> str:
    rules = sorted(step.rules, key=repr)
    ec2.revoke_security_group_ingress(GroupId=step.group_id, IpPermissions=[rule.request() for rule in rules])
    named = ", ".join(f"{rule.protocol}/{rule.from_port}-{rule.to_port} from {rule.source}" for rule in rules)
    return f"removed inbound rules that do not belong from {step.group_id}: {named}"


def _create_endpoint(ec2: Any, step: steps.CreateEndpoint, salt: str, carried: Carried) -> str:
    step = replace(step, group_id=step.group_id or carried.group_id)
    made: dict[str, Any] = {}
    # A token of an endpoint that was deleted before anyone saw it is answered with that endpoint: take another.
    for attempt in (salt, None):
        token = client_token(step, attempt if attempt is not None else f"{salt}+{made['VpcEndpointId']}")
        request = {
            "VpcEndpointType": "Interface",
            "VpcId": step.vpc_id,
            "ServiceName": step.service_name,
            "SubnetIds": list(step.subnet_ids),
            "SecurityGroupIds": [step.group_id],
            "PrivateDnsEnabled": step.private_dns,
            "TagSpecifications": _tag_specifications("vpc-endpoint", step.tags),
            "ClientToken": token,
        }
        if step.policy:
            request["PolicyDocument"] = step.policy
        made = ec2.create_vpc_endpoint(**request)["VpcEndpoint"]
        if str(made.get("State", "")).lower() not in ("deleting", "deleted"):
            break
    carried.endpoint_id = made["VpcEndpointId"]
    carried.endpoint_state = str(made.get("State", "")).lower()
    return f"created VPC endpoint {carried.endpoint_id} for {step.service_name} in {step.vpc_id}"


def _modify(ec2: Any, step: steps.ModifyEndpoint, carried: Carried) -> str:
    request: dict[str, Any] = {"VpcEndpointId": step.endpoint_id}
    words = []
    if step.policy:
        request["PolicyDocument"] = step.policy
        words.append("policy")
    for name, values, word in (
        ("AddSubnetIds", step.add_subnets, "add"),
        ("RemoveSubnetIds", step.remove_subnets, "remove"),
        ("AddSecurityGroupIds", tuple(item or carried.group_id for item in step.add_groups), "add"),
        ("RemoveSecurityGroupIds", step.remove_groups, "remove"),
    ):
        if values:
            request[name] = list(values)
            words.append(f"{word} {', '.join(values)}")
    if step.private_dns is not None:
        request["PrivateDnsEnabled"] = step.private_dns
        words.append(f"private DNS {'on' if step.private_dns else 'off'}")
    ec2.modify_vpc_endpoint(**request)
    return f"changed VPC endpoint {step.endpoint_id}: {', '.join(words)}"


def _tag(ec2: Any, step: steps.Tag) -> str:
    ec2.create_tags(Resources=[step.resource_id], Tags=_tags(step.tags))
    return f"tagged {step.resource_id}: {', '.join(sorted(step.tags))}"


def _untag(ec2: Any, step: steps.Untag) -> str:
    ec2.delete_tags(Resources=[step.resource_id], Tags=[{"Key": key} for key in step.keys])
    return f"took this cluster's tag from {step.resource_id}, which other clusters use"


def _delete_endpoint(ec2: Any, step: steps.DeleteEndpoint) -> str:
    answer = ec2.delete_vpc_endpoints(VpcEndpointIds=[step.endpoint_id])
    # This call answers 200 and lists what it did not delete.
    for failed in answer.get("Unsuccessful", ()):
        error = failed.get("Error", {})
        if not str(error.get("Code", "")).endswith("NotFound"):
            raise aws.ClientError({"Error": error}, "DeleteVpcEndpoints")
    return f"deleted VPC endpoint {step.endpoint_id}"


def _delete_group(ec2: Any, step: steps.DeleteGroup) -> str:
    try:
        ec2.delete_security_group(GroupId=step.group_id)
    except aws.ClientError as error:
        if error.response.get("Error", {}).get("Code") != "InvalidGroup.NotFound":
            raise
    return f"deleted security group {step.group_id}"


def _tags(tags: Any) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _tag_specifications(kind: str, tags: Any) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": _tags(tags)}]
