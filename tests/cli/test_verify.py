"""`verify`: whatever is damaged in a journal is listed with its place, and everything else is read."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import pytest
import redis

from actors import ActorSystem, RecoveryError
from eventstore import EventStore, JournalCorrupt, Metadata, NewEvent
from eventstore.backend import EventFilter, LogPage, StreamInfo
from eventstore.snapshots import new_snapshot
from eventstore.verification import Damage, Verification
from tests.actors.notebook import Notebook, Read, Write, Written
from tests.backends.postgres_help import connected

from .conftest import Run

STREAMS = ("Notebook-a", "Notebook-b")


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A journal on each database: two streams of three events each, by turns, and a snapshot of the first."""
    url = f"sqlite:///{tmp_path}/own.db"
    if request.param != "sqlite":
        url = str(request.getfixturevalue(f"{request.param}_url"))
    asyncio.run(filled(url))
    return url


async def filled(url: str) -> None:
    async with EventStore.open(url) as store:
        for number in range(1, 4):
            for stream_id in STREAMS:
                noted = NewEvent(Written(text=f"line {number}"), metadata=Metadata(user="alice"))
                await store.append(stream_id, [noted])
        await store.save_snapshot(new_snapshot("Notebook-a", 2, "f", b'{"lines":["line 1","line 2"]}'))


def flip(data: bytes, index: int = 9) -> bytes:
    """The bytes with one bit of one of them changed, so that text stays text."""
    return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]


async def change_row(url: str, table: str, column: str, where: str, change: Callable[[Any], Any]) -> None:
    """Change one value, past all protection, as the owner of the database."""
    where = where.replace("STREAM", "stream = (SELECT id FROM journal_streams WHERE stream_id = 'Notebook-a')")
    select = f"SELECT {column} FROM {table} WHERE {where}"
    if url.startswith("sqlite"):
        with unprotected(url) as connection:
            ((value,),) = connection.execute(select).fetchall()
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (change(value),))
        return
    async with connected(url) as connection:
        await connection.execute("SET session_replication_role = replica")
        value = await connection.fetchval(select)
        await connection.execute(f"UPDATE {table} SET {column} = $1 WHERE {where}", change(value))


@contextmanager
def unprotected(url: str) -> Generator[sqlite3.Connection]:
    """A connection to a file whose triggers are away meanwhile."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        yield connection
        for _, statement in triggers:
            connection.execute(statement)
        connection.commit()


def change_record(url: str, change: Callable[[bytes], bytes], *, snapshot: bool = False) -> None:
    """Change the record of the second event, or of the snapshot, in Redis."""
    prefix = parse_qs(urlsplit(url).query).get("prefix", ["journal"])[0]
    base = f"{{{prefix}}}"
    with closing(
        cast("Any", redis.Redis).from_url(urlsplit(url)._replace(query="").geturl(), socket_timeout=30)
    ) as call:
        number = int.from_bytes(call.hget(f"{base}:heads", "Notebook-a")[:7], "big")
        if snapshot:
            key = f"{base}:snapshots:{number}"
            (field,) = call.hkeys(key)
            call.hset(key, field, change(call.hget(key, field)))
        else:
            key = f"{base}:events:{number}"
            call.lset(key, 1, change(call.lindex(key, 1)))


def of_text(value: str) -> str:
    return flip(value.encode()).decode()


def at(part: bytes, offset: int = 0) -> Callable[[bytes], bytes]:
    """A flip in that part of a record."""
    return lambda record: flip(record, record.index(part) + offset)


EVENT = "STREAM AND version = 2"
# What is damaged, in SQL (column and change) and in a record of Redis.
PLACES: dict[str, tuple[str, Callable[[Any], Any], Callable[[bytes], bytes]]] = {
    "payload": ("payload", of_text, at(b"line 2")),
    "metadata": ("metadata", of_text, at(b"alice")),
    "type": ("type", lambda value: flip(value.encode(), 1).decode(), at(b"written")),
    "schema version": ("schema_version", lambda value: value ^ 2, lambda record: flip(record, 51)),
    "checksum": ("checksum", lambda value: value ^ 4, lambda record: flip(record, 47)),
    "metadata's checksum": ("checksum", lambda value: value ^ 1 << 40, lambda record: flip(record, 43)),
}


@pytest.mark.parametrize("place", PLACES)
def test_one_flipped_bit_is_listed_and_named_and_stops_no_other_actor(cli: Run, any_url: str, place: str) -> None:
    column, in_row, in_record = PLACES[place]
    if any_url.startswith("redis"):
        change_record(any_url, in_record)
    else:
        asyncio.run(change_row(any_url, "journal_events", column, EVENT, in_row))
    result = cli("verify", any_url)
    assert result.code == 1, result
    damage, summary = result.lines
    assert damage.split("\t")[:3] == ["Notebook-a", "2", "3"]
    assert "not match its checksum" in damage
    assert summary == "2 streams, 6 events, 1 snapshot read: 1 problem"
    asyncio.run(assert_others_serve(any_url, is_replayed="metadata" not in place))


async def assert_others_serve(url: str, *, is_replayed: bool) -> None:
    async with EventStore.open(url) as store:
        with pytest.raises(JournalCorrupt, match=r"'Notebook-a': the event at version 2 is damaged"):
            [_ async for _ in store.read("Notebook-a")]
        with pytest.raises(JournalCorrupt, match=r"'Notebook-a': the event at version 2 is damaged"):
            [_ async for _ in store.read_all()]
        assert [recorded.position async for recorded in store.read_all(on_damage=lambda _: None)] == [1, 2, 4, 5, 6]
        assert [recorded.version async for recorded in store.read("Notebook-b")] == [1, 2, 3]
        async with ActorSystem(store) as system:
            # A state needs no metadata.
            if is_replayed:
                with pytest.raises(RecoveryError, match="version 2 is damaged"):
                    await system.ref(Notebook, "a").ask(Read())
            else:
                assert await system.ref(Notebook, "a").ask(Read()) == ["line 1", "line 2", "line 3"]
            await system.ref(Notebook, "b").ask(Write(text="more"))
            assert await system.ref(Notebook, "b").ask(Read()) == ["line 1", "line 2", "line 3", "more"]


def test_a_whole_journal_is_fine(program: Run, any_url: str) -> None:
    result = program("verify", any_url)
    assert (result.code, result.out) == (0, "2 streams, 6 events, 1 snapshot read: no damage\n")


def test_json_names_each_place(cli: Run, any_url: str) -> None:
    if any_url.startswith("redis"):
        change_record(any_url, at(b"line 2"))
    else:
        asyncio.run(change_row(any_url, "journal_events", "payload", EVENT, of_text))
    result = cli("verify", any_url, "--json")
    assert result.code == 1
    damage, summary = result.objects
    assert {name: damage[name] for name in ("stream_id", "version", "position")} == {
        "stream_id": "Notebook-a",
        "version": 2,
        "position": 3,
    }
    assert summary == {"summary": {"streams": 2, "events": 6, "snapshots": 1, "problems": 1}}


def test_a_damaged_snapshot_is_listed(cli: Run, any_url: str) -> None:
    if any_url.startswith("redis"):
        change_record(any_url, lambda record: flip(record, len(record) - 3), snapshot=True)
    else:
        asyncio.run(change_row(any_url, "journal_snapshots", "payload", "STREAM", flip))
    result = cli("verify", any_url)
    assert result.code == 1, result
    damage, summary = result.lines
    assert damage.split("\t")[:3] == ["Notebook-a", "2", ""]
    assert "does not match its checksum" in damage
    assert summary == "2 streams, 6 events, 1 snapshot read: 1 problem"


def test_only_streams_of_a_kind_are_looked_at_if_one_is_named(cli: Run, any_url: str) -> None:
    result = cli("verify", any_url, "--kind", "Other")
    assert (result.code, result.out) == (0, "0 streams, 0 events, 0 snapshots read: no damage\n")
    result = cli("verify", any_url, "--kind", "Notebook")
    assert (result.code, result.out) == (0, "2 streams, 6 events, 1 snapshot read: no damage\n")


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("DELETE FROM journal_events WHERE version = 2 AND stream = 1", "3 follows 1"),
        ("DELETE FROM journal_events WHERE version = 1 AND stream = 1", "its first event is version 2"),
        ("UPDATE journal_events SET version = version + 4 WHERE version = 3 AND stream = 1", "7 follows 2"),
        (
            "UPDATE journal_events SET stream = 9 WHERE version = 3 AND stream = 1",
            "holds 6 events, but the log shows 5",
        ),
        ("UPDATE journal_snapshots SET version = version + 8", "does not match its checksum"),
        ("UPDATE journal_events SET payload = x'ff00' WHERE version = 3 AND stream = 1", "version 3 is damaged"),
        ("UPDATE journal_events SET type = x'00' WHERE version = 3 AND stream = 1", "version 3 is damaged"),
    ],
)
def test_what_a_checksum_does_not_cover_is_seen_by_the_order_of_things(
    cli: Run, tmp_path: Path, statement: str, problem: str
) -> None:
    url = f"sqlite:///{tmp_path}/own.db"
    asyncio.run(filled(url))
    with unprotected(url) as connection:
        connection.execute(statement)
    result = cli("verify", url)
    assert result.code == 1, result
    assert problem in result.out


def test_a_truncated_stream_is_fine(cli: Run, any_url: str) -> None:
    async def truncated() -> None:
        async with EventStore.open(any_url) as store:
            await store.truncate("Notebook-a", 2, reason="test")
            await store.truncate("Notebook-b", 3, reason="test")

    asyncio.run(truncated())
    result = cli("verify", any_url)
    assert (result.code, result.out) == (0, "2 streams, 1 event, 1 snapshot read: no damage\n")


async def problems_where_events_go_meanwhile(
    url: str, monkeypatch: pytest.MonkeyPatch, remove: Callable[[EventStore], Awaitable[object]]
) -> list[Damage]:
    """What verification finds where something is removed after two events were read."""
    async with EventStore.open(url) as store:
        read_page = store.read_page

        async def read_two(*, after: int, limit: int, where: EventFilter) -> LogPage:
            page = await read_page(after=after, limit=2, where=where)
            if after == 0:
                await remove(store)
            return page

        monkeypatch.setattr(store, "read_page", read_two)
        return [damage async for damage in Verification(store).problems()]


@pytest.mark.parametrize("through", [2, 3])
def test_a_stream_that_is_truncated_meanwhile_is_fine(
    any_url: str, monkeypatch: pytest.MonkeyPatch, through: int
) -> None:
    found = problems_where_events_go_meanwhile(
        any_url, monkeypatch, lambda store: store.truncate("Notebook-a", through, reason="test")
    )
    assert asyncio.run(found) == []


async def problems_where_new_events_go_meanwhile(url: str, monkeypatch: pytest.MonkeyPatch) -> list[Damage]:
    """What verification finds where events come after the log was read, and go after the streams were listed."""
    async with EventStore.open(url) as store:
        listed = store.streams

        async def streams(**options: Any) -> AsyncGenerator[StreamInfo]:
            await store.append("Notebook-a", [Written(text="new"), Written(text="newer")])
            infos = [info async for info in listed(**options)]
            await store.truncate("Notebook-a", 5, reason="test")
            for info in infos:
                yield info

        monkeypatch.setattr(store, "streams", streams)
        return [damage async for damage in Verification(store).problems()]


def test_new_events_that_are_truncated_meanwhile_are_fine(any_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asyncio.run(problems_where_new_events_go_meanwhile(any_url, monkeypatch)) == []


def test_a_hole_beside_what_is_truncated_meanwhile_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/own.db"
    asyncio.run(filled(url))
    with unprotected(url) as connection:
        connection.execute("DELETE FROM journal_events WHERE version = 2 AND stream = 1")
    found = problems_where_events_go_meanwhile(
        url, monkeypatch, lambda store: store.truncate("Notebook-a", 1, reason="test")
    )
    (hole,) = asyncio.run(found)
    assert (hole.stream_id, hole.version, hole.problem) == (
        "Notebook-a",
        3,
        "the versions have a hole or a repeat: 3 follows 1",
    )
