"""What AWS shows, read into plain data. Pure: fills dataclasses from the dictionaries that boto3 gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from vedette_operator.aws.spec import MANAGED_TAG, users_of

GONE = frozenset({"deleted"})


@dataclass(frozen=True)
class Service:
    """An endpoint service of the region (DescribeVpcEndpointServices)."""

    name: str
    zones: frozenset[str]
    policy_supported: bool
    private_dns_names: tuple[str, ...]
    private_dns_verified: bool
    acceptance_required: bool
    interface: bool
    owner: str = ""

    @classmethod
    def read(cls, detail: Mapping[str, Any]) -> Service:
        """From an element of ``ServiceDetails``."""
        names = [entry.get("PrivateDnsName", "") for entry in detail.get("PrivateDnsNames", [])]
        names = names or [detail.get("PrivateDnsName", "")]
        return cls(
            name=detail["ServiceName"],
            zones=frozenset(detail.get("AvailabilityZones", ())),
            policy_supported=bool(detail.get("VpcEndpointPolicySupported", False)),
            private_dns_names=tuple(sorted(name for name in names if name)),
            private_dns_verified=detail.get("PrivateDnsNameVerificationState", "verified") == "verified",
            acceptance_required=bool(detail.get("AcceptanceRequired", False)),
            interface="Interface" in {entry.get("ServiceType") for entry in detail.get("ServiceType", [])},
            owner=str(detail.get("Owner", "")),
        )


@dataclass(frozen=True)
class Subnet:
    """A subnet; ``free`` is the number of addresses that are left."""

    id: str
    vpc_id: str
    zone: str
    free: int

    @classmethod
    def read(cls, subnet: Mapping[str, Any]) -> Subnet:
        """From an element of ``Subnets``."""
        return cls(subnet["SubnetId"], subnet["VpcId"], subnet["AvailabilityZone"], subnet["AvailableIpAddressCount"])


@dataclass(frozen=True)
class Vpc:
    """The VPC with what decides whether an endpoint works in it."""

    id: str
    owner: str
    cidrs: tuple[str, ...]
    dns_support: bool
    dns_hostnames: bool

    @classmethod
    def read(cls, vpc: Mapping[str, Any], dns_support: bool, dns_hostnames: bool) -> Vpc:
        """From an element of ``Vpcs``; only blocks that are associated or being associated count."""
        found = {vpc["CidrBlock"]} if "CidrBlock" in vpc else set()
        for kind, name in (("CidrBlock", "CidrBlock"), ("Ipv6CidrBlock", "Ipv6CidrBlock")):
            for entry in vpc.get(f"{kind}AssociationSet", ()):
                state = entry.get(f"{kind}State", {}).get("State", "associated")
                if name in entry and state in ("associated", "associating"):
                    found.add(entry[name])
                elif name in entry:
                    found.discard(entry[name])
        return cls(vpc["VpcId"], str(vpc.get("OwnerId", "")), tuple(sorted(found)), dns_support, dns_hostnames)


@dataclass(frozen=True)
class Permission:
    """One inbound rule of a security group, one source each. Ports are -1 where a protocol has none."""

    protocol: str
    from_port: int
    to_port: int
    kind: str
    source: str

    def request(self) -> dict[str, Any]:
        """The rule as ``IpPermissions`` takes it."""
        made: dict[str, Any] = {"IpProtocol": self.protocol}
        if self.protocol != "-1":
            made |= {"FromPort": self.from_port, "ToPort": self.to_port}
        if self.kind == "group":
            made["UserIdGroupPairs"] = [{"GroupId": self.source}]
        elif self.kind == "prefix-list":
            made["PrefixListIds"] = [{"PrefixListId": self.source}]
        elif self.kind == "ipv6":
            made["Ipv6Ranges"] = [{"CidrIpv6": self.source}]
        else:
            made["IpRanges"] = [{"CidrIp": self.source}]
        return made


def permissions(entries: Iterable[Mapping[str, Any]]) -> frozenset[Permission]:
    """Inbound rules from ``IpPermissions``, flattened to one source each."""
    found = set()
    for entry in entries:
        ports = (str(entry.get("IpProtocol", "-1")), entry.get("FromPort", -1), entry.get("ToPort", -1))
        found |= {Permission(*ports, "ipv4", item["CidrIp"]) for item in entry.get("IpRanges", ())}
        found |= {Permission(*ports, "ipv6", item["CidrIpv6"]) for item in entry.get("Ipv6Ranges", ())}
        found |= {Permission(*ports, "group", item["GroupId"]) for item in entry.get("UserIdGroupPairs", ())}
        found |= {Permission(*ports, "prefix-list", item["PrefixListId"]) for item in entry.get("PrefixListIds", ())}
    return frozenset(found)


def https_from(cidrs: Sequence[str]) -> frozenset[Permission]:
    """The inbound rules that an endpoint needs: TCP 443 from each block."""
    return frozenset(Permission("tcp", 443, 443, "ipv6" if ":" in cidr else "ipv4", cidr) for cidr in cidrs)


@dataclass(frozen=True)
class Group:
    """A security group."""

    id: str
    name: str
    vpc_id: str
    tags: Mapping[str, str]
    inbound: frozenset[Permission]

    @classmethod
    def read(cls, group: Mapping[str, Any]) -> Group:
        """From an element of ``SecurityGroups``."""
        return cls(
            group["GroupId"],
            group.get("GroupName", ""),
            group.get("VpcId", ""),
            read_tags(group),
            permissions(group.get("IpPermissions", ())),
        )

    @property
    def ours(self) -> bool:
        """Whether Vedette made it."""
        return self.tags.get(MANAGED_TAG) == "true"

    @property
    def users(self) -> set[str]:
        """Tag keys of the clusters that use it."""
        return users_of(self.tags)


@dataclass(frozen=True)
class Endpoint:
    """A VPC endpoint; ``state`` in lower case."""

    id: str
    vpc_id: str
    service_name: str
    state: str
    kind: str
    policy: str
    subnet_ids: tuple[str, ...]
    group_ids: tuple[str, ...]
    private_dns: bool
    tags: Mapping[str, str]
    dns_names: tuple[str, ...] = ()
    error: str = ""
    created: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    requester_managed: bool = False

    @classmethod
    def read(cls, endpoint: Mapping[str, Any]) -> Endpoint:
        """From an element of ``VpcEndpoints``."""
        last = endpoint.get("LastError") or {}
        error = ": ".join(str(last[name]) for name in ("Code", "Message") if last.get(name))
        return cls(
            id=endpoint["VpcEndpointId"],
            vpc_id=endpoint.get("VpcId", ""),
            service_name=endpoint.get("ServiceName", ""),
            state=str(endpoint.get("State", "")).lower(),
            kind=str(endpoint.get("VpcEndpointType", "Gateway")),
            policy=str(endpoint.get("PolicyDocument", "")),
            subnet_ids=tuple(sorted(endpoint.get("SubnetIds", ()))),
            group_ids=tuple(sorted(group["GroupId"] for group in endpoint.get("Groups", ()))),
            private_dns=bool(endpoint.get("PrivateDnsEnabled", False)),
            tags=read_tags(endpoint),
            dns_names=tuple(entry["DnsName"] for entry in endpoint.get("DnsEntries", ()) if entry.get("DnsName")),
            error=error or str(endpoint.get("FailureReason") or ""),
            created=endpoint.get("CreationTimestamp", datetime(1970, 1, 1, tzinfo=UTC)),
            requester_managed=bool(endpoint.get("RequesterManaged", False)),
        )

    @property
    def ours(self) -> bool:
        """Whether Vedette made it."""
        return self.tags.get(MANAGED_TAG) == "true"

    @property
    def users(self) -> set[str]:
        """Tag keys of the clusters that use it."""
        return users_of(self.tags)


@dataclass(frozen=True)
class Observed:
    """Everything that a plan looks at.

    ``endpoints`` are those of the VPC and those that carry this cluster's user tag anywhere in the region, without the
    deleted ones; ``groups`` likewise, and those that an existing endpoint uses; ``interfaces`` are, for each group of
    ours that might be deleted, the network interfaces (id and description) that still use it.
    """

    service: Service | None = None
    vpc: Vpc | None = None
    subnets: tuple[Subnet, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    groups: tuple[Group, ...] = ()
    interfaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_tags(resource: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a resource as a dictionary."""
    return {tag["Key"]: tag.get("Value", "") for tag in resource.get("Tags", ())}
