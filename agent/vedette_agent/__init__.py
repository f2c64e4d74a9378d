"""The agent: eBPF programs, loader, spool and sender; one per node."""
