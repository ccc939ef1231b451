"""SealChain: which of a journal's seals can be trusted, given one public key, and what is wrong with the others."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import NamedTuple

from eventstore.backend import Removal, StoredSeal
from eventstore.errors import JournalCorrupt
from eventstore.evidence.seal_findings import Finding, Found, Sanctioned
from eventstore.evidence.seals import Seal, Statement, digest_of, parse_stored, unpack_removals
from eventstore.store import EventStore


class _Link(NamedTuple):
    """What is kept of each seal. `statement` is None for one that cannot be read."""

    number: int
    statement: Statement | None
    hash: str
    is_signed: bool
    problem: str


class SealChain:
    """Reads every seal, but keeps no more than its statement, and the truncations that were recorded."""

    def __init__(self, store: EventStore, public: str, anchor: Seal | None = None) -> None:
        self._store = store
        self._public = public
        self._anchor = anchor
        self._links: list[_Link] = []
        self._keys = {public}
        # Keys that were handed over, and the numbers of the seals in which.
        self._retired: dict[str, int] = {}
        # What the seals say that are what their makers have made, by number, as it was when it was found out. Whoever
        # reads a seal again may find another one.
        self.trusted: dict[int, Statement] = {}
        # By stream, in the order of their numbers. One that a later one reaches as far as is left out.
        self.sanctioned: dict[tuple[str, str], tuple[Sanctioned, ...]] = {}

    @property
    def newest(self) -> Statement | None:
        """The newest statement that can be trusted."""
        return self.trusted[max(self.trusted)] if self.trusted else None

    @property
    def count(self) -> int:
        """How many seals there are."""
        return len(self._links)

    async def findings(self) -> AsyncGenerator[Finding, None]:
        """What is wrong with the seals, by their numbers; then with the records of truncations."""
        async for stored in self._store.seals():
            self._links.append(_link(stored))
        self._trust()
        for finding in self._seals():
            yield finding
        try:
            async for finding in self._removals():
                yield finding
        except JournalCorrupt as error:
            yield Finding(Found.REMOVAL, None, None, None, str(error))

    def _trust(self) -> None:
        """Find the seals that the key vouches for: those signed with it; those whose statement a trusted one names; and
        those signed with a key that a trusted one names, while that was in force.

        The last seal comes first: of two that contradict each other the later one is right about the earlier, unless
        nothing vouches for the later one.
        """
        while True:
            before = (len(self.trusted), len(self._keys), dict(self._retired))
            behind: _Link | None = None
            for link in reversed(self._links):
                if link.number not in self.trusted and self._is_vouched_for(link, behind):
                    self._accept(link)
                behind = link
            late = [link for link in self._links if link.number in self.trusted and not self._was_in_force(link)]
            if late:
                # They were accepted before the seal was seen that retires their key: so may have been what they name.
                self.trusted, self._keys = {}, {self._public}
            elif before == (len(self.trusted), len(self._keys), self._retired):
                return

    def _is_vouched_for(self, link: _Link, behind: _Link | None) -> bool:
        if link.statement is None:
            return False
        named = self._named_by(link, behind)
        if named is not None:
            return named == link.hash
        return link.is_signed and link.statement.key in self._keys and self._was_in_force(link)

    def _named_by(self, link: _Link, behind: _Link | None) -> str | None:
        """What a trusted seal right behind names as the one before it."""
        if behind is None or behind.statement is None or behind.number not in self.trusted:
            return None
        return behind.statement.previous if behind.number == link.number + 1 else None

    def _accept(self, link: _Link) -> None:
        if link.statement is not None:
            self.trusted[link.number] = link.statement
            self._keys.add(link.statement.key)
            if link.statement.next_key is not None:
                self._keys.add(link.statement.next_key)
                known = self._retired.get(link.statement.key, link.number)
                self._retired[link.statement.key] = min(link.number, known)

    def _was_in_force(self, link: _Link) -> bool:
        """Whether a seal's key had not been handed over before."""
        return link.statement is not None and link.number <= self._retired.get(link.statement.key, link.number)

    def _seals(self) -> Iterator[Finding]:
        if not self._links:
            text = "there is no seal: nothing is proven"
            yield _seal_finding(text if self._anchor is None else f"{text}, and the anchor names seal {self._last()}")
            return
        if not self.trusted:
            first = next((link.statement.key for link in self._links if link.statement is not None), "none")
            yield _seal_finding(
                f"none of the {len(self._links)} seals is signed with the key given, {self._public}; the first is "
                f"signed with {first}: nothing is proven"
            )
        else:
            for link, behind in zip(self._links, [*self._links[1:], None], strict=True):
                yield from self._of_seal(link, behind)
        missing = 1
        for link in self._links:
            if link.number > missing:
                yield _missing(missing, link.number - 1)
            missing = link.number + 1
        yield from self._anchored()

    def _of_seal(self, link: _Link, behind: _Link | None) -> Iterator[Finding]:
        statement, number = link.statement, link.number
        if statement is None:
            yield _seal_finding(f"seal {number} cannot be read: {link.problem}; what it covered is not proven")
            return
        covered = f"positions {statement.first} to {statement.last} are not proven"
        if number in self.trusted:
            if not link.is_signed:
                text = f"the signature of seal {number} was changed; its statement is what the seal after it names"
                yield _seal_finding(text)
        elif not link.is_signed:
            yield _seal_finding(f"seal {number} was changed after it was signed: {covered}")
        elif self._named_by(link, behind) is not None:
            text = f"seal {number} is not the one that seal {number + 1} was made after: it was made anew, {covered}"
            yield _seal_finding(text)
        elif statement.key in self._keys:
            yield _seal_finding(f"seal {number} is signed with a key that was handed over before: {covered}")
        else:
            yield _seal_finding(
                f"seal {number} is signed with {statement.key}, which no trusted seal names: it is forged, {covered}"
            )

    def _anchored(self) -> Iterator[Finding]:
        if self._anchor is None:
            return
        anchor = self._anchor.statement
        if anchor.key not in self._keys:
            yield _seal_finding(
                f"the anchor is signed with {anchor.key}, which neither is the key given nor named by a trusted seal"
            )
            return
        newest = self._links[-1].number
        if newest < anchor.number:
            yield _seal_finding(
                f"the anchor names seal {anchor.number}, which covers the log through position {anchor.last}, but the "
                f"newest is seal {newest}: the tail of the seals was cut off, and what they covered is not proven"
            )
        for link in self._links:
            if link.number == anchor.number and link.hash != self._anchor.hash:
                yield _seal_finding(f"seal {anchor.number} is not the one that the anchor names: it was made anew")

    def _last(self) -> int:
        return 0 if self._anchor is None else self._anchor.statement.number

    async def _removals(self) -> AsyncGenerator[Finding, None]:
        """Compare the record of truncations with the sealed lists of it, and note which there were."""
        recorded = _Cursor(self._store.removals())
        number = through = 0
        # Whether a list is missing, so that nobody knows what there was before the next one.
        is_gap = False
        newest = self._links[-1].number if self._links else 0
        async for stored in self._store.seals():
            if stored.number > newest:
                break
            is_gap = is_gap or stored.number != number + 1 or stored.number not in self.trusted
            number = stored.number
            if number not in self.trusted:
                continue
            statement = self.trusted[number]
            try:
                if digest_of(stored.removals) != statement.removals.digest:
                    raise ValueError("it is not the list that was sealed")
                sealed = unpack_removals(stored.removals)
            except ValueError as error:
                text = f"the list of truncations of seal {number} was changed: {error}"
                yield Finding(Found.SEAL, None, None, None, text)
                is_gap = True
                continue
            if is_gap:
                through = sealed[0].number - 1 if sealed else statement.removals.through
                await self._pass_by(recorded, through)
            for removal in sealed:
                self.note(removal, number)
                for finding in await _compared(recorded, removal, number, through):
                    yield finding
            through = statement.removals.through
            is_gap = False
        await self._pass_by(recorded, None)

    async def _pass_by(self, recorded: _Cursor, through: int | None) -> None:
        """Take note of the records up to a number, which no seal lists."""
        while (removal := await recorded.peek()) is not None and (through is None or removal.number <= through):
            await recorded.take()
            self.note(removal, None)

    def note(self, removal: Removal, seal: int | None) -> None:
        """Take note of a truncation that was recorded, and of the seal that lists it."""
        key = (removal.tenant, removal.stream_id)
        further = (known for known in self.sanctioned.get(key, ()) if known.through > removal.through)
        self.sanctioned[key] = (*further, Sanctioned(removal.through, removal.number, seal))


class _Cursor:
    """Truncations, one at a time, with a look at the next one."""

    def __init__(self, source: AsyncIterator[Removal]) -> None:
        self._source = source
        self._next: Removal | None = None

    async def peek(self) -> Removal | None:
        if self._next is None:
            self._next = await anext(self._source, None)
        return self._next

    async def take(self) -> None:
        self._next = None


async def _compared(recorded: _Cursor, sealed: Removal, seal: int, through: int) -> Sequence[Finding]:
    findings: list[Finding] = []
    while (current := await recorded.peek()) is not None and current.number < sealed.number:
        await recorded.take()
        if current.number > through:
            text = (
                f"the record of truncation {current.number} is not among those that seal {seal} lists: it was inserted"
            )
            findings.append(_removal_finding(current, text))
    if current is not None and current.number == sealed.number:
        await recorded.take()
        if current != sealed:
            text = f"the record of truncation {sealed.number} is not as seal {seal} lists it: it was changed"
            findings.append(_removal_finding(sealed, text))
    else:
        text = f"the record of truncation {sealed.number}, which seal {seal} lists, is gone"
        findings.append(_removal_finding(sealed, text))
    return findings


def _link(stored: StoredSeal) -> _Link:
    try:
        seal = parse_stored(stored)
    except ValueError as error:
        return _Link(stored.number, None, "", False, str(error))
    return _Link(stored.number, seal.statement, seal.hash, seal.is_signed, "")


def _missing(first: int, last: int) -> Finding:
    which = f"seal {first} is" if first == last else f"seals {first} to {last} are"
    return _seal_finding(f"{which} missing: what was covered is not proven")


def _removal_finding(removal: Removal, text: str) -> Finding:
    return Finding(Found.REMOVAL, removal.stream_id, removal.through, None, text, removal.tenant)


def _seal_finding(text: str) -> Finding:
    return Finding(Found.SEAL, None, None, None, text)
