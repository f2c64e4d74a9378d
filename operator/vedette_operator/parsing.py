"""Plain data into frozen dataclasses, every mistake at once with the path of its field.

A model is a tree of frozen dataclasses whose fields are made by `field`: text, whole numbers, booleans, choices
(`Literal`), lists (`tuple[X, ...]`), maps, further models, each of them or None. Names are camelCase in the data,
snake_case in the model. What is given of a model is laid over its default; a list or a map takes its default's place.
Nothing here knows what a model is about.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import yaml

from vedette_operator.errors import Problem, ValuesError

Check = Callable[[Any], str]
"""Says what is wrong with a value; an empty string when nothing is."""

T = TypeVar("T")


def field(
    doc: str,
    default: Any = dataclasses.MISSING,
    *,
    check: Check | None = None,
    keys: Check | None = None,
    empty: bool = True,
    numbers: bool = False,
) -> Any:
    """A field: ``check`` judges the value, or each element of a list or map; ``keys`` the keys of a map.

    ``empty`` allows the empty string past ``check``; ``numbers`` takes whole numbers where text is wanted (``cpu: 2``).
    """
    metadata = {"doc": doc, "check": check, "keys": keys, "empty": empty, "numbers": numbers}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_model(kind: type[T], data: Any) -> tuple[T | None, list[Problem]]:
    """Make a model of plain data; the model is None when there are problems."""
    problems: list[Problem] = []
    return _parse_object(kind, {} if data is None else data, "", problems), problems


def _parse_object(kind: type[T], data: Any, path: str, problems: list[Problem], default: T | None = None) -> T | None:
    if not isinstance(data, Mapping):
        problems.append(Problem(path, f"expected fields, got {_kind_of(data)}"))
        return None
    by_name = fields_of(typing.cast(Hashable, kind))
    before = len(problems)
    given: dict[str, Any] = {}
    for key, value in data.items():
        if key not in by_name:
            problems.append(Problem(_join(path, key), _unknown(str(key), by_name)))
            continue
        found = by_name[key]
        given[found.name] = _parse_value(
            _types(typing.cast(Hashable, kind))[found.name], value, _join(path, key), found, problems
        )
    for name, found in by_name.items():
        if found.name in given:
            continue
        if default is not None:
            given[found.name] = getattr(default, found.name)
        elif found.default is dataclasses.MISSING and found.default_factory is dataclasses.MISSING:
            problems.append(Problem(_join(path, name), "is required"))
    return kind(**given) if len(problems) == before else None


def _parse_value(kind: Any, value: Any, path: str, found: Any, problems: list[Problem]) -> Any:
    """``value`` as ``kind``; mistakes go to ``problems`` and give None."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    check: Check | None = found.metadata["check"]

    def wrong(message: str) -> None:
        problems.append(Problem(path, message))

    if origin is types.UnionType:
        (inner,) = (a for a in arguments if a is not type(None))
        return None if value is None else _parse_value(inner, value, path, found, problems)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        default = found.default_factory() if found.default_factory is not dataclasses.MISSING else None
        return _parse_object(kind, value, path, problems, default if isinstance(default, kind) else None)
    if origin is Literal:
        if value not in arguments or not isinstance(value, str):
            options = ", ".join(str(a) if a else "(empty)" for a in arguments)
            wrong(f"{value!r} is not one of {options}" if isinstance(value, str) else _not_text(value))
        return value
    if origin is tuple:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
            wrong(f"expected a list, got {_kind_of(value)}")
            return ()
        return tuple(_parse_value(arguments[0], v, f"{path}[{i}]", found, problems) for i, v in enumerate(value))
    if _is_map(origin):
        return _parse_map(arguments[1], value, path, found, problems)
    if kind is bool:
        if not isinstance(value, bool):
            wrong(f"expected true or false, got {_kind_of(value)}")
        return value
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            wrong(f"expected a whole number, got {_kind_of(value)}")
        elif abs(value) >= 1 << 31:
            wrong(f"{value} is out of range")
        elif check and check(value):
            wrong(check(value))
        return value
    assert kind is str, kind
    if found.metadata["numbers"] and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        wrong(_not_text(value))
    elif _unspeakable(value):
        wrong(_unspeakable(value))
    elif check and (value or not found.metadata["empty"]) and check(value):
        wrong(check(value))
    return value


def _parse_map(kind: Any, value: Any, path: str, found: Any, problems: list[Problem]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(Problem(path, f"expected a map, got {_kind_of(value)}"))
        return {}
    keys: Check | None = found.metadata["keys"]
    result = {}
    for key, item in value.items():
        here = _join(path, key)
        if not isinstance(key, str):
            problems.append(Problem(here, f"the key must be text, is {_kind_of(key)}: put it in quotes"))
        elif keys and keys(key):
            problems.append(Problem(path, keys(key)))
        if kind is Any:
            problems += _plain_problems(item, here)
            result[key] = item
        else:
            result[key] = _parse_value(kind, item, here, found, problems)
    return {key: result[key] for key in sorted(result, key=str)}


def _plain_problems(value: Any, path: str, depth: int = 0) -> list[Problem]:
    """What in ``value`` is not plain data: text, whole numbers, booleans, lists and maps with text as keys."""
    if depth > 16:
        return [Problem(path, "is nested too deeply")]
    if isinstance(value, str):
        return [Problem(path, _unspeakable(value))] if _unspeakable(value) else []
    if value is None or isinstance(value, bool | int):
        return []
    if isinstance(value, Mapping):
        found = [Problem(_join(path, k), "the key must be text") for k in value if not isinstance(k, str)]
        return found + [p for k, v in value.items() for p in _plain_problems(v, _join(path, k), depth + 1)]
    if isinstance(value, list | tuple):
        return [p for i, v in enumerate(value) for p in _plain_problems(v, f"{path}[{i}]", depth + 1)]
    return [Problem(path, f"expected plain data, got {_kind_of(value)}")]


def _unspeakable(text: str) -> str:
    """Why the API server would not take ``text`` as it is."""
    if "\x00" in text:
        return "contains a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode text"
    return ""


def _not_text(value: Any) -> str:
    hint = ": put it in quotes" if isinstance(value, bool | int | float) or value is None else ""
    return f"expected text, got {_kind_of(value)}{hint}"


def _kind_of(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", type(None): "nothing"}
    if isinstance(value, Mapping):
        return "a map"
    return names.get(type(value), "a list" if isinstance(value, list | tuple) else type(value).__name__)


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return (
        f"there is no such field; did you mean {close[0]}?"
        if close
        else f"there is no such field; there are {', '.join(known)}"
    )


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


@functools.cache
def fields_of(kind: Hashable) -> dict[str, dataclasses.Field[Any]]:
    """Fields of one of the classes here by the name that people write."""
    return {camel(found.name): found for found in dataclasses.fields(typing.cast(Any, kind))}


@functools.cache
def _types(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(typing.cast(Any, kind))


def camel(name: str) -> str:
    """``pull_policy`` as ``pullPolicy``."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, but a key that is there twice is a mistake, not the second of the two."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(text: str, source: str) -> Any:
    """Plain data of one YAML document.

    Raises:
        ValuesError: it is none; with the line.
    """
    try:
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a safe loader that refuses more
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        message = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValuesError([Problem(where, f"is not valid YAML: {message}")]) from None
    except RecursionError:
        raise ValuesError([Problem(source, "is nested too deeply")]) from None


def assign(model: type, data: dict[str, Any], assignment: str) -> None:
    """Set one field of plain data by ``path=value``, as the option ``--set`` does.

    The field's type decides how the value is read: text is taken as it is written (``cluster.accountId=000123456789``),
    a list or a map is YAML (``agent.tolerations=[]``). What follows the path of a map is one key, dots and all.

    Raises:
        ValuesError: no such field, or a value that cannot be read.
    """
    path, equals, text = assignment.partition("=")
    if not equals:
        raise ValuesError([Problem(assignment, "is not of the form path=value")])
    kind: Any = model
    target = data
    parts = path.split(".")
    for index, part in enumerate(parts):
        known = fields_of(kind)
        if part not in known:
            raise ValuesError([Problem(".".join(parts[: index + 1]), _unknown(part, known))])
        kind = _types(kind)[known[part].name]
        if typing.get_origin(kind) is types.UnionType:
            (kind,) = (a for a in typing.get_args(kind) if a is not type(None))
        rest = ".".join(parts[index + 1 :])
        origin = typing.get_origin(kind)
        if rest and _is_map(origin):
            inner = _container(target, part, path)
            inner[rest] = text if typing.get_args(kind)[1] is str else load_yaml(text, path)
            return
        if not rest:
            target[part] = text if kind is str or origin is Literal else load_yaml(text, path)
            return
        if not dataclasses.is_dataclass(kind):
            raise ValuesError([Problem(path, f"{part} has no fields")])
        target = _container(target, part, path)


def _is_map(origin: Any) -> bool:
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _container(target: dict[str, Any], part: str, path: str) -> dict[str, Any]:
    inner = target.get(part)
    if inner is None:
        inner = target[part] = {}
    if not isinstance(inner, dict):
        raise ValuesError([Problem(path, f"{part} is {_kind_of(inner)} in the values file")])
    return inner


def plain(value: Any) -> Any:
    """Plain data of values, by the names that people write: what `parse` would take."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, field.name)) for name, field in fields_of(type(value)).items()}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
