"""What is to be done about the endpoint, and what is to be said of it. Pure: no clock, no network, no AWS library.

One endpoint serves one service in one VPC and is shared by all clusters there. Each cluster is a *user*: a tag on the
endpoint and on its security group. So that clusters that share an endpoint do not undo each other's work, what they
ask for is joined: accounts of all users' tags go into the policy, subnets and private DNS are only taken away by an
only user. What carries no tag of ours is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vedette_operator.aws.observed import Endpoint, Group, Observed, Permission, Service, Subnet, https_from
from vedette_operator.aws.policy import policy_document, policy_text, same_policy
from vedette_operator.aws.spec import EndpointSpec, Needs

Status = Literal["True", "False", "Unknown"]

NEW_GROUP = ""
"""Stands for the group that an earlier step of the same plan makes."""

PENDING_RETRY_S = 15.0
SETTLING_RETRY_S = 5.0
ACCEPTANCE_RETRY_S = 120.0
IN_USE_RETRY_S = 30.0


@dataclass(frozen=True)
class RepairVpcDns:
    """Turn on a DNS attribute of the VPC (``enableDnsSupport`` or ``enableDnsHostnames``; AWS takes one a call)."""

    vpc_id: str
    attribute: Literal["EnableDnsSupport", "EnableDnsHostnames"]


@dataclass(frozen=True)
class CreateGroup:
    """Make the security group, tagged in the same call."""

    vpc_id: str
    name: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class AllowInbound:
    """Add inbound rules to our security group."""

    group_id: str
    rules: frozenset[Permission]


@dataclass(frozen=True)
class RevokeInbound:
    """Take inbound rules from our security group."""

    group_id: str
    rules: frozenset[Permission]


@dataclass(frozen=True)
class CreateEndpoint:
    """Make the endpoint, tagged in the same call."""

    vpc_id: str
    service_name: str
    subnet_ids: tuple[str, ...]
    group_id: str
    policy: str
    private_dns: bool
    tags: Mapping[str, str]


@dataclass(frozen=True)
class ModifyEndpoint:
    """Bring an endpoint of ours back to what is wanted; only what is set is sent."""

    endpoint_id: str
    policy: str = ""
    add_subnets: tuple[str, ...] = ()
    remove_subnets: tuple[str, ...] = ()
    add_groups: tuple[str, ...] = ()
    remove_groups: tuple[str, ...] = ()
    private_dns: bool | None = None


@dataclass(frozen=True)
class Tag:
    """Set tags on a resource of ours."""

    resource_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Untag:
    """Take tags from a resource of ours."""

    resource_id: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class DeleteEndpoint:
    """Delete an endpoint of ours."""

    endpoint_id: str


@dataclass(frozen=True)
class DeleteGroup:
    """Delete a security group of ours that nothing uses any more."""

    group_id: str


Step = (
    RepairVpcDns
    | CreateGroup
    | AllowInbound
    | RevokeInbound
    | CreateEndpoint
    | ModifyEndpoint
    | Tag
    | Untag
    | DeleteEndpoint
    | DeleteGroup
)


@dataclass(frozen=True)
class Verdict:
    """What the condition ``EndpointAvailable`` says, and when to look again (seconds; None: the usual timer)."""

    status: Status
    reason: str
    message: str
    stalled: bool = False
    progressing: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Plan:
    """Steps in order, and what is true once none is left.

    ``done`` is for removal: nothing of this user is left (or all of it is to stay).
    """

    verdict: Verdict
    steps: tuple[Step, ...] = ()
    endpoint: Endpoint | None = None
    group: Group | None = None
    warnings: tuple[str, ...] = field(default=())
    done: bool = False


def make_plan(spec: EndpointSpec, seen: Observed) -> Plan:
    """Plan for ``spec``; modes Managed and Existing."""
    plan = _plan_existing(spec, seen) if spec.mode == "Existing" else _plan_managed(spec, seen)
    # What this cluster used before (another service, another VPC, our own endpoint before `Existing`) is kept until the
    # new way works.
    if plan.steps or plan.verdict.status != "True" or spec.deletion_policy == "Retain":
        return plan
    keep = {spec.endpoint_id, plan.endpoint.id if plan.endpoint else ""}
    keep |= set(plan.endpoint.group_ids) if plan.endpoint else set()
    return replace(plan, steps=_release(spec.user_tag, seen, keep)[0])


def plan_removal(user_tag: str, seen: Observed, retain: bool, keep: Iterable[str] = ()) -> Plan:
    """Plan for a cluster that uses the endpoint no longer.

    Args:
        user_tag: The cluster's tag key.
        seen: With ``interfaces`` filled for groups that only this user holds.
        retain: Leave everything as it is, this user's tag included: with it removed another cluster might become the
            last user and delete what was to stay.
        keep: Ids that are not to be touched, whatever their tags say (an endpoint that was given by id).
    """
    if retain:
        left = [endpoint.id for endpoint in seen.endpoints if user_tag in endpoint.users]
        left += [group.id for group in seen.groups if user_tag in group.users]
        what = f" ({', '.join(sorted(left))})" if left else ""
        return Plan(
            Verdict("False", "Retained", f"deletionPolicy is Retain: what Vedette made in AWS stays{what}."), done=True
        )
    steps, waiting = _release(user_tag, seen, set(keep))
    if waiting:
        return Plan(waiting, steps)
    return Plan(Verdict("False", "Removed", "Nothing of this cluster is left in AWS."), steps, done=not steps)


# ---------------------------------------------------------------------------------------------------- Managed


def _plan_managed(spec: EndpointSpec, seen: Observed) -> Plan:
    hindrance = _hindrance(spec, seen)
    if hindrance:
        return Plan(hindrance)
    assert seen.service is not None
    assert seen.vpc is not None
    service = seen.service
    same = [
        endpoint
        for endpoint in seen.endpoints
        if endpoint.vpc_id == spec.vpc_id and endpoint.service_name == service.name and endpoint.state != "deleted"
    ]
    ours = [endpoint for endpoint in same if endpoint.ours]
    live = [endpoint for endpoint in ours if endpoint.state != "deleting"]
    # Two clusters that start together may each have made one (without private DNS nothing stops them). Both take the
    # elder for the right one, so they agree without talking.
    endpoint = min(live, key=lambda item: (item.created, item.id)) if live else None
    group = next((item for item in seen.groups if item.vpc_id == spec.vpc_id and item.name == spec.group_name), None)
    warnings: list[str] = []

    if endpoint is None and len(ours) > 0:
        return Plan(
            Verdict(
                "False",
                "DeletingEndpoint",
                f"VPC endpoint {ours[0].id} is being deleted; a new one is made when it is gone.",
                progressing=True,
                retry_after_s=PENDING_RETRY_S,
            )
        )
    if endpoint is not None and endpoint.state in ("failed", "expired"):
        why = f" ({endpoint.error})" if endpoint.error else ""
        return Plan(
            Verdict(
                "False",
                "EndpointFailed",
                f"VPC endpoint {endpoint.id} is {endpoint.state}{why}; Vedette deletes it and makes a new one.",
                progressing=True,
                retry_after_s=PENDING_RETRY_S,
            ),
            (DeleteEndpoint(endpoint.id),),
            endpoint,
            group,
        )
    if group is not None and not group.ours:
        return Plan(
            Verdict(
                "False",
                "SecurityGroupNameTaken",
                f"Security group {group.id} has the name {group.name} but not the tag vedette.dev/managed=true, so "
                "Vedette leaves it alone. Rename or delete it, or add the tag to let Vedette manage it.",
                stalled=True,
            ),
            endpoint=endpoint,
        )

    private_dns = spec.private_dns
    if private_dns and not service.private_dns_names:
        private_dns = False
        warnings.append(
            f"Service {service.name} has no private DNS name; agents must be given one of the endpoint's own names."
        )
    elif private_dns and not service.private_dns_verified:
        private_dns = False
        warnings.append(f"The owner of {service.name} has not verified its private DNS name; it cannot be used yet.")

    chosen, notes, no_subnet = choose_subnets(spec, service, seen.subnets, endpoint.subnet_ids if endpoint else ())
    warnings += notes
    if no_subnet:
        return Plan(no_subnet, endpoint=endpoint, group=group)

    steps: list[Step] = []
    dns_verdict: Verdict | None = None
    if private_dns and not (seen.vpc.dns_support and seen.vpc.dns_hostnames):
        off = [
            attribute
            for attribute, on in (
                ("EnableDnsSupport", seen.vpc.dns_support),
                ("EnableDnsHostnames", seen.vpc.dns_hostnames),
            )
            if not on
        ]
        if spec.repair_vpc_dns:
            steps += [RepairVpcDns(spec.vpc_id, attribute) for attribute in off]  # type: ignore[arg-type]
        else:
            names = " and ".join(attribute[0].lower() + attribute[1:] for attribute in off)
            dns_verdict = Verdict(
                "False",
                "VpcDnsDisabled",
                f"Private DNS needs {names} on in {spec.vpc_id}. Turn it on (aws ec2 modify-vpc-attribute), or set "
                "endpoint.repairVpcDns to true to let Vedette do so, or set endpoint.privateDns to false.",
                stalled=True,
            )
    if endpoint is None and dns_verdict is None and private_dns:
        dns_verdict = _dns_conflict(same, service)
    if endpoint is None and dns_verdict is not None:
        return Plan(dns_verdict, group=group, warnings=tuple(warnings))

    steps += _group_steps(spec, seen.vpc.cidrs, group)
    group_id = group.id if group else NEW_GROUP
    others = (endpoint.users - {spec.user_tag}) if endpoint else set()
    needs = spec.needs
    for key in sorted(others):
        needs = needs | Needs.read(endpoint.tags[key] if endpoint else "")
    document = policy_document(needs.accounts, needs.organizations)
    if not service.policy_supported:
        warnings.append(
            f"Service {service.name} takes no endpoint policy, so the endpoint cannot be restricted to accounts; only "
            "the security group restricts it."
        )

    if endpoint is None:
        steps.append(
            CreateEndpoint(
                spec.vpc_id,
                service.name,
                chosen,
                group_id,
                policy_text(document) if service.policy_supported else "",
                private_dns,
                {**spec.extra_tags, **spec.own_tags},
            )
        )
        verdict = Verdict(
            "False",
            "CreatingEndpoint",
            f"VPC endpoint for {service.name} in {spec.vpc_id} is being made.",
            progressing=True,
            retry_after_s=SETTLING_RETRY_S,
        )
        return Plan(verdict, tuple(steps), None, group, tuple(warnings))

    if endpoint.state == "available":
        steps += _modify_steps(
            endpoint,
            group_id,
            chosen,
            seen.subnets,
            policy=""
            if not service.policy_supported or same_policy(endpoint.policy, document)
            else policy_text(document),
            private_dns=private_dns,
            shared=bool(others),
        )
    tags = _missing_tags(endpoint.tags, spec, shared=bool(others))
    if tags:
        steps.append(Tag(endpoint.id, tags))
    verdict = dns_verdict or _state_verdict(endpoint, service, seen.subnets)
    return Plan(verdict, tuple(steps), endpoint, group, tuple(warnings))


def _hindrance(spec: EndpointSpec, seen: Observed) -> Verdict | None:
    """What makes an endpoint impossible before anything is tried."""
    if seen.vpc is None:
        return Verdict(
            "False",
            "VpcNotFound",
            f"{spec.vpc_id} is not in account {spec.account_id}, region {spec.region}. Correct endpoint.vpcId or "
            "endpoint.region, or give the operator credentials of the account that owns the VPC.",
            stalled=True,
        )
    if seen.vpc.owner not in ("", spec.account_id):
        # "You can't create, describe, modify, or delete VPC endpoints in subnets that are shared with you":
        # https://docs.aws.amazon.com/vpc/latest/privatelink/create-interface-endpoint.html (shared subnets)
        return Verdict(
            "False",
            "VpcOfAnotherAccount",
            f"{spec.vpc_id} is shared by account {seen.vpc.owner}, and AWS lets only the owner of a VPC make endpoints "
            "in it. Have the owner make it (with a policy that lets this account in), and set endpoint.mode to None.",
            stalled=True,
        )
    if seen.service is None:
        names = " nor ".join(spec.service_names)
        return Verdict(
            "False",
            "ServiceNotInRegion",
            f"There is no endpoint service {names} in {spec.region}, or this account may not see it. Correct "
            "endpoint.serviceName, have its owner allow this account (allowed principals), or set endpoint.mode to "
            "None where the detector is reached without an endpoint.",
            stalled=True,
        )
    if not seen.service.interface:
        return Verdict(
            "False",
            "ServiceNotInterface",
            f"Service {seen.service.name} has no interface endpoints; give the name of one that has.",
            stalled=True,
        )
    return None


def choose_subnets(
    spec: EndpointSpec, service: Service, subnets: Sequence[Subnet], current: Sequence[str]
) -> tuple[tuple[str, ...], list[str], Verdict | None]:
    """One subnet for each zone that the service is in.

    What the endpoint has is kept where it may be, so that the choice does not wander with the number of free
    addresses; else the subnet with most of them is taken.

    Returns:
        The ids in order; what to warn of; and why it cannot be, if it cannot.
    """
    in_vpc = {subnet.id: subnet for subnet in subnets if subnet.vpc_id == spec.vpc_id}
    if spec.subnet_ids:
        foreign = sorted(set(spec.subnet_ids) - set(in_vpc))
        if foreign and (spec.subnets_given or len(foreign) == len(set(spec.subnet_ids))):
            return (
                (),
                [],
                Verdict(
                    "False",
                    "SubnetNotInVpc",
                    f"{', '.join(foreign)} {'is' if len(foreign) == 1 else 'are'} not in {spec.vpc_id}. Correct "
                    "endpoint.subnetIds, or leave it out to have the cluster's subnets found.",
                    stalled=True,
                ),
            )
        candidates = [in_vpc[name] for name in spec.subnet_ids if name in in_vpc]
    else:
        candidates = list(in_vpc.values())
    zones = {subnet.zone for subnet in candidates}
    usable = [subnet for subnet in candidates if subnet.zone in service.zones]
    if not usable:
        have = ", ".join(sorted(zones)) or "none"
        return (
            (),
            [],
            Verdict(
                "False",
                "NoZoneInCommon",
                f"Service {service.name} is in the zones {', '.join(sorted(service.zones)) or 'none'}, the subnets of "
                f"{spec.vpc_id} that may be used are in {have}. Give endpoint.subnetIds in a zone of the service.",
                stalled=True,
            ),
        )
    notes = []
    if zones - service.zones:
        notes.append(
            f"Service {service.name} is not in {', '.join(sorted(zones - service.zones))}; nodes there reach it "
            "through another zone."
        )
    chosen: list[str] = []
    full: list[str] = []
    for zone in sorted({subnet.zone for subnet in usable}):
        of_zone = [subnet for subnet in usable if subnet.zone == zone]
        kept = [subnet for subnet in of_zone if subnet.id in current]
        free = [subnet for subnet in of_zone if subnet.free > 0]
        if kept:
            chosen.append(min(subnet.id for subnet in kept))
        elif free:
            chosen.append(min(free, key=lambda subnet: (-subnet.free, subnet.id)).id)
        else:
            full += [subnet.id for subnet in of_zone]
        if spec.subnets_given and len(of_zone) > 1:
            notes.append(f"AWS takes one subnet for each zone; of {zone} {chosen[-1] if chosen else 'none'} is used.")
    if full:
        notes.append(f"No address is free in {', '.join(sorted(full))}.")
    if not chosen:
        return (
            (),
            [],
            Verdict(
                "False",
                "SubnetsFull",
                f"No address is free in {', '.join(sorted(full))}; free one in each or give other endpoint.subnetIds.",
                stalled=True,
            ),
        )
    return tuple(chosen), notes, None


def _dns_conflict(same: Sequence[Endpoint], service: Service) -> Verdict | None:
    for other in same:
        if other.ours or not other.private_dns or other.state in ("deleting", "rejected", "failed", "expired"):
            continue
        by = "GuardDuty itself" if other.tags.get("GuardDutyManaged") == "true" else "someone else"
        return Verdict(
            "False",
            "PrivateDnsConflict",
            f"VPC endpoint {other.id}, made by {by}, already answers to {', '.join(service.private_dns_names)} in "
            f"{other.vpc_id}. Use it (endpoint.mode: Existing, endpoint.endpointId: {other.id}), or delete it, or set "
            "endpoint.privateDns to false.",
            stalled=True,
        )
    return None


def _group_steps(spec: EndpointSpec, cidrs: Sequence[str], group: Group | None) -> list[Step]:
    wanted = https_from(cidrs)
    if group is None:
        return [
            CreateGroup(spec.vpc_id, spec.group_name, {**spec.extra_tags, **spec.own_tags}),
            AllowInbound(NEW_GROUP, wanted),
        ]
    steps: list[Step] = []
    if wanted - group.inbound:
        steps.append(AllowInbound(group.id, wanted - group.inbound))
    if group.inbound - wanted:
        steps.append(RevokeInbound(group.id, group.inbound - wanted))
    tags = _missing_tags(group.tags, spec, shared=bool(group.users - {spec.user_tag}))
    if tags:
        steps.append(Tag(group.id, tags))
    return steps


def _missing_tags(have: Mapping[str, str], spec: EndpointSpec, *, shared: bool) -> dict[str, str]:
    """Tags to set. With other users there, people's tags are only added, lest two clusters overwrite each other's."""
    missing = {key: value for key, value in spec.own_tags.items() if have.get(key) != value}
    for key, value in spec.extra_tags.items():
        if key not in have or (have[key] != value and not shared):
            missing[key] = value
    return missing


def _modify_steps(
    endpoint: Endpoint,
    group_id: str,
    chosen: Sequence[str],
    subnets: Sequence[Subnet],
    *,
    policy: str,
    private_dns: bool,
    shared: bool,
) -> list[Step]:
    zone = {subnet.id: subnet.zone for subnet in subnets}
    current_zones = {zone.get(name, "") for name in endpoint.subnet_ids}
    missing = [name for name in chosen if name not in endpoint.subnet_ids]
    if shared:
        # Another cluster may live in the subnet of a zone that we would choose differently, or in a zone that we lack.
        missing = [name for name in missing if zone[name] not in current_zones]
    surplus = [] if shared else [name for name in endpoint.subnet_ids if name not in chosen]
    # AWS refuses two subnets in one zone (DuplicateSubnetsInSameZone): new zones first, so that the endpoint keeps
    # answering, then what is to go, then what takes its place.
    first = tuple(name for name in missing if zone[name] not in current_zones)
    last = tuple(name for name in missing if zone[name] in current_zones)
    groups_add = () if group_id and group_id in endpoint.group_ids else (group_id,)
    groups_remove = tuple(name for name in endpoint.group_ids if name != group_id)
    dns = None
    if private_dns and not endpoint.private_dns:
        dns = True
    elif endpoint.private_dns and not private_dns and not shared:
        dns = False
    steps = [
        ModifyEndpoint(endpoint.id, policy=policy),
        # A group is added before another is taken: an endpoint without a group gets the VPC's default one.
        ModifyEndpoint(endpoint.id, add_groups=groups_add, remove_groups=groups_remove),
        ModifyEndpoint(endpoint.id, add_subnets=first),
        ModifyEndpoint(endpoint.id, remove_subnets=tuple(surplus)),
        ModifyEndpoint(endpoint.id, add_subnets=last),
        ModifyEndpoint(endpoint.id, private_dns=dns),
    ]
    return [step for step in steps if step != ModifyEndpoint(endpoint.id)]


def _state_verdict(endpoint: Endpoint, service: Service, subnets: Sequence[Subnet]) -> Verdict:
    where = f"VPC endpoint {endpoint.id} for {endpoint.service_name} in {endpoint.vpc_id}"
    if endpoint.state == "available":
        zones = sorted({subnet.zone for subnet in subnets if subnet.id in endpoint.subnet_ids})
        return Verdict("True", "EndpointAvailable", f"{where} answers in {', '.join(zones) or 'its subnets'}.")
    if endpoint.state == "pending":
        return Verdict(
            "False",
            "CreatingEndpoint",
            f"{where} is being made by AWS; this takes some minutes.",
            progressing=True,
            retry_after_s=PENDING_RETRY_S,
        )
    if endpoint.state == "pendingacceptance":
        return Verdict(
            "False",
            "AwaitingAcceptance",
            f"{where} waits for the owner of the service ({service.owner or 'unknown'}) to accept it: aws ec2 "
            f"accept-vpc-endpoint-connections --service-id … --vpc-endpoint-ids {endpoint.id}",
            progressing=True,
            retry_after_s=ACCEPTANCE_RETRY_S,
        )
    if endpoint.state == "rejected":
        return Verdict(
            "False",
            "EndpointRejected",
            f"{where} was rejected by the owner of the service ({service.owner or 'unknown'}). Ask them to accept "
            f"{endpoint.id} after all; Vedette does not ask again by itself.",
            stalled=True,
            retry_after_s=ACCEPTANCE_RETRY_S,
        )
    return Verdict(
        "Unknown",
        "EndpointStateUnknown",
        f"{where} is in the state {endpoint.state!r}{f' ({endpoint.error})' if endpoint.error else ''}.",
        retry_after_s=ACCEPTANCE_RETRY_S,
    )


# ---------------------------------------------------------------------------------------------------- Existing


def _plan_existing(spec: EndpointSpec, seen: Observed) -> Plan:
    """Verify what was given by id; nothing about it is ever changed."""
    endpoint = next((item for item in seen.endpoints if item.id == spec.endpoint_id), None)
    if endpoint is None or endpoint.state == "deleted":
        return Plan(
            Verdict(
                "False",
                "EndpointNotFound",
                f"There is no VPC endpoint {spec.endpoint_id} in account {spec.account_id}, region {spec.region}. "
                "Correct endpoint.endpointId; an endpoint of a shared VPC is seen by its owner only (then set "
                "endpoint.mode to None).",
                stalled=True,
            )
        )
    fatal: list[str] = []
    minor: list[str] = []
    if endpoint.kind != "Interface":
        fatal.append(f"it is a {endpoint.kind} endpoint, not an Interface endpoint")
    if endpoint.vpc_id != spec.vpc_id:
        fatal.append(f"it is in {endpoint.vpc_id}, not in the cluster's {spec.vpc_id}")
    if endpoint.service_name not in spec.service_names:
        fatal.append(f"it is for {endpoint.service_name}, not for {' or '.join(spec.service_names)}")
    if endpoint.state != "available":
        fatal.append(f"its state is {endpoint.state}{f' ({endpoint.error})' if endpoint.error else ''}")
    if spec.private_dns and not endpoint.private_dns:
        fatal.append(
            "private DNS is off, so the service's name does not lead to it (or set endpoint.privateDns to false)"
        )
    if seen.vpc and endpoint.private_dns and not (seen.vpc.dns_support and seen.vpc.dns_hostnames):
        fatal.append(f"{spec.vpc_id} lacks enableDnsSupport or enableDnsHostnames, which private DNS needs")
    closed = _not_let_in(endpoint, seen) if seen.vpc else ()
    if seen.vpc and closed and set(closed) == set(seen.vpc.cidrs):
        fatal.append(f"its security groups let TCP 443 in from no block of the VPC ({', '.join(closed)})")
    elif closed:
        minor.append(f"its security groups do not let TCP 443 in from {', '.join(closed)}")
    wanted = policy_document(spec.needs.accounts, spec.needs.organizations)
    if seen.service and seen.service.policy_supported and not same_policy(endpoint.policy, wanted):
        minor.append(f"its policy is not the one that restricts it: {policy_text(wanted)}")
    lacking = _zones_without(spec, seen, endpoint)
    if lacking:
        minor.append(f"it has no subnet in {', '.join(lacking)}, where the cluster's subnets are")
    name = f"VPC endpoint {endpoint.id}"
    if fatal:
        message = f"{name} was given but cannot be used; Vedette does not change it: {'; '.join([*fatal, *minor])}."
        return Plan(Verdict("False", "ExistingEndpointUnusable", message, stalled=True), endpoint=endpoint)
    warnings = tuple(f"{name}: {text}." for text in minor)
    if minor:
        message = f"{name} was given and is used; Vedette does not change it, but it deviates: {'; '.join(minor)}."
        return Plan(Verdict("True", "ExistingEndpointDeviates", message), endpoint=endpoint, warnings=warnings)
    return Plan(
        Verdict("True", "ExistingEndpointAvailable", f"{name} was given, is verified and is used."), endpoint=endpoint
    )


def _not_let_in(endpoint: Endpoint, seen: Observed) -> tuple[str, ...]:
    """Blocks of the VPC from which no group of the endpoint lets TCP 443 in.

    A rule by group or prefix list may let nodes in as well, but whether it does cannot be told from here; with one of
    those nothing is said.
    """
    from ipaddress import ip_network  # only here, and costs more than the rest of the module

    assert seen.vpc is not None
    rules = [rule for group in seen.groups if group.id in endpoint.group_ids for rule in group.inbound]
    rules = [
        rule
        for rule in rules
        if rule.protocol == "-1" or (rule.protocol in ("tcp", "6") and rule.from_port <= 443 <= rule.to_port)
    ]
    if any(rule.kind in ("group", "prefix-list") for rule in rules):
        return ()
    networks = [ip_network(rule.source, strict=False) for rule in rules]
    closed = []
    for cidr in seen.vpc.cidrs:
        block = ip_network(cidr, strict=False)
        if not any(network.version == block.version and block.subnet_of(network) for network in networks):  # type: ignore[arg-type]
            closed.append(cidr)
    return tuple(closed)


def _zones_without(spec: EndpointSpec, seen: Observed, endpoint: Endpoint) -> list[str]:
    wanted = {item.zone for item in seen.subnets if item.id in spec.subnet_ids} if spec.subnet_ids else set()
    have = {item.zone for item in seen.subnets if item.id in endpoint.subnet_ids}
    offered = seen.service.zones if seen.service else frozenset()
    return sorted((wanted & offered) - have)


# ---------------------------------------------------------------------------------------------------- Removal


def _release(user_tag: str, seen: Observed, keep: set[str]) -> tuple[tuple[Step, ...], Verdict | None]:
    """Steps that end this user's use of everything not in ``keep``, and what is being waited for.

    Order: the endpoint, then AWS taking its network interfaces away, then the security group; a group with interfaces
    cannot be deleted (DependencyViolation).

    What is ours and has no user at all is an orphan: two last users that went at the same moment each saw the other's
    tag. It is deleted as well.
    """
    steps: list[Step] = []
    waiting: Verdict | None = None
    for endpoint in seen.endpoints:
        if endpoint.id in keep or not endpoint.ours or (endpoint.users and user_tag not in endpoint.users):
            continue
        if endpoint.state == "deleting":
            waiting = _deleting(endpoint)
        elif endpoint.users - {user_tag}:
            steps.append(Untag(endpoint.id, (user_tag,)))
        else:
            steps.append(DeleteEndpoint(endpoint.id))
            waiting = _deleting(endpoint)
    going = {step.endpoint_id for step in steps if isinstance(step, DeleteEndpoint)}
    for group in seen.groups:
        if group.id in keep or not group.ours or (group.users and user_tag not in group.users):
            continue
        attached = [item for item in seen.endpoints if group.id in item.group_ids]
        if any(item.state == "deleting" or item.id in going for item in attached):
            waiting = waiting or _deleting(attached[0])
        elif group.users - {user_tag} or attached:
            if user_tag in group.users:
                steps.append(Untag(group.id, (user_tag,)))
        elif seen.interfaces.get(group.id):
            waiting = waiting or Verdict(
                "False",
                "SecurityGroupInUse",
                f"Security group {group.id} cannot be deleted while network interfaces use it: "
                f"{', '.join(seen.interfaces[group.id][:5])}. Those of a deleted endpoint go by themselves within "
                "minutes; take the group from any other.",
                progressing=True,
                retry_after_s=IN_USE_RETRY_S,
            )
        else:
            steps.append(DeleteGroup(group.id))
    return tuple(steps), waiting


def _deleting(endpoint: Endpoint) -> Verdict:
    return Verdict(
        "False",
        "DeletingEndpoint",
        f"VPC endpoint {endpoint.id} in {endpoint.vpc_id} is being deleted by AWS; its security group goes after it.",
        progressing=True,
        retry_after_s=PENDING_RETRY_S,
    )
