"""Loads folders of rule files.

A rule file is a Sigma rule with a ``vedette`` block (``docs/rules.md``). Whatever is wrong with a file is reported
with its line, all of it at once, and never keeps the other files from loading.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sigma.exceptions import SigmaError
from sigma.rule import SigmaRule

from vedette_detector.engine.context import EngineContext
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.selector import Selector
from vedette_detector.sigma.compile import CompileError, check_key, compile_condition, expensive_events, selectors_of
from vedette_detector.sigma.condition import AnyOf, Node
from vedette_detector.sigma.fields import Category, categories
from vedette_detector.text import safe_text
from vedette_events import schema

SEVERITIES: dict[str, float] = {"informational": 1.0, "low": 2.0, "medium": 5.0, "high": 8.0, "critical": 9.0}
"""Severity by Sigma level: GuardDuty's bands are 1.0 to 3.9 low, 4.0 to 6.9 medium, 7.0 to 8.9 high, 9.0 critical."""

PURPOSES: dict[str, str] = {
    "reconnaissance": "Recon",
    "resource-development": "PenTest",
    "initial-access": "InitialAccess",
    "execution": "Execution",
    "persistence": "Persistence",
    "privilege-escalation": "PrivilegeEscalation",
    "stealth": "DefenseEvasion",
    "defense-evasion": "DefenseEvasion",
    "defense-impairment": "DefenseEvasion",
    "credential-access": "CredentialAccess",
    "discovery": "Discovery",
    "lateral-movement": "Behavior",
    "collection": "Behavior",
    "command-and-control": "Backdoor",
    "exfiltration": "Exfiltration",
    "impact": "Impact",
}
"""GuardDuty's threat purpose by ATT&CK tactic, for a rule that names no finding type."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML has libyaml
_FINDING = re.compile(r"[A-Z][A-Za-z]+:[A-Za-z0-9]+/[A-Za-z0-9&.]+(?:![A-Za-z0-9.]+)?\Z")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_BLOCK_KEYS = {"finding", "severity", "key", "context", "triage", "tests", "description", "notes"}
_TEST_KEYS = {"name", "match", "events", "threats"}
_TEST_EVENT_KEYS = {"event", "container", "cgroup_path"}


@dataclass(frozen=True)
class RuleError:
    """What is wrong with a rule file.

    Attributes:
        file: path of the file.
        line: line number from 1; 0 where the whole file is meant.
        reason: stable CamelCase name.
        message: what to do about it.
    """

    file: str
    line: int
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message} ({self.reason})"


@dataclass(frozen=True)
class RuleTest:
    """One test of a rule file: whether the last of some events makes the rule match."""

    name: str
    match: bool
    events: tuple[dict[str, Any], ...]
    line: int
    threats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A compiled rule. Plain data, picklable; a unit of the engine.

    Attributes:
        id: the rule's UUID.
        title: the rule's title.
        file: where it is from.
        line: line of its title.
        finding_type: GuardDuty's type.
        severity: 1.0 to 10.0.
        level: Sigma's level.
        category: Sigma's category.
        description: what the rule is about.
        condition: the exact check.
        selectors: the necessary condition.
        key: fields whose values are part of the aggregation key.
        context: GuardDuty RuntimeContext keys; ``{Field}`` is replaced.
        triage: what to look at.
        notes: sentences for the reader of the finding; ``{Field}`` is replaced.
        falsepositives: known benign causes.
        references: sources.
        tags: ATT&CK tags.
        status: Sigma's status.
        tests: the file's tests.
    """

    id: str
    title: str
    file: str
    line: int
    finding_type: str
    severity: float
    level: str
    category: str
    description: str
    condition: Node
    selectors: tuple[Selector, ...]
    key: tuple[str, ...] = ()
    context: dict[str, Any] = field(default_factory=dict)
    triage: str = ""
    notes: tuple[str, ...] = ()
    falsepositives: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    status: str = ""
    tests: tuple[RuleTest, ...] = ()

    @property
    def finding_types(self) -> tuple[str, ...]:
        """The types that the rule can give: one."""
        return (self.finding_type,)

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """The exact check, and the detection."""
        if not self.condition.matches(event):
            return ()
        return (
            context.detection(
                event,
                description=fill(self.description, self.category, event),
                key=[field_text(self.category, name, event) for name in self.key],
                context=_fill_all(self.context, self.category, event),
                notes=[fill(note, self.category, event) for note in self.notes],
            ),
        )


def field_text(category: str, name: str, event: Event) -> str:
    """A field's value as safe text; empty where the event has none."""
    spec = categories()[category].fields.get((event.type, name))
    value = spec.get(event) if spec is not None else None
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else safe_text(value)


def fill(template: str, category: str, event: Event) -> str:
    """Replace each ``{Field}`` by the field's value."""
    return _PLACEHOLDER.sub(lambda found: field_text(category, found.group(1), event), template)


def _fill_all(value: Any, category: str, event: Event) -> Any:
    if isinstance(value, str):
        return fill(value, category, event)
    if isinstance(value, dict):
        return {key: _fill_all(item, category, event) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_all(item, category, event) for item in value]
    return value


@dataclass
class Ruleset:
    """The rules of some folders, and what was wrong with them.

    Attributes:
        rules: what loaded.
        errors: what did not, with file and line.
        warnings: what loaded but deserves a look (reason ``Expensive``: the prefilter cannot help the rule).
    """

    rules: list[Rule] = field(default_factory=list)
    errors: list[RuleError] = field(default_factory=list)
    warnings: list[RuleError] = field(default_factory=list)

    def by_id(self, rule_id: str) -> Rule | None:
        """The rule with an id."""
        return next((rule for rule in self.rules if rule.id == rule_id), None)


def rules_directory() -> Path:
    """Where the rules that come with Vedette are."""
    return Path(__file__).resolve().parent.parent / "rules"


def load_rules(directories: Iterable[str | Path]) -> Ruleset:
    """Load every ``.yml`` and ``.yaml`` file below some folders (or files given by name)."""
    out = Ruleset()
    by_id: dict[str, Rule] = {}
    for directory in directories:
        root = Path(directory)
        if root.is_file():
            files = [root]
        elif root.is_dir():
            files = sorted(p for p in root.rglob("*") if p.suffix in (".yml", ".yaml") and not _hidden(p, root))
        else:
            out.errors.append(RuleError(str(root), 0, "NotFound", "there is no such folder or file"))
            continue
        for path in files:
            _load_file(path, out, by_id)
    return out


def _hidden(path: Path, root: Path) -> bool:
    """Whether a name below ``root`` begins with a dot.

    A mounted ConfigMap is a folder of links into a folder ``..2026_…`` beside them: each file would be there twice.
    """
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def load_rule_text(text: str, file: str = "<rule>") -> Ruleset:
    """Load one rule from text."""
    out = Ruleset()
    _load_text(text, file, out, {})
    return out


def _load_file(path: Path, out: Ruleset, by_id: dict[str, Rule]) -> None:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as e:
        out.errors.append(RuleError(str(path), 0, "Unreadable", f"cannot be read: {e.strerror}"))
        return
    except UnicodeDecodeError as e:
        out.errors.append(RuleError(str(path), 0, "NotText", f"is not UTF-8 text: {e.reason} at byte {e.start}"))
        return
    _load_text(text, str(path), out, by_id)


def _load_text(text: str, file: str, out: Ruleset, by_id: dict[str, Rule]) -> None:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        data = loader.construct_document(root) if root is not None else None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        message = getattr(e, "problem", None) or str(e).splitlines()[0]
        line = mark.line + 1 if mark is not None else 0
        if "single document" in str(e):
            message = "one rule a file: this file holds several documents"
        out.errors.append(RuleError(file, line, "BadYaml", str(message)))
        return
    if not isinstance(data, dict):
        out.errors.append(RuleError(file, 1, "NotARule", "a rule is a YAML mapping"))
        return
    reader = _Reader(file, data, _Lines(root))
    rule = reader.read()
    out.errors += reader.errors
    if rule is None or reader.errors:
        return
    known = by_id.get(rule.id)
    if known is not None:
        out.errors.append(
            RuleError(file, reader.lines.of("id"), "DuplicateId", f"id {rule.id} is taken by {known.file}")
        )
        return
    by_id[rule.id] = rule
    out.rules.append(rule)
    out.warnings += reader.warnings


class _Lines:
    """Line numbers of a YAML document's keys."""

    def __init__(self, root: yaml.Node | None) -> None:
        self._root = root

    def of(self, *path: str | int) -> int:
        """The line of a key; of its nearest parent that exists otherwise."""
        node = self._root
        line = 1
        for step in path:
            found: yaml.Node | None = None
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    if key.value == step:
                        line, found = key.start_mark.line + 1, value
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                found = node.value[step]
                line = node.value[step].start_mark.line + 1
            if found is None:
                return line
            node = found
        return line

    def of_key_below(self, wanted: str, *path: str) -> int:
        """The line of the first key anywhere below ``path`` that is ``wanted`` or ``wanted|modifier``."""
        node = self._root
        for step in path:
            if not isinstance(node, yaml.MappingNode):
                return 1
            node = next((value for key, value in node.value if key.value == step), None)
        stack = [node]
        found: list[int] = []
        while stack:
            current = stack.pop()
            if isinstance(current, yaml.MappingNode):
                for key, value in current.value:
                    if key.value == wanted or str(key.value).split("|")[0] == wanted:
                        found.append(key.start_mark.line + 1)
                    stack.append(value)
            elif isinstance(current, yaml.SequenceNode):
                stack += current.value
        return min(found, default=self.of(*path))


class _Reader:
    """Reads one file, collecting all that is wrong."""

    def __init__(self, file: str, data: dict[str, Any], lines: _Lines) -> None:
        self.file = file
        self.data = data
        self.lines = lines
        self.errors: list[RuleError] = []
        self.warnings: list[RuleError] = []

    def error(self, line: int, reason: str, message: str) -> None:
        """Note an error."""
        self.errors.append(RuleError(self.file, line, reason, message))

    def read(self) -> Rule | None:
        """The rule; None or incomplete when there are errors."""
        category = self._category()
        sigma = self._sigma()
        if category is not None:
            self._keys(category)
        condition = self._condition(sigma, category) if sigma is not None and category is not None else None
        level = str(self.data.get("level", "medium"))
        block = self._block(category)
        if condition is None or category is None or self.errors:
            return None
        expensive = expensive_events(condition, category)
        if expensive:
            message = (
                f"every {' and '.join(expensive)} event has to be looked at: no literal text of two or more "
                "characters and no number narrows the rule down"
            )
            self.warnings.append(RuleError(self.file, self.lines.of("detection"), "Expensive", message))
        tags = tuple(str(tag) for tag in self.data.get("tags") or ())
        description = str(block.get("description") or self.data.get("description") or "").strip()
        return Rule(
            id=str(self.data["id"]),
            title=str(self.data["title"]),
            file=self.file,
            line=self.lines.of("title"),
            finding_type=str(block.get("finding") or _default_type(tags)),
            severity=float(block.get("severity", SEVERITIES.get(level, 5.0))),
            level=level,
            category=category.name,
            description=" ".join(description.split()),
            condition=condition,
            selectors=selectors_of(condition, category),
            key=tuple(str(name) for name in block.get("key") or ()),
            context=dict(block.get("context") or {}),
            triage=str(block.get("triage") or "").strip(),
            notes=tuple(str(note) for note in block.get("notes") or ()),
            falsepositives=_strings(self.data.get("falsepositives")),
            references=_strings(self.data.get("references")),
            tags=tags,
            status=str(self.data.get("status") or ""),
            tests=self._tests(block.get("tests") or []),
        )

    def _category(self) -> Category | None:
        source = self.data.get("logsource")
        if not isinstance(source, dict):
            self.error(
                self.lines.of("logsource"), "MissingLogsource", "logsource is missing: give product and category"
            )
            return None
        product = source.get("product")
        if product not in (None, "linux"):
            self.error(self.lines.of("logsource", "product"), "UnknownProduct", f"product is linux, not {product!r}")
        if source.get("service") is not None:
            self.error(
                self.lines.of("logsource", "service"),
                "UnsupportedLogsource",
                "rules on a service's log do not apply to kernel events; give a category",
            )
        found = categories().get(str(source.get("category")))
        if found is None:
            known = ", ".join(sorted(categories()))
            self.error(
                self.lines.of("logsource", "category"),
                "UnknownCategory",
                f"there is no category {source.get('category')!r}; known: {known}",
            )
        return found

    def _sigma(self) -> SigmaRule | None:
        if "id" not in self.data:
            self.error(1, "MissingId", "id is missing: give the rule a UUID")
        else:
            try:
                uuid.UUID(str(self.data["id"]))
            except ValueError:
                self.error(self.lines.of("id"), "BadId", f"id {self.data['id']!r} is not a UUID")
        if not self.data.get("title"):
            self.error(1, "MissingTitle", "title is missing")
        if not isinstance(self.data.get("detection"), dict):
            self.error(self.lines.of("detection"), "MissingDetection", "detection is missing")
            return None
        plain = {key: value for key, value in self.data.items() if key != "vedette"}
        try:
            rule = SigmaRule.from_dict(plain, collect_errors=True)
        except Exception as e:  # pySigma lets TypeErrors through for odd YAML
            self.error(self.lines.of("detection"), "BadSigma", str(e))
            return None
        for problem in rule.errors:
            if _is_our_modifier_error(problem):
                continue
            self.error(self._line_of(problem), _reason(problem), str(problem).split(" in ")[0])
        return None if rule.errors else rule

    def _line_of(self, problem: SigmaError) -> int:
        text = type(problem).__name__.lower()
        for key in ("title", "id", "level", "status", "date", "modified", "tags", "logsource", "references", "related"):
            if key in text.replace("identifier", "id"):
                return self.lines.of(key)
        return self.lines.of("detection")

    def _keys(self, category: Category) -> None:
        """Check every field and modifier of the detection, so that all errors come at once."""
        detection = self.data.get("detection")
        if not isinstance(detection, dict):
            return
        for name, definition in detection.items():
            if name in ("condition", "timeframe"):
                if name == "timeframe":
                    self.error(
                        self.lines.of("detection", name),
                        "UnsupportedCondition",
                        "timeframe needs a correlation; write a detector in Python for what looks back in time",
                    )
                continue
            for key in _detection_keys(definition):
                try:
                    check_key(key, category)
                except CompileError as e:
                    self.error(self.lines.of_key_below(key, "detection", str(name)), e.reason, str(e))

    def _condition(self, sigma: SigmaRule, category: Category) -> Node | None:
        parts = []
        for parsed in sigma.detection.parsed_condition:
            try:
                tree = parsed.parsed
                if tree is None:
                    raise CompileError("BadCondition", "the condition says nothing")
                parts.append(compile_condition(tree, category))
            except CompileError as e:
                if any(error.reason == e.reason and str(e) == error.message for error in self.errors):
                    continue
                line = (
                    self.lines.of_key_below(e.field, "detection")
                    if e.field
                    else self.lines.of("detection", "condition")
                )
                self.error(line, e.reason, str(e))
            except SigmaError as e:
                self.error(self.lines.of("detection", "condition"), "BadCondition", str(e).split(" in ")[0])
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _block(self, category: Category | None) -> dict[str, Any]:
        block = self.data.get("vedette")
        if block is None:
            return {}
        if not isinstance(block, dict):
            self.error(self.lines.of("vedette"), "BadBlock", "vedette is a mapping")
            return {}
        for key in block:
            if key not in _BLOCK_KEYS:
                known = ", ".join(sorted(_BLOCK_KEYS))
                self.error(
                    self.lines.of("vedette", str(key)), "UnknownKey", f"vedette has no key {key!r}; known: {known}"
                )
        finding = block.get("finding")
        if finding is not None and not _FINDING.match(str(finding)):
            self.error(
                self.lines.of("vedette", "finding"),
                "BadFindingType",
                f"{finding!r} is not of the form Purpose:Runtime/Family.Detail",
            )
        severity = block.get("severity")
        if severity is not None and not (isinstance(severity, (int, float)) and 1.0 <= severity <= 10.0):
            self.error(self.lines.of("vedette", "severity"), "BadSeverity", "severity is a number from 1.0 to 10.0")
        if not isinstance(block.get("key") or [], list):
            self.error(self.lines.of("vedette", "key"), "BadKey", "key is a list of fields")
            block = {**block, "key": []}
        if not isinstance(block.get("context") or {}, dict):
            self.error(self.lines.of("vedette", "context"), "BadContext", "context is a mapping")
            block = {**block, "context": {}}
        if not isinstance(block.get("notes") or [], list):
            self.error(self.lines.of("vedette", "notes"), "BadNotes", "notes is a list of sentences")
            block = {**block, "notes": []}
        if category is not None:
            for name in block.get("key") or []:
                self._known_field(str(name), category, ("vedette", "key"))
            for key in ("context", "notes", "description"):
                for name in _PLACEHOLDER.findall(str(block.get(key) or "")):
                    self._known_field(name, category, ("vedette", key))
        return block

    def _known_field(self, name: str, category: Category, path: tuple[str, ...]) -> None:
        try:
            check_key(name, category)
        except CompileError as e:
            self.error(self.lines.of(*path), e.reason, str(e))

    def _tests(self, tests: Any) -> tuple[RuleTest, ...]:
        out = []
        if not isinstance(tests, list):
            self.error(self.lines.of("vedette", "tests"), "BadTest", "tests is a list")
            return ()
        for number, test in enumerate(tests):
            line = self.lines.of("vedette", "tests", number)
            problem = check_test(test)
            if problem is not None:
                self.error(line, "BadTest", problem)
                continue
            out.append(make_test(test, line))
        return tuple(out)


def check_test(test: Any) -> str | None:
    """What is wrong with the form of a test, or None."""
    if not isinstance(test, dict):
        return "a test is a mapping with name, match and events"
    unknown = set(test) - _TEST_KEYS
    if unknown:
        return f"a test has no key {', '.join(sorted(map(repr, unknown)))}; known: {', '.join(sorted(_TEST_KEYS))}"
    if not isinstance(test.get("match"), bool):
        return "match is true or false"
    events = test.get("events")
    if not isinstance(events, list) or not events:
        return "events is a list of one or more events, the last of them the one that is judged"
    for event in events:
        if not isinstance(event, dict) or event.get("event") not in schema.BY_NAME:
            return f"each event names its type: event: exec; got {event!r}"
        kind = schema.BY_NAME[event["event"]]
        names = {f.name for f in (*schema.HEADER, *kind.fields)} | {t.name for t in kind.tails} | _TEST_EVENT_KEYS
        for name in event:
            if name not in names:
                close = ", ".join(sorted(n for n in names if str(name).lower() in n or n in str(name).lower()))
                return f"{kind.name} has no field {name!r}" + (f"; did you mean {close}?" if close else "")
    return None


def make_test(test: dict[str, Any], line: int = 0) -> RuleTest:
    """A test from its YAML form, which `check_test` found good."""
    return RuleTest(
        name=str(test.get("name") or f"line {line}"),
        match=bool(test["match"]),
        events=tuple(dict(event) for event in test["events"]),
        line=line,
        threats=_strings(test.get("threats")),
    )


def _detection_keys(definition: Any) -> list[str]:
    if isinstance(definition, dict):
        return [str(key) for key in definition]
    if isinstance(definition, list):
        return [key for item in definition for key in _detection_keys(item)]
    return []


def _default_type(tags: Sequence[str]) -> str:
    for tag in tags:
        tactic = tag.removeprefix("attack.").replace("_", "-")
        if tactic in PURPOSES:
            return f"{PURPOSES[tactic]}:Runtime/CustomRule"
    return "Behavior:Runtime/CustomRule"


def _strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(str(item) for item in value) if isinstance(value, list) else (str(value),)


def _is_our_modifier_error(problem: SigmaError) -> bool:
    """Unknown modifiers are reported by `check_key`, with the line of the key."""
    return "Unknown modifier" in str(problem)


def _reason(problem: SigmaError) -> str:
    name = type(problem).__name__.removeprefix("Sigma").removesuffix("Error")
    return f"Bad{name}"
