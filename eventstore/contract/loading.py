"""What rebuilding a state asks for, and gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple, Self, overload


class StoredSnapshot(NamedTuple):
    """A packed snapshot. `payload` is in `encoding`; `checksum` covers the payload and all that names it.

    With an `epoch` above 0 it is refused once a newer one has been claimed.
    """

    stream_id: str
    version: int
    fingerprint: str
    encoding: str
    payload: bytes
    checksum: bytes
    recorded_at: datetime
    epoch: int = 0


class Load(NamedTuple):
    """A wish to rebuild one stream's state: the newest snapshot above version `after`, then events behind it.

    With `use_snapshot` False, or where there is none, events start after `after`. At most `limit` events come.
    """

    stream_id: str
    after: int = 0
    use_snapshot: bool = True
    limit: int = 1000


ReplayedEvent = tuple[int, str, int, bytes, int]
"""What replay needs of an event: version, type, schema version, payload, checksum."""


class EventPage(Sequence[ReplayedEvent]):
    """Events of one stream, in its order, by column: looking at a column as a whole costs a fraction of looking at each
    event.

    `versions` without a hole may be a `range`. `size` is about how many bytes the payloads have, for whoever knows it
    without a look at each. Raises `ValueError` for columns that are not of one length.
    """

    __slots__ = ("_size", "checksums", "payloads", "schema_versions", "types", "versions")

    def __init__(
        self,
        versions: Sequence[int],
        types: list[str],
        schema_versions: list[int],
        payloads: list[bytes],
        checksums: list[int],
        *,
        size: int | None = None,
    ) -> None:
        if not len(versions) == len(types) == len(schema_versions) == len(payloads) == len(checksums):
            raise ValueError("the columns are not of one length")
        self.versions = versions
        self.types = types
        self.schema_versions = schema_versions
        self.payloads = payloads
        self.checksums = checksums
        self._size = size

    @property
    def size(self) -> int:
        """About how many bytes its payloads have."""
        return sum(map(len, self.payloads)) if self._size is None else self._size

    @classmethod
    def of(cls, events: Iterable[ReplayedEvent]) -> Self:
        """The same events, by column."""
        columns = [list(column) for column in zip(*events, strict=True)]
        return cls(*columns) if columns else cls([], [], [], [], [])

    def __len__(self) -> int:
        return len(self.versions)

    def __iter__(self) -> Iterator[ReplayedEvent]:
        return zip(self.versions, self.types, self.schema_versions, self.payloads, self.checksums, strict=True)

    @overload
    def __getitem__(self, index: int) -> ReplayedEvent: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> ReplayedEvent | Self:
        if isinstance(index, slice):
            return self.__class__(
                self.versions[index],
                self.types[index],
                self.schema_versions[index],
                self.payloads[index],
                self.checksums[index],
            )
        return (
            self.versions[index],
            self.types[index],
            self.schema_versions[index],
            self.payloads[index],
            self.checksums[index],
        )


NO_EVENTS = EventPage([], [], [], [], [])


class Loaded(NamedTuple):
    """What a `Load` found, at one moment: a snapshot, then the first events after it.

    Replay compares payload and checksum of each. `version` is the stream's own. `is_stamped` says whether the first of
    the events has what a replica says of it; with no events it is False.
    """

    snapshot: StoredSnapshot | None
    events: EventPage
    version: int
    truncated: int
    is_stamped: bool = False
