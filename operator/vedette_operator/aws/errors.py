"""What AWS answers when it refuses, as something that a person or the next pass can act on.

Codes: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
"""

from __future__ import annotations

import re
from typing import Any

from botocore import exceptions as aws

from vedette_operator.aws.permissions import statement_for
from vedette_operator.errors import OperatorError

_DENIED = {"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"}
_CREDENTIALS = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidIdentityToken",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_THROTTLED = {
    "RequestLimitExceeded",
    "RequestThrottled",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_UNAVAILABLE = {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable", "ServiceUnavailableException"}
# Resources that were there a moment ago or were just made: EC2 is eventually consistent, so the next pass looks again.
_UNSETTLED = {
    "IdempotentParameterMismatch",
    "IncorrectState",
    "InvalidGroup.Duplicate",
    "InvalidGroup.NotFound",
    "InvalidGroupId.NotFound",
    "InvalidParameterValue.Duplicate",
    "InvalidPermission.Duplicate",
    "InvalidPermission.NotFound",
    "InvalidState",
    "InvalidVpcEndpoint.NotFound",
    "InvalidVpcEndpointId.NotFound",
    "InvalidID",
    "DuplicateSubnetsInSameZone",
}


class AwsError(OperatorError):
    """A call failed; the next pass tries again after ``retry_after_s`` seconds.

    Attributes:
        reason: CamelCase, for the condition.
        message: What to do.
        stalled: Trying again alone cannot help.
        retry_after_s: Seconds until the next pass.
        operation: The API operation (``CreateVpcEndpoint``), empty where none was reached.
        code: AWS's own code.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        stalled: bool = False,
        retry_after_s: float = 60.0,
        operation: str = "",
        code: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.stalled = stalled
        self.retry_after_s = retry_after_s
        self.operation = operation
        self.code = code


def explain(error: Exception, *, service: str = "ec2", operation: str = "") -> AwsError:
    """The error of boto3 as ours. Errors that are not AWS's are not for this function."""
    if isinstance(error, aws.ClientError):
        return _refused(error, service)
    if isinstance(error, (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)):
        return AwsError(
            "NoCredentials",
            "The operator has no AWS credentials. Give its ServiceAccount vedette-system:vedette-operator a role: "
            "annotation eks.amazonaws.com/role-arn (IRSA) or an EKS Pod Identity association (docs/vpc-endpoint.md).",
            stalled=True,
            operation=operation,
        )
    if isinstance(error, aws.HTTPClientError | aws.ConnectionError):
        return AwsError(
            "AwsUnreachable",
            f"AWS does not answer ({_plain(str(error))}). The operator's pod needs a way to the APIs of EC2, EKS and "
            "STS: NAT, or interface endpoints for them; or AWS has a disturbance.",
            operation=operation,
        )
    if isinstance(error, aws.NoRegionError):
        return AwsError("DiscoveryFailed", "The region is not known; set endpoint.region.", stalled=True)
    return AwsError("AwsError", f"{operation or 'AWS'}: {_plain(str(error))}", operation=operation)


def _refused(error: aws.ClientError, service: str) -> AwsError:
    detail = error.response.get("Error", {})
    code = str(detail.get("Code", ""))
    said = _plain(str(detail.get("Message", "")))
    operation = str(error.operation_name)
    made: dict[str, Any] = {"operation": operation, "code": code}
    if code in _DENIED:
        action = f"{service}:{operation}"
        denied = re.search(r"not authorized to perform: ([a-z0-9-]+:[A-Za-z]+)", said)
        # CreateVpcEndpoint with tags needs CreateTags too, and only the message tells which of them is missing.
        action = denied.group(1) if denied else action
        return AwsError(
            "AccessDenied",
            f"AWS denies {action}. Grant it: {statement_for(action, operation)}. If it is granted, look for a service "
            f"control policy or a permissions boundary that denies it. AWS says: {said}",
            stalled=True,
            retry_after_s=120.0,
            **made,
        )
    if code in _CREDENTIALS:
        return AwsError(
            "InvalidCredentials",
            f"AWS does not take the operator's credentials ({code}): {said}. Check the role of ServiceAccount "
            "vedette-system:vedette-operator and its trust policy (docs/vpc-endpoint.md).",
            stalled=True,
            **made,
        )
    if code in _THROTTLED:
        return AwsError("AwsThrottled", f"AWS throttles {operation}; Vedette slows down and tries again.", **made)
    if code in _UNAVAILABLE:
        return AwsError("AwsUnavailable", f"AWS cannot answer {operation} now ({code}).", **made)
    if "conflicting DNS domain" in said:
        return AwsError(
            "PrivateDnsConflict",
            f"The private DNS name is taken in the VPC: {said}. Another endpoint, or a Route 53 private hosted zone "
            "that is associated with the VPC, answers to it. Use that endpoint (endpoint.mode: Existing), remove it, "
            "or set endpoint.privateDns to false.",
            stalled=True,
            retry_after_s=120.0,
            **made,
        )
    if code in ("DependencyViolation", "ResourceInUse"):
        return AwsError(
            "SecurityGroupInUse",
            f"AWS still counts something as using the resource: {said}. Network interfaces of a deleted endpoint go by "
            "themselves within minutes.",
            retry_after_s=30.0,
            **made,
        )
    if code == "TagLimitExceeded":
        return AwsError(
            "LimitExceeded",
            f"The resource has 50 tags already, and each cluster that uses it needs one: {said}. Remove the tags "
            "vedette.dev/user/… of clusters that are gone.",
            stalled=True,
            **made,
        )
    if code.endswith("LimitExceeded") or code in ("RulesPerSecurityGroupLimitExceeded", "SecurityGroupLimitExceeded"):
        return AwsError(
            "LimitExceeded",
            f"A quota of the account is used up ({code}): {said}. Have it raised in Service Quotas, or remove what is "
            "no longer needed.",
            stalled=True,
            retry_after_s=300.0,
            **made,
        )
    if code == "InsufficientFreeAddressesInSubnet":
        return AwsError(
            "SubnetsFull",
            f"A subnet has no free address: {said}. Free one, or give other endpoint.subnetIds.",
            stalled=True,
            **made,
        )
    if code == "OperationNotPermitted":
        return AwsError("AwsRefused", f"AWS does not permit {operation}: {said}", stalled=True, **made)
    if code in _UNSETTLED:
        return AwsError(
            "WaitingForAws",
            f"AWS has not settled yet after a change ({operation}: {code}); Vedette looks again.",
            retry_after_s=5.0,
            **made,
        )
    return AwsError("AwsRefused", f"AWS refused {operation} ({code}): {said}", retry_after_s=120.0, **made)


def _plain(text: str) -> str:
    """A message without the encoded authorization failure, on one line, of bounded length."""
    text = text.split("Encoded authorization failure message")[0]
    text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split()).rstrip(". ")[:500]
