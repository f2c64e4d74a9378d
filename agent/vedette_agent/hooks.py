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

    ``tracepoint`` is looked up in the kernel's BTF as ``btf_trace_<tracepoint>`` before loading; ``note`` completes the
    hook's name for people.
    """

    name: str
    events: tuple[str, ...]
    attachment: Attachment
    tracepoint: str = "sys_exit"
    calls: tuple[int, ...] = ()
    optional: bool = True
    note: str = ""

    @property
    def hook(self) -> str:
        """The hook's name for people: ``sys_exit:open``, ``sched_process_exec``, ``cgroup_skb/ingress``."""
        if self.attachment == "cgroup":
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
    Program("connect", ("connect",), "call", calls=(42,)),
    Program("identify", (), "run", ""),
)
"""Every program of the object. ``cgroup`` records come with any of them."""
