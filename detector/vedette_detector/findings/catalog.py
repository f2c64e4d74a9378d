"""The finding types of GuardDuty's Runtime Monitoring, all 46: severity, title and what they aggregate by.

Names and severities are GuardDuty's (docs.aws.amazon.com/guardduty/latest/ug/findings-runtime-monitoring.html).
Titles, descriptions and aggregation keys are Vedette's own; GuardDuty does not publish its keys. A rule's or
detector's own title and description come before the ones here.
"""

from __future__ import annotations

from dataclasses import dataclass

LOW, MEDIUM, HIGH = 2.0, 5.0, 8.0


@dataclass(frozen=True)
class FindingType:
    """One finding type.

    Attributes:
        severity: default; types with variable severity get theirs from the rule.
        title: shown where the detection brings none; ``{process}`` is the process's name, ``{where}`` the resource.
        key: what a finding aggregates by beside its type and resource, in words.
        variable: whether GuardDuty documents the severity as variable.
    """

    name: str
    severity: float
    title: str
    key: str
    variable: bool = False


_NETWORK_KEY = "remote address, executable path"
_DNS_KEY = "domain as listed, executable path"
_COMMAND_KEY = "rule, executable path"
_FILE_KEY = "file path, operation, executable path"
_TARGET_KEY = "executable path, target's executable path"

_TYPES: tuple[FindingType, ...] = (
    FindingType(
        "CryptoCurrency:Runtime/BitcoinTool.B", HIGH, "{process} talks to a cryptocurrency address.", _NETWORK_KEY
    ),
    FindingType(
        "Backdoor:Runtime/C&CActivity.B", HIGH, "{process} talks to a command and control server.", _NETWORK_KEY
    ),
    FindingType("UnauthorizedAccess:Runtime/TorRelay", HIGH, "{process} acts as a Tor relay.", _NETWORK_KEY),
    FindingType("UnauthorizedAccess:Runtime/TorClient", HIGH, "{process} connects to the Tor network.", _NETWORK_KEY),
    FindingType("Trojan:Runtime/BlackholeTraffic", MEDIUM, "{process} talks to a black hole address.", _NETWORK_KEY),
    FindingType("Trojan:Runtime/DropPoint", MEDIUM, "{process} talks to a known drop point.", _NETWORK_KEY),
    FindingType(
        "CryptoCurrency:Runtime/BitcoinTool.B!DNS", HIGH, "{process} looks up a cryptocurrency domain.", _DNS_KEY
    ),
    FindingType(
        "Backdoor:Runtime/C&CActivity.B!DNS", HIGH, "{process} looks up a command and control domain.", _DNS_KEY
    ),
    FindingType("Trojan:Runtime/BlackholeTraffic!DNS", MEDIUM, "{process} looks up a black hole domain.", _DNS_KEY),
    FindingType("Trojan:Runtime/DropPoint!DNS", MEDIUM, "{process} looks up a drop point domain.", _DNS_KEY),
    FindingType("Trojan:Runtime/DGADomainRequest.C!DNS", HIGH, "{process} looks up a generated domain.", _DNS_KEY),
    FindingType(
        "Trojan:Runtime/DriveBySourceTraffic!DNS", HIGH, "{process} looks up a drive-by download domain.", _DNS_KEY
    ),
    FindingType("Trojan:Runtime/PhishingDomainRequest!DNS", HIGH, "{process} looks up a phishing domain.", _DNS_KEY),
    FindingType(
        "Impact:Runtime/AbusedDomainRequest.Reputation", MEDIUM, "{process} looks up an abused domain.", _DNS_KEY
    ),
    FindingType(
        "Impact:Runtime/BitcoinDomainRequest.Reputation", HIGH, "{process} looks up a cryptocurrency domain.", _DNS_KEY
    ),
    FindingType(
        "Impact:Runtime/MaliciousDomainRequest.Reputation", HIGH, "{process} looks up a malicious domain.", _DNS_KEY
    ),
    FindingType(
        "Impact:Runtime/SuspiciousDomainRequest.Reputation", LOW, "{process} looks up a suspicious domain.", _DNS_KEY
    ),
    FindingType(
        "UnauthorizedAccess:Runtime/MetadataDNSRebind",
        HIGH,
        "{process} looked up a name that leads to the instance metadata service.",
        "domain, executable path",
    ),
    FindingType(
        "Execution:Runtime/NewBinaryExecuted",
        MEDIUM,
        "A new or changed binary was executed in {where}.",
        "executable path, executable path of the modifying process",
    ),
    FindingType(
        "PrivilegeEscalation:Runtime/DockerSocketAccessed",
        MEDIUM,
        "{process} accessed a container runtime's socket.",
        "socket path, executable path",
    ),
    FindingType(
        "PrivilegeEscalation:Runtime/RuncContainerEscape",
        HIGH,
        "An attempt to escape from {where} through runc.",
        "technique, executable path",
    ),
    FindingType(
        "PrivilegeEscalation:Runtime/CGroupsReleaseAgentModified",
        HIGH,
        "{process} changed a cgroup release_agent file.",
        "release_agent path, executable path",
    ),
    FindingType(
        "DefenseEvasion:Runtime/ProcessInjection.Proc",
        HIGH,
        "{process} wrote to another process's memory through /proc.",
        _TARGET_KEY,
    ),
    FindingType(
        "DefenseEvasion:Runtime/ProcessInjection.Ptrace",
        MEDIUM,
        "{process} changed another process with ptrace.",
        _TARGET_KEY,
    ),
    FindingType(
        "DefenseEvasion:Runtime/ProcessInjection.VirtualMemoryWrite",
        HIGH,
        "{process} wrote directly to another process's memory.",
        _TARGET_KEY,
    ),
    FindingType(
        "Execution:Runtime/ReverseShell",
        HIGH,
        "A reverse shell runs in {where}.",
        "executable path, remote address and port",
    ),
    FindingType(
        "DefenseEvasion:Runtime/FilelessExecution",
        MEDIUM,
        "{process} was executed from memory.",
        "executable path, parent's executable path",
    ),
    FindingType(
        "Impact:Runtime/CryptoMinerExecuted", HIGH, "A cryptocurrency miner was executed in {where}.", "executable path"
    ),
    FindingType(
        "Execution:Runtime/NewLibraryLoaded",
        MEDIUM,
        "{process} loaded a new or changed library.",
        "library path, executable path",
    ),
    FindingType(
        "PrivilegeEscalation:Runtime/ContainerMountsHostDirectory",
        MEDIUM,
        "{process} tried to mount a host file system in {where}.",
        "mount source, mount target, executable path",
    ),
    FindingType(
        "PrivilegeEscalation:Runtime/UserfaultfdUsage", MEDIUM, "{process} used userfaultfd.", "executable path"
    ),
    FindingType(
        "Execution:Runtime/SuspiciousTool",
        MEDIUM,
        "A suspicious tool was executed in {where}.",
        "tool name, executable path",
        variable=True,
    ),
    FindingType(
        "Execution:Runtime/SuspiciousCommand",
        MEDIUM,
        "A suspicious command was executed in {where}.",
        _COMMAND_KEY,
        variable=True,
    ),
    FindingType(
        "DefenseEvasion:Runtime/SuspiciousCommand",
        MEDIUM,
        "A command that weakens defences was executed in {where}.",
        _COMMAND_KEY,
        variable=True,
    ),
    FindingType(
        "DefenseEvasion:Runtime/PtraceAntiDebugging",
        LOW,
        "{process} used ptrace to keep debuggers away.",
        "executable path",
    ),
    FindingType(
        "Execution:Runtime/MaliciousFileExecuted",
        HIGH,
        "A known malicious file was executed in {where}.",
        "SHA-256 of the file",
    ),
    FindingType(
        "Execution:Runtime/MaliciousFileExecuted.Custom",
        HIGH,
        "A file on your own threat list was executed in {where}.",
        "SHA-256 of the file",
    ),
    FindingType(
        "Execution:Runtime/SuspiciousShellCreated",
        LOW,
        "A network service started an interactive shell in {where}.",
        "executable path, parent's executable path",
    ),
    FindingType(
        "PrivilegeEscalation:Runtime/ElevationToRoot",
        MEDIUM,
        "{process} became root in an unusual way.",
        "executable path, user id before",
    ),
    FindingType(
        "Discovery:Runtime/SuspiciousCommand", LOW, "A discovery command was executed in {where}.", _COMMAND_KEY
    ),
    FindingType(
        "Persistence:Runtime/SuspiciousCommand",
        MEDIUM,
        "A command that sets up persistence was executed in {where}.",
        _COMMAND_KEY,
    ),
    FindingType(
        "PrivilegeEscalation:Runtime/SuspiciousCommand",
        MEDIUM,
        "A command that seeks higher privileges was executed in {where}.",
        _COMMAND_KEY,
    ),
    FindingType(
        "DefenseEvasion:Runtime/KernelModuleLoaded",
        HIGH,
        "{process} loaded a kernel module.",
        "module name or path, executable path",
    ),
    FindingType(
        "Persistence:Runtime/SensitiveFileModified",
        MEDIUM,
        "{process} changed a file that gives persistence.",
        _FILE_KEY,
    ),
    FindingType(
        "PrivilegeEscalation:Runtime/SensitiveFileModified",
        MEDIUM,
        "{process} changed a file that grants privileges.",
        _FILE_KEY,
    ),
    FindingType(
        "DefenseEvasion:Runtime/SensitiveFileModified", MEDIUM, "{process} changed logs or audit settings.", _FILE_KEY
    ),
)

BY_NAME: dict[str, FindingType] = {t.name: t for t in _TYPES}


def lookup(name: str) -> FindingType:
    """The type called ``name``; for a user's own type one with the defaults."""
    found = BY_NAME.get(name)
    return found or FindingType(name, MEDIUM, "{process} matched a rule in {where}.", _COMMAND_KEY, variable=True)
