"""Totals: how many events match, when, how large, and which types, streams and users they are of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime

from eventstore.auditing.audit_find import find
from eventstore.codec import encode_metadata
from eventstore.contract.audit_query import AuditQuery, AuditTotals, Count
from eventstore.events import RecordedEvent
from eventstore.store import EventStore

_HOUR_SECONDS = 3600
# So many names are counted one by one. With more, the frequent ones are kept.
_MOST_NAMES = 20_000


async def totals(store: EventStore, query: AuditQuery, *, top: int = 10) -> AuditTotals:
    """The sums over the events that match: by SQL where the database can tell, else by reading them, in bounded memory.

    Sizes and counts are of what is settled when it is asked. Raises as `find` does.
    """
    found = await store.audit_totals(query, top=top)
    if found is not None:
        return found
    sums = _Sums()
    end = (await store.read_page(limit=1)).end
    through = end if query.through is None else min(query.through, end)
    async for recorded in find(store, replace(query, through=through)):
        sums.add(recorded)
    return sums.totals(top, end)


class Frequent:
    """How often names occur, in bounded memory: exact up to so many names; beyond, the rarest give way (the algorithm
    "space saving" of Metwally, Agrawal and El Abbadi, 2005), and counts may be too high by what was given up."""

    def __init__(self, most: int = _MOST_NAMES) -> None:
        self._most = most
        self._counts: Counter[str | None] = Counter()
        self._floor = 0

    @property
    def is_exact(self) -> bool:
        """Whether every name was counted."""
        return self._floor == 0

    def add(self, name: str | None) -> None:
        """Count one."""
        if name in self._counts:
            self._counts[name] += 1
            return
        if len(self._counts) >= self._most:
            self._give_up()
        self._counts[name] = self._floor + 1

    def top(self, count: int) -> list[Count]:
        """The most frequent, and of those alike the first by name."""
        ordered = sorted(self._counts.items(), key=lambda item: (-item[1], item[0] is not None, item[0] or ""))
        return [Count(*item) for item in ordered[:count]]

    def _give_up(self) -> None:
        """Forget the rarer half at once: one by one it would take a search for each."""
        kept = self._counts.most_common(self._most // 2)
        self._floor = max(self._floor, kept[-1][1])
        self._counts = Counter(dict(kept))


@dataclass
class _Sums:
    events: int = 0
    payload_bytes: int = 0
    metadata_bytes: int = 0
    first: datetime | None = None
    last: datetime | None = None
    hours: Counter[int] = field(default_factory=Counter[int])
    types: Frequent = field(default_factory=Frequent)
    streams: Frequent = field(default_factory=Frequent)
    users: Frequent = field(default_factory=Frequent)

    def add(self, recorded: RecordedEvent) -> None:
        moment, metadata = recorded.recorded_at, recorded.metadata
        self.events += 1
        self.payload_bytes += len(recorded.payload)
        self.metadata_bytes += len(encode_metadata(metadata) or b"")
        self.first = moment if self.first is None else min(self.first, moment)
        self.last = moment if self.last is None else max(self.last, moment)
        self.hours[int(moment.timestamp() // _HOUR_SECONDS)] += 1
        self.types.add(recorded.type)
        self.streams.add(recorded.stream_id)
        self.users.add(None if metadata is None else metadata.user)

    def totals(self, top: int, end: int) -> AuditTotals:
        is_exact = self.types.is_exact and self.streams.is_exact and self.users.is_exact
        return AuditTotals(
            self.events,
            self.payload_bytes,
            self.metadata_bytes,
            self.first,
            self.last,
            dict(self.hours),
            self.types.top(top),
            self.streams.top(top),
            self.users.top(top),
            end,
            is_exact,
        )
