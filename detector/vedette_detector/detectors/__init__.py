"""Detectors in Python: what must look back into history to decide. What can be said statelessly is a rule file.

`ALL_DETECTORS` is what the engine runs; each is one class with its metadata and its own tests (`Detector`).
"""

from vedette_detector.detectors.command_and_control import ListedAddress, ListedDomain
from vedette_detector.detectors.detector import Detector
from vedette_detector.detectors.fileless import FilelessExecution
from vedette_detector.detectors.host_mounts import ContainerMountsHostDirectory
from vedette_detector.detectors.kernel_module import KernelModuleLoaded
from vedette_detector.detectors.new_binary import NewBinaryExecuted
from vedette_detector.detectors.process_injection import (
    ProcMemoryWrite,
    PtraceAntiDebugging,
    PtraceInjection,
    VirtualMemoryWrite,
)
from vedette_detector.detectors.reverse_shell import ReverseShell
from vedette_detector.detectors.runc_escape import LeakedDirectory, RuncBinaryWritten

ALL_DETECTORS: tuple[Detector, ...] = (
    ContainerMountsHostDirectory(),
    FilelessExecution(),
    KernelModuleLoaded(),
    LeakedDirectory(),
    ListedAddress(),
    ListedDomain(),
    NewBinaryExecuted(),
    ProcMemoryWrite(),
    PtraceAntiDebugging(),
    PtraceInjection(),
    ReverseShell(),
    RuncBinaryWritten(),
    VirtualMemoryWrite(),
)

__all__ = ["ALL_DETECTORS", "Detector"]
