"""The life of an endpoint against moto's server: made, shared, adopted, drifted, deleted."""

import json
from typing import Any

import pytest

from tests.unit.operator.aws.conftest import REGION, Cloud
from vedette_operator.aws.endpoint import EndpointResult, reconcile_now, remove_now
from vedette_operator.aws.spec import EndpointFields, user_tag

SERVICE = f"com.amazonaws.{REGION}.guardduty-data"


def wanted(cloud: Cloud, **changed: Any) -> EndpointFields:
    return EndpointFields(**{"mode": "Managed", "region": REGION, "vpc_id": cloud.vpc_id, **changed})


def run(fields: EndpointFields, user: str = "one", record: Any = None) -> EndpointResult:
    """Passes until nothing is under way."""
    changes: list[str] = []
    for _ in range(6):
        result = reconcile_now(fields, nodes=(), user=user, record=record or {})
        record = result.record
        changes += result.changes
        if not result.progressing:
            break
    return EndpointResult(**{**result.__dict__, "changes": tuple(changes)})


def test_managed_endpoint_is_made_as_the_seed_says_and_a_second_pass_changes_nothing(cloud: Cloud) -> None:
    made = run(wanted(cloud))

    assert (made.status, made.reason) == ("True", "EndpointAvailable"), made
    (endpoint,) = cloud.endpoints()
    (group,) = cloud.groups()
    assert endpoint["ServiceName"] == SERVICE
    assert sorted(endpoint["SubnetIds"]) == sorted(cloud.subnet_ids)
    assert endpoint["PrivateDnsEnabled"] is True
    assert [item["GroupId"] for item in endpoint["Groups"]] == [group["GroupId"]]
    assert group["GroupName"] == f"VedetteManagedSecurityGroup-{cloud.vpc_id}"
    assert json.loads(endpoint["PolicyDocument"])["Statement"][1]["Condition"] == {
        "StringNotEquals": {"aws:PrincipalAccount": "123456789012"}
    }
    again = reconcile_now(wanted(cloud), nodes=(), user="one", record=made.record)
    assert (again.changes, again.record) == ((), made.record)


def test_two_clusters_share_one_endpoint_and_the_last_deletes_it(cloud: Cloud) -> None:
    first = run(wanted(cloud), "one")
    second = run(wanted(cloud), "two")
    assert first.record["id"] == second.record["id"]
    (endpoint,) = cloud.endpoints()
    assert {user_tag("one"), user_tag("two")} <= {tag["Key"] for tag in endpoint["Tags"]}
    assert reconcile_now(wanted(cloud), nodes=(), user="one", record=first.record).changes == ()

    gone = remove_now(wanted(cloud), nodes=(), user="one", record=first.record)
    assert (gone.done, gone.reason) == (True, "Removed"), gone
    assert len(cloud.endpoints()) == 1
    assert len(cloud.groups()) == 1
    gone = remove_now(wanted(cloud), nodes=(), user="two", record=second.record)
    assert (gone.done, gone.reason) == (True, "Removed"), gone
    assert (cloud.endpoints(), cloud.groups()) == ([], [])


@pytest.mark.parametrize("drift", ["policy", "subnet", "rule", "surplus rule", "tag"])
def test_drift_is_repaired(cloud: Cloud, drift: str) -> None:
    made = run(wanted(cloud))
    (endpoint,), (group,) = cloud.endpoints(), cloud.groups()
    name, group_id = endpoint["VpcEndpointId"], group["GroupId"]
    rule = group["IpPermissions"]
    if drift == "policy":
        cloud.ec2.modify_vpc_endpoint(VpcEndpointId=name, PolicyDocument='{"Statement": []}')
    elif drift == "subnet":
        cloud.ec2.modify_vpc_endpoint(VpcEndpointId=name, RemoveSubnetIds=cloud.subnet_ids[:1])
    elif drift == "rule":
        cloud.ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=rule)
    elif drift == "surplus rule":
        cloud.ec2.authorize_security_group_ingress(
            GroupId=group_id, IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="198.51.100.0/24"
        )
    else:
        cloud.ec2.delete_tags(Resources=[name], Tags=[{"Key": "Name"}])

    repaired = reconcile_now(wanted(cloud), nodes=(), user="one", record=made.record)

    assert len(repaired.changes) == 1, repaired
    (after,), (group_after,) = cloud.endpoints(), cloud.groups()
    assert json.loads(after["PolicyDocument"]) == json.loads(endpoint["PolicyDocument"])
    assert sorted(after["SubnetIds"]) == sorted(cloud.subnet_ids)
    assert group_after["IpPermissions"] == rule
    assert {tag["Key"] for tag in after["Tags"]} == {tag["Key"] for tag in endpoint["Tags"]}


def test_group_follows_the_blocks_of_the_vpc(cloud: Cloud) -> None:
    made = run(wanted(cloud))
    cloud.ec2.associate_vpc_cidr_block(VpcId=cloud.vpc_id, CidrBlock="10.9.0.0/16")
    cloud.ec2.associate_vpc_cidr_block(VpcId=cloud.vpc_id, AmazonProvidedIpv6CidrBlock=True)

    reconcile_now(wanted(cloud), nodes=(), user="one", record=made.record)

    (group,) = cloud.groups()
    blocks = {item["CidrIp"] for entry in group["IpPermissions"] for item in entry["IpRanges"]}
    assert blocks == {"10.8.0.0/16", "10.9.0.0/16"}
    assert sum(len(entry["Ipv6Ranges"]) for entry in group["IpPermissions"]) == 1


def test_what_is_not_ours_is_neither_changed_nor_deleted(cloud: Cloud) -> None:
    foreign = cloud.ec2.create_vpc_endpoint(
        VpcEndpointType="Interface",
        VpcId=cloud.vpc_id,
        ServiceName=SERVICE,
        SubnetIds=cloud.subnet_ids,
        PrivateDnsEnabled=True,
    )["VpcEndpoint"]
    before = cloud.endpoints()

    result = run(wanted(cloud))
    assert (result.reason, result.stalled) == ("PrivateDnsConflict", True)
    assert foreign["VpcEndpointId"] in result.message
    assert cloud.groups() == []
    remove_now(wanted(cloud), nodes=(), user="one", record=result.record)
    assert cloud.endpoints() == before


def test_retained_endpoint_stays_and_is_adopted_later(cloud: Cloud) -> None:
    made = run(wanted(cloud))
    kept = remove_now(wanted(cloud, deletion_policy="Retain"), nodes=(), user="one", record=made.record)
    assert (kept.done, kept.reason, kept.changes) == (True, "Retained", ())
    again = run(wanted(cloud), record={})
    assert (again.record["id"], again.changes) == (made.record["id"], ())


def test_service_that_the_region_lacks_is_said(cloud: Cloud) -> None:
    result = run(wanted(cloud, service_name=f"com.amazonaws.{REGION}.no-such"))
    assert (result.status, result.reason, result.stalled) == ("False", "ServiceNotInRegion", True)
    assert cloud.endpoints() == []


@pytest.mark.parametrize(("repair", "reason"), [(False, "VpcDnsDisabled"), (True, "EndpointAvailable")])
def test_dns_of_the_vpc_is_repaired_only_if_allowed(cloud: Cloud, repair: bool, reason: str) -> None:
    cloud.ec2.modify_vpc_attribute(VpcId=cloud.vpc_id, EnableDnsHostnames={"Value": False})
    result = run(wanted(cloud, repair_vpc_dns=repair))
    assert result.reason == reason
    answer = cloud.ec2.describe_vpc_attribute(VpcId=cloud.vpc_id, Attribute="enableDnsHostnames")
    assert answer["EnableDnsHostnames"]["Value"] is repair


def test_endpoint_deleted_by_hand_is_made_again(cloud: Cloud) -> None:
    made = run(wanted(cloud))
    cloud.ec2.delete_vpc_endpoints(VpcEndpointIds=[made.record["id"]])
    again = run(wanted(cloud), record=made.record)
    assert again.reason == "EndpointAvailable"
    assert again.record["id"] != made.record["id"]
    assert again.record["salt"] == made.record["id"]


def test_mode_none_makes_no_call_and_releases_what_was_used(cloud: Cloud) -> None:
    idle = reconcile_now(EndpointFields(), nodes=(), user="one", record={})
    assert (idle.status, idle.reason) == ("True", "NotWanted")
    made = run(wanted(cloud))
    released = reconcile_now(EndpointFields(), nodes=(), user="one", record=made.record)
    assert (released.reason, released.done) == ("NotWanted", True), released
    assert (cloud.endpoints(), cloud.groups()) == ([], [])


def test_existing_endpoint_is_verified_and_never_changed(cloud: Cloud) -> None:
    cloud.ec2.create_vpc_endpoint(
        VpcEndpointType="Interface",
        VpcId=cloud.vpc_id,
        ServiceName=SERVICE,
        SubnetIds=cloud.subnet_ids[:1],
        PrivateDnsEnabled=True,
    )
    before = cloud.endpoints()
    fields = wanted(cloud, mode="Existing", endpoint_id=before[0]["VpcEndpointId"], subnet_ids=tuple(cloud.subnet_ids))
    result = run(fields)
    assert result.reason == "ExistingEndpointUnusable"
    for part in ("TCP 443", "its policy is not the one", "no subnet in us-east-1b, us-east-1c"):
        assert part in result.message
    assert result.changes == ()
    assert cloud.endpoints() == before
