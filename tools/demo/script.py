"""What the demo shows: behaviours of the catalogue, in this order, each with one line for a person."""

from __future__ import annotations

ATTACKS: tuple[tuple[str, str], ...] = (
    (
        "reverse-shell-mkfifo-nc",
        "A shell whose pipes lead, through a FIFO and netcat, to an attacker: no socket touches the shell.",
    ),
    ("reverse-shell-python-pty", "Python connects out and hands the attacker a shell on a pseudo-terminal."),
    ("reverse-shell-bash-renamed", "On the host: a copy of bash under an innocent name, descriptors on /dev/tcp."),
    ("new-binary-downloaded", "A program that was not in the image is fetched, made executable and run."),
    ("fileless-memfd", "A program runs from memory; no file of it ever existed on a disk."),
    ("inject-proc-mem", "One process writes code into another through /proc/PID/mem."),
    ("inject-attach-poketext", "The same with a debugger's calls: ptrace attach and poketext."),
    ("inject-vm-write", "The same with process_vm_writev."),
    ("anti-debugging", "A program traces itself so that no debugger can."),
    ("module-host", "Somebody loads a kernel module from a temporary directory."),
    ("socket-docker", "A container talks to the Docker socket: whoever controls it controls the host."),
    ("runc-written", "A container opens the host's runc for writing (CVE-2019-5736's way out)."),
    ("release-agent", "A container writes cgroup v1's release_agent: the kernel would run it on the host."),
    ("mount-device", "A container mounts the host's disk."),
    ("userfaultfd", "A container uses userfaultfd, which widens race windows in kernel exploits."),
    ("miner-renamed", "A renamed crypto miner, recognised by how it is called."),
    ("tool-nmap", "A network scanner runs in a container."),
    ("c2-tcp", "A connection to an address on your threat list."),
    ("c2-dns", "A DNS query for a domain on your threat list, seen on the wire."),
)

ORDINARY: tuple[tuple[str, str], ...] = (
    ("ordinary-pipeline", "Shell pipes and redirections, as scripts do all day."),
    ("ordinary-bash-http-client", "A health check in bash by /dev/tcp: a connection, but no shell on it."),
    ("ordinary-binary-host-compile", "A developer compiles a program on the host."),
    ("ordinary-fileless-runc", "runc runs itself from memory: container engines do."),
)
"""What looks alike and must stay quiet."""

IN_PODS: tuple[tuple[str, str], ...] = (
    ("reverse-shell-python-pty", "Python in a pod connects out and hands the attacker a shell on a pseudo-terminal."),
    ("new-binary-downloaded", "A program that was not in the image is fetched, made executable and run."),
    ("fileless-memfd", "A program runs from memory; no file of it ever existed on a disk."),
    ("inject-proc-mem", "One process writes code into another through /proc/PID/mem."),
    ("release-agent", "A privileged pod writes cgroup v1's release_agent: the kernel would run it on the node."),
    ("miner-renamed", "A renamed crypto miner, recognised by how it is called."),
    ("c2-tcp", "A connection to an address on your threat list."),
    ("ordinary-pipeline", "Shell pipes and redirections, as scripts do all day."),
    ("ordinary-bash-http-client", "A health check in bash by /dev/tcp: a connection, but no shell on it."),
)
"""What the demo in a cluster plays, attacks first."""
