"""Write what is derived from the event schema: the C header of the BPF programs and the reference page.

``python -m vedette_events.generate`` writes both files; with ``--check`` it writes nothing and ends with status 1
when one of them is stale. The numpy dtypes (`vedette_events.dtypes`) and the table of the C extension
(`vedette_events.columns`) are derived at import and need no file.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from enum import IntEnum, IntFlag
from pathlib import Path

from vedette_events import schema
from vedette_events.schema import EVENT_TYPES, FIELD_SIZES, HEADER, HEADER_SIZE, EventType, Field, FieldKind

ROOT = Path(__file__).resolve().parents[2]
HEADER_PATH = Path("agent/vedette_agent/bpf/events.gen.h")
REFERENCE_PATH = Path("docs/reference/events.md")
EXTENSION_HEADER_PATH = Path("events/vedette_events/events.gen.h")
"""The same header once more: the C extension is built from its own folder alone."""

ENUMS: tuple[type[IntFlag] | type[IntEnum], ...] = (
    schema.Common,
    schema.FileBits,
    schema.ExecBits,
    schema.StdioKind,
    schema.MountOp,
    schema.ModuleOp,
    schema.CredCall,
    schema.DnsDirection,
    schema.MemoryRegion,
)

_C_TYPES: dict[FieldKind, tuple[str, str]] = {
    "u8": ("__u8", ""),
    "u16": ("__u16", ""),
    "u32": ("__u32", ""),
    "u64": ("__u64", ""),
    "s32": ("__s32", ""),
    "s64": ("__s64", ""),
    "comm": ("char", "[16]"),
    "addr": ("__u32", "[4]"),
    "sha256": ("__u8", "[32]"),
}


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def constant_name(enum: type[IntFlag] | type[IntEnum], member: str) -> str:
    """The C name of an enum's member: ``FileBits.UPPER`` is ``VD_FILE_BITS_UPPER``."""
    return f"VD_{_snake(enum.__name__)}_{member}"


def member_docs(enum: type[IntFlag] | type[IntEnum]) -> dict[str, str]:
    """The comment beside each member in the schema's source, empty where there is none."""
    pattern = re.compile(r"^\s+([A-Z][A-Z0-9_]*) = [^#\n]*(?:# (.*))?$")
    found = (pattern.match(line) for line in inspect.getsource(enum).splitlines())
    return {m[1]: (m[2] or "").strip() for m in found if m}


def max_record_size() -> int:
    """Greatest size in bytes that a record of the current version can have."""
    return max(schema.pad8(schema.fixed_size(e) + sum(t.limit for t in schema.tails_of(e))) for e in EVENT_TYPES)


def _members(fields: Iterable[Field]) -> list[str]:
    lines = []
    for field in fields:
        c_type, suffix = _C_TYPES[field.kind]
        comment = (
            f"\t/* {field.doc} */" if not field.flags else f"\t/* {field.doc} VD_{_snake(field.flags.__name__)}_* */"
        )
        lines.append(f"\t{c_type} {field.name}{suffix};{comment}")
    return lines


def _c_struct(event: EventType) -> list[str]:
    upper = event.name.upper()
    fields, tails = schema.fields_of(event), schema.tails_of(event)
    lines = [f"/* {event.doc} */", f"struct vd_{event.name} {{", "\tstruct vd_header header;", *_members(fields)]
    lines += [f"\t__u16 {t.name}_len;\t/* {t.kind}: {t.doc} */" for t in tails]
    lines += ["};"]
    lines += [f"#define VD_{upper}_FIXED {schema.fixed_size(event)}"]
    lines += [f"#define VD_{upper}_{t.name.upper()}_LIMIT {t.limit}" for t in tails]
    lines += [f'_Static_assert(sizeof(struct vd_{event.name}) == VD_{upper}_FIXED, "vd_{event.name}: size");']
    offset = HEADER_SIZE
    for field in fields:
        lines.append(_offset_assert(event, field.name, offset))
        offset += FIELD_SIZES[field.kind]
    for tail in tails:
        lines.append(_offset_assert(event, f"{tail.name}_len", offset))
        offset += 2
    return [*lines, ""]


def _offset_assert(event: EventType, member: str, offset: int) -> str:
    where = f"__builtin_offsetof(struct vd_{event.name}, {member})"
    return f'_Static_assert({where} == {offset}, "vd_{event.name}.{member}: offset");'


def c_header() -> str:
    """The C header: constants, one struct per type, and assertions that the compiler lays them out as Python does."""
    lines = [
        "/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */",
        "/* Generated from events/vedette_events/schema.py by `python -m vedette_events.generate`. Do not edit. */",
        "/*",
        " * A record is: the struct of its type (header, fields, lengths of the tails), the tails' bytes one after",
        " * another, zeros up to a multiple of 8. header.size counts all of it.",
        " */",
        "#ifndef VEDETTE_EVENTS_GEN_H",
        "#define VEDETTE_EVENTS_GEN_H",
        "",
        "#ifndef VD_NO_LINUX_TYPES\t/* define it where __u8 ... __s64 are declared already */",
        "#include <linux/types.h>",
        "#endif",
        "",
        f"#define VD_SCHEMA_VERSION {schema.SCHEMA_VERSION}",
        f"#define VD_HEADER_SIZE {HEADER_SIZE}",
        f"#define VD_MAX_RECORD {max_record_size()}\t/* no record is longer */",
        f"#define VD_EVENT_MAX {max(e.code for e in EVENT_TYPES)}\t/* greatest event code */",
        "",
        "enum vd_event {",
        *(f"\tVD_EVENT_{e.name.upper()} = {e.code}," for e in EVENT_TYPES),
        "};",
        "",
    ]
    for enum in ENUMS:
        docs = member_docs(enum)
        lines.append(f"/* {(enum.__doc__ or '').splitlines()[0]} */")
        for name, member in enum.__members__.items():
            comment = f"\t/* {docs[name]} */" if docs[name] else ""
            value = f"0x{member.value:x}u" if issubclass(enum, IntFlag) else str(member.value)
            lines.append(f"#define {constant_name(enum, name)} {value}{comment}")
        lines.append("")
    lines += ["/* What every record begins with. */", "struct vd_header {", *_members(HEADER), "};"]
    lines += ['_Static_assert(sizeof(struct vd_header) == VD_HEADER_SIZE, "vd_header: size");', ""]
    for event in EVENT_TYPES:
        lines += _c_struct(event)
    return "\n".join([*lines, "#endif", ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _field_rows(fields: Iterable[Field], offset: int) -> list[str]:
    rows = []
    for field in fields:
        link = f" [{field.flags.__name__}](#{field.flags.__name__.lower()})" if field.flags else ""
        since = f" Since version {field.since}." if field.since > 1 else ""
        rows.append(f"| `{field.name}` | {field.kind} | {offset} | {_cell(field.doc)}{link}{since} |")
        offset += FIELD_SIZES[field.kind]
    return rows


def reference_page() -> str:
    """The reference page (Markdown)."""
    lines = [
        "# Events",
        "",
        "<!-- Generated from events/vedette_events/schema.py by `python -m vedette_events.generate`. Do not edit. -->",
        "",
        f"Schema version {schema.SCHEMA_VERSION}; a detector also reads the version before its own. "
        f"No record is longer than {max_record_size()} bytes.",
        "",
        "A record is little-endian and begins with the header below. The fields of its type follow, then a `uint16` "
        "length for each of its tails, padding to a multiple of 8 bytes, the tails one after another, and padding to a "
        "multiple of 8. A *tail* is what the kernel read as bytes: whoever runs the process chose them, and they are "
        "not text by right.",
        "",
        "Field kinds: `u8` to `u64` unsigned, `s32` and `s64` signed integers; `comm` 16 bytes, padded with NUL; "
        "`addr` 16 bytes in network order, an IPv6 address, or an IPv4 address in the last four bytes with the others "
        "zero; `sha256` 32 bytes. Tail kinds: `path` and `text` bytes without terminator; `args` strings, each ended "
        "by NUL; `bytes` a payload.",
        "",
        "## Header",
        "",
        f"{HEADER_SIZE} bytes, the same for every type.",
        "",
        "| field | kind | offset | meaning |",
        "|---|---|---|---|",
        *_field_rows(HEADER, 0),
        "",
        "## Types",
        "",
        "| code | event | meaning |",
        "|---|---|---|",
        *(f"| {e.code} | [`{e.name}`](#{e.name}) | {_cell(e.doc)} |" for e in EVENT_TYPES),
        "",
    ]
    for event in EVENT_TYPES:
        since = f" Since version {event.since}." if event.since > 1 else ""
        lines += [
            f"### {event.name}",
            "",
            f"Code {event.code}, {schema.fixed_size(event)} bytes before its tails. {event.doc}{since}",
            "",
        ]
        if event.fields:
            lines += ["| field | kind | offset | meaning |", "|---|---|---|---|"]
            lines += [*_field_rows(event.fields, HEADER_SIZE), ""]
        if event.tails:
            lines += ["| tail | kind | limit (bytes) | meaning |", "|---|---|---|---|"]
            for tail in event.tails:
                tail_since = f" Since version {tail.since}." if tail.since > 1 else ""
                lines.append(f"| `{tail.name}` | {tail.kind} | {tail.limit} | {_cell(tail.doc)}{tail_since} |")
            lines.append("")
    lines += ["## Flags and codes", ""]
    for enum in ENUMS:
        docs = member_docs(enum)
        lines += [f"### {enum.__name__}", "", (enum.__doc__ or "").splitlines()[0], ""]
        lines += ["| name | value | meaning |", "|---|---|---|"]
        for name, member in enum.__members__.items():
            value = f"0x{member.value:x}" if issubclass(enum, IntFlag) else str(member.value)
            lines.append(f"| {name} | {value} | {_cell(docs[name])} |")
        lines.append("")
    return "\n".join(lines)


def generated() -> dict[Path, str]:
    """Contents of every generated file by its path below the repository's root."""
    header = c_header()
    return {HEADER_PATH: header, EXTENSION_HEADER_PATH: header, REFERENCE_PATH: reference_page()}


def stale(root: Path = ROOT) -> list[Path]:
    """Generated files below ``root`` that are missing or differ from what the schema gives."""
    return [
        path
        for path, text in generated().items()
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the generated files, or check them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vedette_events.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 when a file is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: the one of this module)")
    options = parser.parse_args(arguments)
    paths = stale(options.root)
    if options.check:
        for path in paths:
            print(f"{path} is stale: run `python -m vedette_events.generate`", file=sys.stderr)
        return 1 if paths else 0
    for path in paths:
        target = options.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(generated()[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
