"""The rule files that ship with Vedette: all load, all tests in them pass, all say what a person needs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import vedette_detector
from vedette_detector.sigma.loader import Rule, Ruleset, load_rules
from vedette_detector.sigma.rule_tests import run_rule_tests

FOLDER = Path(vedette_detector.__file__).parent / "rules"
FILES = sorted(FOLDER.rglob("*.yml"))


@cache
def shipped() -> Ruleset:
    return load_rules([FOLDER])


def rule_of(file: Path) -> Rule:
    return next(rule for rule in shipped().rules if Path(rule.file) == file)


def test_all_rules_load_without_errors_and_warnings() -> None:
    assert [str(error) for error in shipped().errors] == []
    assert [str(warning) for warning in shipped().warnings] == []
    assert len(shipped().rules) == len(FILES)


def test_all_tests_in_rule_files_pass() -> None:
    assert [str(failure) for failure in run_rule_tests(shipped())] == []


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_rule_has_both_kinds_of_tests_and_all_notes(file: Path) -> None:
    rule = rule_of(file)

    assert {test.match for test in rule.tests} == {True, False}
    assert rule.description
    assert rule.triage
    assert rule.falsepositives
    assert rule.references
    assert any(tag.startswith("attack.t1") for tag in rule.tags)
    assert rule.key


def test_rule_ids_are_unique() -> None:
    ids = [rule.id for rule in shipped().rules]

    assert len(ids) == len(set(ids))
