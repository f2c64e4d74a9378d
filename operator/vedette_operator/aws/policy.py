"""The policy of the VPC endpoint: whose credentials may use it. Pure.

The document is the one that AWS publishes for GuardDuty's endpoint (AWS News Blog, "Amazon GuardDuty Now Supports
Amazon EKS Runtime Monitoring"): allow everything, then deny whatever does not come from the given account.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any


def policy_document(account_ids: Collection[str] = (), organization_ids: Collection[str] = ()) -> dict[str, Any]:
    """Policy that lets principals of these accounts, or of these organizations, use the endpoint, and nobody else.

    Where both are given (clusters that share an endpoint may ask for different ones) a principal needs to match one of
    them: keys under one condition operator are joined by *and*, so only who is neither in an account nor in an
    organization of the list is denied.

    Args:
        account_ids: Twelve-digit account ids.
        organization_ids: ``o-…``.

    Raises:
        ValueError: Nothing is given; a policy without a condition would let every account in.
    """
    condition: dict[str, Any] = {}
    if account_ids:
        condition["aws:PrincipalAccount"] = _one_or_many(account_ids)
    if organization_ids:
        condition["aws:PrincipalOrgID"] = _one_or_many(organization_ids)
    if not condition:
        raise ValueError("a policy needs account ids or an organization id")
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Action": "*", "Resource": "*", "Effect": "Allow", "Principal": "*"},
            {
                "Condition": {"StringNotEquals": condition},
                "Action": "*",
                "Resource": "*",
                "Effect": "Deny",
                "Principal": "*",
            },
        ],
    }


def _one_or_many(values: Collection[str]) -> str | list[str]:
    ordered = sorted(set(values))
    return ordered[0] if len(ordered) == 1 else ordered


def policy_text(document: dict[str, Any]) -> str:
    """The document as it is sent: the same bytes for the same document, as the idempotency token depends on them."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def same_policy(text: str, wanted: dict[str, Any]) -> bool:
    """Whether ``text``, as AWS gives it back, means what ``wanted`` says.

    AWS and other tools write one value as a string or as a list of one, the principal as ``*`` or ``{"AWS": "*"}``, and
    statements in any order; none of these is drift. Text that is no policy is never the same.
    """
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and _meaning(found) == _meaning(wanted)


def _meaning(document: dict[str, Any]) -> Any:
    statements = document.get("Statement", [])
    if isinstance(statements, dict):
        statements = [statements]
    if not isinstance(statements, list):
        return None
    return sorted(json.dumps(_normal(statement), sort_keys=True) for statement in statements)


def _normal(value: Any, key: str = "") -> Any:
    if key in ("Principal", "NotPrincipal") and value in ("*", {"AWS": "*"}, {"AWS": ["*"]}):
        return "*"
    if isinstance(value, dict):
        # A statement's id names it and decides nothing.
        return {name: _normal(inner, name) for name, inner in value.items() if name != "Sid"}
    if isinstance(value, list):
        inner = sorted((_normal(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
        return inner[0] if len(inner) == 1 else inner
    return value
