"""``vedette rules``: list, show, check and test detection rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vedette_cli.errors import CommandError
from vedette_cli.output import (
    Column,
    Format,
    band,
    note,
    output_option,
    print_data,
    print_line,
    print_table,
    severity_style,
)

if TYPE_CHECKING:
    from vedette_detector.sigma.loader import Rule, RuleError, Ruleset

PATHS = click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path(path_type=Path))
OWN_RULES = click.option(
    "--rules",
    "own",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Rules of your own, beside the built-in ones.",
)


@click.group()
def rules() -> None:
    """List, show, check and test detection rules.

    Rules are Sigma files with a "vedette" block; docs/rules.md describes them. What looks back into history is a
    detector written in Python; both are listed.

    \b
    vedette rules list
    vedette rules show ReverseShell
    vedette rules check ./my-rules        errors with file and line, exit code 1 if there are any
    vedette rules test ./my-rules         run the tests that the files carry, through the real engine
    """


def load(paths: Sequence[Path]) -> Ruleset:
    """Load rules below ``paths``; the built-in ones when there are none."""
    from vedette_detector.sigma.loader import load_rules, rules_directory

    return load_rules(paths or [rules_directory()])


def load_with(own: Sequence[Path]) -> Ruleset:
    """Load the built-in rules and ``own``."""
    from vedette_detector.sigma.loader import rules_directory

    return load([rules_directory(), *own])


def shown_path(file: str) -> str:
    """Return a built-in rule's path below the folder of rules, another's as it is."""
    from vedette_detector.sigma.loader import rules_directory

    path = Path(file)
    return str(path.relative_to(rules_directory())) if path.is_relative_to(rules_directory()) else file


def describe_rule(rule: Rule) -> dict[str, Any]:
    """Return a rule as plain data."""
    return {
        "kind": "rule",
        "id": rule.id,
        "title": rule.title,
        "finding": rule.finding_type,
        "severity": rule.severity,
        "level": rule.level,
        "category": rule.category,
        "description": rule.description,
        "aggregated_by": list(rule.key),
        "triage": rule.triage,
        "false_positives": list(rule.falsepositives),
        "references": list(rule.references),
        "tags": list(rule.tags),
        "status": rule.status,
        "tests": len(rule.tests),
        "file": rule.file,
    }


def describe_detectors() -> list[dict[str, Any]]:
    """Return the detectors as plain data."""
    from vedette_detector.detectors import ALL_DETECTORS
    from vedette_detector.findings import catalog

    out = []
    for detector in ALL_DETECTORS:
        module = type(detector).__module__
        for finding in detector.finding_types:
            out.append(
                {
                    "kind": "detector",
                    "id": detector.id,
                    "title": detector.title,
                    "finding": finding,
                    "severity": catalog.lookup(finding).severity,
                    "description": detector.description,
                    "events": sorted({selector.event for selector in detector.selectors}),
                    "triage": detector.triage,
                    "false_positives": list(detector.falsepositives),
                    "tags": list(detector.tags),
                    "tests": len(detector.tests),
                    "file": module.replace(".", "/") + ".py",
                }
            )
    return out


@rules.command("list")
@OWN_RULES
@click.option("--type", "kind", metavar="TEXT", help="Only those whose finding type contains this.")
@output_option()
def list_rules(own: tuple[Path, ...], kind: str | None, form: Format) -> None:
    """List rules and detectors by the finding they make."""
    loaded = load_with(own)
    entries = [*(describe_rule(r) for r in loaded.rules), *describe_detectors()]
    entries = [e for e in entries if kind is None or kind.lower() in e["finding"].lower()]
    entries.sort(key=lambda e: (e["finding"], e["title"]))
    if form != "table":
        print_data(entries, form)
    else:
        print_table(
            (
                Column("FINDING", style="bold"),
                Column("SEVERITY", style=lambda cell: severity_style(float(cell.split()[-1])), keep=True),
                Column("TITLE"),
                Column("KIND", keep=True),
                Column("FILE"),
            ),
            [
                (
                    e["finding"],
                    f"{band(e['severity'])} {e['severity']:.1f}",
                    e["title"],
                    e["kind"],
                    shown_path(e["file"]),
                )
                for e in entries
            ],
        )
    for error in loaded.errors:
        note(str(error))
    if loaded.errors:
        raise CommandError("RulesBroken", f"{_number(len(loaded.errors), 'error')} in rule files; the others work")


@rules.command("show")
@click.argument("wanted", metavar="WHAT")
@OWN_RULES
@output_option()
def show_rule(wanted: str, own: tuple[Path, ...], form: Format) -> None:
    """Show rules and detectors by id, or by part of the title, finding type or file."""
    loaded = load_with(own)
    entries = [*(describe_rule(r) for r in loaded.rules), *describe_detectors()]
    text = wanted.lower()
    found = [e for e in entries if e["id"].lower() == text] or [
        e for e in entries if any(text in str(e[k]).lower() for k in ("id", "title", "finding", "file"))
    ]
    if not found:
        raise CommandError(
            "RuleNotFound", f"no rule or detector is like {wanted!r}", "List them with: vedette rules list"
        )
    if form != "table":
        print_data(found, form)
        return
    for number, entry in enumerate(found):
        if number:
            print_line()
        print_line((entry["title"], "bold"))
        for key, value in entry.items():
            if key == "title" or value in ("", []):
                continue
            lines = [str(v) for v in value] if isinstance(value, list) else str(value).splitlines()
            for index, line in enumerate(lines):
                print_line((f"  {key.replace('_', ' ') if index == 0 else '':<17}", "cyan"), line)


@rules.command("check")
@PATHS
@click.option("--strict", is_flag=True, help="Warnings count as errors.")
@output_option()
def check_rules(paths: tuple[Path, ...], strict: bool, form: Format) -> None:
    """Check rule files: every error of every file, with its line. Built-in rules without PATH.

    Exit code 1 when there is an error.
    """
    loaded = load(paths)
    wrong = [*loaded.errors, *(loaded.warnings if strict else ())]
    if form != "table":
        print_data(
            {
                "rules": len(loaded.rules),
                "errors": [_error_data(e) for e in loaded.errors],
                "warnings": [_error_data(w) for w in loaded.warnings],
            },
            form,
        )
    else:
        for error in loaded.errors:
            print_line(("error ", "red"), str(error))
        for warning in loaded.warnings:
            print_line(("warning ", "yellow"), str(warning))
        counts = (("rule", loaded.rules), ("error", loaded.errors), ("warning", loaded.warnings))
        print_line(", ".join(_number(len(what), name) for name, what in counts))
    if wrong:
        raise click.exceptions.Exit(1)


@rules.command("test")
@PATHS
@output_option()
def test_rules(paths: tuple[Path, ...], form: Format) -> None:
    """Run the tests that rule files carry, through the real engine. Built-in rules without PATH.

    Exit code 1 when a test fails or a file has an error. A rule without tests is pointed out.
    """
    from vedette_detector.sigma.rule_tests import run_rule_tests

    loaded = load(paths)
    failures = run_rule_tests(loaded)
    untested = [r for r in loaded.rules if not {True, False} <= {t.match for t in r.tests}]
    total = sum(len(r.tests) for r in loaded.rules)
    if form != "table":
        print_data(
            {
                "rules": len(loaded.rules),
                "tests": total,
                "errors": [_error_data(e) for e in loaded.errors],
                "failures": [
                    {"file": f.file, "line": f.line, "rule": f.rule, "test": f.test, "message": f.message}
                    for f in failures
                ],
                "untested": [r.file for r in untested],
            },
            form,
        )
    else:
        for error in loaded.errors:
            print_line(("error ", "red"), str(error))
        for failure in failures:
            print_line(("failed ", "red"), str(failure))
        for rule in untested:
            print_line(("untested ", "yellow"), f"{rule.file}:{rule.line}: has no positive and negative test")
        counts = (
            ("rule", len(loaded.rules)),
            ("test", total),
            ("failure", len(failures)),
            ("error", len(loaded.errors)),
        )
        print_line(", ".join(_number(count, name) for name, count in counts))
    if failures or loaded.errors:
        raise click.exceptions.Exit(1)


def _error_data(error: RuleError) -> dict[str, Any]:
    return {"file": error.file, "line": error.line, "reason": error.reason, "message": error.message}


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
