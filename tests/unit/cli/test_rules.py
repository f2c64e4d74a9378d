from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Vedette
from vedette_cli.output import band

RULE = """\
title: A scanner was run
id: 11111111-2222-4333-8444-555555555555
status: experimental
description: Somebody runs {Image}.
author: A test
date: 2026-01-31
logsource:
  product: linux
  category: process_creation
detection:
  selection:
    Image|endswith: /scanner
  condition: selection
falsepositives:
  - Administrators
level: low
vedette:
  finding: Execution:Runtime/SuspiciousTool
  key: [Image]
  triage: |
    Ask who ran it.
  tests:
    - name: a scanner
      match: true
      events: [{event: exec, path: /opt/scanner, argv: [scanner]}]
    - name: something else
      match: MATCH
      events: [{event: exec, path: /opt/other, argv: [other]}]
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "scanner.yml").write_text(RULE.replace("MATCH", "false"))
    return folder


def test_lists_rules_of_ones_own_beside_detectors(vedette: Vedette, own: Path) -> None:
    result = vedette("rules", "list", "--rules", str(own))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["FINDING", "SEVERITY", "TITLE", "KIND", "FILE"]
    (line,) = (line for line in lines if "A scanner was run" in line)
    assert line.split() == [
        *("Execution:Runtime/SuspiciousTool", "Low", "2.0", "A", "scanner", "was", "run", "rule", f"{own}/scanner.yml"),
    ]
    entries = json.loads(vedette("rules", "list", "-o", "json").stdout)
    assert "detector" in {entry["kind"] for entry in entries}
    assert all(band(entry["severity"]) for entry in entries)


def test_the_built_in_rules_load_and_pass_their_tests(vedette: Vedette) -> None:
    result = vedette("rules", "test")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1].endswith("0 failures, 0 errors")


def test_filters_by_finding_type(vedette: Vedette, own: Path) -> None:
    entries = json.loads(vedette("rules", "list", "--rules", str(own), "--type", "SUSPICIOUStool", "-o", "json").stdout)
    assert {entry["finding"] for entry in entries} == {"Execution:Runtime/SuspiciousTool"}


@pytest.mark.parametrize("wanted", ["11111111-2222-4333-8444-555555555555", "a scanner", "own/scanner.yml"])
def test_shows_a_rule_by_what_one_knows_of_it(vedette: Vedette, own: Path, wanted: str) -> None:
    result = vedette("rules", "show", wanted, "--rules", str(own))
    assert result.exit_code == 0
    assert "triage Ask who ran it." in [" ".join(line.split()) for line in result.stdout.splitlines()]


def test_a_rule_that_does_not_exist(vedette: Vedette) -> None:
    result = vedette("rules", "show", "no such\x1b[31m rule")
    assert result.exit_code == 1
    assert result.stderr == (
        "vedette: no rule or detector is like 'no such\\x1b[31m rule'\n  List them with: vedette rules list\n"
    )


def test_check_reports_every_error_with_its_line(vedette: Vedette, own: Path) -> None:
    (own / "broken.yml").write_text("title: [unclosed\n")
    (own / "field.yml").write_text(RULE.replace("MATCH", "false").replace("Image|endswith", "Imagination|endswith"))
    result = vedette("rules", "check", str(own))
    assert result.exit_code == 1
    assert f"error {own}/broken.yml:" in result.stdout
    assert f"error {own}/field.yml:12: " in result.stdout
    assert result.stdout.splitlines()[-1] == "1 rule, 2 errors, 0 warnings"
    data = json.loads(vedette("rules", "check", str(own), "-o", "json").stdout)
    assert [e["line"] for e in data["errors"] if e["file"].endswith("field.yml")] == [12]


def test_check_of_good_rules_is_quiet_and_zero(vedette: Vedette, own: Path) -> None:
    result = vedette("rules", "check", str(own))
    assert (result.exit_code, result.stdout) == (0, "1 rule, 0 errors, 0 warnings\n")


def test_a_missing_folder_is_an_error(vedette: Vedette, tmp_path: Path) -> None:
    result = vedette("rules", "check", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "there is no such folder or file (NotFound)" in result.stdout


def test_runs_the_tests_of_rules(vedette: Vedette, own: Path) -> None:
    result = vedette("rules", "test", str(own))
    assert (result.exit_code, result.stdout) == (0, "1 rule, 2 tests, 0 failures, 0 errors\n")
    (own / "scanner.yml").write_text(RULE.replace("MATCH", "true"))
    result = vedette("rules", "test", str(own))
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"failed {own}/scanner.yml:26: A scanner was run: something else: should match, but does not",
        f"untested {own}/scanner.yml:1: has no positive and negative test",
        "1 rule, 2 tests, 1 failure, 0 errors",
    ]
