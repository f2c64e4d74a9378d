"""Which BPF program makes which events, where it is attached, and whether the agent may start without it.

`bpf/*.bpf.c` hold the programs by these names. Three kinds of attachment:

``tracing``  attached to a tracepoint by its BTF type (``tp_btf``)
``call``     not attached: tail-called by ``sys_exit`` for the system call numbers listed (the 64-bit table; 32-bit
             calls are translated in the kernel, x32's own numbers are listed with the others)
``cgroup``   attached to the root of the cgroup v2 hierarchy; needs CAP_NET_ADMIN
``run``      run once by the loader
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attachment = Literal["tracing", "call", "cgroup", "run"]


@dataclass(frozen=True)
class Program:
    """One BPF program of the object.

    ``tracepoint`` is looked up in the kernel's BTF as ``btf_trace_<tracepoint>`` before loading; ``note`` is the hook's
    name for people where the tracepoint's would not do. A program with ``instead_of`` is used only where that one
    cannot be.
    """

    name: str
    events: tuple[str, ...]
    attachment: Attachment
    tracepoint: str = "sys_exit"
    calls: tuple[int, ...] = ()
    optional: bool = True
    note: str = ""
    instead_of: str = ""

    @property
    def hook(self) -> str:
        """The hook's name for people: ``sys_exit:open``, ``sched_process_exec``, ``cgroup_skb/ingress``."""
        if self.note:
            return self.note
        if self.attachment == "call":
            return f"sys_exit:{self.name}"
        return self.tracepoint


PROGRAMS: tuple[Program, ...] = (
    Program("sys_exit", (), "tracing", optional=False),
    Program("sched_process_exec", ("exec",), "tracing", "sched_process_exec", optional=False),
    Program("sched_process_fork", ("fork",), "tracing", "sched_process_fork", optional=False),
    Program("sched_process_exit", ("exit",), "tracing", "sched_process_exit", optional=False),
    Program("open", ("open",), "call", calls=(2, 85, 257, 304, 437)),
    Program("unlink", ("unlink",), "call", calls=(84, 87, 263)),
    Program("rename_link", ("rename", "link"), "call", calls=(82, 86, 264, 265, 316)),
    Program("symlink", ("symlink",), "call", calls=(88, 266)),
    Program("chmod", ("chmod",), "call", calls=(90, 91, 268, 452)),
    Program("mount", ("mount",), "call", calls=(155, 165, 428, 429, 430, 431, 432, 442, 467)),
    Program("umount", ("umount",), "call", calls=(166,)),
    Program("mmap", ("mmap",), "call", calls=(9,)),
    Program("mprotect", ("mprotect",), "call", calls=(10, 329)),
    Program("memfd_create", ("memfd",), "call", calls=(319,)),
    Program("userfaultfd", ("userfaultfd",), "call", calls=(323,)),
    Program("socket", ("socket",), "call", calls=(41,)),
    Program("connect", ("connect",), "call", calls=(42,)),
    Program("send", ("connect",), "call", calls=(44, 46, 307, 518, 538)),
    Program("bind", ("bind",), "call", calls=(49,)),
    Program("listen", ("listen",), "call", calls=(50,)),
    Program("accept", ("accept",), "call", calls=(43, 288)),
    Program("dup", ("dup",), "call", calls=(32, 33, 72, 292)),
    Program("ptrace", ("ptrace",), "call", calls=(101, 521)),
    Program("process_vm", ("vm_read", "vm_write"), "call", calls=(310, 311, 539, 540)),
    Program("setuid", ("setuid",), "call", calls=(105, 106, 113, 114, 117, 119, 122, 123, 126)),
    Program("module", ("module",), "call", calls=(175, 176, 313)),
    Program("io_uring_submit_req", ("io_uring",), "tracing", "io_uring_submit_req"),
    Program("io_uring_setup", ("io_uring",), "call", calls=(425,), instead_of="io_uring_submit_req"),
    Program("net_dev_queue", ("dns",), "tracing", "net_dev_queue", note="net_dev_queue (queries over UDP)"),
    Program("dns_egress", ("dns",), "cgroup", "", note="cgroup_skb/egress (queries over TCP)"),
    Program("dns_ingress", ("dns",), "cgroup", "", note="cgroup_skb/ingress (answers)"),
    Program("identify", (), "run", ""),
)
"""Every program of the object. ``cgroup`` records come with any of them."""
