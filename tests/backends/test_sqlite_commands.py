"""Outcomes of commands in a SQLite file: one statement with the events, and what other connections change meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from backends import sqlite_append
from backends.conformance.commands import Commands, remembered
from backends.conformance.events import collect, outcome, write
from backends.conformance.forgetting import Forgetting
from backends.sqlite import SQLiteBackend
from backends.sqlite_filing import MOST_UNFILED
from eventstore import BackendUnavailable, EventStore, JournalCorrupt
from eventstore.backend import Appended, CommandLookup, StreamWrite
from eventstore.errors import CommandForgotten, DuplicateCommand, FencedError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def behind(store: EventStore) -> SQLiteBackend:
    backend = store._backend
    assert isinstance(backend, SQLiteBackend)
    return backend


async def traced(backend: SQLiteBackend) -> list[str]:
    """What the writing connection is asked to do from now on."""
    statements: list[str] = []

    def note(statement: str) -> None:
        # A statement is traced again for each row that it hands to a trigger, and what it runs inside as a comment.
        if statement not in statements and not statement.startswith("--"):
            statements.append(statement)

    await backend._open_writer.run(lambda connection: connection.set_trace_callback(note))
    return statements


def count(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


def with_outcome(stream_id: str, *payloads: bytes, command_id: str = "c", epoch: int | None = None) -> StreamWrite:
    return write(stream_id, *payloads, epoch=epoch, commands=[outcome(command_id)])


@pytest.mark.parametrize("streams", [1, 3, 64])
@pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
async def test_events_and_outcomes_of_a_group_are_one_statement(url: str, streams: int, payloads: Sequence[bytes]):
    async with EventStore.open(url) as store:
        backend = behind(store)
        await backend.append([[write(f"s-{number}", b"0")] for number in range(streams)])
        statements = await traced(backend)
        for command_id in ("c", "d"):
            results = await backend.append(
                [[with_outcome(f"s-{number}", *payloads, command_id=command_id)] for number in range(streams)]
            )
            assert all(isinstance(result, Appended) for result in results)
        assert [statement.split(None, 3)[:3] for statement in statements] == [["INSERT", "INTO", "journal_appends"]] * 2
        assert await remembered(backend, f"s-{streams - 1}") == {"c", "d"}


async def test_what_fills_a_statement_up_is_stored_nowhere(path: Path, url: str):
    async with EventStore.open(url) as store:
        await store.append("a", [], expected_version=0)
        # Five rows are sent as eight.
        await behind(store).append([[with_outcome("a", b"1", b"2", b"3")], [with_outcome("a", command_id="d")]])
        await behind(store).append([[with_outcome("a", b"4", b"5", b"6", command_id="e")], [with_outcome("b")]])
    assert (count(path, "journal_events"), count(path, "journal_commands")) == (6, 4)


async def test_a_group_without_outcomes_takes_the_way_of_events_alone(url: str):
    async with EventStore.open(url) as store:
        backend = behind(store)
        await backend.append([[with_outcome("a", b"1")]])
        statements = await traced(backend)
        await backend.append([[write("a", b"2", expected=1)]])
        assert [statement.split(None, 3)[:3] for statement in statements] == [["INSERT", "INTO", "journal_events"]]


async def test_a_group_that_is_too_large_for_a_statement_is_stored_whole(url: str):
    async with EventStore.open(url) as store:
        backend = behind(store)
        batches = [[with_outcome("a", b"1", command_id=f"{number:03}")] for number in range(400)]
        results = await backend.append(batches)
        assert [result.versions for result in results if isinstance(result, Appended)] == [(n + 1,) for n in range(400)]
        ids = await remembered(backend)
        assert ids == {f"{number:03}" for number in range(400)}
        (found,) = await backend.find_commands([CommandLookup("a", "399")])
        assert found.outcome is not None
        assert found.outcome.version == 400


async def test_a_command_that_another_connection_has_stored_is_refused_although_the_heads_are_remembered(url: str):
    async with EventStore.open(url) as one, EventStore.open(url) as another:
        await behind(one).append([[write("a", b"1")]])
        await behind(another).append([[with_outcome("a")]])
        mine = with_outcome("a", b"2")._replace(expected=1)
        (result,) = await behind(one).append([[mine]])
        assert isinstance(result, DuplicateCommand)
        assert len(await collect(one.read("a"))) == 1


async def test_what_another_connection_does_to_an_unclaimed_stream_counts_for_an_outcome_alone(url: str):
    async with EventStore.open(url) as one, EventStore.open(url) as another:
        early = outcome("early", issued_at=10)
        await behind(one).append([[write("a", b"1", commands=[early])]])
        assert await behind(another).forget_commands("a", keep=0, before=None) == 1
        (forgotten,) = await behind(one).append([[write("a", commands=[outcome("other", issued_at=9)])]])
        assert isinstance(forgotten, CommandForgotten)
        first = await one.claim("a")
        await behind(one).append([[with_outcome("a", epoch=first)]])
        await another.claim("a")
        (fenced,) = await behind(one).append([[with_outcome("a", command_id="d", epoch=first)]])
        assert isinstance(fenced, FencedError)
        assert await remembered(behind(one)) == {"c"}


async def test_nothing_of_a_group_is_stored_where_a_trigger_stores_something_else(path: Path, url: str):
    async with EventStore.open(url) as store:
        backend = behind(store)

        def spoil(connection: sqlite3.Connection) -> None:
            connection.execute("DROP TRIGGER journal_appends_command")
            connection.execute(
                "CREATE TEMP TRIGGER journal_appends_command INSTEAD OF INSERT ON journal_appends "
                "WHEN NEW.position IS NULL BEGIN SELECT 1; END"
            )

        await backend._open_writer.run(spoil)
        with pytest.raises(JournalCorrupt, match="1 rows were stored instead of 2"):
            await backend.append([[with_outcome("a", b"1")]])
    # The stream was new, so that the group was stored in a transaction, and could be taken back.
    assert (count(path, "journal_events"), count(path, "journal_commands")) == (0, 0)


async def test_nothing_of_a_large_group_is_stored_when_its_last_part_cannot_be(path: Path, url: str):
    async with EventStore.open(url) as store:
        backend = behind(store)
        await backend._open_writer.run(lambda connection: connection.execute("DROP TRIGGER journal_appends_command"))
        with pytest.raises(BackendUnavailable):
            await backend.append([[with_outcome("a", b"1", command_id=f"{number}")] for number in range(400)])
        assert (count(path, "journal_events"), count(path, "journal_streams")) == (0, 0)
        # The connection was replaced, and with it the trigger.
        (result,) = await backend.append([[with_outcome("a", b"1")]])
        assert isinstance(result, Appended)


async def test_a_trigger_that_stores_something_else_is_noticed_at_the_first_outcome(url: str):
    async with EventStore.open(url) as store:
        backend = behind(store)
        await backend.append([[write("a", b"1")]])
        await backend._open_writer.run(lambda connection: connection.execute("DROP TRIGGER journal_appends_command"))
        with pytest.raises(JournalCorrupt, match="1 rows were stored instead of 2"):
            await backend.append([[with_outcome("a", b"2")]])


async def test_a_connection_that_lost_its_view_is_replaced(url: str):
    async with EventStore.open(url) as store:
        backend = behind(store)
        await backend.append([[with_outcome("a", b"1")]])
        await backend._open_writer.run(lambda connection: connection.execute("DROP VIEW journal_appends"))
        with pytest.raises(BackendUnavailable, match="journal_appends"):
            await backend.append([[with_outcome("a", b"2", command_id="d")]])
        (result,) = await backend.append([[with_outcome("a", b"2", command_id="d")]])
        assert isinstance(result, Appended)
        assert result.versions == (2,)


async def test_the_file_knows_nothing_of_the_view(path: Path, url: str):
    async with EventStore.open(url) as store:
        await behind(store).append([[with_outcome("a", b"1")]])
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'journal_appends%'").fetchall() == []
    connection.close()


class TestFiledAtOnce(Commands, Forgetting):
    """All that is true of outcomes is true of those that are in the index by streams already, beside some that are not.

    TestSQLite has all of them in front of the index."""

    @pytest.fixture
    def url(self, path: Path) -> str:
        return f"sqlite:///{path}"

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_append, "MOST_UNFILED", 1)


def filed(path: Path) -> list[bool]:
    """Of each outcome, in the order they were stored, whether it is in the index by streams."""
    connection = sqlite3.connect(path)
    try:
        return [bool(row[0]) for row in connection.execute("SELECT is_filed FROM journal_commands ORDER BY id")]
    finally:
        connection.close()


async def test_outcomes_are_filed_many_at_a_time(path: Path, url: str):
    async with EventStore.open(url) as store:
        sent = 0
        while sent <= MOST_UNFILED + 256:
            await behind(store).append([[with_outcome("a", command_id=f"{sent + n:05}")] for n in range(256)])
            sent += 256
        assert filed(path) == [True] * MOST_UNFILED + [False] * (sent - MOST_UNFILED)
        # What is filed is found by its stream, and what is not yet.
        assert len(await remembered(behind(store), limit=2 * MOST_UNFILED)) == sent


async def test_what_other_processes_left_unfiled_is_filed(path: Path, url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sqlite_append, "MOST_UNFILED", 4)
    for number in range(6):
        async with EventStore.open(url) as store:
            await behind(store).append([[with_outcome("a", command_id=f"{number}")]])
    assert filed(path) == [True] * 4 + [False] * 2


async def test_outcomes_stored_after_the_newest_were_forgotten_are_found(url: str, monkeypatch: pytest.MonkeyPatch):
    # They get the row ids of those that are gone.
    monkeypatch.setattr(sqlite_append, "MOST_UNFILED", 4)
    async with EventStore.open(url) as store:
        for number in range(6):
            await behind(store).append([[with_outcome("a" if number < 2 else "b", command_id=f"{number}")]])
        assert await behind(store).forget_commands("b", keep=0, before=None) == 4
        await behind(store).append([[with_outcome("b", command_id="6")], [with_outcome("a", command_id="7")]])
        assert await remembered(behind(store), "a") == {"0", "1", "7"}
        assert await remembered(behind(store), "b") == {"6"}
        assert await behind(store).forget_commands("a", keep=1, before=None) == 2
        assert await remembered(behind(store), "a") == {"7"}


async def test_a_damaged_outcome_is_an_error_and_not_an_answer(path: Path, url: str):
    async with EventStore.open(url) as store:
        await behind(store).append([[with_outcome("a")]])
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("UPDATE journal_commands SET payload = x'ff'")
        connection.close()
        with pytest.raises(JournalCorrupt):
            await behind(store).find_commands([CommandLookup("a", "c")])


async def test_outcomes_of_many_streams_are_found_in_one_statement(url: str, monkeypatch: pytest.MonkeyPatch):
    async with EventStore.open(url) as store:
        backend = behind(store)
        await backend.append([[with_outcome(f"s-{number}")] for number in range(64)])
        read = backend._driver_rows
        trips: list[str] = []

        async def counted(statement: str, parameters: Sequence[object]) -> Sequence[object]:
            trips.append(statement)
            return await read(statement, parameters)

        monkeypatch.setattr(backend, "_driver_rows", counted)
        lookups = [CommandLookup(f"s-{number}", "c", number % 3) for number in range(65)]
        found = await backend.find_commands(lookups)
        assert [answer.outcome is not None for answer in found] == [True] * 64 + [False]
        assert len(trips) == 1
        assert await backend.find_commands([]) == []
