"""The thread that reads what actors recover from: when it begins, and how much it holds at once."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from backends import sqlite_page_thread
from backends.conformance.events import write
from backends.sqlite import SQLiteBackend
from backends.sqlite_loader import SQLiteLoader
from eventstore import EventStore
from eventstore.backend import Load, Loaded, StoredSnapshot
from eventstore.errors import JournalCorrupt

MIB = 1024 * 1024


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncGenerator[SQLiteBackend, None]:
    async with EventStore.open(f"sqlite:///{tmp_path}/journal.db") as store:
        yield cast("SQLiteBackend", store._backend)


@pytest.fixture
def held_lock() -> Iterator[None]:
    """A thread that does not wait for anything keeps the interpreter's lock, as a busy event loop does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(30)
    yield
    sys.setswitchinterval(before)


def text(size: int) -> bytes:
    return b'"%b"' % (b"x" * (size - 2))


async def loaded(backend: SQLiteBackend, *loads: Load) -> list[Loaded]:
    answers = [answer for answer in await backend.load(loads) if isinstance(answer, Loaded)]
    assert len(answers) == len(loads)
    return answers


async def test_a_payload_that_is_a_blob_is_damage_of_its_own_stream(tmp_path: Path, backend: SQLiteBackend):
    await backend.append([[write("a", b"1", b"2", b"3")]])
    await backend.append([[write("b", b"4")]])
    with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as connection:
        connection.execute("DROP TRIGGER journal_events_no_update")
        connection.execute("UPDATE journal_events SET payload = CAST(payload AS BLOB) WHERE payload = '2'")
    (alone,) = await backend.load([Load("a")])
    damaged, other, _ = await backend.load([Load("a"), Load("b"), Load("nobody")])
    for answer in (alone, damaged):
        assert isinstance(answer, JournalCorrupt)
        assert (answer.stream_id, answer.version) == ("a", 2)
    assert isinstance(other, Loaded)
    assert other.events.payloads == [b"4"]


@pytest.mark.parametrize("others", [(), ("b", "nobody")], ids=["alone", "with others"])
async def test_a_page_holds_each_event_of_its_part_in_order(backend: SQLiteBackend, others: tuple[str, ...]):
    # As the events come to the file, those of one stream do not stand beside each other.
    for number in range(50):
        await backend.append([[write(stream_id, b"%d" % number, expected=number)] for stream_id in ("b", "a")])
    page = (await loaded(backend, Load("a", after=20, limit=15), *map(Load, others)))[0].events
    assert page.versions == list(range(21, 36))
    assert page.payloads == [b"%d" % number for number in range(20, 35)]
    assert set(page.types) == {"conformance.happened"}
    assert set(page.schema_versions) == {1}


@pytest.mark.usefixtures("held_lock")
async def test_a_large_page_is_being_read_before_the_loop_goes_on(
    backend: SQLiteBackend, monkeypatch: pytest.MonkeyPatch
):
    # However busy this machine is.
    monkeypatch.setattr(sqlite_page_thread, "_HAND_OVER_SECONDS", 20)
    await backend.append([[write("a", *(b"1" for _ in range(100)))]])
    await loaded(backend, Load("a"))
    thread = cast("SQLiteLoader", backend._loader)._thread
    taken: list[bool] = []
    for _ in range(3):
        loading = asyncio.create_task(loaded(backend, Load("a", limit=1000)))
        # Both are run in one turn of the loop, between which nothing lets go of the lock.
        asyncio.get_running_loop().call_soon(lambda: taken.append(thread.under_way == 1 and thread._jobs.empty()))
        assert len((await loading)[0].events) == 100
    assert taken == [True] * 3


async def test_a_page_of_large_events_holds_no_more_than_there_is_room_for(backend: SQLiteBackend):
    for number in range(24):
        await backend.append([[write("a", text(MIB), expected=number)]])
    versions: list[int] = []
    while len(versions) < 24:
        (answer,) = await loaded(backend, Load("a", after=len(versions), limit=200))
        assert 0 < sum(map(len, answer.events.payloads)) <= 16 * MIB
        assert set(answer.events.payloads) == {text(MIB)}
        assert answer.version == 24
        versions += answer.events.versions
    assert versions == list(range(1, 25))


async def test_streams_that_are_too_large_together_are_all_answered(backend: SQLiteBackend):
    streams = [f"s-{number}" for number in range(7)]
    for stream_id in streams:
        await backend.append([[write(stream_id, text(4 * MIB), stream_id.encode())]])
    answers = await loaded(backend, *(Load(stream_id) for stream_id in streams), Load("nobody"))
    assert [answer.events.payloads for answer in answers] == [
        *([text(4 * MIB), stream_id.encode()] for stream_id in streams),
        [],
    ]


async def test_one_event_that_is_larger_than_the_room_is_read_by_itself(backend: SQLiteBackend):
    await backend.append([[write("a", b"1", text(17 * MIB), b"3")]])
    found: list[bytes] = []
    while len(found) < 3:
        (answer,) = await loaded(backend, Load("a", after=len(found)))
        found += answer.events.payloads
    assert found == [b"1", text(17 * MIB), b"3"]


async def test_a_snapshot_that_is_larger_than_the_room_is_read(backend: SQLiteBackend):
    large = StoredSnapshot("a", 1, "f", "raw", bytes(10 * MIB), bytes(16), datetime.now(UTC))
    await backend.append([[write("a", b"1", b"2")]])
    await backend.save_snapshot(large, keep=1)
    (answer,) = await loaded(backend, Load("a"))
    assert isinstance(answer.snapshot, StoredSnapshot)
    assert answer.snapshot.payload == large.payload
    assert answer.events.versions == [2]
