"""The fields that rules may name, per category, and how to get them from an event.

A category is one of Sigma's (``process_creation``, ``file_event``, ...) or the name of an event type. Sigma's
categories carry Sigma's field names; an event type's own category carries the schema's. Fields about the acting
process (``Image``, ``ParentImage``, ``ContainerId``, ...) exist everywhere and look back into history.

A text field is given as bytes, as the process chose them; None where the event has no such thing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

from vedette_detector.engine.event import AF_INET, AF_INET6, Event
from vedette_detector.engine.history import Process
from vedette_detector.engine.selector import Mask
from vedette_events import schema

Kind = Literal["text", "int", "ip", "bool"]
Value = bytes | int | None


@dataclass(frozen=True)
class Literals:
    """Where the bytes of a text field lie in a record, for the prefilter.

    Attributes:
        tails: the value is one of these tails, or made from parts of them.
        form: ``whole``: the value is the tail; ``args``: the arguments joined by spaces; ``path``: joined and
            normalised, so that only single components are found for certain; ``dns``: labels of a name.
    """

    tails: tuple[str, ...]
    form: Literal["whole", "args", "path", "dns"]


@dataclass(frozen=True)
class FieldSpec:
    """One field of a category for one event type.

    Attributes:
        name: the name in rules.
        kind: type of the value.
        get: takes the value from an event.
        doc: one line for the manual.
        literals: for the prefilter, where the text lies in the record.
        column: for the prefilter, the record's field whose value this is.
    """

    name: str
    kind: Kind
    get: Callable[[Event], Value]
    doc: str
    literals: Literals | None = None
    column: str | None = None


@dataclass(frozen=True)
class Category:
    """One log source category.

    Attributes:
        name: as in ``logsource.category``.
        doc: one line for the manual.
        masks: event type → conditions that make an event one of this category.
        fields: (event type, field name) → field.
    """

    name: str
    doc: str
    masks: dict[str, tuple[Mask, ...]]
    fields: dict[tuple[str, str], FieldSpec]

    @property
    def field_names(self) -> list[str]:
        """All field names, sorted."""
        return sorted({name for _, name in self.fields})


def _parent(event: Event) -> Process | None:
    return event.history.parent(event.process)


def _optional(raw: bytes) -> bytes | None:
    return raw or None


def _joined(args: list[bytes] | tuple[bytes, ...]) -> bytes | None:
    return b" ".join(args) if args else None


def _text(value: str | None) -> bytes | None:
    return value.encode("utf-8", "surrogateescape") if value else None


def _image(event: Event) -> Value:
    return _optional(event.path if event.type == "exec" else event.process.path)


def _command_line(event: Event) -> Value:
    return _joined(event.argv if event.type == "exec" else event.process.argv)


def _cwd(event: Event) -> Value:
    return _optional(event.cwd if event.type == "exec" else event.process.cwd)


def _parent_image(event: Event) -> Value:
    parent = _parent(event)
    return _optional(parent.path) if parent is not None else None


def _parent_command_line(event: Event) -> Value:
    parent = _parent(event)
    return _joined(parent.argv) if parent is not None else None


def _parent_user(event: Event) -> Value:
    parent = _parent(event)
    return _user(parent.uid) if parent is not None else None


def _user(uid: int) -> bytes:
    return b"root" if uid == 0 else str(uid).encode("ascii")


def _container_id(event: Event) -> Value:
    container = event.container
    return _text(container.container_id) if container is not None else None


def _pod_uid(event: Event) -> Value:
    container = event.container
    return _text(container.pod_uid) if container is not None else None


def _cgroup_path(event: Event) -> Value:
    return _optional(event.history.cgroup_path(event.cgroup) or b"")


def _sha256(event: Event) -> Value:
    if event.type == "exec":
        return _text(event.history.file_hash(event.dev, event.ino, event.ctime))
    process = event.process
    return _text(event.history.file_hash(process.dev, process.ino, process.ctime)) if process.ino else None


def _target_image(event: Event) -> Value:
    target = event.history.process(event.target_pid, event.target_start or None, event.time)
    return _optional(target.path) if target is not None else None


def _socket_path(event: Event) -> Value:
    return unix_path(event.path)


def unix_path(raw: bytes) -> bytes | None:
    """A unix socket's path as text: ``@`` for the leading NUL of an abstract name, as ss(8) shows it."""
    if raw.startswith(b"\0"):
        return b"@" + raw[1:]
    return raw or None


def _protocol(event: Event) -> Value:
    known = {6: b"tcp", 17: b"udp", 1: b"icmp", 58: b"icmpv6"}
    return known.get(event.protocol) or {1: b"tcp", 2: b"udp"}.get(event.sock_type)


_OPERATIONS = {
    "open": b"Write",
    "unlink": b"Delete",
    "rename": b"Rename",
    "link": b"Link",
    "symlink": b"Symlink",
    "chmod": b"Chmod",
}


def _operation(event: Event) -> Value:
    return _OPERATIONS.get(event.type)


def _question(event: Event) -> Value:
    return _optional(event.dns_question)


def _attribute(name: str) -> Callable[[Event], Value]:
    def get(event: Event) -> Value:
        value: Value = getattr(event, name)
        return value

    return get


def _tail(name: str) -> Callable[[Event], Value]:
    def get(event: Event) -> Value:
        return _optional(event.tail(name))

    return get


def _args(name: str) -> Callable[[Event], Value]:
    def get(event: Event) -> Value:
        raw = event.tail(name)
        return _optional(raw[:-1].replace(b"\0", b" ") if raw.endswith(b"\0") else raw.replace(b"\0", b" "))

    return get


def _hex(name: str) -> Callable[[Event], Value]:
    def get(event: Event) -> Value:
        raw: bytes = event.tail(name) if name == "payload" else getattr(event, name)
        return _optional(raw.hex().encode("ascii"))

    return get


def _full(tail: str) -> Callable[[Event], Value]:
    def get(event: Event) -> Value:
        return _optional(event.full_path(tail))

    return get


def _address(name: str) -> Callable[[Event], Value]:
    def get(event: Event) -> Value:
        text: str = getattr(event, name)
        return _text(text)

    return get


def _text_field(name: str, get: Callable[[Event], Value], doc: str, literals: Literals | None = None) -> FieldSpec:
    return FieldSpec(name, "text", get, doc, literals)


def _int_field(name: str, column: str, doc: str) -> FieldSpec:
    return FieldSpec(name, "int", _attribute(column), doc, None, column)


def _common(event: str) -> list[FieldSpec]:
    """Fields about the acting process, for every category."""
    on_exec = event == "exec"
    return [
        _text_field("Image", _image, "Path of the program.", Literals(("path",), "whole") if on_exec else None),
        _text_field(
            "CommandLine",
            _command_line,
            "Arguments joined by spaces.",
            Literals(("argv",), "args") if on_exec else None,
        ),
        _text_field("CurrentDirectory", _cwd, "Working directory.", Literals(("cwd",), "whole") if on_exec else None),
        _text_field("ParentImage", _parent_image, "Path of the parent's program."),
        _text_field("ParentCommandLine", _parent_command_line, "Arguments of the parent, joined by spaces."),
        _text_field("ParentUser", _parent_user, "`root` or the parent's user id."),
        _int_field("ProcessId", "pid", "Process id in the initial namespace."),
        _int_field("ParentProcessId", "ppid", "The parent's process id."),
        _int_field("UserId", "uid", "Real user id."),
        _int_field("EffectiveUserId", "euid", "Effective user id."),
        FieldSpec("User", "text", current_user, "`root` or the user id.", None, None),
        _text_field("ContainerId", _container_id, "Id of the container; null on the host."),
        _text_field("PodUid", _pod_uid, "UID of the pod; null outside Kubernetes."),
        _text_field("CgroupPath", _cgroup_path, "Path of the cgroup."),
        _text_field("Sha256", _sha256, "SHA-256 of the program in hex, once the agent has hashed it."),
    ]


def current_user(event: Event) -> Value:
    """`root` or the user id."""
    return _user(event.uid)


def _own(event: str) -> list[FieldSpec]:
    """The schema's fields and tails of a type under their own names."""
    kind = schema.BY_NAME[event]
    out: list[FieldSpec] = []
    for field in (*schema.HEADER, *kind.fields):
        if field.name in ("size", "type", "pad", "sock_pad"):
            continue
        if field.kind == "addr":
            out.append(FieldSpec(field.name, "ip", _address(f"{field.name}_text"), field.doc, None, field.name))
        elif field.kind == "comm":
            out.append(_text_field(field.name, _attribute(field.name), field.doc))
        elif field.kind == "sha256":
            out.append(_text_field(field.name, _hex(field.name), field.doc))
        else:
            out.append(_int_field(field.name, field.name, field.doc))
    names = {tail.name for tail in kind.tails}
    for tail in kind.tails:
        if tail.kind == "args":
            out.append(_text_field(tail.name, _args(tail.name), tail.doc, Literals((tail.name,), "args")))
        elif tail.kind == "bytes":
            out.append(_text_field(tail.name, _hex(tail.name), tail.doc + " In hex."))
        elif event in ("connect", "bind") and tail.name == "path":
            out.append(
                _text_field(
                    "path",
                    _socket_path,
                    tail.doc.split(";")[0] + "; `@` marks an abstract name.",
                    Literals(("path",), "whole"),
                )
            )
        else:
            out.append(_text_field(tail.name, _tail(tail.name), tail.doc, Literals((tail.name,), "whole")))
    for tail_name, directory in (("path", "dir"), ("new_path", "new_dir")):
        if tail_name in names and directory in names:
            out.append(
                _text_field(
                    f"full_{tail_name}",
                    _full(tail_name),
                    f"`{tail_name}` joined with `{directory}`.",
                    Literals((tail_name, directory), "path"),
                )
            )
    if event == "dns":
        out.append(_text_field("question", _question, "Name asked for, lower case.", Literals(("payload",), "dns")))
    if event in ("ptrace", "vm_read", "vm_write"):
        out.append(_text_field("TargetImage", _target_image, "Path of the target process's program."))
    return out


def _category(name: str, doc: str, events: dict[str, tuple[list[FieldSpec], tuple[Mask, ...]]]) -> Category:
    fields: dict[tuple[str, str], FieldSpec] = {}
    for event, (specs, _) in events.items():
        for spec in (*_common(event), *specs):
            fields[(event, spec.name)] = spec
    return Category(name, doc, {event: masks for event, (_, masks) in events.items()}, fields)


_WRITES = (Mask("oflags", "any_bits", 0o3 | 0o1000 | 0o100),)
_IP = (Mask("family", "in_", (AF_INET, AF_INET6)),)


def _file_fields(event: str, tail: str) -> list[FieldSpec]:
    directory = {"path": "dir", "new_path": "new_dir"}[tail]
    out = [
        _text_field(
            "TargetFilename",
            _full(tail),
            "The file made, changed or removed, as an absolute path.",
            Literals((tail, directory), "path"),
        ),
        _text_field("FileOperation", _operation, "`Write`, `Delete`, `Rename`, `Link`, `Symlink` or `Chmod`."),
        _int_field("Result", "result", "What the call returned; a negative errno for an attempt that failed."),
    ]
    if tail == "new_path":
        source = Literals(("path", "dir") if event != "symlink" else ("path",), "path")
        out.append(_text_field("SourceFilename", _full("path"), "Old path, or what a link points to.", source))
    return out


def _network_fields() -> list[FieldSpec]:
    return [
        FieldSpec("DestinationIp", "ip", _address("raddr_text"), "Remote address.", None, "raddr"),
        _int_field("DestinationPort", "rport", "Remote port."),
        FieldSpec("SourceIp", "ip", _address("laddr_text"), "Local address.", None, "laddr"),
        _int_field("SourcePort", "lport", "Local port."),
        _text_field("Protocol", _protocol, "`tcp`, `udp`, `icmp` or `icmpv6`."),
        FieldSpec("Initiated", "bool", initiated, "Always true: inbound connections are `accept` events.", None, None),
        _int_field("Result", "result", "What connect(2) returned; a negative errno for an attempt that failed."),
    ]


def initiated(event: Event) -> Value:
    """Sigma's flag for outbound connections."""
    return int(event.type == "connect")


@cache
def categories() -> dict[str, Category]:
    """All categories by name."""
    files = {name: (_file_fields(name, "path"), ()) for name in ("unlink", "chmod")}
    files |= {name: (_file_fields(name, "new_path"), ()) for name in ("rename", "link", "symlink")}
    opens = _file_fields("open", "path")
    flags = [_int_field("oflags", "oflags", "Flags of open(2)."), _int_field("file_bits", "file_bits", "File bits.")]
    execs = [
        _text_field(
            "OriginalFileName", _tail("filename"), "What was passed to execve.", Literals(("filename",), "whole")
        ),
        _text_field("Environment", _args("env"), "LD_ variables, joined by spaces.", Literals(("env",), "args")),
        *[spec for spec in _own("exec") if spec.kind in ("int", "ip") or spec.name == "comm"],
    ]
    found = [
        _category("process_creation", "A program was started (exec).", {"exec": (execs, ())}),
        _category(
            "file_event",
            "A file was opened for writing, removed, renamed, linked or had its mode changed; attempts too.",
            {"open": ([*opens, *flags], _WRITES), **files},
        ),
        _category("file_access", "A file was opened, for whatever; attempts too.", {"open": ([*opens, *flags], ())}),
        _category("file_delete", "A name was removed; attempts too.", {"unlink": (_file_fields("unlink", "path"), ())}),
        _category(
            "file_rename", "A file was renamed; attempts too.", {"rename": (_file_fields("rename", "new_path"), ())}
        ),
        _category(
            "network_connection",
            "A connection, or the first datagram to an address, over IP; attempts too.",
            {"connect": (_network_fields(), _IP)},
        ),
        _category(
            "dns_query",
            "A DNS query.",
            {
                "dns": (
                    [
                        _text_field(
                            "QueryName", _question, "Name asked for, lower case.", Literals(("payload",), "dns")
                        ),
                        *_network_fields(),
                    ],
                    (Mask("direction", "eq", 1),),
                )
            },
        ),
    ]
    out = {category.name: category for category in found}
    for kind in schema.EVENT_TYPES:
        if kind.name not in ("cgroup", "file_hash"):
            out[kind.name] = _category(kind.name, kind.doc, {kind.name: (_own(kind.name), ())})
    return out
