"""Threat lists from files: addresses, networks, domains and SHA-256 digests.

A list is a ``.txt`` or ``.csv`` file in the lists' folder, one entry a line, ``entry`` or ``entry,threat name``:
an IPv4 or IPv6 address, a network (``198.51.100.0/24``), a domain (which covers its subdomains; ``*.`` before it is
allowed) or a SHA-256 in hex. Blank lines and ``#`` comments are skipped. Comments before the first entry may describe
the list::

    # name: Example C2 servers
    # threat: Example botnet
    # trusted: true

``trusted`` makes it a list of what never counts as a threat: it wins over all others. A bad line is reported with
file and line and does not stop the rest. IP membership of a whole column is decided in numpy, names by a sorted table
of FNV-1a hashes that the C prefilter searches; both may let too much through, `lookup_ip` and `lookup_domain` decide.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Address = str | bytes | ipaddress.IPv4Address | ipaddress.IPv6Address

_SUFFIXES = (".txt", ".csv")
_MAX_ERRORS_PER_FILE = 100
_SHA256 = re.compile(r"[0-9a-fA-F]{64}\Z")
_DOMAIN = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9][a-z0-9-]{0,61}[a-z0-9]\Z")
_NUMERIC = re.compile(r"[0-9./]+\Z")
_METADATA = re.compile(r"#\s*(name|threat|trusted|description)\s*:\s*(.*)\Z", re.IGNORECASE)
_MAPPED_WORD = 0xFFFF0000  # ::ffff:a.b.c.d has 0000ffff as third word; a little-endian load of it gives this


@dataclass(frozen=True)
class ThreatListError:
    """What is wrong with one line of a list, or with a whole file (line 0)."""

    file: str
    line: int
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message} ({self.reason})"


@dataclass(frozen=True)
class ThreatList:
    """One list as loaded."""

    name: str
    file: str
    threat: str
    trusted: bool
    entries: int


@dataclass(frozen=True)
class ThreatMatch:
    """Why something is a threat: the entry that covers it and the list that the entry is from."""

    list_name: str
    threat_name: str
    entry: str
    kind: str


@dataclass
class _Entries:
    """Entries of trusted or of threat lists; values index `ThreatLists.labels`."""

    networks: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)  # (version, prefix length)
    domains: dict[bytes, int] = field(default_factory=dict)
    digests: dict[bytes, int] = field(default_factory=dict)

    def find_ip(self, version: int, value: int) -> tuple[int, int, int] | None:
        """(prefix length, network, label) of the longest network that holds the address."""
        width = 32 if version == 4 else 128
        for (v, prefix), networks in self.networks.items():
            if v != version:
                continue
            network = value >> (width - prefix) << (width - prefix)
            label = networks.get(network)
            if label is not None:
                return prefix, network, label
        return None

    def find_domain(self, name: bytes) -> tuple[bytes, int] | None:
        """(entry, label) of the name or the nearest of its parents."""
        at = 0
        while True:
            label = self.domains.get(name[at:])
            if label is not None:
                return name[at:], label
            dot = name.find(b".", at)
            if dot < 0:
                return None
            at = dot + 1


class ThreatLists:
    """All lists of some folders, ready for lookups. Picklable."""

    def __init__(self) -> None:
        self.lists: list[ThreatList] = []
        self.errors: list[ThreatListError] = []
        self.labels: list[tuple[str, str]] = []
        self._threats = _Entries()
        self._trusted = _Entries()
        self.signature: tuple[tuple[str, int, int], ...] = ()
        self._finish()

    @classmethod
    def load(cls, *folders: str | Path) -> ThreatLists:
        """Load every list of the folders; no folder, or a missing one, gives empty lists."""
        out = cls()
        out.signature = signature(*folders)
        for path, _, _ in out.signature:
            out._read(Path(path))
        out._finish()
        return out

    @classmethod
    def of(cls, entries: Iterable[str], name: str = "given", trusted: Iterable[str] = ()) -> ThreatLists:
        """One list of given entries, for tests.

        Raises:
            ValueError: an entry is none.
        """
        out = cls()
        out.labels.append((name, name))
        for target, texts in ((out._threats, entries), (out._trusted, trusted)):
            for text in texts:
                problem = _add(target, text, 0)
                if problem is not None:
                    raise ValueError(problem[1])
        out._finish()
        return out

    # -- lookups ---------------------------------------------------------------------------------------------------

    def lookup_ip(self, address: Address) -> ThreatMatch | None:
        """The threat that an address is, or None. Bytes are 4 or 16 in network order; mapped IPv4 counts as IPv4."""
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return None
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        found = self._threats.find_ip(ip.version, int(ip))
        if found is None or self._trusted.find_ip(ip.version, int(ip)) is not None:
            return None
        prefix, network, label = found
        entry = str(
            ipaddress.ip_network((network, prefix)) if ip.version == 4 else ipaddress.IPv6Network((network, prefix))
        )
        width = 32 if ip.version == 4 else 128
        return self._match(label, entry.split("/")[0] if prefix == width else entry, "ip")

    def lookup_domain(self, name: str | bytes) -> ThreatMatch | None:
        """The threat that a name or a parent domain of it is, or None."""
        raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        raw = raw.lower().rstrip(b".")
        found = self._threats.find_domain(raw)
        if found is None or self._trusted.find_domain(raw) is not None:
            return None
        return self._match(found[1], found[0].decode("ascii", "replace"), "domain")

    def lookup_sha256(self, digest: str | bytes) -> ThreatMatch | None:
        """The threat that a file digest (hex text or 32 bytes) is, or None."""
        raw = bytes.fromhex(digest) if isinstance(digest, str) else digest
        label = self._threats.digests.get(raw)
        if label is None or raw in self._trusted.digests:
            return None
        return self._match(label, raw.hex(), "sha256")

    def _match(self, label: int, entry: str, kind: str) -> ThreatMatch:
        name, threat = self.labels[label]
        return ThreatMatch(name, threat, entry, kind)

    # -- prefilter -------------------------------------------------------------------------------------------------

    def match_ips(self, family: Array, raddr: Array) -> Array:
        """Which addresses may be threats: a superset of what `lookup_ip` finds.

        Args:
            family: address families, shape (N,).
            raddr: addresses, shape (N, 4), uint32 words in network byte order.

        Returns:
            bool array, shape (N,).
        """
        out = np.zeros(len(family), dtype=bool)
        v6 = family == 10
        any_v6 = bool(v6.any())
        if len(self._v4_starts):
            v4 = family == 2
            if any_v6:
                v4 |= v6 & (raddr[:, 0] == 0) & (raddr[:, 1] == 0) & (raddr[:, 2] == _MAPPED_WORD)
            out |= v4 & _in_ranges(raddr[:, 3].byteswap(), self._v4_starts, self._v4_ends)
        if any_v6 and len(self._v6_starts):
            high = (raddr[:, 0].byteswap().astype(np.uint64) << np.uint64(32)) | raddr[:, 1].byteswap()
            out |= v6 & _in_ranges(high, self._v6_starts, self._v6_ends)
        return out

    @property
    def has_ips(self) -> bool:
        """Whether any list names an address or network."""
        return bool(len(self._v4_starts) or len(self._v6_starts))

    @property
    def domain_hashes(self) -> Array:
        """Sorted FNV-1a hashes of the domains, uint64, shape (D,)."""
        return self._domain_hashes

    # -- loading ---------------------------------------------------------------------------------------------------

    def _read(self, path: Path) -> None:
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as e:
            self.errors.append(ThreatListError(str(path), 0, "Unreadable", f"cannot be read: {e.strerror}"))
            return
        except UnicodeDecodeError as e:
            self.errors.append(ThreatListError(str(path), 0, "NotText", f"is not UTF-8 text: {e.reason}"))
            return
        lines = text.splitlines()
        name, threat, trusted = path.stem, "", False
        for line in lines:
            if not line.strip():
                continue
            found = _METADATA.match(line.strip())
            if found:
                key, value = found.group(1).lower(), found.group(2).strip()
                if key == "name":
                    name = value
                elif key == "threat":
                    threat = value
                elif key == "trusted":
                    trusted = value.lower() in ("true", "yes", "1")
            elif not line.lstrip().startswith("#"):
                break
        entries = self._trusted if trusted else self._threats
        labels: dict[str, int] = {}
        count = bad = 0
        seen_entry = False
        for number, line in enumerate(lines, 1):
            entry = line.split("#", 1)[0].strip()
            if not entry:
                continue
            own = threat
            if "," in entry:
                entry, _, rest = entry.partition(",")
                entry, own = entry.strip().strip('"'), rest.split(",")[0].strip().strip('"') or threat
            label = labels.get(own)
            if label is None:
                label = labels[own] = len(self.labels)
                self.labels.append((name, own or name))
            problem = _add(entries, entry, label)
            if problem is None:
                count += 1
                seen_entry = True
                continue
            if path.suffix == ".csv" and not seen_entry and bad == 0 and re.fullmatch(r"[A-Za-z_ ]+", entry):
                seen_entry = True  # the header line of a table
                continue
            bad += 1
            if bad <= _MAX_ERRORS_PER_FILE:
                self.errors.append(ThreatListError(str(path), number, problem[0], problem[1]))
        if bad > _MAX_ERRORS_PER_FILE:
            more = bad - _MAX_ERRORS_PER_FILE
            self.errors.append(ThreatListError(str(path), 0, "TooManyErrors", f"{more} further bad lines not shown"))
        self.lists.append(ThreatList(name, str(path), threat, trusted, count))

    def _finish(self) -> None:
        # Longest prefix first, so that a lookup names the most specific entry.
        for entries in (self._threats, self._trusted):
            entries.networks = dict(sorted(entries.networks.items(), key=lambda item: -item[0][1]))
        v4: list[tuple[int, int]] = []
        v6: list[tuple[int, int]] = []
        for (version, prefix), networks in self._threats.networks.items():
            if version == 4:
                last = (1 << (32 - prefix)) - 1
                v4 += [(network, network | last) for network in networks]
            else:
                last = (1 << (64 - prefix)) - 1 if prefix < 64 else 0
                v6 += [(network >> 64, (network >> 64) | last) for network in networks]
        self._v4_starts, self._v4_ends = _ranges(v4, np.uint32)
        self._v6_starts, self._v6_ends = _ranges(v6, np.uint64)
        self._domain_hashes = np.unique(fnv1a(list(self._threats.domains)))


def signature(*folders: str | Path) -> tuple[tuple[str, int, int], ...]:
    """(path, mtime in ns, size) of every list in the folders: changes when any list does."""
    out = []
    for root in map(Path, folders):
        for path in sorted(root.rglob("*")) if root.is_dir() else []:
            # A mounted ConfigMap is a folder of links into a folder `..2026_…` beside them: one of the two is enough.
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.suffix.lower() in _SUFFIXES and not hidden:
                try:
                    stat = path.stat()
                except OSError:
                    continue
                if path.is_file():
                    out.append((str(path), stat.st_mtime_ns, stat.st_size))
    return tuple(out)


def fnv1a(names: Sequence[bytes]) -> Array:
    """64-bit FNV-1a of each name (http://www.isthe.com/chongo/tech/comp/fnv/), uint64, shape (N,)."""
    out = np.full(len(names), 0xCBF29CE484222325, dtype=np.uint64)
    lengths = np.fromiter((len(n) for n in names), dtype=np.int64, count=len(names))
    prime = np.uint64(0x100000001B3)
    for length in np.unique(lengths).tolist():
        if length == 0:
            continue
        at = np.flatnonzero(lengths == length)
        block = np.frombuffer(b"".join(names[i] for i in at.tolist()), dtype=np.uint8).reshape(len(at), length)
        value = out[at]
        for column in range(length):
            value = (value ^ block[:, column]) * prime
        out[at] = value
    return out


def _add(entries: _Entries, entry: str, label: int) -> tuple[str, str] | None:
    """Enter one entry; (reason, message) if it is none. The first list that names an entry keeps it."""
    if _NUMERIC.match(entry) and "/" not in entry:
        try:
            packed = socket.inet_pton(socket.AF_INET, entry)
        except OSError:
            return "BadAddress", f"{entry!r} is not an IPv4 address"
        entries.networks.setdefault((4, 32), {}).setdefault(int.from_bytes(packed, "big"), label)
        return None
    if "/" in entry or ":" in entry:
        try:
            network = ipaddress.ip_network(entry)
        except ValueError as e:
            return "BadNetwork", str(e)
        entries.networks.setdefault((network.version, network.prefixlen), {}).setdefault(
            int(network.network_address), label
        )
        return None
    if _SHA256.match(entry):
        entries.digests.setdefault(bytes.fromhex(entry), label)
        return None
    name = entry.lower().removeprefix("*.").rstrip(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return "BadDomain", f"{entry!r} is not a domain name"
    if len(name) > 253 or not _DOMAIN.match(name):
        return "BadEntry", f"{entry!r} is neither an address, a network, a domain nor a SHA-256"
    entries.domains.setdefault(name.encode("ascii"), label)
    return None


def _ranges(pairs: Iterable[tuple[int, int]], kind: type[np.unsignedinteger[Any]]) -> tuple[Array, Array]:
    """Sorted, disjoint ranges."""
    starts: list[int] = []
    ends: list[int] = []
    for start, end in sorted(pairs):
        if ends and start <= ends[-1] + 1:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)
    return np.array(starts, dtype=kind), np.array(ends, dtype=kind)


def _in_ranges(values: Array, starts: Array, ends: Array) -> Array:
    at = np.searchsorted(starts, values.astype(starts.dtype), "right") - 1
    return np.asarray((at >= 0) & (values <= ends[np.maximum(at, 0)]))
