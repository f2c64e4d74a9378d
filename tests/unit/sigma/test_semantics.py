"""What each way of writing a condition matches, through the whole engine."""

from typing import Any

import pytest
import yaml

from vedette_detector.engine.engine import Engine
from vedette_detector.sigma.loader import load_rule_text
from vedette_detector.sigma.rule_tests import encode_events, make_header


def matches(category: str, detection: Any, *events: dict[str, Any]) -> bool:
    """Whether a rule matches the last of some events."""
    if "condition" not in detection:
        detection = {"selection": detection, "condition": "selection"}
    text = yaml.safe_dump(
        {
            "title": "A rule",
            "id": "00000000-0000-4000-8000-000000000000",
            "logsource": {"product": "linux", "category": category},
            "detection": detection,
            "level": "low",
        }
    )
    loaded = load_rule_text(text)
    assert [str(e) for e in loaded.errors] == []
    records, time = encode_events(events)
    outcome = Engine(loaded).process(make_header(), records)
    assert outcome.errors == []
    return any(found.time_ns == time for found in outcome.detections)


EXEC: dict[str, Any] = {
    "event": "exec",
    "path": "/usr/bin/Curl",
    "argv": ["curl", "-o", "/tmp/a b", "http://198.51.100.7/x", ""],
    "cwd": "/root",
    "filename": "./curl",
    "env": ["LD_PRELOAD=/tmp/x.so"],
    "file_bits": "UPPER|OVERLAY",
    "stdin_kind": "INET",
    "uid": 1000,
    "caps": 1 << 21,
    "result": 0,
}


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        ({"Image": "/usr/bin/curl"}, True),
        ({"Image|cased": "/usr/bin/curl"}, False),
        ({"Image|cased": "/usr/bin/Curl"}, True),
        ({"Image": "/usr/bin/c*l"}, True),
        ({"Image": "/usr/bin/c?rl"}, True),
        ({"Image": "/usr/bin/c?l"}, False),
        ({"Image": "*/curl"}, True),
        ({"Image": "curl"}, False),
        ({"Image|startswith": ["/opt/", "/usr/"]}, True),
        ({"Image|endswith": "/url"}, False),
        ({"CommandLine": "curl -o /tmp/a b http://198.51.100.7/x "}, True),
        ({"CommandLine|contains|all": ["-o /tmp", "198.51.100.7"]}, True),
        ({"CommandLine|contains|all": ["-o /tmp", "nothing"]}, False),
        ({"CommandLine|contains": " -o "}, True),
        ({"CommandLine|re": r"http://\d+(\.\d+){3}/x $"}, True),
        ({"CommandLine|re": r"HTTP://"}, False),
        ({"CommandLine|re|i": r"HTTP://"}, True),
        ({"CommandLine|windash|contains": "/o /tmp"}, True),
        ({"CommandLine|windash|contains": "-o /tmp"}, True),
        ({"CurrentDirectory": "/root"}, True),
        ({"OriginalFileName|startswith": "./"}, True),
        ({"Environment|contains": "LD_PRELOAD=/tmp/"}, True),
        ({"UserId": 1000}, True),
        ({"UserId": [0, 1000]}, True),
        ({"UserId|gt": 999}, True),
        ({"UserId|gte": 1001}, False),
        ({"UserId|lt": 1001, "UserId|neq": 5}, True),
        ({"UserId|neq": 1000}, False),
        ({"User": "1000"}, True),
        ({"User": 1000}, True),
        ({"User": "root"}, False),
        ({"file_bits|has": "UPPER"}, True),
        ({"file_bits|has": ["UPPER", "MEMFD"]}, True),
        ({"file_bits|has|all": ["UPPER", "MEMFD"]}, False),
        ({"file_bits|has|all": ["UPPER", "OVERLAY"]}, True),
        ({"stdin_kind": "INET"}, True),
        ({"stdin_kind": ["TTY", "PIPE"]}, False),
        ({"caps|has": "CAP_SYS_ADMIN"}, True),
        ({"caps|has": "CAP_BPF"}, False),
        ({"ParentImage": None}, True),
        ({"ParentImage|exists": True}, False),
        ({"Image|exists": True}, True),
        ({"ContainerId": None}, True),
        ({"Image|fieldref": "OriginalFileName"}, False),
        ({"ProcessId|fieldref": "tid"}, True),
        ({"Image|base64offset|contains": "curl"}, False),
        ({"keywords": ["*ld_preload=*"], "condition": "keywords"}, True),
        ({"keywords": ["a b http"], "condition": "keywords"}, True),
        ({"keywords": ["nothing"], "condition": "keywords"}, False),
        ({"a1": {"UserId": 1000}, "a2": {"UserId": 1}, "condition": "1 of a*"}, True),
        ({"a1": {"UserId": 1000}, "a2": {"UserId": 1}, "condition": "all of a*"}, False),
        ({"a": {"UserId": 1000}, "b": {"Image|endswith": "/curl"}, "condition": "a and not b"}, False),
        ({"a": {"UserId": 1000}, "b": {"Image|endswith": "/wget"}, "condition": "a and not b"}, True),
        ({"a": [{"UserId": 1}, {"Image|endswith": "/curl"}], "condition": "a"}, True),
    ],
)
def test_a_started_program(detection: dict[str, Any], expected: bool) -> None:
    assert matches("process_creation", detection, EXEC) == expected


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        ({"ParentImage|endswith": "/nginx"}, True),
        ({"ParentCommandLine|contains": "daemon off"}, True),
        ({"ParentUser": "root"}, True),
        ({"ContainerId|startswith": "c0ffee"}, True),
        ({"PodUid": None}, True),
        ({"CgroupPath|contains": "docker-"}, True),
        ({"Sha256": "AB" * 32}, True),
        ({"Image|endswith": "/sh", "ParentImage|endswith": "/sshd"}, False),
    ],
)
def test_what_is_looked_up_in_history(detection: dict[str, Any], expected: bool) -> None:
    parent = {"event": "exec", "path": "/usr/sbin/nginx", "argv": ["nginx", "-g", "daemon off;"], "pid": 50, "uid": 0}
    digest = {"event": "file_hash", "ino": 4, "dev": 5, "ctime": 6, "sha256": b"\xab" * 32}
    child = {"event": "exec", "path": "/bin/sh", "argv": ["sh"], "pid": 51, "ppid": 50, "container": True}
    assert matches("process_creation", detection, parent, digest, {**child, "ino": 4, "dev": 5, "ctime": 6}) == expected


@pytest.mark.parametrize(
    ("event", "target", "operation"),
    [
        ({"event": "open", "path": "/etc/cron.d/x", "oflags": 0o1}, "/etc/cron.d/x", "Write"),
        ({"event": "open", "path": "cron.d/x", "dir": "/etc", "oflags": 0o1, "result": -13}, "/etc/cron.d/x", "Write"),
        ({"event": "unlink", "path": "../etc//cron.d/./x", "dir": "/tmp"}, "/etc/cron.d/x", "Delete"),
        ({"event": "rename", "path": "/tmp/a", "new_path": "x", "new_dir": "/etc/cron.d"}, "/etc/cron.d/x", "Rename"),
        ({"event": "link", "path": "/tmp/a", "new_path": "/etc/cron.d/x"}, "/etc/cron.d/x", "Link"),
        ({"event": "symlink", "path": "/tmp/a", "new_path": "/etc/cron.d/x"}, "/etc/cron.d/x", "Symlink"),
        ({"event": "chmod", "path": "x", "dir": "/etc/cron.d", "mode": 0o4755}, "/etc/cron.d/x", "Chmod"),
    ],
)
def test_a_changed_file_by_its_joined_path(event: dict[str, Any], target: str, operation: str) -> None:
    assert matches("file_event", {"TargetFilename": target, "FileOperation": operation}, event)
    assert matches("file_event", {"TargetFilename|startswith": "/etc/cron.d/"}, event)
    assert not matches("file_event", {"TargetFilename|startswith": "/tmp/"}, event)
    assert not matches("file_event", {"TargetFilename": target, "FileOperation": "Nothing"}, event)


def test_a_file_opened_for_reading_is_an_access_and_no_event() -> None:
    event = {"event": "open", "path": "/etc/shadow", "oflags": 0}
    assert not matches("file_event", {"TargetFilename": "/etc/shadow"}, event)
    assert matches("file_access", {"TargetFilename": "/etc/shadow"}, event)
    assert not matches("file_access", {"TargetFilename": "/etc/shadow", "oflags|has": "WRITE"}, event)
    assert matches("file_access", {"TargetFilename": "/etc/shadow", "oflags|has": "WRITE"}, {**event, "oflags": 2})


@pytest.mark.parametrize(
    ("detection", "expected"),
    [
        ({"DestinationIp": "203.0.113.9"}, True),
        ({"DestinationIp": ["198.51.100.1", "203.0.113.9"]}, True),
        ({"DestinationIp|cidr": "203.0.113.0/24"}, True),
        ({"DestinationIp|cidr": ["10.0.0.0/8", "2001:db8::/32"]}, False),
        ({"DestinationIp|startswith": "203.0."}, True),
        ({"DestinationPort": 4444, "Initiated": True}, True),
        ({"Initiated": "false"}, False),
        ({"Protocol": "TCP"}, True),
        ({"Result|lt": 0}, True),
    ],
)
@pytest.mark.parametrize(
    "address", [{"family": 2, "raddr": "203.0.113.9"}, {"family": 10, "raddr": "::ffff:203.0.113.9"}]
)
def test_a_connection(detection: dict[str, Any], expected: bool, address: dict[str, Any]) -> None:
    event = {"event": "connect", **address, "sock_type": 1, "rport": 4444, "result": -115}
    assert matches("network_connection", detection, event) == expected


def test_a_unix_connection_is_no_network_connection_and_is_found_by_path() -> None:
    event = {"event": "connect", "family": 1, "path": b"\0containerd"}
    assert not matches("network_connection", {"ProcessId": 1000}, event)
    assert matches("connect", {"family": "AF_UNIX", "path": "@containerd"}, event)
    assert matches("connect", {"path|endswith": "containerd"}, event)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("evil.example", False),
        ("*.evil.example", True),
        ("www.EVIL.example", True),
        ("*www*", True),
        ("*w.evil*", True),
    ],
)
def test_a_dns_query_by_name(value: str, expected: bool) -> None:
    name = b"\3wWw\4eVil\7example\0"
    event = {"event": "dns", "direction": "QUERY", "payload": b"\0\1\1\0\0\1" + bytes(6) + name + b"\0\1\0\1"}
    assert matches("dns_query", {"QueryName": value}, event) == expected
    assert not matches("dns_query", {"QueryName": value}, {**event, "direction": "ANSWER"})


@pytest.mark.parametrize(
    ("category", "detection", "event"),
    [
        ("ptrace", {"request": "PTRACE_ATTACH"}, {"event": "ptrace", "request": 16}),
        ("module", {"op": "FINIT", "path|endswith": ".ko"}, {"event": "module", "op": 2, "path": "/x/y.ko"}),
        ("mount", {"mount_flags|has": "MS_BIND", "op": "MOUNT"}, {"event": "mount", "op": 1, "mount_flags": 4096}),
        ("mprotect", {"prot|has|all": ["PROT_WRITE", "PROT_EXEC"]}, {"event": "mprotect", "prot": 6}),
        ("memfd", {"name": "x"}, {"event": "memfd", "name": "X"}),
        ("unlink", {"full_path": "/a/b"}, {"event": "unlink", "path": "b", "dir": "/a"}),
        ("connect", {"result": "-ECONNREFUSED"}, {"event": "connect", "result": -111, "family": 2}),
        ("exec", {"comm": "evil"}, {"event": "exec", "comm": "evil"}),
        ("setuid", {"call": "SETUID", "uid": 0, "old_uid|gt": 0}, {"event": "setuid", "call": 1, "old_uid": 5}),
    ],
)
def test_every_event_type_is_a_category_with_the_fields_of_the_schema(
    category: str, detection: dict[str, Any], event: dict[str, Any]
) -> None:
    assert matches(category, detection, event)


def test_ignoring_case_the_kelvin_sign_is_a_k_for_expressions_only() -> None:
    event = {**EXEC, "path": "/bin/\u212aill"}
    assert matches("process_creation", {"Image|re|i": "/bin/kill"}, event)
    assert not matches("process_creation", {"Image": "/bin/kill"}, event)


def test_an_expression_that_would_hang_a_backtracking_engine_returns() -> None:
    event = {**EXEC, "argv": ["a" * 4000 + "!"]}
    assert not matches("process_creation", {"CommandLine|re": "^(a+)+$"}, event)


def test_text_that_is_not_utf8_is_matched_by_its_bytes_and_by_expressions() -> None:
    event = {**EXEC, "path": b"/bin/\xff\x1b\xc3\xa9x"}
    assert matches("process_creation", {"Image": "/bin/??éx"}, event)
    assert matches("process_creation", {"Image|re": "éx$"}, event)
