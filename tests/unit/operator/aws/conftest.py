"""An AWS to work against: moto's real HTTP server, with a VPC of three zones."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

REGION = "us-east-1"


@dataclass
class Cloud:
    """A VPC with a subnet in each of three zones."""

    ec2: Any
    vpc_id: str
    subnet_ids: list[str]

    def endpoints(self) -> list[dict[str, Any]]:
        """Endpoints that are not deleted."""
        return [item for item in self.ec2.describe_vpc_endpoints()["VpcEndpoints"] if item["State"] != "deleted"]

    def groups(self) -> list[dict[str, Any]]:
        """Security groups of Vedette's name."""
        found = self.ec2.describe_security_groups()["SecurityGroups"]
        return [item for item in found if item["GroupName"].startswith("Vedette")]


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def cloud(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in (
        ("AWS_ENDPOINT_URL", moto_url),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", REGION),
    ):
        monkeypatch.setenv(name, value)
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{moto_url}/moto-api/reset", method="POST")).close()
    ec2 = boto3.client("ec2", region_name=REGION)
    vpc = ec2.create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
    for attribute in ("EnableDnsSupport", "EnableDnsHostnames"):
        ec2.modify_vpc_attribute(VpcId=vpc, **{attribute: {"Value": True}})
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.8.{at}.0/24", AvailabilityZone=f"{REGION}{zone}")["Subnet"][
            "SubnetId"
        ]
        for at, zone in enumerate("abc")
    ]
    yield Cloud(ec2, vpc, subnets)
    ec2.close()
