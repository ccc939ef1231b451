"""What a journal remembers of commands with ids, read by plain clients, and what must be true of it after faults."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, urlsplit

import asyncpg
import redis

from tests.faults.journals import stored_events
from tests.faults.vault import Receipt, Record
from tests.faults.verdict import Violation, verdict
from tests.servers.databases import asyncio_run

_OUTCOMES = (
    "SELECT s.stream_id, c.command_id, c.payload FROM journal_commands c JOIN journal_streams s ON s.id = c.stream"
)
# Version and time, then what `backends/redis_commands.py` packs: fingerprint, outcome id, time of issue, a flag.
_REDIS_PAYLOAD_AT = 7 + 8 + 16 + 16 + 8 + 1


class Remembered(NamedTuple):
    """One outcome: the reply that the journal keeps for a deposit."""

    stream_id: str
    command_id: str
    receipt: Receipt


def verdict_on_ids(url: str, record: Record, ids: Collection[str]) -> list[Violation]:
    """The verdict on a store where the deposits named by `ids` were sent under these ids until they were answered."""
    return [*verdict(url, record), *_violations_of_outcomes(url, record, ids)]


def outcomes_at(url: str) -> list[Remembered]:
    return [Remembered(stream_id, id_, Receipt(*json.loads(payload))) for stream_id, id_, payload in payloads_at(url)]


def payloads_at(url: str) -> list[tuple[str, str, str | bytes]]:
    """Every outcome: its stream, the command's id, and what is stored of the reply or the rejection."""
    parts = urlsplit(url)
    match parts.scheme:
        case "sqlite":
            with closing(sqlite3.connect(Path(parts.path[1:]))) as connection:
                return connection.execute(_OUTCOMES).fetchall()
        case "postgresql":
            return asyncio_run(_in_postgres(parts._replace(query="").geturl()))
        case "redis":
            return _in_redis(url)
        case scheme:
            raise ValueError(f"nobody has said how to read a {scheme} journal")


def _violations_of_outcomes(url: str, record: Record, ids: Collection[str]) -> Iterator[Violation]:
    outcomes = outcomes_at(url)
    by_id = {outcome.command_id: outcome for outcome in outcomes}
    stored = {event.id for event in stored_events(url)}
    for id_, count in Counter(outcome.command_id for outcome in outcomes).items():
        if count > 1:
            yield Violation("two outcomes", id_)
    # Both or neither is stored, and what was answered is there.
    for id_ in stored.intersection(ids) | record.acks.keys() & set(ids):
        if id_ not in by_id:
            yield Violation("outcome not remembered", id_)
    for id_ in by_id.keys() - stored:
        yield Violation("outcome without its events", id_)
    for id_, outcome in by_id.items():
        if id_ in record.acks and (record.acks[id_], record.intents[id_].stream_id) != (
            outcome.receipt,
            outcome.stream_id,
        ):
            yield Violation("another answer", f"{id_}: {record.acks[id_]} instead of {outcome.receipt}")


async def _in_postgres(dsn: str) -> list[tuple[str, str, str | bytes]]:
    connection = await asyncpg.connect(dsn, timeout=10, command_timeout=60)
    try:
        return [(row[0], row[1], row[2]) for row in await connection.fetch(_OUTCOMES)]
    finally:
        await connection.close(timeout=5)


def _in_redis(url: str) -> list[tuple[str, str, str | bytes]]:
    parts = urlsplit(url)
    base = f"{{{parse_qs(parts.query).get('prefix', ['journal'])[0]}}}"
    with closing(redis.Redis.from_url(parts._replace(query="").geturl(), socket_timeout=30)) as client:
        call = cast("Any", client)
        names: dict[bytes, bytes] = call.hgetall(f"{base}:numbers")
        stored: dict[bytes, bytes] = call.hgetall(f"{base}:commands")
    rows: list[tuple[str, str, str | bytes]] = []
    for field, packed in stored.items():
        number, _, command_id = field.partition(b":")
        rows.append((names[number].decode(), command_id.decode(), packed[_REDIS_PAYLOAD_AT:]))
    return rows
