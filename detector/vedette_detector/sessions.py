"""Which sessions the detector remembers, bounded for each node and in all.

A session is one load of an agent's programs, so an agent that crashes again and again begins one after another, and a
hostile one begins as many as it likes. Three circles, from near to far:

    accounts   the whole account of a session; ``PER_NODE`` of each node, ``TOTAL`` in all
    folded     only the last sequence number, so that what comes again is not applied again and the journal knows what
               was applied; the rest of the account is in the node's sums
    sums       one row for each node, with all sessions that have no account any more

The newest session of a node always keeps its account. When there are too many in all, the node with the most gives up
its oldest, so that one node cannot take the accounts of the others.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vedette_detector.journal import SessionKey
from vedette_detector.ledger import FORGOTTEN, Account, Totals

PER_NODE = 200
"""Accounts of one node."""
TOTAL = 20_000
"""Accounts of all nodes, unless there are more nodes."""
FOLDED_PER_NODE = 5_000
"""Folded sessions of one node whose last sequence number is remembered."""
FOLDED_TOTAL = 100_000


@dataclass(frozen=True)
class Plan:
    """What is to go with the next transaction: accounts that are folded, folded sessions that are forgotten."""

    fold: Sequence[Account] = ()
    forget: Sequence[SessionKey] = ()


class Sessions:
    """The sessions of all nodes, as the database holds them."""

    def __init__(
        self,
        accounts: Iterable[Account] = (),
        folded: Mapping[SessionKey, int] | None = None,
        totals: Mapping[str, Totals] | None = None,
    ) -> None:
        """Take what the database has; ``folded`` in the order in which it was folded."""
        self.accounts: dict[SessionKey, Account] = {}
        self.newest: dict[str, Account] = {}
        """Each node's account that changed last."""
        self.totals: dict[str, Totals] = dict(totals or {})
        self._of_node: dict[str, dict[SessionKey, None]] = {}
        self._folded: dict[str, dict[SessionKey, int]] = {}
        self._folded_count = 0
        for account in sorted(accounts, key=lambda a: a.last_at_ns):
            self._put(account)
        for key, last in (folded or {}).items():
            self._put_folded(key, last)

    def _put(self, account: Account) -> None:
        key = key_of(account)
        self.accounts[key] = self.newest[account.node] = account
        self._of_node.setdefault(account.node, {})[key] = None
        # A folded session that goes on has an account again.
        if self._folded.get(account.node, {}).pop(key, None) is not None:
            self._folded_count -= 1

    def _put_folded(self, key: SessionKey, last: int) -> None:
        of_node = self._folded.setdefault(key[0], {})
        self._folded_count += key not in of_node
        of_node[key] = last

    def of_node(self, node: str) -> list[Account]:
        """The accounts of a node, those that changed last at the end."""
        return sorted((self.accounts[k] for k in self._of_node.get(node, ())), key=lambda a: a.last_at_ns)

    def before(self, key: SessionKey, changed: Mapping[SessionKey, Account]) -> Account | None:
        """The session before a new one: the last of the same boot, else the node's newest (of another boot)."""
        node, boot_id, session = key
        keys = [k for k in (*self._of_node.get(node, ()), *changed) if k[:2] == (node, boot_id) and k[2] < session]
        if keys:
            last = max(keys, key=lambda k: k[2])
            return changed.get(last) or self.accounts[last]
        newest = self.newest.get(node)
        mine = [a for k, a in changed.items() if k[0] == node]
        other = mine[-1] if mine else newest
        return other if other is not None and other.boot_id != boot_id else None

    def folded(self, key: SessionKey) -> int | None:
        """Last sequence number of a session that has no account any more; None when it is not known."""
        return self._folded.get(key[0], {}).get(key)

    def last_sequence(self, key: SessionKey) -> int:
        """Last sequence number applied of a session; 0 when it is not known."""
        account = self.accounts.get(key)
        return account.last_sequence if account is not None else self.folded(key) or 0

    def applied(self) -> dict[SessionKey, int]:
        """Last sequence number applied of every session that is known."""
        result = {key: last for of_node in self._folded.values() for key, last in of_node.items()}
        result.update((key, account.last_sequence) for key, account in self.accounts.items())
        return result

    def plan(self, changed: Mapping[SessionKey, Account]) -> Plan:
        """What must go for ``changed`` to fit in; nothing is changed yet."""
        new = [key for key in changed if key not in self.accounts]
        if not new:
            return Plan()
        newest = {account.node: key_of(account) for account in changed.values()}
        of_node: dict[str, list[Account]] = {}
        fold: dict[SessionKey, Account] = {}

        def accounts(node: str) -> list[Account]:
            if node not in of_node:
                keys = [*self._of_node.get(node, ()), *(k for k in new if k[0] == node)]
                found = sorted((changed.get(k) or self.accounts[k] for k in keys), key=lambda a: a.last_at_ns)
                kept = newest.get(node) or key_of(self.newest[node])
                of_node[node] = [a for a in found if key_of(a) != kept]
            return of_node[node]

        def give_up(node: str, count: int) -> None:
            rest = accounts(node)
            for account in rest[:count]:
                fold[key_of(account)] = account
            of_node[node] = rest[count:]

        for node in dict.fromkeys(key[0] for key in new):
            give_up(node, max(0, len(accounts(node)) + 1 - PER_NODE))
        excess = len(self.accounts) + len(new) - len(fold) - TOTAL
        if excess > 0:
            counts = {node: len(keys) for node, keys in self._of_node.items()}
            counts.update((node, len(accounts(node)) + 1) for node in of_node)
            for node, count in _from_the_largest(counts, excess, 1).items():
                accounts(node)
                give_up(node, count)
        return Plan(list(fold.values()), self._too_many_folded(fold))

    def _too_many_folded(self, fold: Collection[SessionKey]) -> list[SessionKey]:
        adding: dict[str, list[SessionKey]] = {}
        for key in fold:
            adding.setdefault(key[0], []).append(key)
        if not adding:
            return []
        counts = {node: len(keys) for node, keys in self._folded.items()}
        going: dict[str, int] = {}
        for node, keys in adding.items():
            count = counts.get(node, 0) + len(keys)
            going[node] = max(0, count - FOLDED_PER_NODE)
            counts[node] = count - going[node]
        for node, count in _from_the_largest(counts, sum(counts.values()) - FOLDED_TOTAL, 0).items():
            going[node] = going.get(node, 0) + count
        return [
            key for node, count in going.items() for key in [*self._folded.get(node, {}), *adding.get(node, [])][:count]
        ]

    def commit(self, changed: Mapping[SessionKey, Account], plan: Plan) -> None:
        """Do what the database has done."""
        for account in changed.values():
            self._put(account)
        for account in plan.fold:
            self.fold(account)
        for key in plan.forget:
            if self._folded.get(key[0], {}).pop(key, None) is not None:
                self._folded_count -= 1
                if not self._folded[key[0]]:
                    del self._folded[key[0]]

    def fold(self, account: Account) -> None:
        """Move an account into its node's sums."""
        key = key_of(account)
        self.accounts.pop(key, None)
        self._of_node.get(account.node, {}).pop(key, None)
        self._put_folded(key, account.last_sequence)
        self.totals[account.node] = self.totals.get(account.node, Totals(account.node)).plus(account)

    def forget(self, node: str) -> None:
        """Move a node's sums to those of the nodes that were forgotten; last sequence numbers stay."""
        for account in self.of_node(node):
            self.fold(account)
        self.newest.pop(node, None)
        self._of_node.pop(node, None)
        sums = self.totals.pop(node, None)
        if sums is not None:
            self.totals[FORGOTTEN] = self.totals.get(FORGOTTEN, Totals(FORGOTTEN)).plus(sums)

    def recount(self, account: Account) -> None:
        """Replace an account whose place in the order does not change."""
        self.accounts[key_of(account)] = account
        if key_of(self.newest[account.node]) == key_of(account):
            self.newest[account.node] = account

    def remember_only(self, folded: Mapping[SessionKey, int]) -> None:
        """Take what the database has kept of the folded sessions."""
        self._folded, self._folded_count = {}, 0
        for key, last in folded.items():
            self._put_folded(key, last)

    def older_than(self, before_ns: int) -> list[Account]:
        """Accounts that have not changed since, each node's newest left out."""
        newest = {key_of(a) for a in self.newest.values()}
        return [a for k, a in self.accounts.items() if a.last_at_ns < before_ns and k not in newest]


def _from_the_largest(counts: Mapping[str, int], excess: int, at_least: int) -> dict[str, int]:
    """How many each node gives up so that ``excess`` go: always whoever has the most, down to ``at_least``. Pure."""
    heap = [(-count, node) for node, count in counts.items() if count > at_least] if excess > 0 else []
    heapq.heapify(heap)
    going: dict[str, int] = {}
    while excess > 0 and heap:
        count, node = heapq.heappop(heap)
        going[node], excess = going.get(node, 0) + 1, excess - 1
        if -count - 1 > at_least:
            heapq.heappush(heap, (count + 1, node))
    return going


def key_of(account: Account) -> SessionKey:
    """What names a session for ever."""
    return (account.node, account.boot_id, account.session)
