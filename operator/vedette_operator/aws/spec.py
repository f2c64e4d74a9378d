"""What is asked for: the endpoint part of a RuntimeMonitoringConfig, and what is known of the cluster. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

MANAGED_TAG = "vedette.dev/managed"
USER_TAG_PREFIX = "vedette.dev/user/"
TAG_PREFIX = "vedette.dev/"

Mode = Literal["Managed", "Existing", "None"]
DeletionPolicy = Literal["Delete", "Retain"]

# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/Using_Tags.html#tag-restrictions: 50 tags on a resource, keys of
# 128 characters, values of 256. We leave room for the users of a shared VPC.
MAX_EXTRA_TAGS = 20
# As many as fit into the value of a user's tag, where each user of a shared endpoint says whom its policy must let in.
MAX_ACCOUNTS = 15

_REGION = re.compile(r"[a-z]{2,}(?:-[a-z]+)+-\d+")
_VPC = re.compile(r"vpc-[0-9a-f]{8,}")
_SUBNET = re.compile(r"subnet-[0-9a-f]{8,}")
_ENDPOINT = re.compile(r"vpce-[0-9a-f]{8,}")
_ACCOUNT = re.compile(r"\d{12}")
_ORGANIZATION = re.compile(r"o-[a-z0-9]{10,32}")
_SERVICE = re.compile(r"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")


@dataclass(frozen=True)
class EndpointFields:
    """``spec.endpoint`` of a RuntimeMonitoringConfig as it was written; empty means: find out."""

    mode: Mode = "None"
    endpoint_id: str = ""
    region: str = ""
    cluster_name: str = ""
    service_name: str = ""
    vpc_id: str = ""
    subnet_ids: tuple[str, ...] = ()
    private_dns: bool = True
    account_ids: tuple[str, ...] = ()
    organization_id: str = ""
    deletion_policy: DeletionPolicy = "Delete"
    repair_vpc_dns: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | None) -> EndpointFields:
        """Take the fields by their names in the CRD; unknown names are the schema's business and are left alone."""
        given = mapping or {}
        return cls(
            mode=cast(Mode, given.get("mode", "None")),
            endpoint_id=str(given.get("endpointId") or ""),
            region=str(given.get("region") or ""),
            cluster_name=str(given.get("clusterName") or ""),
            service_name=str(given.get("serviceName") or ""),
            vpc_id=str(given.get("vpcId") or ""),
            subnet_ids=tuple(given.get("subnetIds") or ()),
            private_dns=bool(given.get("privateDns", True)),
            account_ids=tuple(given.get("accountIds") or ()),
            organization_id=str(given.get("organizationId") or ""),
            deletion_policy=cast(DeletionPolicy, given.get("deletionPolicy", "Delete")),
            repair_vpc_dns=bool(given.get("repairVpcDns", False)),
            tags=dict(given.get("tags") or {}),
        )

    def problems(self) -> list[str]:
        """Everything that is wrong with the fields, each as ``field: what to do``; empty when nothing is."""
        found: list[str] = []
        if self.mode not in ("Managed", "Existing", "None"):
            found.append(f"mode: {self.mode!r} is none of Managed, Existing, None")
        if self.deletion_policy not in ("Delete", "Retain"):
            found.append(f"deletionPolicy: {self.deletion_policy!r} is neither Delete nor Retain")
        if self.mode == "Existing" and not self.endpoint_id:
            found.append("endpointId: mode Existing needs the id of the endpoint (vpce-…)")
        if self.account_ids and self.organization_id:
            found.append("organizationId: give either accountIds or organizationId, not both")
        for name, pattern, values in (
            ("region", _REGION, (self.region,)),
            ("vpcId", _VPC, (self.vpc_id,)),
            ("endpointId", _ENDPOINT, (self.endpoint_id,)),
            ("subnetIds", _SUBNET, self.subnet_ids),
            ("accountIds", _ACCOUNT, self.account_ids),
            ("organizationId", _ORGANIZATION, (self.organization_id,)),
            ("serviceName", _SERVICE, (self.service_name,)),
        ):
            wrong = [value for value in values if value and not pattern.fullmatch(value)]
            found += [f"{name}: {value!r} has not the form of one" for value in wrong]
        if len(self.account_ids) > MAX_ACCOUNTS:
            found.append(f"accountIds: {len(self.account_ids)} are more than {MAX_ACCOUNTS}; give an organizationId")
        if len(self.tags) > MAX_EXTRA_TAGS:
            found.append(f"tags: {len(self.tags)} are more than {MAX_EXTRA_TAGS}; AWS takes 50 in all, users need some")
        for key, value in self.tags.items():
            if key.startswith(("aws:", TAG_PREFIX)):
                found.append(f"tags: {key!r} is reserved; take another key")
            elif not key or len(key) > 128 or len(value) > 256:
                found.append(f"tags: {key[:40]!r} is too long (128 characters for a key, 256 for a value)")
        return found


@dataclass(frozen=True)
class EndpointSpec:
    """What is wanted, complete: nothing left to find out.

    ``user`` identifies the cluster that uses the endpoint; ``service_names`` are tried in order until one exists.
    """

    user: str
    region: str
    account_id: str
    vpc_id: str
    service_names: tuple[str, ...]
    mode: Mode = "Managed"
    endpoint_id: str = ""
    subnet_ids: tuple[str, ...] = ()
    subnets_given: bool = False
    private_dns: bool = True
    account_ids: tuple[str, ...] = ()
    organization_id: str = ""
    deletion_policy: DeletionPolicy = "Delete"
    repair_vpc_dns: bool = False
    cluster_name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def user_tag(self) -> str:
        """Key of the tag that says that this cluster uses the endpoint."""
        return user_tag(self.user)

    @property
    def group_name(self) -> str:
        """Name of the security group; one per VPC, as GuardDuty's own is."""
        return group_name(self.vpc_id)

    @property
    def needs(self) -> Needs:
        """Whom the policy of the endpoint must let in for this user."""
        return Needs(frozenset(self.account_ids), frozenset({self.organization_id} - {""}))

    @property
    def own_tags(self) -> dict[str, str]:
        """Tags that Vedette itself needs on a resource."""
        return {MANAGED_TAG: "true", self.user_tag: self.needs.tag_value(self.cluster_name)}

    @property
    def extra_tags(self) -> dict[str, str]:
        """Tags for people: those of the spec, and a name."""
        return {"Name": "vedette", **self.tags}


@dataclass(frozen=True)
class Needs:
    """Whom one user of an endpoint, or all of them together, want let in."""

    accounts: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.accounts | other.accounts, self.organizations | other.organizations)

    def tag_value(self, cluster_name: str) -> str:
        """The needs as the value of a user's tag, which other clusters' operators read back."""
        words = [*sorted(self.organizations), *sorted(self.accounts)]
        return " ".join([*words, f"name:{cluster_name}"])[:256].strip()

    @classmethod
    def read(cls, value: str) -> Needs:
        """From the value of a user's tag; words that are neither account nor organization say nothing."""
        words = value.split("name:")[0].split()
        return cls(
            frozenset(word for word in words if _ACCOUNT.fullmatch(word)),
            frozenset(word for word in words if _ORGANIZATION.fullmatch(word)),
        )


def user_tag(user: str) -> str:
    """Tag key for a user: a hash, since a cluster's ARN can be longer than the 128 characters of a key."""
    return USER_TAG_PREFIX + hashlib.sha256(user.encode()).hexdigest()[:20]


def users_of(tags: Iterable[str]) -> set[str]:
    """Those tag keys that stand for users."""
    return {key for key in tags if key.startswith(USER_TAG_PREFIX)}


def group_name(vpc_id: str) -> str:
    """Name of the security group of a VPC's endpoints."""
    return f"VedetteManagedSecurityGroup-{vpc_id}"


def partition_of(region: str) -> str:
    """``aws``, ``aws-cn`` or ``aws-us-gov``."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def default_service_names(region: str) -> tuple[str, ...]:
    """Names that GuardDuty's data service may have in this region, the likelier first.

    In the regions of ``aws-cn`` some services are named ``cn.com.amazonaws.…`` and some ``com.amazonaws.…``
    (https://docs.amazonaws.cn/en_us/vpc/latest/privatelink/aws-services-privatelink-support.html).
    """
    name = f"com.amazonaws.{region}.guardduty-data"
    return (name, f"cn.{name}") if partition_of(region) == "aws-cn" else (name,)
