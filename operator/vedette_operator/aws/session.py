"""Clients of AWS for one pass, with bounded patience.

Credentials are found by boto3 itself: IRSA (``AWS_WEB_IDENTITY_TOKEN_FILE``), EKS Pod Identity
(``AWS_CONTAINER_CREDENTIALS_FULL_URI``) and the rest of its chain, except the instance metadata service: a pod that
gets the node's role by accident would act with rights that nobody gave to it.
"""

from __future__ import annotations

import os
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config
from botocore.session import Session as BotocoreSession

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 20
MAX_ATTEMPTS = 4


class Clients:
    """EC2, EKS and STS clients that are made when first asked for. Not for use by several threads."""

    def __init__(self, region: str, **client_options: Any) -> None:
        core = BotocoreSession()
        if "AWS_EC2_METADATA_DISABLED" not in os.environ:
            core.get_component("credential_provider").remove("iam-role")
        self.region = region
        self._session = boto3.Session(botocore_session=core, region_name=region or None)
        self._options = {
            "config": Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
                user_agent_extra="vedette-operator",
            ),
            **client_options,
        }
        self._made: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """The client of a service (``ec2``, ``eks``, ``sts``)."""
        if service not in self._made:
            self._made[service] = self._session.client(service, **self._options)
        return self._made[service]

    @property
    def ec2(self) -> Any:
        """EC2, which VPC endpoints belong to."""
        return self.client("ec2")

    def close(self) -> None:
        """Close the connections."""
        for client in self._made.values():
            client.close()
