"""Writes ``docs/reference/values.md`` from the model of values: ``python -m vedette_operator.reference [--check]``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from vedette_operator.parsing import camel, plain
from vedette_operator.rendering import quoted
from vedette_operator.values import Values

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "values.md"
INTRODUCTION = """\
# Values

<!-- Made from operator/vedette_operator/values.py by `python -m vedette_operator.reference`. -->

Everything that can be said about an installation in a cluster, for `vedette manifests --values FILE` and
`--set path=value`. What is not given has its default. What is given of a group is laid over the default; a list or a
map takes its default's place. `vedette manifests --show-values` prints all of them, as they are with your options.

```yaml
cluster:
  name: prod
images:
  registry: registry.example.com/security
  tag: 0.1.0
detector:
  storage: {size: 50Gi}
  rules:
    - configMap: our-rules
```

Sizes are Kubernetes quantities (`64Mi`, `10Gi`), durations a number with `s`, `m`, `h`, `d` or `w` (`90d`).
"""


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    shared: dict[str, type] = {}
    for title, kind, rows in _tables(Values, "", shared, Values()):
        lines += [f"## {title or 'Of everything'}", "", *_described(kind, title), "| field | type | default | |"]
        lines += ["|---|---|---|---|", *rows, ""]
    for name, kind in shared.items():
        lines += [f"## A `{name}`", "", *_described(kind, name), "| field | type | default | |", "|---|---|---|---|"]
        lines += [*(row for _, _, rows in _tables(kind, "", {}, None) for row in rows), ""]
    return "\n".join(lines).rstrip() + "\n"


def _described(kind: type, title: str) -> list[str]:
    text = (kind.__doc__ or "").strip()
    return [text, ""] if title and text else []


def _tables(kind: type, path: str, shared: dict[str, type], default: Any) -> Iterator[tuple[str, type, list[str]]]:
    """Title, class and rows of each table, outer ones first; element classes of lists go to ``shared``."""
    hints = typing.get_type_hints(kind)
    rows, inner = [], []
    for field in dataclasses.fields(kind):
        here, hint = f"{path}{camel(field.name)}", _without_none(hints[field.name])
        given = getattr(default, field.name) if default is not None else _default(field)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if given is None or given is dataclasses.MISSING:
                rows.append(_row(here, "group", "none", field.metadata["doc"]))
            inner.append((here, hint, given if dataclasses.is_dataclass(given) else None))
            continue
        rows.append(_row(here, _type_name(hint, shared), _shown(given), field.metadata["doc"]))
    if rows:
        yield path.rstrip("."), kind, rows
    for here, hint, given in inner:
        yield from _tables(hint, f"{here}.", shared, given)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        (hint,) = (a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _type_name(hint: Any, shared: dict[str, type]) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{a}`" if a else "empty" for a in arguments)
    if origin is tuple:
        element = arguments[0]
        if dataclasses.is_dataclass(element) and isinstance(element, type):
            shared[element.__name__] = element
            return f"list of `{element.__name__}`"
        return f"list of {_type_name(element, shared)}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "map"
    return {str: "text", int: "number", bool: "true or false"}[hint]


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else quoted(_without_empty(plain(value)))
    if not text:
        return "empty"
    return f"`{text}`" if len(text) <= 60 else "see `--show-values`"


def _without_empty(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    if isinstance(value, dict):
        return {name: content for name, content in value.items() if content not in ("", None)}
    return value


def _row(path: str, kind: str, default: str, doc: str) -> str:
    cells = (f"`{path}`", kind, default, doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or with ``--check`` say whether it is fresh."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; exit code 1 when the page is stale.")
    options = parser.parse_args(arguments)
    text = page()
    if options.check:
        fresh = PAGE.exists() and PAGE.read_text("utf-8") == text
        if not fresh:
            print(f"{PAGE} is stale: python -m vedette_operator.reference", file=sys.stderr)
        return 0 if fresh else 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
