"""SealVerification: compares every event with what was sealed of it, and tells where they differ and how."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from eventstore.backend import EventFilter, StoredSeal
from eventstore.errors import JournalCorrupt, JournalLost
from eventstore.events import RecordedEvent
from eventstore.leaves import Leaf, leaf_of, unpack_leaves
from eventstore.merkle import MerkleTree
from eventstore.reading_past import PastDamage
from eventstore.seal_chain import Finding, Found, Sanctioned, SealChain
from eventstore.seals import Seal, Statement, parse_stored
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
            async for stored in self._store.seals():
                if stored.number > newest.number:
                    break
                if stored.number in self._chain.trusted:
                    async for finding in self._part(stored):
                        yield finding

    def _counted(self, finding: Finding) -> Finding:
        self.verified.problems += finding.is_problem
        return finding

    async def _part(self, stored: StoredSeal) -> AsyncGenerator[Finding, None]:
        """Compare the events that one seal covers."""
        statement = parse_stored(stored).statement
        leaves = _leaves(stored, statement)
        if leaves is None:
            async for finding in self._as_a_whole(statement):
                yield finding
            return
        part = _Part(statement.number, leaves)
        try:
            async for recorded in self._events(statement, part.damaged):
                part.compare(recorded)
        except JournalLost:
            raise
        except JournalCorrupt as error:
            text = f"the log cannot be read behind position {part.position}: {error}"
            yield Finding(Found.UNREADABLE, error.stream_id, error.version, error.position, text)
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
            yield Finding(Found.CHANGED, error.stream_id, error.version, position, str(error))
        yield Finding(
            Found.CHANGED,
            None,
            None,
            first,
            f"the {tree.size} events from position {first} to {last} are not the {statement.count} that were sealed; "
            "without the list it cannot be told where they differ",
        )

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

    async def _truncated_since(self, part: _Part) -> Mapping[tuple[str, str], Sanctioned]:
        """The truncations that were recorded. Where events are missing that none of them covers, one may have come
        since they were read."""
        known = self._chain.sanctioned
        if not any(not _covers(known, leaf) for leaf in part.missing):
            return known
        newest = max((each.number for each in known.values()), default=0)
        try:
            async for removal in self._store.removals(after=newest):
                self._chain.note(removal, None)
        except JournalCorrupt:
            pass
        return known


class _Part:
    """The events of one seal beside its leaves."""

    def __init__(self, seal: int, leaves: Sequence[Leaf]) -> None:
        self._seal = seal
        self._leaves = leaves
        self._next = 0
        # Where something else stands than was sealed: what stands there, and the sealed leaf if there is one.
        self._differing: list[tuple[Leaf, Leaf | None]] = []
        self.damaged: dict[int, JournalCorrupt] = {}
        self.missing: list[Leaf] = []
        self.position = 0
        self.compared = 0
        self.truncated = 0

    def compare(self, recorded: RecordedEvent) -> None:
        """Take the next event of the log."""
        self.position = recorded.position
        self.compared += 1
        self._pass_by(recorded.position)
        sealed = self._leaves[self._next] if self._next < len(self._leaves) else None
        if sealed is not None and sealed.position == recorded.position:
            self._next += 1
        else:
            sealed = None
        try:
            found = leaf_of(recorded)
        except ValueError as error:
            found = Leaf(recorded.position, recorded.tenant, recorded.stream_id, recorded.version, str(error).encode())
        if found != sealed:
            self._differing.append((found, sealed))

    def end(self) -> None:
        """All events were taken: what is left of the leaves has none."""
        self._pass_by(None)

    def findings(self, sanctioned: Mapping[tuple[str, str], Sanctioned]) -> Iterator[Finding]:
        """What was found, in the order of the log."""
        self.missing = [leaf for leaf in self.missing if leaf.position not in self.damaged]
        found = [*self._changes(), *self._losses(sanctioned)]
        for position, error in self.damaged.items():
            text = f"it cannot be read any more: {error}"
            found.append(Finding(Found.CHANGED, error.stream_id, error.version, position, text))
        found.sort(key=lambda finding: finding.position or 0)
        yield from found

    def _pass_by(self, position: int | None) -> None:
        """The leaves in front of a position have no event."""
        while self._next < len(self._leaves):
            leaf = self._leaves[self._next]
            if position is not None and leaf.position >= position:
                return
            self.missing.append(leaf)
            self._next += 1

    def _changes(self) -> Iterator[Finding]:
        origins = {leaf.digest: leaf for leaf in self._leaves} if self._differing else {}
        for found, sealed in self._differing:
            place = (found.stream_id, found.version, found.position)
            origin = origins.get(found.digest)
            if sealed is None:
                if origin is None:
                    yield Finding(Found.INSERTED, *place, f"nothing was here when seal {self._seal} was made")
                else:
                    yield Finding(Found.MOVED, *place, f"it was sealed as {_named(origin)}; here was nothing")
            elif origin is None:
                text = f"it is not what was sealed here as {_place(sealed)}: its content was changed"
                yield Finding(Found.CHANGED, *place, text)
            elif origin == sealed:
                yield Finding(Found.MOVED, *place, f"it was sealed as {_place(sealed)}, and is now {_place(found)}")
            else:
                text = f"it was sealed as {_named(origin)}; here was {_place(sealed)}"
                yield Finding(Found.MOVED, *place, text)

    def _losses(self, sanctioned: Mapping[tuple[str, str], Sanctioned]) -> Iterator[Finding]:
        elsewhere = {found.digest: found for found, _ in self._differing}
        gone: list[Leaf] = []
        for leaf in self.missing:
            place = (leaf.stream_id, leaf.version, leaf.position)
            now = elsewhere.get(leaf.digest)
            if now is not None:
                yield Finding(Found.MOVED, *place, f"it was sealed here, and is now {_named(now)}")
            elif _covers(sanctioned, leaf):
                gone.append(leaf)
            else:
                truncation = sanctioned.get((leaf.tenant, leaf.stream_id))
                up_to = "none of its stream" if truncation is None else f"only those up to version {truncation.through}"
                yield Finding(Found.DELETED, *place, f"it is gone, and {up_to} was removed by a recorded truncation")
        self.truncated = len(gone)
        for key, leaves in groupby(sorted(gone, key=_by_stream), key=lambda leaf: (leaf.tenant, leaf.stream_id)):
            first, *others = leaves
            last = others[-1] if others else first
            through, number, seal = sanctioned[key]
            recorded = "not sealed yet" if seal is None else f"in seal {seal}"
            count = f"{1 + len(others)} event{'s' if others else ''} from version {first.version} to {last.version}"
            yield Finding(
                Found.TRUNCATED,
                first.stream_id,
                last.version,
                first.position,
                f"{count} removed by truncation up to version {through}, recorded (truncation {number}, {recorded})",
            )


def _leaves(stored: StoredSeal, statement: Statement) -> Sequence[Leaf] | None:
    """A seal's list of leaves, if it is the one that was sealed."""
    try:
        leaves = unpack_leaves(stored.leaves)
        root = MerkleTree(leaf.hash for leaf in leaves).root().hex()
    except Exception:
        return None
    return leaves if (len(leaves), root) == (statement.count, statement.root) else None


def _covers(sanctioned: Mapping[tuple[str, str], Sanctioned], leaf: Leaf) -> bool:
    truncation = sanctioned.get((leaf.tenant, leaf.stream_id))
    return truncation is not None and leaf.version <= truncation.through


def _by_stream(leaf: Leaf) -> tuple[str, str, int]:
    return leaf.tenant, leaf.stream_id, leaf.version


def _place(leaf: Leaf) -> str:
    of_tenant = f" of tenant {leaf.tenant!r}" if leaf.tenant else ""
    return f"version {leaf.version} of {leaf.stream_id!r}{of_tenant}"


def _named(leaf: Leaf) -> str:
    return f"{_place(leaf)} at position {leaf.position}"
