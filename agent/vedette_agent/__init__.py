"""The agent: eBPF programs, loader, spool and sender; one per node."""

__version__ = "0.1.0"
