"""Debian's kernels in virtual machines: fetched with apt, booted under qemu without KVM, gone afterwards.

`debian` fetches kernels and makes the small root file system, `cpio` packs both for a kernel to unpack into memory, and
`machine` boots one and runs one command in it as root.
"""

from tools.kernels.debian import FAMILIES, Kernel, KernelError, ensure_kernel, ensure_rootfs
from tools.kernels.machine import Finished, MachineError, boot

__all__ = [
    "FAMILIES",
    "Finished",
    "Kernel",
    "KernelError",
    "MachineError",
    "boot",
    "ensure_kernel",
    "ensure_rootfs",
]
