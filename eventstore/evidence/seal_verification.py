"""SealVerification: compares every event with what was sealed of it, and tells where they differ and how."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass

from eventstore.backend import EventFilter, StoredSeal
from eventstore.errors import JournalCorrupt, JournalLost
from eventstore.events import RecordedEvent
from eventstore.evidence.leaves import Leaf, leaf_of, unpack_leaves
from eventstore.evidence.merkle import MerkleTree
from eventstore.evidence.seal_chain import SealChain
from eventstore.evidence.seal_findings import Finding, Found, Sanctioned
from eventstore.evidence.sealed_part import SealedPart
from eventstore.evidence.seals import Seal, Statement
from eventstore.reading.reading_past import PastDamage
from eventstore.store import EventStore

_PAGE = 500
_EVERYTHING = EventFilter()


@dataclass
class Verified:
    """How much was compared. `truncated` events were removed by truncations that were recorded; `sealed` is the
    position through which the log is sealed, `end` that of its end."""

    seals: int = 0
    events: int = 0
    truncated: int = 0
    sealed: int = 0
    end: int = 0
    problems: int = 0


class SealVerification:
    """Reads the seals, then the log, part by part. It holds one seal's list of leaves at a time, one page of events,
    the statements of all seals, and of each stream that was truncated how far.

    Others may append, truncate and seal meanwhile; what they add after the seals were read is not looked at.
    """

    def __init__(
        self,
        store: EventStore,
        public: str,
        *,
        anchor: Seal | None = None,
        on_events: Callable[[int], None] | None = None,
    ) -> None:
        self._store = store
        self._chain = SealChain(store, public, anchor)
        self._on_events = on_events
        self.verified = Verified()

    async def findings(self) -> AsyncGenerator[Finding, None]:
        """Everything that differs: first of the seals, then of the events in the order of the log."""
        async for finding in self._chain.findings():
            yield self._counted(finding)
        self.verified.seals = self._chain.count
        newest = self._chain.newest
        try:
            async for finding in self._parts(newest):
                yield self._counted(finding)
        except JournalLost as error:
            # What stands where the store has just read something else.
            text = f"the log was changed while it was read, or contradicts itself: {error}"
            yield self._counted(Finding(Found.UNREADABLE, None, None, None, text))
            return
        self.verified.end = (await self._store.statistics()).last_position

    async def _parts(self, newest: Statement | None) -> AsyncGenerator[Finding, None]:
        if newest is not None:
            self.verified.sealed = newest.last
            left = dict(self._chain.trusted)
            async for stored in self._store.seals():
                if stored.number > newest.number:
                    break
                if (statement := left.pop(stored.number, None)) is not None:
                    async for finding in self._part(stored, statement):
                        yield finding
            for number, statement in sorted(left.items()):
                text = (
                    f"seal {number} was removed while the journal was verified: positions {statement.first} to "
                    f"{statement.last} were not compared with it"
                )
                yield Finding(Found.SEAL, None, None, None, text)

    def _counted(self, finding: Finding) -> Finding:
        self.verified.problems += finding.is_problem
        return finding

    async def _part(self, stored: StoredSeal, statement: Statement) -> AsyncGenerator[Finding, None]:
        """Compare the events that one seal covers."""
        if stored.statement != statement.encoded():
            text = (
                f"seal {statement.number} was changed while the journal was verified: events are compared with what it "
                "said before"
            )
            yield Finding(Found.SEAL, None, None, None, text)
        leaves = _leaves(stored, statement)
        if leaves is None:
            async for finding in self._as_a_whole(statement):
                yield finding
            return
        part = SealedPart(statement.number, leaves)
        try:
            async for recorded in self._events(statement, part.damaged):
                part.compare(recorded)
        except JournalLost:
            raise
        except JournalCorrupt as error:
            text = f"the log cannot be read behind position {part.position}: {error}"
            yield Finding(Found.UNREADABLE, error.stream_id, error.version, error.position, text, error.tenant)
        else:
            part.end()
        for finding in part.findings(await self._truncated_since(part)):
            yield finding
        self.verified.truncated += part.truncated
        self.verified.events += part.compared

    async def _as_a_whole(self, statement: Statement) -> AsyncGenerator[Finding, None]:
        """The seal's list of leaves is not what was sealed, so that nothing can be located by it."""
        number, first, last = statement.number, statement.first, statement.last
        text = f"the list of leaves of seal {number} was changed"
        tree = MerkleTree()
        unreadable: dict[int, JournalCorrupt] = {}
        try:
            async for recorded in self._events(statement, unreadable):
                tree.add(leaf_of(recorded).hash)
        except (JournalCorrupt, ValueError):
            pass
        self.verified.events += tree.size
        if (tree.size, tree.root().hex()) == (statement.count, statement.root):
            yield Finding(Found.SEAL, None, None, None, f"{text}; the events are as they were sealed")
            return
        yield Finding(Found.SEAL, None, None, None, text)
        for position, error in unreadable.items():
            yield Finding(Found.CHANGED, error.stream_id, error.version, position, str(error), error.tenant)
        text = (
            f"the {tree.size} events from position {first} to {last} are not the {statement.count} that were sealed; "
            "without the list it cannot be told where they differ"
        )
        if tree.size < statement.count and self._chain.sanctioned:
            yield Finding(Found.SEAL, None, None, None, f"{text}, nor whether by truncation alone")
        else:
            yield Finding(Found.CHANGED, None, None, first, text)

    async def _events(
        self, statement: Statement, damaged: dict[int, JournalCorrupt]
    ) -> AsyncGenerator[RecordedEvent, None]:
        """The events that a seal covers. Those that cannot be read are put into `damaged`, by position."""

        def note(error: JournalCorrupt) -> None:
            if error.position is not None and error.position <= statement.last:
                damaged[error.position] = error

        read_page = PastDamage(self._store.read_page, note)
        position = statement.first - 1
        while position < statement.last:
            limit = min(_PAGE, statement.last - position)
            page = await read_page(after=position, limit=limit, where=_EVERYTHING)
            count = 0
            for recorded in page.events:
                if recorded.position > statement.last:
                    break
                yield recorded
                count += 1
            if self._on_events is not None:
                self._on_events(count)
            position = page.position
            if page.is_end:
                return

    async def _truncated_since(self, part: SealedPart) -> Mapping[tuple[str, str], Sequence[Sanctioned]]:
        """The truncations that were recorded. Where events are missing that none of them covers, one may have come
        since they were read."""
        known = self._chain.sanctioned
        if all(part.covering(known, leaf) is not None for leaf in part.missing):
            return known
        newest = max((each[-1].number for each in known.values()), default=0)
        try:
            async for removal in self._store.removals(after=newest):
                self._chain.note(removal, None)
        except JournalCorrupt:
            pass
        return known


def _leaves(stored: StoredSeal, statement: Statement) -> Sequence[Leaf] | None:
    """A seal's list of leaves, if it is the one that was sealed."""
    try:
        leaves = unpack_leaves(stored.leaves)
        root = MerkleTree(leaf.hash for leaf in leaves).root().hex()
    except Exception:
        return None
    return leaves if (len(leaves), root) == (statement.count, statement.root) else None
