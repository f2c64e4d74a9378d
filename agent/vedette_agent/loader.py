"""Load the BPF programs through libbpf (ctypes), keep them in bpffs, and hand out what the agent works with.

    programs = load(bpf_build.ensure(), Path("/run/vedette/bpf"), Config(ring_bytes=8 << 20))
    programs.set_filters({"open_names": ["shadow"], "dedupe_ttl_ms": 60000})
    programs.ring_fd, programs.ring_size, programs.session, programs.hooks, programs.counters()

**Pins.** With a pin directory (on bpffs) each load is a *generation*, a directory named by its session there, with the
maps and links the agent needs. They survive the agent; the next `load` with the same object and the same config
finds them again (``reused``) in milliseconds and loses nothing that happened between. A generation of another object
is stopped once the new one runs, and is offered in ``stale`` for its ring to be drained; `Generation.remove` it then.

**Availability.** Programs whose tracepoint this kernel lacks are not loaded, and an optional program that the verifier
refuses is left out and the rest loaded again. Both are told in ``hooks``, with the reason. Where even the required
programs are refused, the base variant of the object (kernels before 5.17) is tried.

Needs CAP_BPF and CAP_PERFMON; CAP_NET_ADMIN for DNS answers and DNS over TCP. A pin directory must be writable.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import struct
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vedette_agent import cgroups
from vedette_agent.bpf_build import base_of
from vedette_agent.hooks import PROGRAMS, Program
from vedette_events.schema import BY_NAME, SCHEMA_VERSION

HookStatus = Literal["loaded", "missing", "failed"]

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")
NAME_KEY = 64
"""Bytes of a key of ``open_names`` (maps.h): longer names are cut to one less."""
OPTIONS = {"all_sockets": 1, "all_mprotect": 2, "all_opens": 4}
_SETTINGS = struct.Struct("<QQQII256Q")  # struct settings in maps.h
_CONFIG = struct.Struct("<IIQ")  # struct config in maps.h
_META_SIZE = 32768
_MAPS = ("ring", "counters", "settings", "open_names", "calls", "meta")
_MAP_NAMES = {"settings": ".data.settings"}


class LoaderError(RuntimeError):
    """The programs could not be loaded.

    ``reason`` is one of LibbpfMissing, BtfMissing, ObjectInvalid, LoadRefused, AttachRefused, PinRefused, BadConfig.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Config:
    """What is fixed for a generation. A change of any value makes the next `load` load anew."""

    ring_bytes: int = 8 << 20
    """Size of the ring, a power of two and at least a page."""
    dedupe_entries: int = 32768
    """How many acts are remembered for deduplication."""
    hierarchy: int = 0
    """1: cgroup ids are those of the v1 memory hierarchy, 2: of v2, 0: found out."""
    cgroup_root: str = ""
    """Directory at or below which the host's cgroup v2 is mounted, to attach to; empty: found out."""
    exclude_self: bool = True
    """Whether the files and connections of the loading process are left out."""
    without: tuple[str, ...] = ()
    """Programs (hooks.py) not to load."""


@dataclass(frozen=True)
class HookState:
    """Whether ``event`` is seen through ``hook``, and if not, why."""

    event: str
    hook: str
    state: HookStatus
    reason: str = ""


# ---- libbpf ----


class _TestRunOptions(ctypes.Structure):
    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _Libbpf:
    """The functions of libbpf that are used, with their types; and what it logs, collected in ``log``."""

    def __init__(self) -> None:
        try:
            lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError as error:
            raise LoaderError(
                "LibbpfMissing", f"libbpf.so.1 cannot be loaded ({error}): apt install libbpf1"
            ) from error
        pointer, integer, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
        for name, result, arguments in (
            ("bpf_object__open_file", pointer, (text, pointer)),
            ("bpf_object__load", integer, (pointer,)),
            ("bpf_object__close", None, (pointer,)),
            ("bpf_object__find_program_by_name", pointer, (pointer, text)),
            ("bpf_object__find_map_by_name", pointer, (pointer, text)),
            ("bpf_object__next_program", pointer, (pointer, pointer)),
            ("bpf_program__name", text, (pointer,)),
            ("bpf_program__set_autoload", integer, (pointer, ctypes.c_bool)),
            ("bpf_program__fd", integer, (pointer,)),
            ("bpf_program__attach", pointer, (pointer,)),
            ("bpf_program__attach_cgroup", pointer, (pointer, integer)),
            ("bpf_map__fd", integer, (pointer,)),
            ("bpf_map__set_max_entries", integer, (pointer, ctypes.c_uint32)),
            ("bpf_map__initial_value", pointer, (pointer, ctypes.POINTER(ctypes.c_size_t))),
            ("bpf_link__fd", integer, (pointer,)),
            ("bpf_link__destroy", integer, (pointer,)),
            ("bpf_map_create", integer, (integer, text, *(ctypes.c_uint32,) * 3, pointer)),
            ("bpf_map_update_elem", integer, (integer, pointer, pointer, ctypes.c_uint64)),
            ("bpf_map_lookup_elem", integer, (integer, pointer, pointer)),
            ("bpf_map_delete_elem", integer, (integer, pointer)),
            ("bpf_map_get_next_key", integer, (integer, pointer, pointer)),
            ("bpf_obj_pin", integer, (integer, text)),
            ("bpf_obj_get", integer, (text,)),
            ("bpf_obj_get_info_by_fd", integer, (integer, pointer, ctypes.POINTER(ctypes.c_uint32))),
            ("bpf_prog_test_run_opts", integer, (integer, pointer)),
            ("libbpf_num_possible_cpus", integer, ()),
            ("libbpf_set_print", pointer, (_PRINT,)),
        ):
            function = getattr(lib, name)
            function.restype = result
            function.argtypes = arguments
        self._lib = lib
        self.log: list[str] = []
        libc = ctypes.CDLL(None)
        libc.vsnprintf.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p)
        buffer = ctypes.create_string_buffer(1 << 20)

        def collect(level: int, form: bytes, arguments: int) -> int:
            if level < 2:  # warnings and information; the verifier's log comes as a warning
                libc.vsnprintf(buffer, len(buffer), form, arguments)
                self.log.append(buffer.value.decode(errors="replace"))
            return 0

        self._collect = _PRINT(collect)  # kept: libbpf holds the bare function pointer
        lib.libbpf_set_print(self._collect)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)


_libbpf: _Libbpf | None = None


def _bpf() -> _Libbpf:
    global _libbpf
    if _libbpf is None:
        _libbpf = _Libbpf()
    return _libbpf


def _errno_text() -> str:
    number = ctypes.get_errno()
    return f"{os.strerror(number)} (errno {number})"


# ---- single maps ----


def _update(fd: int, key: bytes, value: bytes) -> None:
    if _bpf().bpf_map_update_elem(fd, key, value, 0):
        raise OSError(ctypes.get_errno(), f"bpf_map_update_elem: {_errno_text()}")


def _lookup(fd: int, key: bytes, size: int) -> bytes:
    value = ctypes.create_string_buffer(size)
    if _bpf().bpf_map_lookup_elem(fd, key, value):
        raise OSError(ctypes.get_errno(), f"bpf_map_lookup_elem: {_errno_text()}")
    return value.raw


def _keys(fd: int, size: int) -> list[bytes]:
    found: list[bytes] = []
    key, following = None, ctypes.create_string_buffer(size)
    while not _bpf().bpf_map_get_next_key(fd, key, following):
        found.append(following.raw)
        key = following.raw
    return found


_ZERO = struct.pack("<I", 0)


# ---- what is running ----


class Generation:
    """The maps of one load: of the programs that run now, or of ones that ran before."""

    def __init__(
        self,
        session: int,
        maps: Mapping[str, int],
        ring_size: int,
        directory: Path | None,
        *,
        own_layout: bool = True,
    ) -> None:
        self._own_layout = own_layout  # whether `settings` has the layout that this version writes
        self.session = session
        """Nanoseconds since boot when the programs were loaded."""
        self.ring_size = ring_size
        """Size of the ring's data area in bytes."""
        self._maps = dict(maps)
        self._directory = directory

    @property
    def ring_fd(self) -> int:
        """File descriptor of the ring buffer map; closed by `close`."""
        return self._maps["ring"]

    def counters(self) -> dict[str, int]:
        """Events emitted, deduplicated and dropped since the load, over all CPUs."""
        cpus = _bpf().libbpf_num_possible_cpus()
        values = struct.unpack(f"<{3 * cpus}Q", _lookup(self._maps["counters"], _ZERO, 24 * cpus))
        return {
            "emitted": sum(values[0::3]),
            "deduplicated": sum(values[1::3]),
            "dropped": sum(values[2::3]),
        }

    def close(self) -> None:
        """Close the file descriptors. What is pinned stays, and pinned programs go on emitting."""
        for fd in self._maps.values():
            os.close(fd)
        self._maps.clear()

    def stop(self) -> None:
        """Stop the programs; the maps stay, so that the ring can still be drained.

        The kernel detaches a moment later; from here on the programs emit nothing.
        """
        if self._own_layout:
            values = list(_SETTINGS.unpack(_lookup(self._maps["settings"], _ZERO, _SETTINGS.size)))
            values[2] = (1 << 64) - 1
            _update(self._maps["settings"], _ZERO, _SETTINGS.pack(*values))
        if self._directory is not None:
            for path in self._directory.glob("link_*"):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Detach the programs, remove the pins and close the file descriptors."""
        if self._maps:
            self.stop()
        if self._directory is not None:
            _remove_directory(self._directory)
        self.close()


class Programs(Generation):
    """The programs that run now.

    Attributes:
        reused: they were found pinned and had been running all the time.
        hooks: one entry for each event type and hook.
        stale: earlier generations whose rings may still hold events; already stopped.
    """

    def __init__(
        self,
        session: int,
        maps: Mapping[str, int],
        ring_size: int,
        directory: Path | None,
        hooks: Iterable[HookState],
        *,
        reused: bool,
        links: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(session, maps, ring_size, directory)
        self.reused = reused
        self.attached_ns: int | None = None
        """Boot time at which the last program was attached; None when they were found running."""
        self.hooks = list(hooks)
        self.stale: list[Generation] = []
        # Held although they are pinned too: who removes a pin does not detach the program while the agent runs.
        self._links = dict(links or {})
        self._links_lock = threading.Lock()  # heartbeats look at the links in another thread than closes them

    @property
    def pinned(self) -> bool:
        """Whether they outlive this process."""
        return self._directory is not None

    def check_hooks(self) -> list[HookState]:
        """`hooks` as they are now: one whose link the kernel has ended is ``failed``.

        A hook whose pin was removed still works, and says in its ``reason`` that it ends with this process.
        Cheap: one system call and one stat for each link. May be called in any thread.
        """
        found: dict[str, tuple[HookStatus, str]] = {}
        with self._links_lock:
            for program in PROGRAMS:
                fd = self._links.get(program.name)
                if fd is None:
                    continue
                ended = _link_ended(fd)
                if ended:
                    found[program.hook] = ("failed", ended)
                elif self._directory is not None and not os.path.lexists(self._directory / f"link_{program.name}"):
                    found.setdefault(program.hook, ("loaded", "its pin was removed; it ends with the agent"))
        return [
            replace(hook, state=found[hook.hook][0], reason=found[hook.hook][1])
            if hook.state == "loaded" and hook.hook in found
            else hook
            for hook in self.hooks
        ]

    def _close_links(self) -> None:
        with self._links_lock:
            for fd in self._links.values():
                os.close(fd)
            self._links.clear()

    def set_filters(self, filters: Mapping[str, Any]) -> None:
        """Change what is reported, without reloading. Keys that are missing take their defaults.

        Args:
            filters: ``open_names`` (list of basenames, str or bytes: opening these for reading is wanted),
                ``disabled_types`` (event names), ``dedupe_ttl_ms`` (default 60000; 0: no deduplication),
                ``all_sockets``, ``all_mprotect``, ``all_opens`` (bool).

        Raises:
            LoaderError: BadConfig for an unknown event name.
        """
        disabled = 0
        for name in filters.get("disabled_types", ()):
            if name not in BY_NAME:
                raise LoaderError("BadConfig", f"disabled_types: no event is called {name!r}")
            disabled |= 1 << BY_NAME[name].code
        hints, wanted = [0] * 256, set()
        for name in filters.get("open_names", ()):
            raw = name if isinstance(name, bytes) else os.fsencode(name)
            if not raw:
                continue
            hints[raw[0]] |= 1 << min(len(raw), 63)
            wanted.add(raw[: NAME_KEY - 1].ljust(NAME_KEY, b"\0"))
        options = sum(bit for option, bit in OPTIONS.items() if filters.get(option))
        present = set(_keys(self._maps["open_names"], NAME_KEY))
        for key in wanted - present:
            _update(self._maps["open_names"], key, struct.pack("<I", 1))
        old = _SETTINGS.unpack(_lookup(self._maps["settings"], _ZERO, _SETTINGS.size))
        ttl = int(filters.get("dedupe_ttl_ms", 60000)) * 1_000_000
        _update(self._maps["settings"], _ZERO, _SETTINGS.pack(old[0], ttl, disabled, old[3], options, *hints))
        for key in present - wanted:
            _bpf().bpf_map_delete_elem(self._maps["open_names"], key)

    def set_own_tgid(self, tgid: int) -> None:
        """Leave out files and connections of this process (id in the initial namespace); 0: of none."""
        values = list(_SETTINGS.unpack(_lookup(self._maps["settings"], _ZERO, _SETTINGS.size)))
        values[3] = tgid
        _update(self._maps["settings"], _ZERO, _SETTINGS.pack(*values))

    def detach(self, unpin: bool = True) -> None:
        """Stop the programs; ``unpin`` also removes the pinned maps, so that what is still in the ring is given up."""
        self._close_links()
        self.stop()
        if unpin and self._directory is not None:
            _remove_directory(self._directory)

    def close(self) -> None:
        """Close all file descriptors. Pinned programs go on; unpinned ones end here."""
        self._close_links()
        for generation in self.stale:
            generation.close()
        super().close()


_LINK_INFO = struct.Struct("<IIIxxxxQ")
"""The start of the kernel's struct bpf_link_info: type, id, program id; of a cgroup's link, the cgroup's id."""
_LINK_TYPE_CGROUP = 3


def _link_ended(fd: int) -> str:
    """Why the link's program does not run any more, or an empty string.

    A tracing link lives as long as a descriptor of it; the link of a cgroup can be detached under its holder, and
    then names cgroup 0.
    """
    info = ctypes.create_string_buffer(256)
    size = ctypes.c_uint32(len(info))
    if _bpf().bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)):
        return f"its link is gone: {_errno_text()}"
    kind, _, _, cgroup = _LINK_INFO.unpack_from(info.raw)
    return "it was detached from its cgroup" if kind == _LINK_TYPE_CGROUP and not cgroup else ""


# ---- finding out about this machine ----


def memory_hierarchy() -> int:
    """1 when the memory controller is on cgroup v1 (there every process has an id of its own container), else 2.

    /proc/cgroups shows the same in every namespace, unlike the mount table.
    """
    try:
        lines = Path("/proc/cgroups").read_text().splitlines()
    except OSError:
        return 2
    for line in lines:
        fields = line.split()
        if fields[:1] == ["memory"]:
            return 1 if fields[1] != "0" else 2
    return 2


def cgroup2_mount(below: str = "") -> str:
    """Mount point of cgroup v2 (at or below a directory), or an empty string."""
    mount = cgroups.find(2, Path(below) if below else None)
    return os.fsdecode(mount.path) if mount else ""


def _overlay_entry() -> int:
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    version = tuple(int(part) for part in release.groups()) if release else (0, 0)
    if version >= (6, 5):
        return 2
    return 1 if version >= (6, 1) else 0


def _missing(kernel_btf: bytes) -> dict[str, str]:
    """Programs whose tracepoint is not in this kernel, with the reason."""
    return {
        program.name: f"this kernel has no tracepoint {program.tracepoint}"
        for program in PROGRAMS
        if program.attachment != "cgroup"
        and program.tracepoint
        and f"\0btf_trace_{program.tracepoint}\0".encode() not in kernel_btf
    }


# ---- pins ----


def _remove_directory(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        # meta first: without it the rest is recognised as incomplete
        for path in sorted(directory.iterdir(), key=lambda p: p.name != "meta"):
            path.unlink(missing_ok=True)
        directory.rmdir()


def _get(path: Path) -> int:
    fd: int = _bpf().bpf_obj_get(os.fsencode(path))
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"{path}: {_errno_text()}")
    return fd


def _pin(fd: int, path: Path) -> None:
    if _bpf().bpf_obj_pin(fd, os.fsencode(path)):
        raise LoaderError(
            "PinRefused", f"{path}: {_errno_text()}; the pin directory must be on a bpffs and writable by this process"
        )


def _open_generation(directory: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Its meta data and map descriptors.

    Raises:
        OSError: incomplete.
        ValueError: meta data that this version cannot read.
    """
    maps: dict[str, int] = {}
    try:
        for name in _MAPS:
            maps[name] = _get(directory / name)
        meta = json.loads(_lookup(maps["meta"], _ZERO, _META_SIZE).rstrip(b"\0"))
        if not isinstance(meta, dict) or not all(isinstance(meta.get(key), int) for key in ("session", "ring_bytes")):
            raise ValueError("no meta data")
    except BaseException:
        for fd in maps.values():
            os.close(fd)
        raise
    return meta, maps


# ---- loading ----


def load(
    object_path: Path | str, pin_dir: Path | str | None, config: Config | None = None, *, base: Path | None = None
) -> Programs:
    """Load and attach the programs, or find them running already.

    Args:
        object_path: ``vedette.bpf.o``.
        pin_dir: directory on a bpffs (made when missing), or None: the programs end with `Programs.close`.
        config: see `Config`.
        base: the variant for older kernels; by default the file beside the object.

    Raises:
        LoaderError: see there; the message holds the end of the verifier's log.
    """
    config = config or Config()
    try:
        contents = Path(object_path).read_bytes()
    except OSError as error:
        raise LoaderError("ObjectInvalid", f"{object_path}: {error.strerror}") from error
    described = {"object": hashlib.sha256(contents).hexdigest(), "schema": SCHEMA_VERSION, "config": asdict(config)}
    identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    directory = Path(pin_dir) if pin_dir is not None else None
    current: Programs | None = None
    stale: list[Generation] = []
    if directory is not None:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise LoaderError("PinRefused", f"{directory}: {error.strerror}") from error
        current, stale = _find_pinned(directory, identity)
    try:
        if current is None:
            current = _load_anew(Path(object_path), base or base_of(Path(object_path)), directory, config, identity)
    except BaseException:
        for generation in stale:
            generation.close()
        raise
    for generation in stale:
        generation.stop()
    current.stale = stale
    return current


def _find_pinned(directory: Path, identity: str) -> tuple[Programs | None, list[Generation]]:
    current: Programs | None = None
    stale: list[Generation] = []
    for path in sorted((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: -int(p.name)):
        try:
            meta, maps = _open_generation(path)
        except (OSError, ValueError):
            _remove_directory(path)  # a loader was killed in the middle of pinning it
            continue
        if current is None and meta.get("identity") == identity:
            current = _take_over(path, meta, maps)
            if current is not None:
                continue
        own_layout = meta.get("settings_size") == _SETTINGS.size
        stale.append(Generation(meta["session"], maps, meta["ring_bytes"], path, own_layout=own_layout))
    return current, stale


def _take_over(path: Path, meta: Mapping[str, Any], maps: Mapping[str, int]) -> Programs | None:
    """The programs pinned in ``path``, or None when links or meta data are not what this version left there."""
    links: dict[str, int] = {}
    try:
        hooks = [HookState(*entry) for entry in meta["hooks"]]
        exclude_self = meta["exclude_self"]
        for name in meta["links"]:
            links[name] = _get(path / f"link_{name}")
        identify = _get(path / "identify") if exclude_self else -1
    except (OSError, KeyError, TypeError):
        for fd in links.values():
            os.close(fd)
        return None
    programs = Programs(meta["session"], maps, meta["ring_bytes"], path, hooks, reused=True, links=links)
    if exclude_self:
        _identify(identify)
        os.close(identify)
    else:
        programs.set_own_tgid(0)
    return programs


def _identify(program_fd: int) -> None:
    """Let the kernel note our process id in the initial namespace, which we cannot know in a pid namespace."""
    options = _TestRunOptions(sz=ctypes.sizeof(_TestRunOptions))
    if _bpf().bpf_prog_test_run_opts(program_fd, ctypes.byref(options)):
        raise LoaderError("AttachRefused", f"the program 'identify' cannot be run: {_errno_text()}")


class _Loaded:
    """An object that libbpf holds, loaded into the kernel."""

    def __init__(self, path: Path, config: Config, left_out: Mapping[str, str]) -> None:
        bpf = _bpf()
        self.object = bpf.bpf_object__open_file(os.fsencode(path), None)
        if not self.object:
            raise LoaderError("ObjectInvalid", f"{path}: {_log_tail()}")
        for program in PROGRAMS:
            if program.name in left_out:
                bpf.bpf_program__set_autoload(self.program(program.name), False)
        bpf.bpf_map__set_max_entries(self.map("ring"), config.ring_bytes)
        bpf.bpf_map__set_max_entries(self.map("seen"), config.dedupe_entries)
        size = ctypes.c_size_t()
        value = bpf.bpf_map__initial_value(self.map(".rodata.config"), ctypes.byref(size))
        packed = _CONFIG.pack(
            config.hierarchy or memory_hierarchy(), _overlay_entry(), int.from_bytes(os.urandom(8), "little")
        )
        ctypes.memmove(value, packed, len(packed))

    def program(self, name: str) -> Any:
        """Libbpf's handle of a program."""
        found = _bpf().bpf_object__find_program_by_name(self.object, name.encode())
        if not found:
            raise LoaderError("ObjectInvalid", f"the object has no program {name!r}; build it again")
        return found

    def map(self, name: str) -> Any:
        """Libbpf's handle of a map."""
        found = _bpf().bpf_object__find_map_by_name(self.object, name.encode())
        if not found:
            raise LoaderError("ObjectInvalid", f"the object has no map {name!r}; build it again")
        return found

    def load(self) -> bool:
        """Let libbpf load everything; False when the kernel refused."""
        return not _bpf().bpf_object__load(self.object)

    def close(self) -> None:
        """Give libbpf's memory and file descriptors back."""
        _bpf().bpf_object__close(self.object)


def _log_tail(lines: int = 12) -> str:
    text = "".join(_bpf().log).strip().splitlines()
    useful = [line for line in text if line and not line.startswith(("processed ", "-- "))]
    return "\n".join(useful[-lines:]) or "no message from libbpf"


_REFUSED = re.compile(r"prog '([^']+)': (?:BPF program load failed|failed to load)")


def _load_object(path: Path, config: Config, left_out: dict[str, tuple[HookStatus, str]]) -> _Loaded:
    """Load, leaving out one refused optional program after the other; they are added to ``left_out``."""
    while True:
        _bpf().log.clear()
        loaded = _Loaded(path, config, {name: reason for name, (_, reason) in left_out.items()})
        if loaded.load():
            return loaded
        error = ctypes.get_errno()
        loaded.close()
        log = "".join(_bpf().log)
        refused = {p.name: p for p in PROGRAMS if p.name in _REFUSED.findall(log) and p.name not in left_out}
        blocking = [p.name for p in refused.values() if not p.optional]
        if not refused or blocking:
            what = f"program {blocking[0]!r}" if blocking else "the programs"
            raise LoaderError(
                "LoadRefused",
                f"the kernel refused {what}: {os.strerror(error)} (errno {error}). CAP_BPF and CAP_PERFMON are needed, "
                f"and a kernel with BTF.\n{_log_tail()}",
            )
        for name in refused:
            left_out[name] = ("failed", f"the verifier refused it: {_log_tail(4)}")
            for other in PROGRAMS:
                if other.instead_of == name:
                    left_out.pop(other.name, None)


def _load_either(path: Path, base: Path, config: Config, left_out: dict[str, tuple[HookStatus, str]]) -> _Loaded:
    """The object, or where the kernel is too old for it, its base variant (`bpf_build.base_of`)."""
    before = dict(left_out)
    try:
        return _load_object(path, config, left_out)
    except LoaderError as error:
        if error.reason != "LoadRefused" or not base.exists():
            raise
        left_out.clear()
        left_out.update(before)
        try:
            return _load_object(base, config, left_out)
        except LoaderError:
            raise error from None


def _load_anew(path: Path, base: Path, pin_dir: Path | None, config: Config, identity: str) -> Programs:
    bpf = _bpf()
    if config.ring_bytes < 4096 or config.ring_bytes & (config.ring_bytes - 1):
        raise LoaderError("BadConfig", f"ring_bytes must be a power of two of at least 4096, not {config.ring_bytes}")
    try:
        kernel_btf = KERNEL_BTF.read_bytes()
    except OSError as error:
        raise LoaderError(
            "BtfMissing", f"{KERNEL_BTF}: {error.strerror}; the kernel needs CONFIG_DEBUG_INFO_BTF"
        ) from error
    left_out: dict[str, tuple[HookStatus, str]] = {
        name: ("missing", reason) for name, reason in _missing(kernel_btf).items()
    }
    del kernel_btf
    left_out.update(dict.fromkeys(config.without, ("missing", "left out by configuration")))
    for program in PROGRAMS:
        if program.instead_of and program.instead_of not in left_out:
            left_out[program.name] = ("missing", _NOT_NEEDED)
    loaded = _load_either(path, base, config, left_out)
    links: dict[str, int] = {}
    maps: dict[str, int] = {}
    directory: Path | None = None
    try:
        session = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        maps = {
            name: os.dup(bpf.bpf_map__fd(loaded.map(_MAP_NAMES.get(name, name)))) for name in _MAPS if name != "meta"
        }
        maps["meta"] = bpf.bpf_map_create(2, b"vedette_meta", 4, _META_SIZE, 1, None)
        if maps["meta"] < 0:
            del maps["meta"]
            raise LoaderError("LoadRefused", f"a map could not be made: {_errno_text()}")
        programs = Programs(session, maps, config.ring_bytes, None, (), reused=False)
        _update(maps["settings"], _ZERO, _SETTINGS.pack(session, 0, 0, 0, 0, *[0] * 256))
        programs.set_filters({})
        identify = bpf.bpf_program__fd(loaded.program("identify"))
        if config.exclude_self:
            _identify(identify)
        _fill_calls(loaded, maps["calls"], left_out)
        _attach(loaded, config, links, left_out)
        programs.attached_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        programs.hooks = _states(left_out)
        if pin_dir is not None:
            meta = {
                "identity": identity,
                "session": session,
                "ring_bytes": config.ring_bytes,
                "exclude_self": config.exclude_self,
                "settings_size": _SETTINGS.size,
                "links": sorted(links),
                "hooks": [[h.event, h.hook, h.state, h.reason[:400]] for h in programs.hooks],
            }
            _update(maps["meta"], _ZERO, json.dumps(meta).encode().ljust(_META_SIZE, b"\0"))
            directory = pin_dir / str(session)
            directory.mkdir(mode=0o700)
            for name, fd in links.items():
                _pin(fd, directory / f"link_{name}")
            _pin(identify, directory / "identify")
            for name in _MAPS:  # meta last: it makes the generation complete
                _pin(maps[name], directory / name)
            programs._directory = directory
        programs._links = links
        return programs
    except BaseException:
        if directory is not None:
            _remove_directory(directory)
        for fd in (*links.values(), *maps.values()):
            os.close(fd)
        raise
    finally:
        loaded.close()


def _fill_calls(loaded: _Loaded, calls_fd: int, left_out: Mapping[str, object]) -> None:
    for program in PROGRAMS:
        if program.attachment == "call" and program.name not in left_out:
            fd = struct.pack("<I", _bpf().bpf_program__fd(loaded.program(program.name)))
            for number in program.calls:
                _update(calls_fd, struct.pack("<I", number), fd)


def _attach(
    loaded: _Loaded, config: Config, links: dict[str, int], left_out: dict[str, tuple[HookStatus, str]]
) -> None:
    bpf = _bpf()
    for program in PROGRAMS:
        if program.attachment not in ("tracing", "cgroup") or program.name in left_out:
            continue
        reason = ""
        link = None
        if program.attachment == "tracing":
            link = bpf.bpf_program__attach(loaded.program(program.name))
            reason = _errno_text()
        else:
            root = cgroup2_mount(config.cgroup_root)
            if root:
                fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
                link = bpf.bpf_program__attach_cgroup(loaded.program(program.name), fd)
                reason = f"attaching to {root}: {_errno_text()}; needs CAP_NET_ADMIN"
                os.close(fd)
            else:
                reason = f"cgroup v2 is mounted nowhere{f' below {config.cgroup_root}' if config.cgroup_root else ''}"
        if link:
            links[program.name] = os.dup(bpf.bpf_link__fd(link))
            bpf.bpf_link__destroy(link)  # closes libbpf's descriptor; ours keeps the attachment
        elif program.optional:
            left_out[program.name] = ("failed", reason)
        else:
            raise LoaderError("AttachRefused", f"{program.hook}: {reason}")


_NOT_NEEDED = "not needed"


def _states(left_out: Mapping[str, tuple[HookStatus, str]]) -> list[HookState]:
    def state(event: str, program: Program) -> HookState:
        status, reason = left_out.get(program.name, ("loaded", ""))
        return HookState(event, program.hook, status, reason)

    used = [p for p in PROGRAMS if left_out.get(p.name, ("", ""))[1] != _NOT_NEEDED]
    states = [state(event, program) for program in used for event in program.events]
    return [*states, HookState("cgroup", "every hook", "loaded")]
