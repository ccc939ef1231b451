"""SQLiteLoader: what actors recover from, a page as one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from backends.page_texts import SEPARATOR, names_of
from backends.sqlite_page_thread import LARGEST, ROOM, SQLitePageThread, TooLarge
from backends.times import nearest_time
from eventstore.backend import NO_EVENTS, EventPage, Load, Loaded, StoredSnapshot
from eventstore.errors import JournalCorrupt

_WANTED = """
WITH wanted AS MATERIALIZED (
    SELECT w.key AS number, s.id AS stream, s.truncated, w.value ->> '$[3]' AS size, w.value ->> '$[1]' AS after,
        (SELECT max(e.version) FROM journal_events e WHERE e.stream = s.id) AS newest,
        CASE WHEN w.value ->> '$[2]' THEN
            (SELECT max(n.version) FROM journal_snapshots n WHERE n.stream = s.id AND n.version > w.value ->> '$[1]')
        END AS snapshot
    FROM json_each(?2) w CROSS JOIN journal_streams s ON s.tenant = ?1 AND s.stream_id = w.value ->> '$[0]'
)
SELECT
    (SELECT json_group_array(json_array(w.number, w.truncated, w.newest, n.version, n.fingerprint, n.encoding,
            hex(n.payload), hex(n.checksum), n.recorded_at, n.epoch, (
                SELECT f.origin IS NOT NULL FROM journal_events f
                WHERE f.stream = w.stream AND f.version = max(coalesce(w.snapshot, w.after), w.truncated) + 1
            )))
        FROM wanted w LEFT JOIN journal_snapshots n ON n.stream = w.stream AND n.version = w.snapshot),
"""

# A page's columns are strung together: JSON holds no control character but white space, and no name any. The index is
# gone through in its order, so that nothing is sorted and nothing is put aside; the versions tell that it was so.
_COLUMNS = (
    "group_concat(e.version)",
    f"group_concat(e.type, '{SEPARATOR}')",
    "group_concat(e.schema_version)",
    f"group_concat(e.payload, '{SEPARATOR}')",
    "group_concat(e.checksum)",
)
# By the order of SQLite's types, because to ask `typeof` takes ten times as long. The column keeps no number.
_BLOBS = "count(*) FILTER (WHERE e.payload >= x'')"
_IS_ON_PAGE = """e.stream = w.stream AND e.version > max(coalesce(w.snapshot, w.after), w.truncated)
    AND e.version <= max(coalesce(w.snapshot, w.after), w.truncated) + w.size"""

# Each column of one stream's page is a column of the answer. One text for all of them would be copied for each, which
# takes as long as the rest, and so much memory that the system gets it back after a page, and is asked for it again.
_LOAD_ONE = f"""{_WANTED} {_BLOBS}, {", ".join(_COLUMNS)}
FROM wanted w CROSS JOIN journal_events e ON {_IS_ON_PAGE}
"""

_PAGES, _ENDS = "\x1c", "\x1d"
_STRUNG = f" || '{_ENDS}' || ".join(_COLUMNS)
_LOAD_MANY = f"""{_WANTED} (
    SELECT group_concat(w.number || '{_ENDS}' || (
        SELECT CASE WHEN {_BLOBS} THEN '' ELSE {_STRUNG} END FROM journal_events e WHERE {_IS_ON_PAGE}
    ), '{_PAGES}') FROM wanted w
)
"""  # noqa: S608 - a constant
_BEHIND_NUMBER = len(_COLUMNS)
"""Columns of a page, behind the number of its load."""

_FoundRow = tuple[int, int, int | None, int | None, str, str, str, str, int, int, int | None]


class SQLiteLoader:
    """Answers loads one after another, in the order they came, in a thread of their own."""

    def __init__(self, path: Path, *, tenant: str, busy_timeout: float) -> None:
        self._tenant = tenant
        self._thread = SQLitePageThread(path, name="sqlite-loader", busy_timeout=busy_timeout)

    async def load(self, loads: Sequence[Load], *, room: int = ROOM) -> Sequence[Loaded]:
        """Raises `JournalCorrupt`, which names no event yet, where anything that was read is damaged.

        What does not fit the room is read in parts: half of the streams, fewer events, and at last one event alone,
        or one snapshot, however large it is.
        """
        wanted = orjson.dumps([tuple(load) for load in loads]).decode()
        statement = _LOAD_ONE if len(loads) == 1 else _LOAD_MANY
        try:
            found, *pages = await self._thread.row(
                statement, (self._tenant, wanted), events=sum(load.limit for load in loads), room=room
            )
        except TooLarge:
            return await self._load_in_parts(loads)
        try:
            return _loaded(loads, orjson.loads(found), _one_page(*pages) if len(loads) == 1 else _pages(*pages))
        except ValueError as error:
            raise JournalCorrupt(f"a stored event cannot be read: {error}") from error

    async def _load_in_parts(self, loads: Sequence[Load]) -> Sequence[Loaded]:
        if len(loads) > 1:
            half = len(loads) // 2
            return [*await self.load(loads[:half]), *await self.load(loads[half:])]
        if loads[0].limit > 1:
            return await self.load([loads[0]._replace(limit=max(1, loads[0].limit // 8))])
        return await self.load(loads, room=LARGEST)

    async def close(self) -> None:
        """Finish what is under way, close the connection, end the thread."""
        await self._thread.close()


def _one_page(blobs: int, versions: bytes | None, *others: bytes | None) -> Mapping[int, EventPage]:
    """The events of the only load. Raises `ValueError`."""
    if blobs:
        raise ValueError("a payload is no text")
    if versions is None:
        return {}
    types, schema_versions, payloads, checksums = (column or b"" for column in others)
    return {0: _page(versions, types, schema_versions, payloads, checksums)}


def _pages(pages: bytes | None) -> Mapping[int, EventPage]:
    """The events of each load that found any. Raises `ValueError`."""
    if pages is None:
        return {}
    found: dict[int, EventPage] = {}
    # All at once, because each split copies what it splits. What ends a page stands between two short columns.
    columns = pages.split(_ENDS.encode())
    number = columns[0]
    for start in range(1, len(columns), _BEHIND_NUMBER):
        versions, types, schema_versions, payloads, last = columns[start : start + _BEHIND_NUMBER]
        checksums, _, following = last.partition(_PAGES.encode())
        found[int(number)] = _page(versions, types, schema_versions, payloads, checksums)
        number = following
    return found


def _page(versions: bytes, types: bytes, schema_versions: bytes, payloads: bytes, checksums: bytes) -> EventPage:
    texts = payloads.split(SEPARATOR.encode())
    return EventPage(
        orjson.loads(b"[%b]" % versions),
        names_of(types.decode(), len(texts)),
        orjson.loads(b"[%b]" % schema_versions),
        texts,
        orjson.loads(b"[%b]" % checksums),
        size=len(payloads),
    )


def _loaded(loads: Sequence[Load], found: Sequence[_FoundRow], pages: Mapping[int, EventPage]) -> Sequence[Loaded]:
    answers: list[Loaded] = [Loaded(None, NO_EVENTS, 0, 0)] * len(loads)
    for row in found:
        number, truncated, newest, version, fingerprint, encoding, payload, checksum, recorded_at, epoch, stamped = row
        snapshot = None
        if version is not None:
            snapshot = StoredSnapshot(
                loads[number].stream_id,
                version,
                fingerprint,
                encoding,
                bytes.fromhex(payload),
                bytes.fromhex(checksum),
                nearest_time(recorded_at),
                epoch,
            )
        events = pages.get(number, NO_EVENTS)
        is_stamped = bool(stamped) and len(events) > 0
        answers[number] = Loaded(snapshot, events, max(newest or 0, truncated), truncated, is_stamped)
    return answers
