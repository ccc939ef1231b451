"""SealedPart: the events that one seal covers beside its leaves, and how they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from eventstore.errors import JournalCorrupt
from eventstore.events import RecordedEvent
from eventstore.evidence.leaves import Leaf, leaf_of
from eventstore.evidence.seal_findings import Finding, Found, Sanctioned


class SealedPart:
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

    def covering(self, sanctioned: Mapping[tuple[str, str], Sequence[Sanctioned]], leaf: Leaf) -> Sanctioned | None:
        """The truncation that was recorded and has removed the event of a leaf."""
        last = self._last(sanctioned, leaf)
        return None if last is None or leaf.version > last.through else last

    def findings(self, sanctioned: Mapping[tuple[str, str], Sequence[Sanctioned]]) -> Iterator[Finding]:
        """What was found, in the order of the log."""
        self.missing = [leaf for leaf in self.missing if leaf.position not in self.damaged]
        found = [*self._changes(), *self._losses(sanctioned)]
        for position, error in self.damaged.items():
            text = f"it cannot be read any more: {error}"
            found.append(Finding(Found.CHANGED, error.stream_id, error.version, position, text, error.tenant))
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
            place, tenant = (found.stream_id, found.version, found.position), found.tenant
            origin = origins.get(found.digest)
            if sealed is None:
                if origin is None:
                    yield Finding(Found.INSERTED, *place, f"nothing was here when seal {self._seal} was made", tenant)
                else:
                    yield Finding(Found.MOVED, *place, f"it was sealed as {_named(origin)}; here was nothing", tenant)
            elif origin is None:
                text = f"it is not what was sealed here as {_place(sealed)}: its content was changed"
                yield Finding(Found.CHANGED, *place, text, tenant)
            elif origin == sealed:
                text = f"it was sealed as {_place(sealed)}, and is now {_place(found)}"
                yield Finding(Found.MOVED, *place, text, tenant)
            else:
                text = f"it was sealed as {_named(origin)}; here was {_place(sealed)}"
                yield Finding(Found.MOVED, *place, text, tenant)

    def _last(self, sanctioned: Mapping[tuple[str, str], Sequence[Sanctioned]], leaf: Leaf) -> Sanctioned | None:
        """Of the truncations of a leaf's stream since this seal the one that reaches furthest."""
        known = sanctioned.get((leaf.tenant, leaf.stream_id), ())
        return next((each for each in known if each.is_after(self._seal)), None)

    def _losses(self, sanctioned: Mapping[tuple[str, str], Sequence[Sanctioned]]) -> Iterator[Finding]:
        elsewhere = {found.digest: found for found, _ in self._differing}
        gone: list[tuple[Leaf, Sanctioned]] = []
        for leaf in self.missing:
            place, tenant = (leaf.stream_id, leaf.version, leaf.position), leaf.tenant
            now = elsewhere.get(leaf.digest)
            if now is not None:
                yield Finding(Found.MOVED, *place, f"it was sealed here, and is now {_named(now)}", tenant)
            elif (truncation := self.covering(sanctioned, leaf)) is not None:
                gone.append((leaf, truncation))
            else:
                truncation = self._last(sanctioned, leaf)
                up_to = "none of its stream" if truncation is None else f"only those up to version {truncation.through}"
                text = f"it is gone, and {up_to} was removed by a recorded truncation"
                yield Finding(Found.DELETED, *place, text, tenant)
        self.truncated = len(gone)
        gone.sort(key=_by_stream)
        for (*_, truncation), pairs in groupby(gone, key=lambda pair: (pair[0].tenant, pair[0].stream_id, pair[1])):
            first, *others = (leaf for leaf, _ in pairs)
            last = others[-1] if others else first
            through, number, seal = truncation
            recorded = "not sealed yet" if seal is None else f"in seal {seal}"
            count = f"{1 + len(others)} event{'s' if others else ''} from version {first.version} to {last.version}"
            yield Finding(
                Found.TRUNCATED,
                first.stream_id,
                last.version,
                first.position,
                f"{count} removed by truncation up to version {through}, recorded (truncation {number}, {recorded})",
                first.tenant,
            )


def _by_stream(pair: tuple[Leaf, Sanctioned]) -> tuple[str, str, int]:
    leaf, _ = pair
    return leaf.tenant, leaf.stream_id, leaf.version


def _place(leaf: Leaf) -> str:
    of_tenant = f" of tenant {leaf.tenant!r}" if leaf.tenant else ""
    return f"version {leaf.version} of {leaf.stream_id!r}{of_tenant}"


def _named(leaf: Leaf) -> str:
    return f"{_place(leaf)} at position {leaf.position}"
