from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Vedette


def test_without_root_says_so_and_touches_nothing(
    vedette: Vedette, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = sorted(tmp_path.rglob("*"))
    result = vedette("run")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("vedette: cannot watch this host: not root")
    assert "sudo vedette run" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rules", "/no/such/folder"), "does not exist"),
        (("--threat-lists", "/no/such/folder"), "does not exist"),
        (("--workers", "-1"), "not in the range"),
        (("-o", "yaml"), "is not one of"),
    ],
)
def test_wrong_usage_ends_with_2(vedette: Vedette, arguments: tuple[str, ...], message: str) -> None:
    result = vedette("run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        *("", "run", "status", "events", "version"),
        *("findings", "findings list", "findings show", "findings watch", "findings export", "findings archive"),
        *("rules", "rules list", "rules show", "rules check", "rules test"),
    ],
)
def test_help_has_a_sentence_and_an_example_or_options(vedette: Vedette, command: str) -> None:
    result = vedette(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")
    assert len(result.stdout.splitlines()) > 6
    assert all(len(line) <= 110 for line in result.stdout.splitlines())


def test_an_unknown_command_is_wrong_usage(vedette: Vedette) -> None:
    result = vedette("watch")
    assert result.exit_code == 2
    assert "No such command" in result.stderr
