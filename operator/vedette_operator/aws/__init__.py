"""The VPC endpoint through which agents report to a detector in another VPC, as GuardDuty's does.

``spec`` and ``observed`` are what is wanted and what is; ``plan`` decides, purely; ``calls`` reads and acts;
``endpoint`` joins them to a pass. Only ``calls``, ``discovery``, ``errors`` and ``session`` know boto3; they are loaded
when a pass first runs, so that importing this package is cheap and works without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vedette_operator.aws.spec import EndpointFields

if TYPE_CHECKING:
    from vedette_operator.aws.discovery import NodeFacts
    from vedette_operator.aws.endpoint import EndpointResult, reconcile_endpoint, remove_endpoint

__all__ = ["EndpointFields", "EndpointResult", "NodeFacts", "reconcile_endpoint", "remove_endpoint"]


def __getattr__(name: str) -> Any:
    if name == "NodeFacts":
        from vedette_operator.aws import discovery

        return discovery.NodeFacts
    if name in ("EndpointResult", "reconcile_endpoint", "remove_endpoint"):
        from vedette_operator.aws import endpoint

        return getattr(endpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
