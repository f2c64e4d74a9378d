"""Execution:Runtime/NewBinaryExecuted: a program that is not part of the image, or appeared lately where none belongs.

What makes it worth a person's attention differs by place:

- In a container every program comes from the image. One that lies in the overlay's upper layer was brought or made
  afterwards. If it has no lower file it is new; if it has one, the contents must have been written (a mere chmod
  also copies the file up).
- On a host new programs are ordinary (packages, builds). Only programs run from places where anybody may write, or
  from hidden names there, count, and only when history saw them written, and not by a compiler or package manager.

A package manager's work in a container is reported with low severity and says so; an image build's likewise, as one
finding per builder.
"""

# ruff: noqa: S108 - the paths are what attackers use; nothing is opened here
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from vedette_detector.detectors.detector import Detector
from vedette_detector.detectors.processes import image_builder_of, is_runtime_setup, last_writer, package_manager_of
from vedette_detector.engine.context import EngineContext, process_details, timestamp
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.segments import Array, Segment
from vedette_detector.engine.selector import AnyLiteral, Mask, Selector
from vedette_detector.text import safe_text
from vedette_events.schema import FileBits

_NOT_HERE = FileBits.UNLINKED | FileBits.MEMFD  # FilelessExecution's
_WRITABLE = (b"/tmp/", b"/var/tmp/", b"/var/crash/", b"/var/spool/", b"/run/user/", b"/run/lock/", b"/var/www/")


def _tree(path: bytes) -> bytes:
    """The directory directly below the writable place, or the file itself when it lies there: one finding for each.

    Whoever unpacks a root file system into /tmp and runs programs from it makes a hundred new programs at once.
    """
    for directory in _WRITABLE:
        if path.startswith(directory):
            rest = path[len(directory) :]
            return directory + rest.split(b"/", 1)[0]
    return path


class NewBinaryExecuted(Detector):
    """A program was run that was written after its container (or, on a host, just now) began."""

    id = "new-binary-executed"
    title = "A new or modified program was run"
    description = (
        "In a container: a program from the overlay's upper layer. On the host: a program just written to a place "
        "where anybody may write."
    )
    finding_types = ("Execution:Runtime/NewBinaryExecuted",)
    severity = 5.0
    selectors = (
        Selector("exec", (Mask("file_bits", "any_bits", FileBits.UPPER), Mask("file_bits", "no_bits", _NOT_HERE))),
        Selector(
            "exec",
            (Mask("file_bits", "no_bits", _NOT_HERE | FileBits.OVERLAY),),
            (AnyLiteral(("path",), frozenset(b"\0" + directory for directory in _WRITABLE)),),
        ),
    )
    triage = (
        "modifyingProcess is who wrote the program last: a shell, curl or a web server is bad news, a package manager "
        "is not. Look the SHA-256 up. Containers should get programs by their image: rebuild it instead of installing."
    )
    falsepositives = (
        "Packages installed into a running container (low severity, the note names the package manager).",
        "Image builds (low severity, the note names the builder).",
        "Programs that unpack helpers at start: some language servers, browsers' test drivers, JDBC and JNI launchers.",
        "On the host: self-extracting installers that run from /tmp.",
    )
    tags = ("attack.execution", "attack.t1204", "attack.command_and_control", "attack.t1105")

    def screen(self, event_type: str, segment: Segment, rows: Array, history: NodeHistory) -> Array:
        """Leave out programs outside of overlays that were last changed before history began.

        Nobody in history wrote them (`last_writer` says so by the same comparison), and without a writer `confirm`
        passes over them.
        """
        horizon = history.wall_offset_ns - int(history.settings.window_s * 1e9)
        fields = ("ctime", "time", "file_bits")
        values = [segment.rows[field][rows].tolist() for field in fields]
        keep = [
            bool(bits & FileBits.UPPER) or not changed or changed >= at + horizon
            for changed, at, bits in zip(*values, strict=True)
        ]
        return np.asarray(rows[np.array(keep, dtype=bool)])

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """Find who wrote the program and whether that is ordinary."""
        in_container = bool(event.file_bits & FileBits.UPPER)
        if in_container and event.container is None and not event.path.startswith(_WRITABLE):
            return  # a host whose own root is an overlay (live systems, kiosks)
        if in_container and is_runtime_setup(event.process, history):
            return
        container_id = event.container.container_id if event.container is not None else None
        writer = last_writer(history, event.path, event.dev, event.ino, container_id, event.time, event.ctime)
        if writer is None and (not in_container or not event.file_bits & FileBits.NO_LOWER):
            return
        notes: list[str] = []
        severity = self.severity
        key: tuple[str, ...] = (safe_text(event.path if in_container else _tree(event.path)),)
        manager = package_manager_of(writer.process, history) if writer is not None else None
        if manager is not None and not in_container:
            return  # a developer's build, most often; said before the ancestors are looked up
        builder = image_builder_of(event.process, history)
        if builder is not None:
            if not in_container:
                return
            severity, key = 1.0, ("image build", builder)
            notes.append(f"This is an image build: {builder} started the process.")
        elif manager is not None:
            severity = 2.0
            notes.append(f"The program was written by the package manager or build tool {manager}.")
        elif writer is None:
            notes.append("Who wrote the program is not known: it was written before Vedette watched, or long ago.")
        words: dict[str, Any] = {}
        by = ""
        if writer is not None:
            words["modifyingProcess"] = process_details(writer.process, history)
            words["modifiedAt"] = timestamp(writer.wall)
            by = f"; {writer.process.name} wrote it"
        new = "is not part of the image" if event.file_bits & FileBits.NO_LOWER else "was changed in the container"
        where = new if in_container else "was written just before"
        yield context.detection(
            event,
            severity=severity,
            description=f"{safe_text(event.path)}, which {where}, was run{by}.",
            key=key,
            context=words,
            notes=notes,
            related=[writer] if writer is not None else [],
        )

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "downloaded in a container",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/curl", "pid": 900, "container": True},
                {
                    "event": "open",
                    "pid": 900,
                    "path": "/root/x",
                    "oflags": 0o1101,
                    "ino": 5,
                    "dev": 3,
                    "container": True,
                },
                {"event": "exec", "path": "/root/x", "file_bits": 7, "ino": 5, "dev": 3, "container": True},
            ],
        },
        {
            "name": "new, but nobody saw it written",
            "match": True,
            "events": [{"event": "exec", "path": "/root/x", "file_bits": 7, "container": True}],
        },
        {
            "name": "an image's program overwritten",
            "match": True,
            "events": [
                {"event": "open", "pid": 900, "path": "/usr/bin/env", "oflags": 0o1001, "ino": 5, "container": True},
                {"event": "exec", "path": "/usr/bin/env", "file_bits": 3, "ino": 5, "container": True},
            ],
        },
        {
            "name": "replaced by rename",
            "match": True,
            "events": [
                {"event": "rename", "pid": 900, "path": "/tmp/n", "new_path": "/usr/bin/env", "container": True},
                {"event": "exec", "path": "/usr/bin/env", "file_bits": 3, "ino": 6, "container": True},
            ],
        },
        {
            "name": "written by a package manager: low, but said",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/dpkg", "pid": 900, "container": True},
                {
                    "event": "rename",
                    "pid": 900,
                    "path": "/usr/bin/t.dpkg-new",
                    "new_path": "/usr/bin/t",
                    "container": True,
                },
                {"event": "exec", "path": "/usr/bin/t", "file_bits": 7, "container": True},
            ],
        },
        {
            "name": "on the host from /tmp, written by curl",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/curl", "pid": 900},
                {"event": "open", "pid": 900, "path": "/tmp/x", "oflags": 0o1101, "ino": 5, "dev": 3},
                {"event": "exec", "path": "/tmp/x", "ino": 5, "dev": 3},
            ],
        },
        {
            "name": "an image build in a container: low, but said",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/buildkitd", "pid": 800},
                {"event": "exec", "path": "/bin/sh", "pid": 900, "ppid": 800, "container": True},
                {"event": "exec", "path": "/usr/local/bin/t", "file_bits": 7, "ppid": 900, "container": True},
            ],
        },
        {
            "name": "an image is put together on the host",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/perl", "argv": ["perl", "/usr/bin/mmdebstrap"], "pid": 800},
                {"event": "exec", "path": "/tmp/m/usr/bin/dpkg", "pid": 900, "ppid": 800},
                {"event": "rename", "pid": 900, "path": "/tmp/m/bin/n", "new_path": "/tmp/m/bin/mv"},
                {"event": "exec", "path": "/tmp/m/bin/mv", "ppid": 900},
            ],
        },
        {
            "name": "the same program was written by another container",
            "match": False,
            "events": [
                {
                    "event": "open",
                    "pid": 900,
                    "path": "/usr/bin/env",
                    "oflags": 0o1001,
                    "ino": 5,
                    "dev": 3,
                    "cgroup_path": "/docker/" + "ab" * 32,
                },
                {"event": "exec", "path": "/usr/bin/env", "file_bits": 3, "ino": 5, "dev": 3, "container": True},
            ],
        },
        {
            "name": "only chmod",
            "match": False,
            "events": [
                {"event": "chmod", "pid": 900, "path": "/usr/bin/env", "mode": 0o711, "container": True},
                {"event": "exec", "path": "/usr/bin/env", "file_bits": 3, "ino": 5, "container": True},
            ],
        },
        {
            "name": "a program of the image",
            "match": False,
            "events": [{"event": "exec", "path": "/usr/bin/env", "file_bits": 1, "container": True}],
        },
        {
            "name": "a developer's build on the host",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/x86_64-linux-gnu-ld.bfd", "pid": 900},
                {"event": "open", "pid": 900, "path": "/tmp/b/a.out", "oflags": 0o1102, "ino": 5, "dev": 3},
                {"event": "exec", "path": "/tmp/b/a.out", "ino": 5, "dev": 3},
            ],
        },
        {
            "name": "an old program in /tmp on the host",
            "match": False,
            "events": [{"event": "exec", "path": "/tmp/x", "ino": 5, "dev": 3}],
        },
        {
            "name": "new from /usr/local on the host",
            "match": False,
            "events": [
                {"event": "open", "pid": 900, "path": "/usr/local/bin/x", "oflags": 0o1101, "ino": 5, "dev": 3},
                {"event": "exec", "path": "/usr/local/bin/x", "ino": 5, "dev": 3},
            ],
        },
    )
