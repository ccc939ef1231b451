"""Attackers: people with the rights of the database's owner, who know how a journal is stored and cover their tracks.

Each edit is one method; what it needs is taken from a `random.Random`, so that a run can be repeated.
"""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import asyncpg
import redis

from backends.redis_records import _packed, recorded
from backends.redis_seals import _seal, packed_seal
from backends.redis_tenant import split
from eventstore.backend import EncodedEvent, ReplicaFields, StoredSeal
from eventstore.codec import checksum_of
from eventstore.events import RecordedEvent

FIELDS = (
    "type",
    "schema_version",
    "payload",
    "metadata",
    "event_id",
    "batch_id",
    "checksum",
    "epoch",
    "origin",
    "origin_sequence",
    "clock",
    "concurrent",
    "recorded_at",
)


class Attacker(Protocol):
    """What can be done to any journal. `at` is a position."""

    async def restore(self) -> None: ...
    async def close(self) -> None: ...
    async def change(self, at: int, field: str, rng: random.Random, *, clever: bool) -> None: ...
    async def delete(self, at: int) -> None: ...
    async def cut(self, after: int) -> None: ...
    async def insert(self, at: int, like: int) -> None: ...
    async def swap(self, one: int, other: int) -> None: ...
    async def rename(self, stream_id: str) -> None: ...
    async def truncate_without_record(self, stream_id: str, through: int) -> None: ...
    async def change_removal(self, number: int) -> None: ...
    async def delete_removal(self, number: int) -> None: ...
    async def seals(self) -> list[StoredSeal]: ...
    async def replace_seal(self, number: int, seal: StoredSeal | None) -> None: ...


class SQLAttacker:
    """On SQLite and Postgres. A subclass says how statements get there, past the triggers."""

    tables = ("journal_streams", "journal_events", "journal_removals", "journal_seals")

    def __init__(self) -> None:
        self._saved: dict[str, list[tuple[Any, ...]]] = {}

    async def run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        raise NotImplementedError

    async def save(self) -> None:
        for table in self.tables:
            self._saved[table] = await self.run(f"SELECT * FROM {table}")

    async def restore(self) -> None:
        for table, rows in self._saved.items():
            current = await self.run(f"SELECT * FROM {table}")
            if current != rows:
                await self.run(f"DELETE FROM {table}")
                for row in rows:
                    marks = ", ".join(f"?{index}" for index in range(1, len(row) + 1))
                    await self.run(f"INSERT INTO {table} VALUES ({marks})", *row)

    async def change(self, at: int, field: str, rng: random.Random, *, clever: bool) -> None:
        [(old, type_, schema_version, payload, metadata)] = await self.run(
            f"SELECT {field}, type, schema_version, payload, metadata FROM journal_events WHERE position = ?1", at
        )
        new: Any
        match field:
            case "type":
                new = old + "2"
            case "payload":
                new = old.replace('"number"', '"Number"' if rng.random() < 0.5 else '"number" ')
            case "metadata":
                new = '{"user":"mallory"}' if old is None else rng.choice((None, old.replace("user", "User", 0) + " "))
            case "event_id" | "batch_id":
                new = uuid4().bytes
            case "origin":
                new = "us" if old is None or old != "us" else "eu"
            case "clock":
                new = '{"clock":{"us":9},"time":9}' if old is None else old + " "
            case "concurrent":
                new = not old
            case "origin_sequence":
                new = rng.randrange(100, 200)
            case _:
                new = old + rng.randrange(1, 9)
        await self.run(f"UPDATE journal_events SET {field} = ?1 WHERE position = ?2", new, at)
        if clever and field in {"type", "schema_version", "payload", "metadata"}:
            values = {"type": type_, "schema_version": schema_version, "payload": payload, "metadata": metadata}
            values[field] = new
            notes = values["metadata"]
            checksum = checksum_of(
                values["type"],
                values["schema_version"],
                values["payload"].encode(),
                None if notes is None else notes.encode(),
            )
            await self.run("UPDATE journal_events SET checksum = ?1 WHERE position = ?2", checksum, at)

    async def delete(self, at: int) -> None:
        await self.run("DELETE FROM journal_events WHERE position = ?1", at)

    async def cut(self, after: int) -> None:
        await self.run("DELETE FROM journal_events WHERE position > ?1", after)

    async def insert(self, at: int, like: int) -> None:
        columns = (
            "type, schema_version, payload, metadata, batch_id, checksum, epoch, origin, origin_sequence, clock, "
            "concurrent, recorded_at"
        )
        await self.run(
            f"INSERT INTO journal_events (position, stream, version, event_id, {columns}) "
            f"SELECT ?1, stream, version + 1000, ?2, {columns} FROM journal_events WHERE position = ?3",
            at,
            uuid4().bytes,
            like,
        )

    async def swap(self, one: int, other: int) -> None:
        # By way of a position that nobody has: they are unique.
        for source, target in ((one, -1), (other, one), (-1, other)):
            await self.run("UPDATE journal_events SET position = ?1 WHERE position = ?2", target, source)

    async def rename(self, stream_id: str) -> None:
        await self.run("UPDATE journal_streams SET stream_id = ?1 WHERE stream_id = ?2", f"{stream_id}2", stream_id)

    async def truncate_without_record(self, stream_id: str, through: int) -> None:
        await self.run("UPDATE journal_streams SET truncated = ?1 WHERE stream_id = ?2", through, stream_id)
        await self.run(
            "DELETE FROM journal_events WHERE version <= ?1 AND "
            "stream = (SELECT id FROM journal_streams WHERE stream_id = ?2)",
            through,
            stream_id,
        )

    async def change_removal(self, number: int) -> None:
        await self.run("UPDATE journal_removals SET through = through + 1 WHERE id = ?1", number)

    async def delete_removal(self, number: int) -> None:
        await self.run("DELETE FROM journal_removals WHERE id = ?1", number)

    async def seals(self) -> list[StoredSeal]:
        rows = await self.run(
            "SELECT number, statement, signature, leaves, removals FROM journal_seals ORDER BY number"
        )
        return [StoredSeal(*row) for row in rows]

    async def replace_seal(self, number: int, seal: StoredSeal | None) -> None:
        await self.run("DELETE FROM journal_seals WHERE number = ?1", number)
        if seal is not None:
            await self.run("INSERT INTO journal_seals VALUES (?1, ?2, ?3, ?4, ?5)", *seal)


class SQLiteAttacker(SQLAttacker):
    """Somebody who may write the file. The triggers are gone as long as he is at work."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._connection = sqlite3.connect(Path(url.removeprefix("sqlite:///")), isolation_level=None, timeout=30)
        # He need not wait for the disk.
        self._connection.execute("PRAGMA synchronous = OFF")
        self._triggers = self._connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in self._triggers:
            self._connection.execute(f"DROP TRIGGER {name}")

    async def run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, parameters).fetchall()

    async def restore(self) -> None:
        await self.run("BEGIN")
        await super().restore()
        await self.run("COMMIT")

    async def close(self) -> None:
        for _, statement in self._triggers:
            self._connection.execute(statement)
        self._connection.close()


class PostgresAttacker(SQLAttacker):
    """A superuser: his session runs no triggers."""

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection = connection

    @classmethod
    async def connect(cls, url: str) -> PostgresAttacker:
        connection: Any = await asyncpg.connect(urlsplit(url)._replace(query="").geturl(), timeout=20)
        await connection.execute("SET session_replication_role = replica")
        return cls(connection)

    async def run(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        rows = await self._connection.fetch(statement.replace("?", "$"), *parameters)
        return [tuple(row) for row in rows]

    async def close(self) -> None:
        await self._connection.close()


class RedisAttacker:
    """Somebody with every right on the server, who keeps the journal's keys in agreement with each other."""

    def __init__(self, url: str) -> None:
        prefix = parse_qs(urlsplit(url).query).get("prefix", ["journal"])[0]
        self._base = f"{{{prefix}}}"
        self._call: Any = redis.Redis.from_url(urlsplit(url)._replace(query="").geturl(), socket_timeout=30)
        self._saved: dict[bytes, bytes] = {}

    async def save(self) -> None:
        self._saved = self._dumped()

    async def restore(self) -> None:
        current = self._dumped()
        for key in current.keys() - self._saved.keys():
            self._call.delete(key)
        for key, dumped in self._saved.items():
            if current.get(key) != dumped:
                self._call.restore(key, 0, dumped, replace=True)

    async def close(self) -> None:
        self._call.close()

    async def change(self, at: int, field: str, rng: random.Random, *, clever: bool) -> None:
        event = self._event(at)
        self._call.hdel(f"{self._base}:ids", event.event_id.bytes)
        new: Any
        old = getattr(event, "metadata_bytes" if field == "metadata" else field)
        match field:
            case "type":
                new = old + "2"
            case "payload":
                new = old.replace(b'"number"', b'"Number"' if rng.random() < 0.5 else b'"number" ')
            case "metadata":
                new = b'{"user":"mallory"}' if old is None else rng.choice((None, old + b" "))
                field = "metadata_bytes"
            case "event_id" | "batch_id":
                new = uuid4()
            case "concurrent":
                new = not old
            case "recorded_at":
                new = old.replace(microsecond=(old.microsecond + rng.randrange(1, 9)) % 1_000_000)
            case "origin" | "clock" | "origin_sequence":
                event = event._replace(origin="us", origin_sequence=rng.randrange(100, 200), clock=b'{"z":1}')
                new = getattr(event, field)
            case _:
                new = old + rng.randrange(1, 9)
        if field == "concurrent" and event.origin is None:
            event = event._replace(origin="us", origin_sequence=7, clock=b"{}")
        event = event._replace(**{field: new})
        if clever and field in {"type", "schema_version", "payload", "metadata_bytes"}:
            checksum = checksum_of(event.type, event.schema_version, event.payload, event.metadata_bytes)
            event = event._replace(checksum=checksum)
        self._put(at, event)

    async def delete(self, at: int) -> None:
        """The later events of the stream move down by one version; the position becomes one of a truncated event."""
        number, version, size = self._entry(at)
        _, newest, truncated, *_ = self._head(number)
        key = f"{self._base}:events:{number}"
        self._call.hdel(f"{self._base}:ids", self._event(at).event_id.bytes)
        self._call.lset(key, version - truncated - 1, b"doomed")
        self._call.lrem(key, 1, b"doomed")
        for position in range(at + 1, self._position() + 1):
            other, its, length = self._entry(position)
            if other == number:
                self._set_entry(position, number, its - 1, length)
        self._set_entry(at, number, 0, size)
        self._set_head(number, version=newest - 1)

    async def cut(self, after: int) -> None:
        end = self._position()
        for position in range(end, after, -1):
            number, version, _ = self._entry(position)
            _, newest, truncated, *_ = self._head(number)
            if version == newest and version > truncated:
                event = self._event(position)
                self._call.rpop(f"{self._base}:events:{number}")
                self._call.hdel(f"{self._base}:ids", event.event_id.bytes)
                self._set_head(number, version=newest - 1)
        key = f"{self._base}:log:0"
        self._call.set(key, self._call.getrange(key, 0, after * 16 - 1) if after else b"")
        self._call.hset(self._base, "position", after)

    async def insert(self, at: int, like: int) -> None:
        number, _, size = self._entry(like)
        _, newest, *_ = self._head(number)
        event = self._event(like)._replace(position=at, event_id=uuid4())
        self._call.rpush(f"{self._base}:events:{number}", self._packed(event))
        self._call.hset(f"{self._base}:ids", event.event_id.bytes, at)
        self._set_entry(at, number, newest + 1, size)
        self._set_head(number, version=newest + 1)

    async def swap(self, one: int, other: int) -> None:
        first, second = self._event(one), self._event(other)
        self._put(one, second._replace(position=one))
        self._put(other, first._replace(position=other))

    async def rename(self, stream_id: str) -> None:
        head = self._call.hget(f"{self._base}:heads", stream_id)
        self._call.hdel(f"{self._base}:heads", stream_id)
        self._call.hset(f"{self._base}:heads", f"{stream_id}2", head)
        self._call.hset(f"{self._base}:numbers", int.from_bytes(head[:7], "big"), f"{stream_id}2")
        self._call.zrem(f"{self._base}:names", stream_id)
        self._call.zadd(f"{self._base}:names", {f"{stream_id}2": 0})

    async def truncate_without_record(self, stream_id: str, through: int) -> None:
        number = int.from_bytes(self._call.hget(f"{self._base}:heads", stream_id)[:7], "big")
        _, _, truncated, *_ = self._head(number)
        self._call.ltrim(f"{self._base}:events:{number}", through - truncated, -1)
        self._set_head(number, truncated=through)

    async def change_removal(self, number: int) -> None:
        key = f"{self._base}:removals"
        entry = self._call.lindex(key, number - 1)
        self._call.lset(key, number - 1, entry.replace(b'"reason":"', b'"reason":"really, '))

    async def delete_removal(self, number: int) -> None:
        key = f"{self._base}:removals"
        self._call.lset(key, number - 1, b"doomed")
        self._call.lrem(key, 1, b"doomed")

    async def seals(self) -> list[StoredSeal]:
        found = self._call.zrange(f"{self._base}:seals", 0, -1, withscores=True)
        return [_seal(packed, int(score)) for packed, score in found]

    async def replace_seal(self, number: int, seal: StoredSeal | None) -> None:
        self._call.zremrangebyscore(f"{self._base}:seals", number, number)
        if seal is not None:
            self._call.zadd(f"{self._base}:seals", {packed_seal(seal): number})

    async def add_seal(self, score: float, seal: StoredSeal) -> None:
        self._call.zadd(f"{self._base}:seals", {packed_seal(seal): score})

    def _dumped(self) -> dict[bytes, bytes]:
        keys = [key for key in self._call.keys("*") if key.startswith(self._base.encode())]
        pipeline = self._call.pipeline(transaction=False)
        for key in keys:
            pipeline.dump(key)
        return dict(zip(keys, pipeline.execute(), strict=True))

    def _position(self) -> int:
        return int(self._call.hget(self._base, "position"))

    def _entry(self, position: int) -> tuple[int, int, int]:
        raw = self._call.getrange(f"{self._base}:log:0", (position - 1) * 16, position * 16 - 1)
        return int.from_bytes(raw[:6], "big"), int.from_bytes(raw[6:12], "big"), int.from_bytes(raw[12:], "big")

    def _set_entry(self, position: int, number: int, version: int, size: int) -> None:
        raw = number.to_bytes(6, "big") + version.to_bytes(6, "big") + size.to_bytes(4, "big")
        self._call.setrange(f"{self._base}:log:0", (position - 1) * 16, raw)

    def _head(self, number: int) -> list[int]:
        raw = self._call.hget(f"{self._base}:heads", self._name(number))
        return [int.from_bytes(raw[at : at + 7], "big") for at in range(0, 42, 7)]

    def _set_head(self, number: int, *, version: int | None = None, truncated: int | None = None) -> None:
        head = self._head(number)
        head[1] = head[1] if version is None else version
        head[2] = head[2] if truncated is None else truncated
        self._call.hset(f"{self._base}:heads", self._name(number), b"".join(n.to_bytes(7, "big") for n in head))

    def _name(self, number: int) -> bytes:
        name: bytes = self._call.hget(f"{self._base}:numbers", number)
        return name

    def _event(self, position: int) -> RecordedEvent:
        number, version, _ = self._entry(position)
        _, _, truncated, *_ = self._head(number)
        record = self._call.lindex(f"{self._base}:events:{number}", version - truncated - 1)
        return recorded(*split(self._name(number)), version, record)

    def _put(self, position: int, event: RecordedEvent) -> None:
        number, version, _ = self._entry(position)
        _, _, truncated, *_ = self._head(number)
        self._call.hset(f"{self._base}:ids", event.event_id.bytes, position)
        self._call.lset(f"{self._base}:events:{number}", version - truncated - 1, self._packed(event))

    def _packed(self, event: RecordedEvent) -> bytes:
        replica = None
        if event.origin is not None:
            replica = ReplicaFields(event.origin, event.origin_sequence or 0, event.clock or b"", event.concurrent)
        encoded = EncodedEvent(
            event.event_id.bytes,
            event.type,
            event.schema_version,
            event.payload,
            event.metadata_bytes,
            event.batch_id.bytes,
            event.checksum,
            replica,
        )
        time = int(event.recorded_at.timestamp()) * 1_000_000 + event.recorded_at.microsecond
        return event.position.to_bytes(8, "big") + time.to_bytes(8, "big") + _packed(encoded, event.epoch)


async def attacker(url: str) -> Any:
    """Somebody who may do anything to this journal. What he finds is what `restore` brings back."""
    made: Any
    if url.startswith("sqlite"):
        made = SQLiteAttacker(url)
    elif url.startswith("postgres"):
        made = await PostgresAttacker.connect(url)
    else:
        made = RedisAttacker(url)
    await made.save()
    return made
