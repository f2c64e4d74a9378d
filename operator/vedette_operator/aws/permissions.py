"""The IAM policy documents for the operator, as data; ``manifests/iam/*.json`` are written from here.

The form follows the service-linked role that GuardDuty itself uses for its endpoints: what is made must carry our tag
in the same request, what is changed or deleted must carry it already, and networks (VPCs, subnets) are only named,
since AWS evaluates ``CreateVpcEndpoint`` against each resource that a request touches
(https://docs.aws.amazon.com/service-authorization/latest/reference/list_amazonec2.html).

``sts:GetCallerIdentity`` is called as well but needs no permission
(https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vedette_operator.aws.spec import MANAGED_TAG, TAG_PREFIX

PARTITIONS = ("aws", "aws-cn", "aws-us-gov")
_OURS = {"StringEquals": {f"aws:ResourceTag/{MANAGED_TAG}": "true"}}
_MADE_OURS = {"StringEquals": {f"aws:RequestTag/{MANAGED_TAG}": "true"}}

READ = [
    "ec2:DescribeInstances",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcAttribute",
    "ec2:DescribeVpcEndpointServices",
    "ec2:DescribeVpcEndpoints",
    "ec2:DescribeVpcs",
]


def existing_policy(partition: str = "aws") -> dict[str, Any]:
    """Rights for mode Existing: reading. EC2's Describe actions cannot be restricted to resources."""
    return _document(_read(partition))


def managed_policy(partition: str = "aws", *, repair_vpc_dns: bool = False) -> dict[str, Any]:
    """Rights for mode Managed; ``repair_vpc_dns`` adds the right that ``endpoint.repairVpcDns`` needs."""

    def arn(kind: str) -> str:
        return f"arn:{partition}:ec2:*:*:{kind}/*"

    endpoint, group = arn("vpc-endpoint"), arn("security-group")
    statements = [
        *_read(partition),
        {
            "Sid": "VedetteCreateEndpoint",
            "Effect": "Allow",
            "Action": "ec2:CreateVpcEndpoint",
            "Resource": endpoint,
            "Condition": _MADE_OURS,
        },
        {
            "Sid": "VedetteEndpointNetwork",
            "Effect": "Allow",
            "Action": ["ec2:CreateVpcEndpoint", "ec2:ModifyVpcEndpoint"],
            "Resource": [arn("vpc"), arn("subnet")],
        },
        {
            "Sid": "VedetteEndpointGroup",
            "Effect": "Allow",
            "Action": ["ec2:CreateVpcEndpoint", "ec2:ModifyVpcEndpoint"],
            "Resource": group,
        },
        {
            "Sid": "VedetteChangeEndpoint",
            "Effect": "Allow",
            "Action": ["ec2:ModifyVpcEndpoint", "ec2:DeleteVpcEndpoints"],
            "Resource": endpoint,
            "Condition": _OURS,
        },
        {
            "Sid": "VedetteCreateSecurityGroup",
            "Effect": "Allow",
            "Action": "ec2:CreateSecurityGroup",
            "Resource": group,
            "Condition": _MADE_OURS,
        },
        {
            "Sid": "VedetteSecurityGroupNetwork",
            "Effect": "Allow",
            "Action": "ec2:CreateSecurityGroup",
            "Resource": arn("vpc"),
        },
        {
            "Sid": "VedetteChangeSecurityGroup",
            "Effect": "Allow",
            "Action": [
                "ec2:AuthorizeSecurityGroupIngress",
                "ec2:DeleteSecurityGroup",
                "ec2:RevokeSecurityGroupIngress",
            ],
            "Resource": group,
            "Condition": _OURS,
        },
        {
            "Sid": "VedetteTagOnCreate",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": [endpoint, group],
            "Condition": {"StringEquals": {"ec2:CreateAction": ["CreateSecurityGroup", "CreateVpcEndpoint"]}},
        },
        {
            "Sid": "VedetteTag",
            "Effect": "Allow",
            "Action": "ec2:CreateTags",
            "Resource": [endpoint, group],
            "Condition": _OURS,
        },
        {
            "Sid": "VedetteUntag",
            "Effect": "Allow",
            "Action": "ec2:DeleteTags",
            "Resource": [endpoint, group],
            # Only the marks of users: the mark of ownership stays, or the operator could disown what it made.
            "Condition": {**_OURS, "ForAllValues:StringLike": {"aws:TagKeys": f"{TAG_PREFIX}user/*"}},
        },
    ]
    if repair_vpc_dns:
        statements.append(
            {
                "Sid": "VedetteRepairVpcDns",
                "Effect": "Allow",
                "Action": "ec2:ModifyVpcAttribute",
                "Resource": arn("vpc"),
            }
        )
    return _document(statements)


def documents() -> dict[str, str]:
    """File name → text of all documents under ``manifests/iam``."""
    made = {}
    for partition in PARTITIONS:
        suffix = partition.removeprefix("aws")
        made[f"endpoint-existing{suffix}.json"] = _text(existing_policy(partition))
        made[f"endpoint-managed{suffix}.json"] = _text(managed_policy(partition))
        made[f"endpoint-managed-repair-dns{suffix}.json"] = _text(managed_policy(partition, repair_vpc_dns=True))
    return made


def statement_for(action: str, operation: str = "") -> str:
    """Where the right to ``action`` is to be found, in words; ``operation`` is the call in which it was needed."""
    if action == "ec2:CreateTags" and operation in ("CreateVpcEndpoint", "CreateSecurityGroup"):
        return "statement VedetteTagOnCreate of manifests/iam/endpoint-managed.json"
    for name, document in (
        ("endpoint-existing.json", existing_policy()),
        ("endpoint-managed.json", managed_policy()),
        ("endpoint-managed-repair-dns.json", managed_policy(repair_vpc_dns=True)),
    ):
        sids = [statement["Sid"] for statement in document["Statement"] if action in _listed(statement["Action"])]
        if action == "ec2:CreateTags":
            sids = ["VedetteTag"] if sids else []
        if sids:
            plural = "s" if len(sids) > 1 else ""
            return f"statement{plural} {', '.join(sids)} of manifests/iam/{name}"
    return "it is in none of Vedette's own policy documents, so another policy must allow it"


def _read(partition: str) -> list[dict[str, Any]]:
    return [
        {"Sid": "VedetteRead", "Effect": "Allow", "Action": READ, "Resource": "*"},
        {
            "Sid": "VedetteReadCluster",
            "Effect": "Allow",
            "Action": "eks:DescribeCluster",
            "Resource": f"arn:{partition}:eks:*:*:cluster/*",
        },
    ]


def _document(statements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": statements}


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def write(folder: Path) -> None:
    """Write all documents into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).resolve().parents[3] / "manifests" / "iam")
