"""The manual's tables are what the loader knows, and its example is a rule that passes its tests."""

import re
from pathlib import Path

from vedette_detector.sigma.loader import load_rule_text
from vedette_detector.sigma.reference import page
from vedette_detector.sigma.rule_tests import run_rule_tests

PAGE = Path(__file__).resolve().parents[3] / "docs" / "rules.md"


def test_the_tables_are_fresh() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text


def test_the_example_works() -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    loaded = load_rule_text(found.group(1))
    assert [str(error) for error in loaded.errors + loaded.warnings] == []
    assert len(loaded.rules[0].tests) == 3
    assert [str(failure) for failure in run_rule_tests(loaded)] == []
