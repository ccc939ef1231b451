"""Flipping single bits of what a journal holds, by plain clients of its database, past all protection."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import parse_qs, urlsplit

import asyncpg
import redis

VICTIM = "vault-victim"
COMMAND_ID = "victims-command"
# The event that is damaged: not the last one, and not the first.
VERSION = 3

Value = bytes | str | int | bool


class Unholdable(Exception):
    """The database itself cannot hold the damaged value."""


class Place(Protocol):
    """One stored value."""

    name: str

    async def read(self) -> Value | None: ...

    async def write(self, value: Value) -> None:
        """Raises `Unholdable`."""
        ...


@asynccontextmanager
async def places(url: str) -> AsyncGenerator[list[Place], None]:
    """Every value that the journal holds of the victim: of one event, its stream, its snapshot and its command."""
    match urlsplit(url).scheme:
        case "sqlite":
            with closing(sqlite3.connect(urlsplit(url).path[1:], isolation_level=None)) as connection:
                yield list(_sql_places(_SQLite(connection)))
        case "postgresql":
            connection = await asyncpg.connect(urlsplit(url)._replace(query="").geturl())
            try:
                # As a superuser: no trigger fires and no foreign key is looked at.
                await connection.execute("SET session_replication_role = replica")
                yield list(_sql_places(_Postgres(connection)))
            finally:
                await connection.close()
        case _:
            prefix = parse_qs(urlsplit(url).query).get("prefix", ["journal"])[0]
            with closing(redis.Redis.from_url(urlsplit(url)._replace(query="").geturl())) as client:
                yield _redis_places(cast("Any", client), f"{{{prefix}}}")


def flipped(value: Value) -> Iterator[Value | None]:
    """The value with each of its bits turned over, one at a time; None for a text that would be none any more."""
    match value:
        case bool():
            yield not value
        case int():
            for bit in range(63):
                yield value ^ (1 << bit)
            yield value - (1 << 63)
        case bytes():
            for bit in range(len(value) * 8):
                damaged = bytearray(value)
                damaged[bit // 8] ^= 1 << bit % 8
                yield bytes(damaged)
        case str():
            for data in flipped(value.encode()):
                try:
                    yield cast("bytes", data).decode()
                except UnicodeDecodeError:
                    yield None


async def damage_outcome_beyond_reading(url: str) -> None:
    """Leave bytes in the place of the victim's outcome that its database can hold, and the journal never writes.

    Postgres reads any text as it is; there it is the table's own pages that lose it.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        with closing(sqlite3.connect(parts.path[1:], isolation_level=None)) as connection:
            connection.execute(f"UPDATE journal_commands SET payload = x'ff' WHERE stream = {_STREAM}")
    elif parts.scheme == "postgresql":
        await lose_payloads(url, "journal_commands")
    else:
        with _redis_stream(url) as (client, base, number):
            client.hset(f"{base}:commands", f"{number}:{COMMAND_ID}", b"x")


async def damage_command_id(url: str) -> None:
    """Leave bytes that are no text in the place of an id that the victim remembers."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        with closing(sqlite3.connect(parts.path[1:], isolation_level=None)) as connection:
            connection.execute(f"UPDATE journal_commands SET command_id = x'ff' WHERE stream = {_STREAM}")
    else:
        with _redis_stream(url) as (client, base, number):
            client.zadd(f"{base}:command-order:{number}", {b"\xff": 2})


@contextmanager
def _redis_stream(url: str) -> Iterator[tuple[Any, str, int]]:
    """A client, the journal's first key, and the victim's number there."""
    parts = urlsplit(url)
    base = f"{{{parse_qs(parts.query).get('prefix', ['journal'])[0]}}}"
    with closing(redis.Redis.from_url(parts._replace(query="").geturl())) as client:
        yield client, base, int.from_bytes(cast("bytes", client.hget(f"{base}:heads", VICTIM))[:7], "big")


async def lose_payloads(url: str, table: str) -> None:
    """Have a Postgres server find the payloads of the victim's rows damaged: it keeps a long one in pages of their own,
    and those are emptied."""
    connection = await asyncpg.connect(urlsplit(url)._replace(query="").geturl())
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(f"ALTER TABLE {table} ALTER payload SET STORAGE EXTERNAL")
        await connection.execute(f"UPDATE {table} SET payload = repeat('x', 10000) WHERE stream = {_STREAM}")
        await connection.execute("CREATE EXTENSION pg_surgery")
        toast = await connection.fetchval(
            f"SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = '{table}'"
        )
        await connection.execute(f"SELECT heap_force_kill('{toast}', ARRAY(SELECT ctid FROM {toast}))")
    finally:
        await connection.close()


# SQL


class _Database(Protocol):
    async def one(self, statement: str, *parameters: Any) -> Any: ...

    async def change(self, statement: str, *parameters: Any) -> None: ...


class _SQLPlace:
    def __init__(self, database: _Database, table: str, column: str, where: str, key: Any) -> None:
        self.name = f"{table.removeprefix('journal_')}.{column}"
        self._database = database
        self._table = table
        self._column = column
        self._where = where
        self._key = key

    async def read(self) -> Value | None:
        value: Value | None = await self._database.one(
            f"SELECT {self._column} FROM {self._table} WHERE {self._where} = $1", self._key
        )
        return value

    async def write(self, value: Value) -> None:
        await self._database.change(
            f"UPDATE {self._table} SET {self._column} = $1 WHERE {self._where} = $2", value, self._key
        )


class _Row(NamedTuple):
    """A row, found by either of two columns: by the other one while one is damaged."""

    table: str
    columns: str
    keys: tuple[str, str]
    where: str


_STREAM = f"(SELECT id FROM journal_streams WHERE stream_id = '{VICTIM}')"
_ROWS = (
    _Row(
        "journal_events",
        "position stream version type schema_version payload metadata event_id batch_id checksum epoch recorded_at",
        ("event_id", "recorded_at"),
        f"stream = {_STREAM} AND version = {VERSION}",
    ),
    _Row(
        "journal_snapshots",
        "version fingerprint encoding payload checksum epoch recorded_at",
        ("checksum", "recorded_at"),
        f"stream = {_STREAM}",
    ),
    _Row(
        "journal_commands",
        "command_id fingerprint outcome_id is_rejection payload version issued_at recorded_at",
        ("outcome_id", "id"),
        f"stream = {_STREAM} AND command_id = '{COMMAND_ID}'",
    ),
    _Row("journal_streams", "stream_id kind epoch truncated forgotten", ("id", "id"), f"stream_id = '{VICTIM}'"),
)


class _LatePlace(_SQLPlace):
    """A place whose row is looked for when it is first read."""

    def __init__(self, database: _Database, row: _Row, column: str) -> None:
        key = row.keys[0] if column != row.keys[0] else row.keys[1]
        super().__init__(database, row.table, column, key, None)
        self._find = f"SELECT {key} FROM {row.table} WHERE {row.where}"

    async def read(self) -> Value | None:
        if self._key is None:
            self._key = await self._database.one(self._find)
        return await super().read()


def _sql_places(database: _Database) -> Iterable[Place]:
    for row in _ROWS:
        for column in row.columns.split():
            yield _LatePlace(database, row, column)


class _SQLite:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def one(self, statement: str, *parameters: Any) -> Any:
        return self._connection.execute(statement.replace("$", "?"), parameters).fetchone()[0]

    async def change(self, statement: str, *parameters: Any) -> None:
        connection = self._connection
        with _without_triggers(connection):
            try:
                changed = connection.execute(statement.replace("$", "?"), parameters).rowcount
            except (sqlite3.IntegrityError, OverflowError) as error:
                raise Unholdable from error
            assert changed == 1


@contextmanager
def _without_triggers(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f'DROP TRIGGER "{name}"')
        yield
        for _, source in triggers:
            connection.execute(source)
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


class _Postgres:
    def __init__(self, connection: asyncpg.Connection[Any]) -> None:
        self._connection = connection

    async def one(self, statement: str, *parameters: Any) -> Any:
        return await self._connection.fetchval(statement, *parameters)

    async def change(self, statement: str, *parameters: Any) -> None:
        try:
            changed = await self._connection.execute(statement, *parameters)
        except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
            raise Unholdable from error
        assert changed == "UPDATE 1"


# Redis


class _RedisPlace:
    """Some bytes of a value that is read and written whole."""

    def __init__(self, name: str, span: slice, read: Callable[[], bytes], write: Callable[[bytes], Any]) -> None:
        self.name = name
        self._span = span
        self._read = read
        self._write = write
        self._whole = b""

    async def read(self) -> Value:
        self._whole = self._read()
        return self._whole[self._span]

    async def write(self, value: Value) -> None:
        assert isinstance(value, bytes)
        start, end, _ = self._span.indices(len(self._whole))
        self._write(self._whole[:start] + value + self._whole[end:])


# As `backends/redis_records.py` and `backends/redis_commands.py` pack them.
_RECORD = {
    "position": 8,
    "time": 8,
    "event_id": 16,
    "epoch": 8,
    "checksum": 8,
    "schema_version": 4,
    "type_bytes": 2,
    "size": 4,
}
_SNAPSHOT = {"version": 8, "time": 8, "epoch": 8, "sizes": 6}
_COMMAND = {"version": 7, "time": 8, "fingerprint": 16, "outcome_id": 16, "issued_at": 8, "is_rejection": 1}
_HEAD = {"number": 7, "version": 7, "truncated": 7, "epoch": 7, "snapshot": 7, "forgotten": 7}
_ENTRY_BYTES = 16


def _redis_places(client: Any, base: str) -> list[Place]:
    head: bytes = client.hget(f"{base}:heads", VICTIM)
    number = int.from_bytes(head[:7], "big")
    events, commands, log = f"{base}:events:{number}", f"{base}:commands", f"{base}:log:0"
    snapshots, command = f"{base}:snapshots:{number}", f"{number}:{COMMAND_ID}"
    (version,) = client.hkeys(snapshots)
    record: bytes = client.lindex(events, VERSION - 1)
    position = int.from_bytes(record[:8], "big")
    whole: dict[str, tuple[dict[str, int], Callable[[], bytes], Callable[[bytes], Any]]] = {
        "event": (
            _RECORD,
            lambda: client.lindex(events, VERSION - 1),
            lambda data: client.lset(events, VERSION - 1, data),
        ),
        "snapshot": (
            _SNAPSHOT,
            lambda: client.hget(snapshots, version),
            lambda data: client.hset(snapshots, version, data),
        ),
        "command": (
            _COMMAND,
            lambda: client.hget(commands, command),
            lambda data: client.hset(commands, command, data),
        ),
        "head": (
            _HEAD,
            lambda: client.hget(f"{base}:heads", VICTIM),
            lambda data: client.hset(f"{base}:heads", VICTIM, data),
        ),
        "log": (
            {"entry": _ENTRY_BYTES},
            lambda: client.getrange(log, (position - 1) * _ENTRY_BYTES, position * _ENTRY_BYTES - 1),
            lambda data: client.setrange(log, (position - 1) * _ENTRY_BYTES, data),
        ),
    }
    found: list[Place] = []
    for name, (fields, read, write) in whole.items():
        at = 0
        for field, size in fields.items():
            found.append(_RedisPlace(f"{name}.{field}", slice(at, at + size), read, write))
            at += size
        if len(read()) > at:
            found.append(_RedisPlace(f"{name}.rest", slice(at, None), read, write))
    return found
