"""Judging processes: what kind of program one is, how it came here, whether its file can be trusted to be what it says.

A name proves nothing, since whoever makes a file names it. So every judgement that lets something pass asks besides
whether the file lies where packages install, was not changed since the container began, and was not written lately.
"""

from __future__ import annotations

from collections.abc import Iterator

from vedette_detector.engine.container import INITIAL_PID_NS
from vedette_detector.engine.event import Event
from vedette_detector.engine.history import NodeHistory, Process
from vedette_events.schema import FileBits

_SECOND = 1_000_000_000
_CHANGED = FileBits.UPPER | FileBits.UNLINKED | FileBits.MEMFD | FileBits.TMPFS

SYSTEM_DIRECTORIES: tuple[bytes, ...] = (
    b"/usr/",
    b"/bin/",
    b"/sbin/",
    b"/lib/",
    b"/lib64/",
    b"/opt/",
    b"/snap/",
    b"/nix/store/",
    b"/var/lib/rancher/",
    b"/var/lib/k0s/",
    b"/home/linuxbrew/",
)
"""Where packages put programs and other users cannot."""

SHELLS: frozenset[bytes] = frozenset(
    {b"sh", b"bash", b"dash", b"ash", b"zsh", b"ksh", b"ksh93", b"mksh", b"csh", b"tcsh", b"fish", b"busybox", b"rbash"}
    | {b"toybox", b"oksh", b"yash", b"pwsh", b"posh", b"elvish", b"nu", b"sash"}
)

INTERPRETERS: tuple[bytes, ...] = (
    *(b"python", b"pypy", b"perl", b"ruby", b"php", b"lua", b"luajit", b"node", b"nodejs", b"deno", b"bun", b"tclsh"),
    *(b"expect", b"gawk", b"mawk", b"awk", b"groovy", b"java", b"jshell", b"Rscript", b"guile", b"irb"),
)
"""Beginnings of interpreters' names: versions follow (python3.11)."""

PACKAGE_MANAGERS: frozenset[bytes] = frozenset(
    {b"dpkg", b"dpkg-deb", b"apt", b"apt-get", b"aptitude", b"unattended-upgrade", b"rpm", b"yum", b"dnf", b"dnf5"}
    | {b"microdnf", b"zypper", b"apk", b"pacman", b"tdnf", b"emerge", b"xbps-install", b"opkg", b"nix", b"nix-daemon"}
    | {b"snapd", b"flatpak", b"brew", b"conda", b"mamba", b"micromamba", b"pip", b"pip3", b"pipx", b"uv", b"poetry"}
    | {b"npm", b"npx", b"yarn", b"pnpm", b"corepack", b"gem", b"bundle", b"bundler", b"composer", b"cpan", b"cpanm"}
    | {b"luarocks", b"rustup", b"cargo", b"go", b"mvn", b"gradle", b"sdk", b"asdf", b"mise"}
)
BUILD_TOOLS: frozenset[bytes] = frozenset(
    {
        b"ld",
        b"ld.bfd",
        b"ld.gold",
        b"ld.lld",
        b"lld",
        b"mold",
        b"gold",
        b"collect2",
        b"as",
        b"gcc",
        b"g++",
        b"cc",
        b"c++",
    }
    | {b"clang", b"clang++", b"tcc", b"rustc", b"cargo", b"go", b"link", b"compile", b"strip", b"objcopy", b"ghc"}
    | {
        b"ocamlopt",
        b"zig",
        b"swiftc",
        b"nim",
        b"dmd",
        b"ldc2",
        b"fpc",
        b"nasm",
        b"libtool",
        b"bazel",
        b"ninja",
        b"make",
    }
)
IMAGE_BUILDERS: frozenset[bytes] = frozenset(
    {b"buildkitd", b"buildkit-runc", b"buildah", b"kaniko", b"executor", b"img", b"makisu", b"apko", b"melange"}
    | {b"mmdebstrap", b"debootstrap", b"cdebootstrap", b"multistrap", b"packer", b"diskimage-builder", b"mkosi"}
    | {b"sbuild", b"pbuilder", b"cowbuilder", b"mock", b"osbuild", b"vmdb2", b"lb", b"live-build"}
)
CONTAINER_RUNTIMES: frozenset[bytes] = frozenset(
    {
        b"runc",
        b"crun",
        b"youki",
        b"runsc",
        b"kata-runtime",
        b"nvidia-container-runtime",
        b"docker-runc",
        b"buildkit-runc",
    }
)
DEBUGGERS: frozenset[bytes] = frozenset(
    {b"gdb", b"gdbserver", b"gdb-multiarch", b"lldb", b"lldb-server", b"dlv", b"strace", b"ltrace", b"rr", b"valgrind"}
    | {b"perf", b"bpftrace", b"uftrace", b"delve", b"py-spy", b"rbspy", b"criu", b"proot", b"eu-stack", b"gcore"}
)


def basename(path: bytes) -> bytes:
    """The last component of a path."""
    return path.rsplit(b"/", 1)[-1]


def is_installed(process: Process, history: NodeHistory) -> bool:
    """Whether a process's program lies where packages install and shows no sign of having been changed."""
    container = history.container(process.cgroup)
    container_id = container.container_id if container is not None else None
    return is_installed_file(
        process.path, process.file_bits, process.dev, process.ino, process.time, history, container_id, process.ctime
    )


def is_installed_file(
    path: bytes,
    file_bits: int,
    dev: int,
    ino: int,
    at: int,
    history: NodeHistory,
    container_id: str | None = None,
    changed_ns: int = 0,
) -> bool:
    """The same for a file: what is known of it, when it was used, in which container, when it was changed."""
    if file_bits & _CHANGED or not path.startswith(SYSTEM_DIRECTORIES):
        return False
    writer = last_writer(history, path, dev, ino, container_id, at, changed_ns)
    return writer is None or is_package_manager(writer.process, history)


def last_writer(
    history: NodeHistory,
    path: bytes,
    dev: int,
    ino: int,
    container_id: str | None,
    until: int,
    changed_ns: int = 0,
) -> Event | None:
    """Who last wrote a file, of those who can have meant this file.

    Two containers have the same paths, and a container that is gone leaves its device number (and the image's inode
    numbers) to the next one. So a writer counts when it is in the same container, or is on the host and opened the
    very inode.

    Args:
        history: the node's history.
        path: the file's path; empty for none.
        dev: its device.
        ino: its inode.
        container_id: the container it is used in; None on the host.
        until: latest time, ns since boot.
        changed_ns: the file's change time, ns since the epoch: when it is older than history, nobody in history wrote
            it, and nothing has to be looked for. Zero when it is not known.
    """
    if changed_ns and changed_ns < until + history.wall_offset_ns - int(history.settings.window_s * _SECOND):
        return None
    for _ in range(16):
        found = history.last_writer(dev, ino, path=path or None, until=until)
        if found is None:
            return None
        theirs = found.container.container_id if found.container is not None else None
        same_inode = found.type == "open" and ino != 0 and (found.dev, found.ino) == (dev, ino)
        if theirs == container_id or (theirs is None and same_inode):
            return found
        until = found.time - 1
    return None


def is_package_manager(process: Process, history: NodeHistory) -> bool:
    """Whether a process is an installed package manager or build tool, or works for one."""
    return package_manager_of(process, history) is not None


def package_manager_of(process: Process, history: NodeHistory) -> str | None:
    """Name of the package manager or build tool that a process is, or works for; None when it is none.

    The file must lie where packages install and be part of the image (not of a container's upper layer). An
    interpreter counts by its script or module: ``python3 -m pip``, ``node /usr/lib/node_modules/npm/...``.
    """
    for candidate in chain(process, history, 6):
        if candidate.file_bits & _CHANGED or not candidate.path.startswith(SYSTEM_DIRECTORIES):
            continue
        name = basename(candidate.path)
        if name in PACKAGE_MANAGERS or (candidate is process and is_build_tool(name)):
            return name.decode("ascii", "replace")
        if name.startswith(INTERPRETERS):
            for argument in candidate.argv[1:4]:
                script = basename(argument).removesuffix(b".js").removesuffix(b".py").removesuffix(b"-cli")
                if script in PACKAGE_MANAGERS and (argument.startswith(SYSTEM_DIRECTORIES) or b"/" not in argument):
                    return script.decode("ascii", "replace")
    return None


def is_build_tool(name: bytes) -> bool:
    """Whether a file name is a compiler's or linker's, also with a target's prefix (x86_64-linux-gnu-ld.bfd)."""
    return name in BUILD_TOOLS or (b"-" in name and name.rsplit(b"-", 1)[-1] in BUILD_TOOLS) or _versioned(name)


def _versioned(name: bytes) -> bool:
    stem = name.rstrip(b"0123456789.").rstrip(b"-")
    return stem != name and (stem in BUILD_TOOLS or (b"-" in stem and stem.rsplit(b"-", 1)[-1] in BUILD_TOOLS))


def image_builder_of(process: Process, history: NodeHistory) -> str | None:
    """Name of the image builder among a process's ancestors; None when there is none.

    A builder's own file may lie in a container (kaniko), so only its place and age are asked: a program that came
    into the container's upper layer is none.
    """
    for ancestor in ancestors(process, history, 32):
        if ancestor.file_bits & _CHANGED:
            continue
        candidates = [ancestor.path]
        if is_shell_name(basename(ancestor.path)) or is_interpreter_name(basename(ancestor.path)):
            candidates += [argument for argument in ancestor.argv[1:4] if argument.startswith(SYSTEM_DIRECTORIES)]
        for path in candidates:
            name = basename(path)
            if name == b"executor" and not path.startswith(b"/kaniko/"):
                continue
            if name in IMAGE_BUILDERS and path.startswith((*SYSTEM_DIRECTORIES, b"/kaniko/")):
                return name.decode("ascii", "replace")
    return None


def is_runtime_setup(process: Process, history: NodeHistory) -> bool:
    """Whether a process in a container is still the runtime that sets the container up (runc's init).

    Such a process has moved into the container's cgroup and namespaces, but runs a program that was started
    outside: its last exec happened on the host. Nobody inside a container can make that true.
    """
    began = process.exec
    if began is None:
        return False
    if history.container_of(began) is None:
        return True
    # runc's re-exec of itself races with being put into the container's cgroup: it still is in the namespaces of
    # its parent on the host then.
    if began.pid_ns != INITIAL_PID_NS:
        return False
    # It then makes two more of itself (runc:[1:CHILD], runc:[2:INIT]), which have this exec from it.
    executed = next((p for p in chain(process, history, 4) if (p.pid, p.start) == (began.pid, began.start)), None)
    parent = history.parent(executed) if executed is not None else None
    if parent is None or parent.exec is None or parent.mnt_ns != began.mnt_ns:
        return False
    return history.container_of(parent.exec) is None


def in_container(event: Event, history: NodeHistory) -> bool:
    """Whether the acting process belongs to a container and is not the runtime that sets it up."""
    return event.container is not None and not is_runtime_setup(event.process, history)


def is_shell_name(name: bytes) -> bool:
    """Whether a file name is a shell's, with or without a version."""
    return name in SHELLS or name.rstrip(b"0123456789.-") in SHELLS


def is_interpreter_name(name: bytes) -> bool:
    """Whether a file name is a script language's, with or without a version."""
    return name.startswith(INTERPRETERS) and not name.endswith(b"-config")


def chain(process: Process, history: NodeHistory, limit: int = 8) -> Iterator[Process]:
    """The process itself, then at most ``limit`` ancestors, nearest first."""
    yield process
    yield from ancestors(process, history, limit)


def ancestors(process: Process, history: NodeHistory, limit: int) -> Iterator[Process]:
    """At most ``limit`` ancestors, nearest first, looked up only as far as somebody asks."""
    current: Process | None = process
    for _ in range(limit):
        current = history.parent(current) if current is not None else None
        if current is None:
            return
        yield current


def by_ns_pid(history: NodeHistory, observer: Process, ns_pid: int, until: int) -> Process | None:
    """The process that has a number in the observer's pid namespace, as far as history knows it."""
    if ns_pid <= 0:
        return None
    found = history.events(
        "exec",
        until=until,
        mask=lambda rows: (rows["ns_pid"] == ns_pid) & (rows["pid_ns"] == observer.pid_ns),
        limit=1,
    )
    forked = history.events("fork", until=until, mask=lambda rows: rows["child_ns_pid"] == ns_pid, limit=8)
    candidates: list[tuple[int, Process]] = []
    for event in found:
        process = history.process(event.pid, event.start, until)
        if process is not None:
            candidates.append((event.time, process))
    for event in forked:
        process = history.process(event.child_pid, event.child_start, until)
        if process is not None and process.pid_ns == observer.pid_ns:
            candidates.append((event.time, process))
            break
    return max(candidates, key=lambda pair: pair[0], default=(0, None))[1]
