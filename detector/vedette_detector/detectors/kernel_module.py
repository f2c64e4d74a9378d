"""DefenseEvasion:Runtime/KernelModuleLoaded: code for the kernel from a container, or from an unusual place."""

# ruff: noqa: S108 - the paths are what attackers use; nothing is opened here
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from vedette_detector.detectors.detector import Detector
from vedette_detector.detectors.processes import basename, in_container, is_installed, is_package_manager, last_writer
from vedette_detector.engine.context import EngineContext
from vedette_detector.engine.detection import Detection
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory
from vedette_detector.engine.selector import Mask, Selector
from vedette_detector.text import safe_text
from vedette_events.schema import Common, ModuleOp

_MODULE_DIRECTORIES = (b"/lib/modules/", b"/usr/lib/modules/", b"/run/booted-system/", b"/nix/store/")
_LOADERS = frozenset(
    {b"kmod", b"modprobe", b"insmod", b"udevd", b"systemd-udevd", b"udevadm", b"systemd-modules-load", b"systemd"}
    | {b"dkms", b"busybox"}
)
_ENODATA = -61


class KernelModuleLoaded(Detector):
    """A kernel module was loaded, or an attempt was made."""

    id = "kernel-module-loaded"
    title = "A kernel module was loaded"
    description = (
        "init_module or finit_module from a container; on the host, from outside the directories of installed modules "
        "or by another program than the system's module loaders. Attempts count."
    )
    finding_types = ("DefenseEvasion:Runtime/KernelModuleLoaded",)
    severity = 8.0
    selectors = (Selector("module", (Mask("op", "in_", (ModuleOp.INIT, ModuleOp.FINIT)),)),)
    triage = (
        "A loaded module has all rights of the kernel: treat the node as lost until the module is known. Compare "
        "/proc/modules and /sys/module with a node of the same image, keep a copy of the module's file, and see what "
        "wrote it. `result` in the event says whether the kernel took it."
    )
    falsepositives = (
        "Node agents that bring their own module from a container (storage and GPU drivers, older security agents).",
        "Module development on the host.",
    )
    tags = ("attack.defense_evasion", "attack.persistence", "attack.t1547.006", "attack.t1014")

    def confirm(self, event: Event, history: NodeHistory, context: EngineContext) -> Iterable[Detection]:
        """On the host the system's own loader and an installed, old module file are ordinary."""
        if event.flags & Common.KTHREAD:
            return
        process = event.process
        container = in_container(event, history)
        path = event.path
        writer = None
        if path:
            container_id = event.container.container_id if event.container is not None else None
            writer = last_writer(history, path, 0, 0, container_id, event.time)
        if not container and self._is_ordinary(event, history, path):
            return
        name = event.name or basename(path).split(b".", 1)[0]
        words = {"moduleName": safe_text(name)} if name else {}
        if path:
            words["moduleFilePath"] = safe_text(path)
        what = f"the module {safe_text(path)}" if path else "a module from memory"
        yield context.detection(
            event,
            description=f"{process.name} {'loaded' if event.result == 0 else 'tried to load'} {what} into the kernel.",
            key=(process.name, words.get("moduleName", "")),
            context=words,
            notes=[f"The module's file was written by {writer.process.name}."] if writer is not None else [],
            related=[writer] if writer is not None else [],
        )

    def _is_ordinary(self, event: Event, history: NodeHistory, path: bytes) -> bool:
        process = event.process
        if basename(process.path) not in _LOADERS or not is_installed(process, history):
            return False
        if path:
            if not path.startswith(_MODULE_DIRECTORIES):
                return False
            writer = last_writer(history, path, 0, 0, None, event.time)
            return writer is None or is_package_manager(writer.process, history)
        # init_module carries no path: kmod decompresses a module and passes the image. A file named on the command
        # line tells where it was.
        return all(b"/" not in word or word.startswith(_MODULE_DIRECTORIES) for word in process.argv[1:])

    tests: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "name": "init_module from a container, refused",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/x", "container": True},
                {"event": "module", "op": 1, "length": 4096, "result": -1, "container": True},
            ],
        },
        {
            "name": "modprobe in a container",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/kmod", "argv": ["modprobe", "ip_tables"], "container": True},
                {"event": "module", "op": 2, "path": "/lib/modules/6.1.0/x.ko", "container": True},
            ],
        },
        {
            "name": "insmod from /tmp on the host",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/kmod", "argv": ["insmod", "/tmp/rk.ko"]},
                {"event": "module", "op": 2, "path": "/tmp/rk.ko"},
            ],
        },
        {
            "name": "a compressed module from /tmp on the host",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/kmod", "argv": ["insmod", "/tmp/rk.ko.xz"]},
                {"event": "module", "op": 1, "length": 4096},
            ],
        },
        {
            "name": "another program on the host",
            "match": True,
            "events": [{"event": "exec", "path": "/usr/bin/x"}, {"event": "module", "op": 1, "length": 4096}],
        },
        {
            "name": "a module put among the installed ones just before",
            "match": True,
            "events": [
                {"event": "exec", "path": "/usr/bin/curl", "pid": 900},
                {"event": "open", "pid": 900, "oflags": 0o1101, "path": "/lib/modules/6.1.0/extra/rk.ko", "ino": 9},
                {"event": "exec", "path": "/usr/bin/kmod", "argv": ["modprobe", "rk"]},
                {"event": "module", "op": 2, "path": "/lib/modules/6.1.0/extra/rk.ko"},
            ],
        },
        {
            "name": "udev loads an installed module",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/lib/systemd/systemd-udevd"},
                {"event": "module", "op": 2, "path": "/usr/lib/modules/6.1.0/kernel/drivers/net/veth.ko"},
            ],
        },
        {
            "name": "modprobe loads a compressed installed module",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/kmod", "argv": ["modprobe", "veth"]},
                {"event": "module", "op": 1, "length": 4096},
            ],
        },
        {
            "name": "a package manager's new module",
            "match": False,
            "events": [
                {"event": "exec", "path": "/usr/bin/dpkg", "pid": 900},
                {"event": "open", "pid": 900, "oflags": 0o1101, "path": "/lib/modules/6.1.0/updates/x.ko", "ino": 9},
                {"event": "exec", "path": "/usr/bin/kmod", "argv": ["modprobe", "x"]},
                {"event": "module", "op": 2, "path": "/lib/modules/6.1.0/updates/x.ko"},
            ],
        },
        {
            "name": "removing a module",
            "match": False,
            "events": [{"event": "module", "op": 3, "name": "veth", "container": True}],
        },
    )
