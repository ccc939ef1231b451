"""What is SQLite's own: URLs, the file, other writers, damage, forks."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backends.conformance.events import happened, numbers
from backends.sqlite import SQLiteBackend
from backends.sqlite_append import SQLiteAppend
from eventstore import (
    BackendUnavailable,
    ConcurrencyError,
    Durability,
    EventStore,
    InvalidStoreUrl,
    JournalCorrupt,
    SchemaError,
    Snapshot,
    SnapshotUnusable,
    StoreClosed,
    schema,
)
from eventstore.backend import Load
from eventstore.errors import StoreBusy
from eventstore.url import parse_store_url


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def by_hand(path: Path, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "wrong",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:////",
        "sqlite:///directory/",
        "sqlite://host/bank.db",
        "sqlite://user:secret@host/bank.db",
        "sqlite:///:memory:",
        "sqlite:///file:bank.db",
        "sqlite:///file%3Abank.db",
        "sqlite:///safe/../evil.db",
        "sqlite:///safe/%2e%2e/evil.db",
        "sqlite:////tmp/../etc/passwd",
        "sqlite:///bank.db?vfs=unix-none",
        "sqlite:///bank.db?mode=memory",
        "sqlite:///bank.db?immutable=1",
        "sqlite:///bank.db?durability=none",
        "sqlite:///bank.db?durability=power-loss&durability=power-loss",
        "sqlite:///bank.db?busy_timeout=-1",
        "sqlite:///bank.db?busy_timeout=soon",
        "sqlite:///bank.db?busy_timeout=nan",
        "sqlite:///bank.db?busy_timeout=1e9",
        "sqlite:///bank.db#part",
        "sqlite:///ba%00nk.db",
        "sqlite:///ba%0ank.db",
        "sqlite:///ba\nnk.db",
        "sqlite:///%ff.db",
        "sqlite:///bank.db?x",
    ],
)
def test_a_url_with_a_trick_in_it_is_refused_before_anything_is_opened(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidStoreUrl) as refused:
        EventStore.open(wrong)
    assert "secret" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_has_another_name_is_refused_by_both(tmp_path: Path):
    """Each name has a log of its own: what is written by one is not seen by the other, and lost at last."""
    path, link = tmp_path / "journal.db", tmp_path / "link.db"
    async with EventStore.open(f"sqlite:///{path}") as store:
        await store.append("a", happened(1))
        link.hardlink_to(path)
        with pytest.raises(InvalidStoreUrl, match=r"2 names \(hard links\)"):
            EventStore.open(f"sqlite:///{link}")
        # Who has it open goes on.
        await store.append("a", happened(2))
    for each in (path, link):
        with pytest.raises(InvalidStoreUrl, match=r"opened last, with the -wal file .* remove the others"):
            schema.upgrade(parse_store_url(f"sqlite:///{each}"))
    link.unlink()
    async with EventStore.open(f"sqlite:///{path}") as store:
        assert await store.version("a") == 2


def test_a_symbolic_link_is_refused(tmp_path: Path):
    (tmp_path / "link.db").symlink_to("/etc/passwd")
    with pytest.raises(InvalidStoreUrl, match="symbolic link"):
        EventStore.open(f"sqlite:///{tmp_path}/link.db")


@pytest.mark.parametrize("name", ["a b.db", "ü.db", "100%.db", "q?.db", "#.db", "a'b.db", 'a"b.db', "x" * 200])
async def test_any_name_of_a_file_can_be_written_percent_encoded(name: str, tmp_path: Path):
    encoded = "".join(f"%{byte:02x}" for byte in name.encode())
    async with EventStore.open(f"sqlite:///{tmp_path}/{encoded}") as store:
        await store.append("a", happened(1))
    assert (tmp_path / name).exists()


async def test_the_file_is_its_owners_alone_whatever_the_umask(path: Path, url: str):
    before = os.umask(0)
    try:
        async with EventStore.open(url) as store:
            await store.append("a", happened(1))
            modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert len(modes) >= 3
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(
    ("parameter", "durability", "synchronous"),
    [
        ("", Durability.POWER_LOSS, 2),
        ("?durability=power-loss", Durability.POWER_LOSS, 2),
        ("?durability=process-crash", Durability.PROCESS_CRASH, 1),
    ],
)
async def test_the_writing_connection_has_the_durability_that_is_named(
    url: str, parameter: str, durability: Durability, synchronous: int
):
    async with EventStore.open(url + parameter) as store:
        backend = store._backend
        assert isinstance(backend, SQLiteBackend)
        assert store.durability is durability

        def settings(connection: sqlite3.Connection) -> list[object]:
            return [
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("synchronous", "journal_mode", "trusted_schema", "cell_size_check", "recursive_triggers")
            ]

        assert await backend._open_writer.run(settings) == [synchronous, "wal", 0, 1, 1]


async def test_no_other_file_can_be_attached(url: str, tmp_path: Path):
    async with EventStore.open(url) as store:
        backend = store._backend
        assert isinstance(backend, SQLiteBackend)
        with pytest.raises(BackendUnavailable, match="attach"):
            await backend._open_writer.run(lambda connection: connection.execute(f"ATTACH '{tmp_path}/x.db' AS x"))


async def test_reading_connections_cannot_write(url: str):
    async with EventStore.open(url) as store:
        backend = store._backend
        assert isinstance(backend, SQLiteBackend)
        with pytest.raises(BackendUnavailable, match="readonly|read-only"):
            await backend._driver_rows("DELETE FROM journal_streams", ())


async def test_a_commit_by_another_connection_is_seen_before_the_next_append_decides(url: str):
    async with EventStore.open(url) as one, EventStore.open(url) as another:
        await one.append("a", happened(1), expected_version=0)
        await one.append("a", happened(2), expected_version=1)
        await another.append("a", happened(3), expected_version=2)
        with pytest.raises(ConcurrencyError) as refused:
            await one.append("a", happened(4), expected_version=2)
        assert refused.value.actual == 3
        assert (await one.append("a", happened(5), expected_version=3)).versions == (4,)
        assert await numbers(one.read("a")) == [1, 2, 3, 5]


async def test_a_version_that_another_process_removed_is_not_used_again(url: str):
    async with EventStore.open(url) as one, EventStore.open(url) as another:
        await one.append("a", happened(1, 2))
        await another.append("a", happened(3, 4))
        await another.truncate("a", 4, reason="test")
        with pytest.raises(ConcurrencyError):
            await one.append("a", happened(5), expected_version=2)
        assert (await one.append("a", happened(6))).versions == (5,)


async def test_an_undisturbed_append_is_one_statement(url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        statements: list[str] = []
        backend = store._backend
        assert isinstance(backend, SQLiteBackend)
        await backend._open_writer.run(lambda connection: connection.set_trace_callback(statements.append))
        await store.append("a", happened(2), expected_version=1)
        # What SQLite runs inside a statement is traced as a comment.
        own = [statement for statement in statements if not statement.startswith("--")]
        assert [statement.split(None, 2)[:2] for statement in own] == [["INSERT", "INTO"]]


async def test_what_was_remembered_is_forgotten_after_an_error(url: str, monkeypatch: pytest.MonkeyPatch):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        with monkeypatch.context() as patched:

            def fail(*_: object, **__: object) -> bool:
                raise sqlite3.OperationalError("injected")

            patched.setattr(SQLiteAppend, "_insert", fail)
            with pytest.raises(BackendUnavailable, match="injected"):
                await store.append("a", happened(2), expected_version=1)
        assert (await store.append("a", happened(3), expected_version=1)).versions == (2,)


@pytest.mark.skipif(sqlite3.sqlite_version_info >= (3, 51, 3), reason="this SQLite keeps processes apart by itself")
async def test_nothing_is_written_while_another_process_writes_or_checkpoints(path: Path, url: str):
    async with EventStore.open(f"{url}?busy_timeout=0.1") as store:
        await store.append("a", happened(1))
        with Path(f"{path}-lock").open("rb") as lock:
            # The writer may still be about to give it back.
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            with pytest.raises(StoreBusy, match="another process has been writing"):
                await store.append("a", happened(2))
        assert (await store.append("a", happened(3))).versions == (2,)
        assert await numbers(store.read("a")) == [1, 3]


async def test_a_stream_that_a_refused_group_would_have_made_is_made_by_the_next(path: Path, url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        by_hand(
            path,
            "CREATE TRIGGER meddling BEFORE INSERT ON journal_events WHEN NEW.payload LIKE '%3%' "
            "BEGIN SELECT RAISE(IGNORE); END",
        )
        with pytest.raises(JournalCorrupt, match="1 rows were stored instead of 2"):
            await store.append("b", happened(2, 3))
        by_hand(path, "DROP TRIGGER meddling")
        # The row of "b" was taken back: what is remembered of it must be gone too.
        assert (await store.append("b", happened(4), expected_version=0)).versions == (1,)
        assert await numbers(store.read("b")) == [4]


async def test_a_damaged_row_is_named_and_spoils_no_other_stream(path: Path, url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1, 2, 3))
        await store.append("b", happened(4))
    by_hand(path, "DROP TRIGGER journal_events_no_update")
    by_hand(path, "UPDATE journal_events SET payload = x'ff00' WHERE version = 2")
    trigger = (
        "CREATE TRIGGER journal_events_no_update BEFORE UPDATE ON journal_events "
        "BEGIN SELECT RAISE(ABORT, 'journal events are never changed'); END"
    )
    by_hand(path, trigger)
    async with EventStore.open(url) as store:
        for read in (
            lambda: numbers(store.read("a")),
            lambda: numbers(store.read_all()),
            lambda: store.load(Load("a")),
        ):
            with pytest.raises(JournalCorrupt) as damaged:
                await read()
            assert (damaged.value.stream_id, damaged.value.version) == ("a", 2)
        assert await numbers(store.read("b")) == [4]
        assert len((await store.load(Load("b"))).events) == 1


@pytest.mark.parametrize(
    "change",
    [
        "DROP TRIGGER journal_events_no_delete",
        "CREATE TRIGGER evil AFTER INSERT ON journal_events BEGIN SELECT 1; END",
    ],
)
async def test_a_file_whose_triggers_were_tampered_with_is_refused(path: Path, url: str, change: str):
    async with EventStore.open(url):
        pass
    by_hand(path, change)
    with pytest.raises(SchemaError, match="triggers"):
        async with EventStore.open(url):
            pass


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(path: Path, url: str):
    path.write_bytes(b"not a database, but somebody's text" * 100)
    before = path.read_bytes()
    with pytest.raises(SchemaError):
        async with EventStore.open(url):
            pass
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


async def test_a_database_of_something_else_is_refused_and_left_as_it_is(path: Path, url: str):
    by_hand(path, "CREATE TABLE users (name TEXT)")
    before = path.read_bytes()
    with pytest.raises(SchemaError, match="something else.*eventstore migrate"):
        async with EventStore.open(url):
            pass
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


async def test_a_store_carried_over_a_fork_is_refused_in_the_child(url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        backend = store._backend
        assert isinstance(backend, SQLiteBackend)
        backend._pid -= 1  # What the child of a fork would see.
        for use in (lambda: store.append("a", happened(2)), lambda: store.version("a")):
            with pytest.raises(StoreClosed, match="fork"):
                await use()
        backend._pid += 1
        assert await store.version("a") == 1


async def test_a_large_group_is_stored_whole_and_in_order(url: str):
    async with EventStore.open(url) as store:
        appended = await store.append("a", happened(*range(1300)))
        assert appended.position == 1300
        assert await numbers(store.read("a")) == list(range(1300))


async def test_what_another_process_appended_and_removed_has_used_up_its_positions(url: str):
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        await store.append("a", happened(1))
        removed = await other.append("b", happened(1, 2))
        await other.truncate("b", through=2, reason="test")
        again = await store.append("a", happened(2))
    assert again.position > removed.position


async def test_positions_of_a_removed_end_are_not_used_after_opening_again(url: str):
    async with EventStore.open(url) as store:
        removed = await store.append("a", happened(1, 2))
        await store.truncate("a", through=2, reason="test")
    async with EventStore.open(url) as store:
        await store.truncate("a", through=1, reason="test")
        assert (await store.append("b", happened(1))).position > removed.position


async def test_a_snapshot_that_holds_text_instead_of_bytes_is_unusable_and_named(path: Path, url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        await store.save_snapshot(Snapshot("a", 1, "f", b"{}", datetime.now(UTC)))
        by_hand(path, "UPDATE journal_snapshots SET payload = CAST(payload AS TEXT)")
        [found] = await store.snapshots("a")
    assert isinstance(found, SnapshotUnusable)
    assert (found.stream_id, found.version) == ("a", 1)


async def test_one_file_by_two_names_is_one_journal(tmp_path: Path) -> None:
    # Links to the file itself are refused; its directory may have several names.
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    urls = [f"sqlite:///{tmp_path}/{name}/journal.db" for name in ("real", "link")]
    async with EventStore.open(urls[0]) as one, EventStore.open(urls[1]) as other:
        stores = (one, other)
        epochs = [await store.claim("owned") for store in stores]
        assert epochs == [1, 2]
        await asyncio.gather(*(store.append("a", happened(number)) for number in range(50) for store in stores))
        for store in stores:
            assert [event.version async for event in store.read("a")] == list(range(1, 101))
            assert sorted(await numbers(store.read_all())) == sorted([*range(50)] * 2)
        # What keeps the writers apart where SQLite itself does not do it well enough is one file, too.
        kept = [path.stat().st_ino for name in ("real", "link") for path in (tmp_path / name).glob("*-lock")]
        assert len(set(kept)) * 2 == len(kept)
    with closing(sqlite3.connect(tmp_path / "real" / "journal.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
