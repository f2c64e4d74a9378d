"""What detections say: severity, key, context, notes, the process named."""

from __future__ import annotations

from typing import Any

import pytest

from vedette_detector.detectors import ALL_DETECTORS
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.engine import Engine
from vedette_detector.sigma.rule_tests import encode_events, make_header
from vedette_detector.threat_lists import ThreatLists

CURL: dict[str, Any] = {"event": "exec", "path": "/usr/bin/curl", "pid": 900, "container": True}
DPKG: dict[str, Any] = {"event": "exec", "path": "/usr/bin/dpkg", "pid": 900, "container": True}
BUILDER: dict[str, Any] = {"event": "exec", "path": "/usr/bin/buildkitd", "pid": 800}
WRITE: dict[str, Any] = {
    "event": "open",
    "pid": 900,
    "path": "/root/x",
    "oflags": 0o1101,
    "ino": 5,
    "dev": 3,
    "container": True,
}
RUN: dict[str, Any] = {"event": "exec", "path": "/root/x", "file_bits": 7, "ino": 5, "dev": 3, "container": True}


def decide(*events: dict[str, Any], threats: tuple[str, ...] = ()) -> list[Detection]:
    engine = Engine(None, ThreatLists.of(threats), detectors=[type(d)() for d in ALL_DETECTORS])
    records, _ = encode_events(events)
    outcome = engine.process(make_header(), records)
    assert outcome.errors == []
    return outcome.detections


def test_new_binary_names_who_wrote_it_and_when() -> None:
    (found,) = decide(CURL, WRITE, RUN)

    assert found.finding_type == "Execution:Runtime/NewBinaryExecuted"
    assert found.severity == 5.0
    assert found.key == ("/root/x",)
    assert found.context["modifyingProcess"]["executablePath"] == "/usr/bin/curl"
    assert found.context["modifiedAt"].endswith("Z")
    assert found.process["executablePath"] == "/root/x"
    assert found.notes == []
    assert found.related_events[0]["path"] == "/root/x"
    assert found.container is not None


def test_new_binary_of_a_package_manager_is_low_and_says_so() -> None:
    (found,) = decide(DPKG, WRITE, RUN)

    assert found.severity == 2.0
    assert found.notes == ["The program was written by the package manager or build tool dpkg."]


def test_new_binary_of_something_that_only_calls_itself_dpkg_is_not_low() -> None:
    brought = {**DPKG, "file_bits": 7, "path": "/usr/local/bin/dpkg"}

    found = [d for d in decide(brought, WRITE, RUN) if d.process["executablePath"] == "/root/x"]

    assert [d.severity for d in found] == [5.0]


def test_new_binaries_of_an_image_build_are_one_low_finding() -> None:
    shell = {"event": "exec", "path": "/bin/sh", "pid": 900, "ppid": 800, "container": True}
    found = decide(
        BUILDER, shell, {**RUN, "ppid": 900, "pid": 1001}, {**RUN, "path": "/root/y", "ppid": 900, "pid": 1002}
    )

    assert {(d.severity, d.key) for d in found} == {(1.0, ("image build", "buildkitd"))}
    assert found[0].notes[0] == "This is an image build: buildkitd started the process."


def test_new_programs_of_one_unpacked_tree_on_a_host_share_a_key() -> None:
    writes = [{**WRITE, "container": False, "path": f"/tmp/root/bin/{n}", "ino": n} for n in (1, 2)]
    runs = [
        {**RUN, "container": False, "file_bits": 0, "path": f"/tmp/root/bin/{n}", "ino": n, "pid": 1000 + n}
        for n in (1, 2)
    ]

    assert {d.key for d in decide(*writes, *runs)} == {("/tmp/root",)}


SHELL: dict[str, Any] = {
    "event": "exec",
    "path": "/bin/bash",
    "argv": ["bash", "-i"],
    "container": True,
    "stdin_kind": 5,
    "stdout_kind": 5,
    "stderr_kind": 5,
    "stdin_ino": 77,
    "stdout_ino": 77,
    "stderr_ino": 77,
    "sock_ino": 77,
    "family": 2,
    "raddr": "203.0.113.66",
    "rport": 4444,
    "laddr": "198.51.100.1",
    "lport": 51000,
}
CONNECT: dict[str, Any] = {
    "event": "connect",
    "family": 2,
    "raddr": "203.0.113.66",
    "rport": 4444,
    "sock_type": 1,
    "sock_ino": 77,
    "protocol": 6,
    "container": True,
}


def test_reverse_shell_names_shell_and_far_side() -> None:
    (found,) = decide(CONNECT, SHELL)

    assert found.severity == 8.0
    assert found.key == ("/bin/bash", "203.0.113.66")
    assert found.description == "bash has its input and output on a connection to 203.0.113.66:4444."
    assert found.process["arguments"] == ["bash", "-i"]
    assert found.action is not None
    connection = found.action["networkConnectionAction"]
    assert connection["connectionDirection"] == "OUTBOUND"
    assert connection["remoteIpDetails"] == {"ipAddressV4": "203.0.113.66"}
    assert found.notes == []


def test_reverse_shell_says_when_the_direction_is_a_guess() -> None:
    (found,) = decide(SHELL)

    assert found.action is None
    assert found.notes == ["The connection's beginning was not seen; its direction follows from the port numbers."]


@pytest.mark.parametrize(("arguments", "severity"), [(["bash"], 5.0), (["bash", "-i"], 8.0)])
def test_shell_fed_by_pipes_is_certain_only_when_interactive(arguments: list[str], severity: float) -> None:
    pipes = {"stdin_kind": 3, "stdin_ino": 61, "stdout_kind": 3, "stdout_ino": 62}
    relay = {"event": "exec", "pid": 900, "path": "/usr/bin/python3.11", "stdin_kind": 8, "stdin_ino": 5}
    (found,) = decide(
        relay,
        {**CONNECT, "pid": 900, "container": False},
        {"event": "exec", "ppid": 900, "path": "/bin/bash", "argv": arguments, **pipes},
    )

    assert found.severity == severity
    assert bool(found.notes) == (severity < 8.0)


def test_injection_names_the_target() -> None:
    (found,) = decide(
        {"event": "exec", "path": "/usr/sbin/sshd", "pid": 2000, "ino": 5, "dev": 1},
        {"event": "exec", "path": "/opt/x", "ino": 6, "dev": 1},
        {"event": "vm_write", "target_pid": 2000, "result": 8},
    )

    assert found.severity == 8.0
    assert found.key == ("x", "sshd")
    assert found.context["targetProcess"]["executablePath"] == "/usr/sbin/sshd"


def test_injection_between_ranks_of_one_program_is_low() -> None:
    (found,) = decide(
        {"event": "exec", "path": "/opt/solver", "pid": 2000, "ino": 6, "dev": 1},
        {"event": "exec", "path": "/opt/solver", "ino": 6, "dev": 1},
        {"event": "vm_write", "target_pid": 2000, "result": 8},
    )

    assert found.severity == 3.0
    assert found.notes == ["Writer and target run the same program, as the ranks of a parallel program do."]


def test_listed_address_names_the_list() -> None:
    (found,) = decide(CONNECT, threats=("203.0.113.0/24",))

    assert found.finding_type == "Backdoor:Runtime/C&CActivity.B"
    assert found.evidence == {"threatIntelligenceDetails": [{"threatListName": "given", "threatNames": ["given"]}]}
    assert found.context == {"addressFamily": "IPv4", "ianaProtocolNumber": 6}


def test_mount_says_what_where_and_how() -> None:
    (found,) = decide(
        {"event": "exec", "path": "/usr/bin/mount", "container": True},
        {"event": "mount", "op": 1, "source": "/dev/sda1", "target": "/mnt", "fstype": "ext4", "mount_flags": 1}
        | {"container": True, "result": -1},
    )

    assert found.context == {
        "mountSource": "/dev/sda1",
        "mountTarget": "/mnt",
        "fileSystemType": "ext4",
        "flags": ["MS_RDONLY"],
    }
    assert "tried to mount a disk" in found.description
