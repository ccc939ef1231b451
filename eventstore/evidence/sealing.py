"""Sealer: makes seals over what was appended since the last one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from eventstore.backend import Removal, StoredSeal
from eventstore.errors import JournalCorrupt, SealRefused
from eventstore.evidence.leaves import Leaf, leaf_of, pack_leaves
from eventstore.evidence.merkle import MerkleTree
from eventstore.evidence.seals import (
    NO_SEAL,
    Seal,
    SealedRemovals,
    Statement,
    digest_of,
    pack_removals,
    parse_stored,
    sign,
)
from eventstore.evidence.signing import SigningKey
from eventstore.store import EventStore

DEFAULT_EVERY = 10_000
"""Events of one seal, at most."""

MOST_EVENTS = 100_000
"""More are not sealed at once: a seal's list of leaves is one value in the database."""

# Truncations of one seal, at most.
_REMOVALS = 1000
_PAGE = 500


class Sealer:
    """Makes seals, each of at most `every` events, with one key.

    Any number of sealers may work on one journal: the database takes one seal of each number, and who comes second goes
    on from the first. A seal is stored in one step, whatever becomes of its maker.
    """

    def __init__(self, store: EventStore, key: SigningKey, *, every: int = DEFAULT_EVERY) -> None:
        if not 1 <= every <= MOST_EVENTS:
            raise ValueError(f"a seal covers 1 to {MOST_EVENTS:,} events, not {every}")
        self._store = store
        self._key = key
        self._every = every

    async def newest(self) -> Seal | None:
        """The newest seal, if this sealer's key may go on from it. Raises `SealRefused`."""
        stored = await self._store.newest_seal()
        if stored is None:
            return None
        try:
            seal = parse_stored(stored)
        except ValueError as error:
            raise SealRefused(
                f"seal {stored.number}, the newest, cannot be read: {error}; nothing was sealed, and nothing can be "
                "until that is as it was: `eventstore audit verify` tells what else was changed"
            ) from error
        if not seal.is_signed:
            raise SealRefused(f"seal {stored.number}, the newest, was changed after it was signed: nothing was sealed")
        if seal.signing_key != self._key.public:
            raise SealRefused(
                f"seal {stored.number}, the newest, is to be followed by one of key {seal.signing_key}, and this is "
                f"{self._key.public}: nothing was sealed; a key is handed over to another one by `--next-key`"
            )
        return seal

    async def seal(self, *, next_key: str | None = None) -> Seal | None:
        """Seal what is settled and not sealed yet, up to the limit. None if there is nothing.

        With a `next_key` there always is: the seal says that the ones after it are signed with that key. So there is
        for the first seal of that one. Raises `SealRefused`, and `JournalCorrupt` for an event that is damaged already:
        nothing was sealed then.
        """
        while True:
            draft = await self._draft(await self.newest(), next_key)
            # False: somebody else has sealed meanwhile. Each time this happens a seal was made.
            if draft is None or await self._store.add_seal(draft.stored):
                return None if draft is None else draft.seal

    async def _draft(self, newest: Seal | None, next_key: str | None) -> _Draft | None:
        last, known = (0, 0) if newest is None else (newest.statement.last, newest.statement.removals.through)
        # First: what is truncated while the events are read is sealed with them, and its record next time.
        removals = await self._removals(known)
        leaves = await self._leaves(last)
        # Who takes over says so at once: until then the new key vouches for nothing.
        takes_over = newest is not None and newest.statement.next_key is not None
        if not leaves and not removals and next_key is None and not takes_over:
            return None
        packed = pack_removals(removals)
        statement = Statement(
            number=1 if newest is None else newest.statement.number + 1,
            first=last + 1,
            last=leaves[-1].position if leaves else last,
            count=len(leaves),
            root=MerkleTree(leaf.hash for leaf in leaves).root().hex(),
            removals=SealedRemovals(
                count=len(removals), digest=digest_of(packed), through=removals[-1].number if removals else known
            ),
            previous=NO_SEAL if newest is None else newest.hash,
            key=self._key.public,
            next_key=next_key,
            sealed_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        )
        seal = sign(statement, self._key)
        stored = StoredSeal(statement.number, statement.encoded(), seal.signature, pack_leaves(leaves), packed)
        return _Draft(seal, stored)

    async def _removals(self, after: int) -> Sequence[Removal]:
        found: list[Removal] = []
        async for removal in self._store.removals(after=after):
            found.append(removal)
            if len(found) == _REMOVALS:
                break
        return found

    async def _leaves(self, after: int) -> Sequence[Leaf]:
        leaves: list[Leaf] = []
        while len(leaves) < self._every:
            page = await self._store.read_page(after=after, limit=min(_PAGE, self._every - len(leaves)))
            for recorded in page.events:
                try:
                    leaves.append(leaf_of(recorded))
                except ValueError as error:
                    raise JournalCorrupt(
                        f"the event at position {recorded.position} cannot be sealed: {error}",
                        stream_id=recorded.stream_id,
                        version=recorded.version,
                        position=recorded.position,
                    ) from error
            after = page.position
            if page.is_end:
                break
        return leaves


class _Draft(NamedTuple):
    seal: Seal
    stored: StoredSeal
