"""What a journal holds after its faults, read by plain clients of its database and by none of the code under test."""

from __future__ import annotations

import json
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

import asyncpg
import redis

from tests.servers.databases import asyncio_run


class Stored(NamedTuple):
    """One stored event of a deposit."""

    position: int
    stream_id: str
    version: int
    batch_id: bytes
    id: str
    part: int
    parts: int
    amount: int


class Journal(NamedTuple):
    """All events in the order of the log; the version that each stream's own row says it has, where there is such a
    row; and what is wrong with how they are kept."""

    events: list[Stored]
    heads: dict[str, int] | None
    damage: list[str]


def stored_events(url: str) -> list[Stored]:
    return journal_at(url).events


def journal_at(url: str) -> Journal:
    match urlsplit(url).scheme:
        case "sqlite":
            return _in_sqlite(Path(urlsplit(url).path[1:]))
        case "postgresql":
            return asyncio_run(_in_postgres(urlsplit(url)._replace(query="").geturl()))
        case "redis":
            return _in_redis(url)
        case scheme:
            raise ValueError(f"nobody has said how to read a {scheme} journal")


_EVENTS = (
    "SELECT e.position, s.stream_id, e.version, coalesce(e.batch_id, e.event_id), e.payload "
    "FROM journal_events e JOIN journal_streams s ON s.id = e.stream ORDER BY e.position"
)


def _in_sqlite(path: Path) -> Journal:
    with closing(sqlite3.connect(path)) as connection:
        try:
            messages = [row[0] for row in connection.execute("PRAGMA integrity_check").fetchall()]
            damage = [message for message in messages if message != "ok"]
            rows = [] if damage else connection.execute(_EVENTS).fetchall()
        except sqlite3.DatabaseError as error:
            return Journal([], None, [str(error)])
    return Journal([Stored(*place, **json.loads(payload)) for *place, payload in rows], None, damage)


async def _in_postgres(dsn: str) -> Journal:
    connection = await asyncpg.connect(dsn, timeout=10, command_timeout=60)
    try:
        # A table's own order of its rows, and an index's, must name the same events.
        heads = await connection.fetch("SELECT stream_id, version FROM journal_streams WHERE version > 0")
        (by_table,) = await connection.fetch("SELECT count(*), sum(position) FROM journal_events")
        await connection.execute("SET enable_seqscan = off")
        rows = await connection.fetch(_EVENTS)
        (orphans,) = await connection.fetch(
            "SELECT count(*) FROM journal_events e LEFT JOIN journal_streams s ON s.id = e.stream WHERE s.id IS NULL"
        )
    finally:
        await connection.close(timeout=5)
    events = [Stored(*place, **json.loads(payload)) for *place, payload in rows]
    damage = [f"{orphans[0]} events of no stream"] if orphans[0] else []
    if tuple(by_table) != (len(events), sum(event.position for event in events) or None):
        damage.append(f"the table has {by_table[0]} events, the index {len(events)}")
    return Journal(events, {row[0]: row[1] for row in heads}, damage)


# What a Redis holds is described in `backends/redis_scripts.py`. A record: position, time, event id, epoch, schema
# version, bytes of the type (with a flag: a batch id follows), bytes of the metadata plus one. An entry of the log:
# stream, version, size.
_RECORD = struct.Struct(">QQ16sQQIHI")
_ENTRY_BYTES = 16
_CHUNK_ENTRIES = 4096


def _in_redis(url: str) -> Journal:
    prefix = parse_qs(urlsplit(url).query).get("prefix", ["journal"])[0]
    base = f"{{{prefix}}}"
    with closing(redis.Redis.from_url(urlsplit(url)._replace(query="").geturl(), socket_timeout=30)) as client:
        call = cast("Any", client)
        position = int(call.hget(base, "position"))
        numbers: dict[bytes, bytes] = call.hgetall(f"{base}:numbers")
        heads = {name.decode(): _heads(value) for name, value in call.hgetall(f"{base}:heads").items()}
        places: dict[bytes, bytes] = call.hgetall(f"{base}:ids")
        chunks = range((position + _CHUNK_ENTRIES - 1) // _CHUNK_ENTRIES)
        log = b"".join(call.get(f"{base}:log:{chunk}") or b"" for chunk in chunks)
        lists = {n: cast("list[bytes]", call.lrange(f"{base}:events:{n.decode()}", 0, -1)) for n in numbers}
    events: list[Stored] = []
    damage: list[str] = []
    for number, records in lists.items():
        for version, record in enumerate(records, start=1):
            event, event_id = _event(numbers[number].decode(), version, record)
            events.append(event)
            entry = log[(event.position - 1) * _ENTRY_BYTES : event.position * _ENTRY_BYTES]
            if entry != _bytes_of(int(number), 6) + _bytes_of(version, 6) + _bytes_of(len(record), 4):
                damage.append(f"the log has another event at position {event.position}")
            if int(places.get(event_id, -1)) != event.position:
                damage.append(f"the event at position {event.position} is not found by its id")
    events.sort()
    if not position == len(places) == len(events) == len(log) // _ENTRY_BYTES:
        damage.append(f"{position} positions, {len(places)} ids, {len(events)} events, {len(log)} bytes of log")
    return Journal(events, {name: version for name, (_, version) in heads.items() if version}, damage)


def _heads(value: bytes) -> tuple[int, int]:
    return int.from_bytes(value[:7], "big"), int.from_bytes(value[7:14], "big")


def _event(stream_id: str, version: int, record: bytes) -> tuple[Stored, bytes]:
    position, _, event_id, _, _, _, type_bytes, metadata_bytes = _RECORD.unpack_from(record)
    at = _RECORD.size
    has_batch = type_bytes & 0x8000
    batch_id = record[at : at + 16] if has_batch else event_id
    payload = at + (16 if has_batch else 0) + (type_bytes & 0x7FFF) + max(0, metadata_bytes - 1)
    return Stored(position, stream_id, version, batch_id, **json.loads(record[payload:])), event_id


def _bytes_of(number: int, size: int) -> bytes:
    return number.to_bytes(size, "big")


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"
