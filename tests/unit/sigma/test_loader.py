"""Rule files: every mistake is named with its line, none stops the others, tests run through the real engine."""

import pickle
from pathlib import Path

import pytest

from vedette_detector.engine.engine import Engine
from vedette_detector.sigma.loader import load_rule_text, load_rules, rules_directory
from vedette_detector.sigma.rule_tests import encode_events, make_header, run_rule_tests

GOOD = """title: A scanner was run
id: 00000000-0000-4000-8000-000000000001
status: stable
description: A network scanner was run.
logsource:
  product: linux
  category: process_creation
detection:
  selection:
    Image|endswith: /nmap
  condition: selection
level: medium
vedette:
  finding: Execution:Runtime/SuspiciousTool
  key: [Image]
  context: {toolName: "{Image}"}
  tests:
    - name: runs
      match: true
      events: [{event: exec, path: /usr/bin/nmap, argv: [nmap]}]
    - name: another
      match: false
      events: [{event: exec, path: /usr/bin/cat, argv: [cat]}]
"""


def errors(text: str) -> list[tuple[int, str, str]]:
    return [(e.line, e.reason, e.message) for e in load_rule_text(text, "x.yml").errors]


def test_a_good_rule_loads_and_its_tests_pass() -> None:
    loaded = load_rule_text(GOOD, "x.yml")
    assert (loaded.errors, loaded.warnings) == ([], [])
    (rule,) = loaded.rules
    assert (rule.severity, rule.finding_type, rule.level) == (5.0, "Execution:Runtime/SuspiciousTool", "medium")
    assert run_rule_tests(loaded) == []


def test_failing_tests_are_reported_with_their_line() -> None:
    text = GOOD.replace("path: /usr/bin/nmap", "path: /usr/bin/nmapp").replace("path: /usr/bin/cat", "path: /x/nmap")
    found = run_rule_tests(load_rule_text(text, "x.yml"))
    assert [str(failure) for failure in found] == [
        "x.yml:18: A scanner was run: runs: should match, but does not",
        "x.yml:21: A scanner was run: another: should not match, but does",
    ]


def test_test_events_that_cannot_be_encoded_are_failures() -> None:
    text = GOOD.replace("path: /usr/bin/nmap, argv: [nmap]", "path: /usr/bin/nmap, uid: -5")
    (failure,) = run_rule_tests(load_rule_text(text, "x.yml"))
    assert failure.line == 18
    assert failure.message.startswith("the events cannot be encoded: ")


@pytest.mark.parametrize(
    ("old", "new", "line", "reason", "message"),
    [
        ("Image|endswith", "image|endswith", 10, "UnknownField",
         "category process_creation has no field 'image'; did you mean Image?"),
        ("Image|endswith", "Image|endwith", 10, "UnknownModifier", "there is no modifier 'endwith'"),
        ("Image|endswith", "Image|expand", 10, "UnsupportedModifier", "modifier 'expand' is not supported"),
        ("Image|endswith: /nmap", "Image|re|startswith: nmap", 10, "UnsupportedModifier",
         "use ^ and $ in the expression in place of startswith, endswith"),
        ("Image|endswith: /nmap", "UserId: root", 10, "BadValue", "UserId is a number, not 'root'"),
        ("Image|endswith: /nmap", "DestinationIp: 1.2.3.4", 10, "UnknownField",
         "category process_creation has no field 'DestinationIp'"),
        ("Image|endswith: /nmap", "raddr: nonsense", 10, "BadValue", "raddr: b'nonsense' is not an address"),
        ("Image|endswith: /nmap", "file_bits|has: UPPPER", 10, "UnknownName",
         "file_bits has no flag 'UPPPER'; known: BLKDEV, CGROUPFS, CHRDEV, DIRECTORY, FIFO, MEMFD, NO_LOWER, OVERLAY, "
         "PROC, SETGID, SETUID, SOCKET, TMPFS, UNLINKED, UPPER"),
        ("Image|endswith: /nmap", "stdin_kind|has: TTY", 10, "BadValue",
         "stdin_kind is not made of flags; compare with equality"),
        ("Image|endswith: /nmap", "Image|has: X", 10, "BadValue", "Image is text; numbers and flags do not apply"),
        ("Image|endswith: /nmap", "Image|cidr: 10.0.0.0/8", 10, "BadValue",
         "Image is not an address; |cidr does not apply"),
        ("process_creation", "process_creations", 7, "UnknownCategory",
         "there is no category 'process_creations'; known: "),
        ("product: linux", "product: windows", 6, "UnknownProduct", "product is linux, not 'windows'"),
        ("condition: selection", "condition: selektion", 11, "BadCondition", "Detection 'selektion' not defined"),
        ("condition: selection", "condition: selection and", 11, "BadCondition", "Expected"),
        ("condition: selection", "timeframe: 5m\\n  condition: selection", 11, "UnsupportedCondition",
         "timeframe needs a correlation; write a detector in Python for what looks back in time"),
        ("level: medium", "level: bad", 12, "BadLevel", "'bad' is not a valid Sigma rule level"),
        ("id: 00000000-0000-4000-8000-000000000001", "id: one", 2, "BadId", "id 'one' is not a UUID"),
        ("Execution:Runtime/SuspiciousTool", "Suspicious", 14, "BadFindingType",
         "'Suspicious' is not of the form Purpose:Runtime/Family.Detail"),
        ("key: [Image]", "key: [Imag]", 15, "UnknownField",
         "category process_creation has no field 'Imag'; did you mean Image?"),
        ('"{Image}"', '"{Imag}"', 16, "UnknownField",
         "category process_creation has no field 'Imag'; did you mean Image?"),
        ("key: [Image]", "severity: 11", 15, "BadSeverity", "severity is a number from 1.0 to 10.0"),
        ("key: [Image]", "keys: [Image]", 15, "UnknownKey", "vedette has no key 'keys'; known: context, description, "),
        ("event: exec, path: /usr/bin/nmap", "event: exe", 18, "BadTest",
         "each event names its type: event: exec; got {'event': 'exe', 'argv': ['nmap']}"),
        ("path: /usr/bin/nmap", "paths: /usr/bin/nmap", 18, "BadTest",
         "exec has no field 'paths'; did you mean path?"),
        ("match: true", "match: 3", 18, "BadTest", "match is true or false"),
        ("title: A", "title: [", 1, "BadYaml", ""),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_line(old: str, new: str, line: int, reason: str, message: str) -> None:
    assert old in GOOD
    found = errors(GOOD.replace(old, new.replace("\\n", "\n")))
    assert [(at, why) for at, why, _ in found if why == reason][:1] == [(line, reason)] or reason == "BadYaml"
    text = next(text for _, why, text in found if why == reason)
    assert text.startswith(message) or message in text


def test_all_mistakes_come_at_once() -> None:
    text = GOOD.replace("level: medium", "level: bad").replace("key: [Image]", "key: [Imag]")
    text = text.replace("Image|endswith: /nmap", "Imige: x\n    Image|nope: y")
    assert {(line, reason) for line, reason, _ in errors(text)} == {
        (13, "BadLevel"),
        (10, "UnknownField"),
        (11, "UnknownModifier"),
        (16, "UnknownField"),
    }


def test_a_broken_file_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(GOOD)
    (tmp_path / "b.yml").write_text("title: [")
    (tmp_path / "c.yml").write_bytes(b"\xff\xfe")
    (tmp_path / "d.yml").write_text("- a list\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.yaml").write_text(GOOD.replace("000001", "000002"))
    (tmp_path / "sub" / "f.yml").write_text(GOOD)
    (tmp_path / "notes.txt").write_text("not a rule")
    loaded = load_rules([tmp_path, tmp_path / "missing"])
    assert [Path(rule.file).name for rule in loaded.rules] == ["a.yml", "e.yaml"]
    assert [(Path(e.file).name, e.reason) for e in loaded.errors] == [
        ("b.yml", "BadYaml"),
        ("c.yml", "NotText"),
        ("d.yml", "NotARule"),
        ("f.yml", "DuplicateId"),
        ("missing", "NotFound"),
    ]
    assert loaded.errors[3].line == 2
    assert loaded.errors[3].message.endswith("a.yml")


def test_several_documents_in_a_file_are_refused() -> None:
    assert [(reason, "one rule a file" in text) for _, reason, text in errors(GOOD + "---\n" + GOOD)] == [
        ("BadYaml", True)
    ]


@pytest.mark.parametrize(
    ("detection", "expensive"),
    [
        ("ParentImage|endswith: /sshd", True),
        ("Image|contains: x", True),
        ("Image|contains: xy", False),
        ("CommandLine|re: '[a-z]+'", True),
        ("UserId|gt: 5", False),
    ],
)
def test_a_rule_that_the_prefilter_cannot_help_gets_a_warning(detection: str, expensive: bool) -> None:
    loaded = load_rule_text(GOOD.replace("Image|endswith: /nmap", detection), "x.yml")
    assert loaded.errors == []
    assert [(w.reason, w.line) for w in loaded.warnings] == ([("Expensive", 8)] if expensive else [])


def test_a_rule_without_a_block_takes_its_type_from_its_tactic() -> None:
    text = GOOD[: GOOD.index("vedette:")] + "tags: [attack.persistence, attack.t1053]\n"
    (rule,) = load_rule_text(text).rules
    assert (rule.finding_type, rule.severity) == ("Persistence:Runtime/CustomRule", 5.0)


def test_rules_travel_between_processes() -> None:
    loaded = load_rule_text(GOOD.replace("Image|endswith: /nmap", "CommandLine|re: 'n[m]ap'\n    Image: '*/n?ap'"))
    records, _ = encode_events([{"event": "exec", "path": "/usr/bin/nmap", "argv": ["nmap"]}])
    assert len(Engine(loaded).process(make_header(), records).detections) == 1
    copy = pickle.loads(pickle.dumps(loaded))
    assert copy.rules == loaded.rules
    assert len(Engine(copy).process(make_header(), records).detections) == 1


def test_the_rules_that_come_with_vedette_load_and_pass_their_tests() -> None:
    loaded = load_rules([rules_directory()])
    assert [str(error) for error in loaded.errors] == []
    assert [str(failure) for failure in run_rule_tests(loaded)] == []
