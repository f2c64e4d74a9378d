"""Boot a kernel under qemu and run one command in it.

Without KVM (qemu translates every instruction, "TCG"), so it runs where virtual machines are not nested, fifteen to
thirty times slower than the machine itself. There is no disk and no network: root file system, modules and files are
cpio archives in memory, and what the command prints comes back over a serial line.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.kernels.cpio import Archive
from tools.kernels.debian import Kernel, ensure_rootfs

QEMU = "qemu-system-x86_64"
INIT = Path(__file__).with_name("init.py")
_END = b"\nvedette-end "


class MachineError(RuntimeError):
    """The kernel did not boot or the command did not end; the message holds the end of the console."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    output: bytes
    """What it wrote to standard output."""
    console: str
    """The kernel's messages, and what the command wrote to standard error."""
    seconds: float


def boot(
    kernel: Kernel,
    command: Sequence[str],
    *,
    files: Archive | None = None,
    timeout_s: float = 300,
    memory_mib: int = 768,
    cpus: int = 2,
) -> Finished:
    """Boot, run ``command`` as root, and end the machine.

    Args:
        kernel: which one.
        command: program and arguments; standard output and error come back apart.
        files: what to lay over the root file system.
        timeout_s: the machine is ended after so long, booting included.
        memory_mib: size of the machine's memory.
        cpus: number of its processors.

    Raises:
        MachineError: qemu is missing, or the machine ended or stood still before the command had ended.
        KernelError: the root file system cannot be made.
    """
    if shutil.which(QEMU) is None:
        raise MachineError(f"{QEMU} is not installed: apt-get install --no-install-recommends qemu-system-x86")
    files = files or Archive()
    files.file("init", INIT.read_bytes(), 0o755)
    files.file("command", "\0".join(command).encode())
    with tempfile.TemporaryDirectory(prefix="vedette-kernel-") as temporary:
        place = Path(temporary)
        with (place / "initrd").open("wb") as initrd:
            for part in (ensure_rootfs().read_bytes(), kernel.modules.read_bytes(), files.close()):
                initrd.write(part)
        console, output = place / "console", place / "output"
        options = {
            "-machine": "q35,accel=tcg",
            "-cpu": "Nehalem,+rdrand",  # without the wide vectors of newer processors, which TCG translates slowly
            "-smp": str(cpus),
            "-m": str(memory_mib),
            "-kernel": str(kernel.image),
            "-initrd": str(place / "initrd"),
            # mitigations cost time here and protect nobody; a panic must end the machine (-no-reboot)
            "-append": "console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on quiet loglevel=5",
            "-display": "none",
            "-monitor": "none",
            "-net": "none",
        }
        arguments = [QEMU, "-nodefaults", "-no-reboot", *(word for pair in options.items() for word in pair)]
        arguments += ["-serial", f"file:{console}", "-serial", f"file:{output}"]
        begun = time.monotonic()
        machine = subprocess.Popen(["nice", "-n", "19", *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, said = machine.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            said = f"stopped after {timeout_s:.0f} s".encode()
        finally:
            machine.kill()
            machine.wait()
            if machine.stderr:
                machine.stderr.close()
        shown = console.read_text(errors="replace") if console.exists() else ""
        printed, mark, status = (output.read_bytes() if output.exists() else b"").rpartition(_END)
        if not mark:
            raise MachineError(
                f"Linux {kernel.release}: {shlex.join(command)} did not end: {said.decode(errors='replace')}\n"
                f"{shown[-3000:]}"
            )
        return Finished(int(status), printed, shown, time.monotonic() - begun)
