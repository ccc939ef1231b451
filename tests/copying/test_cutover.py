"""After a cutover nothing is added to the old store that is not in the new one, whoever was writing meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest

from backends.conformance.archives import everything
from backends.conformance.events import collect, happened, outcome
from eventstore import EventStore, StoreFenced
from eventstore.backend import StreamWrite
from eventstore.contract.archive import ArchivedCommand, ArchivedStream, ArchivePage
from eventstore.copies import copying
from eventstore.copies.copying import Copy
from tests.copying.conftest import Journals, environment

WRITER = Path(__file__).with_name("writing.py")
SECONDS = 60
ROUTES = [("sqlite", "postgres"), ("postgres", "redis"), ("redis", "sqlite")]


@pytest.mark.parametrize(("old", "new"), ROUTES)
async def test_all_that_was_acknowledged_is_in_the_new_store(
    old: str, new: str, journals: Journals, tmp_path: Path
) -> None:
    source_url, target_url = journals(old), journals(new)
    async with EventStore.open(source_url) as source, EventStore.open(target_url) as target:
        logs = [tmp_path / f"{name}.log" for name in ("one", "two")]
        writers = [_writer(source_url, log) for log in logs]
        try:
            await _until(lambda: all(len(_told(log)) > 50 for log in logs))
            copy = Copy(source, target)
            await copy.begin()
            await copy.cut_over("test")
            # The target is as it is, and the writers are still trying.
            events, _ = await everything(target)
            copied = await collect(target.streams())
            await _until(lambda: all(writer.poll() is not None for writer in writers))
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
        assert [writer.returncode for writer in writers] == [0, 0]
        told = [line for log in logs for line in _told(log)]
        ids = Counter(event.event.event_id.hex() for event in events)
        assert set(told) <= set(ids)
        assert max(ids.values()) == 1
        assert await collect(source.streams()) == copied
        assert (await everything(source))[0] == events
        compared = await copy.compare()
        assert compared.events == len(events) >= len(told) > 100
        assert compared.commands > 0


def _writer(url: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, str(WRITER), url, log.stem], stdout=file, env=environment())


def _told(log: Path) -> list[str]:
    return log.read_text("ascii").splitlines()


async def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("old", "new"), ROUTES)
async def test_a_copy_and_a_cutover_end_where_writers_are_faster_than_the_copy(
    old: str, new: str, journals: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_FIRST_PAGE", 2)
    monkeypatch.setattr(copying, "_LARGEST_PAGE", 4)
    async with EventStore.open(journals(old)) as source, EventStore.open(journals(new)) as target:
        await source.append("a", happened(*range(11)))
        copy = Copy(source, target)
        read = copy._source.events
        stored = 11

        async def behind_a_writer(*, after: int, limit: int) -> ArchivePage:
            nonlocal stored
            with suppress(StoreFenced):
                await source.append(f"b-{stored % 3}", happened(*range(6)))
                stored += 6
            return await read(after=after, limit=limit)

        monkeypatch.setattr(copy._source, "events", behind_a_writer)
        async with asyncio.timeout(SECONDS):
            await copy.begin()
            before = stored
            await copy.catch_up()
            assert before <= copy.position < stored
            await copy.cut_over("test")
        # What was refused may have left a hole behind the last of them.
        assert copy.events == stored <= copy.position
        assert await everything(target) == await everything(source)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres", "redis"])
async def test_it_ends_where_streams_come_faster_than_they_are_looked_at(
    kind: str, journals: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_STREAMS", 2)
    async with EventStore.open(journals(kind)) as source, EventStore.open("memory://") as target:
        for number in range(5):
            await source.append(f"a-{number}", happened(number))
        copy = Copy(source, target)
        read = copy._source.streams
        made = 0

        async def behind_a_writer(*, after: int, limit: int) -> Sequence[ArchivedStream]:
            nonlocal made
            with suppress(StoreFenced):
                for _ in range(2 * limit):
                    made += 1
                    await source.append(f"b-{made}", happened(made))
            return await read(after=after, limit=limit)

        monkeypatch.setattr(copy._source, "streams", behind_a_writer)
        await copy.begin()
        async with asyncio.timeout(SECONDS):
            await copy.bring_streams()
            assert made == 12
            await copy.cut_over("test")
        assert await everything(target) == await everything(source)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres", "redis"])
async def test_it_ends_where_outcomes_come_faster_than_they_are_read(
    kind: str, journals: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_COMMANDS", 2)
    monkeypatch.setattr(copying, "_FIRST_COMMANDS", 2)
    async with EventStore.open(journals(kind)) as source, EventStore.open("memory://") as target:
        made = 0

        async def remember(count: int) -> None:
            nonlocal made
            for _ in range(count):
                # A command that stores no event leaves the stream at its version.
                await source.append_writes([StreamWrite("a", 1, (), commands=(outcome(f"command-{made}"),))])
                made += 1

        await source.append("a", happened(1))
        await remember(5)
        copy = Copy(source, target)
        read = copy._source.commands

        async def behind_a_writer(number: int, *, after: str, limit: int) -> Sequence[ArchivedCommand]:
            with suppress(StoreFenced):
                await remember(2 * limit)
            return await read(number, after=after, limit=limit)

        monkeypatch.setattr(copy._source, "commands", behind_a_writer)
        await copy.begin()
        await copy.catch_up()
        async with asyncio.timeout(SECONDS):
            await copy.bring_streams()
            assert made == 17
            await copy.cut_over("test")
        assert (await copy.compare()).commands == made


async def test_an_append_that_waits_while_the_fence_is_put_up_is_refused(journals: Journals) -> None:
    """On Postgres it has begun by then, and knows the journal as it was before."""
    url = journals("postgres")
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        for number in (1, 2, 3):
            await store.append("a", happened(number), expected_version=number - 1)
        connection = await asyncpg.connect(url.partition("?")[0])
        try:
            transaction = connection.transaction()
            await transaction.start()
            # As an append that is under way.
            await connection.execute("LOCK TABLE journal_events IN ROW EXCLUSIVE MODE")
            fencing = asyncio.ensure_future(other.archive().fence("test"))
            await _until_waiting(connection, 1)
            appends = [
                asyncio.ensure_future(store.append("a", happened(4), expected_version=3)),
                asyncio.ensure_future(other.append("b", happened(5))),
            ]
            await _until_waiting(connection, 3)
            await transaction.rollback()
        finally:
            await connection.close()
        fence = await fencing
        for append in appends:
            with pytest.raises(StoreFenced, match=fence.reason):
                await append
        assert [event.stream_id for event in await collect(store.read_all())] == ["a", "a", "a"]


async def _until_waiting(connection: asyncpg.Connection, count: int) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        waiting = await connection.fetchval(
            "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        if waiting >= count:
            return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_transaction_with_the_users_own_statements_is_refused(kind: str, journals: Journals) -> None:
    from backends.conformance.events import write

    async with EventStore.open(journals(kind)) as store:
        await store.append("a", happened(1))
        await store.archive().fence("test")
        transaction = await store.begin_sql(seconds=3)
        with pytest.raises(StoreFenced):
            await transaction.commit([write("a", b"{}", expected=1)])
        await transaction.rollback()
        assert await store.version("a") == 1
