"""F43, F48: what is too large is refused before anything is done; and a process that may not have more files, threads
or memory says so, loses nothing that it acknowledged, and serves again when it may."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actors import ActorSystem, Command, PersistentActor, command_handler, event_handler
from eventstore import Event, EventStore, PayloadTooLarge
from eventstore.backend import CommandLookup
from eventstore.snapshots import new_snapshot
from tests.faults.vault import Record
from tests.faults.verdict import verdict

ROOT = Path(__file__).parents[2]
LIMIT = 65_536
MEGABYTE = 1_000_000


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/vaults.db"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


# Too large


class Noted(Event, name="limits.noted"):
    text: str


class Note(Command[int]):
    text: str


class Echo(Command[str]):
    """Notes little, and answers with much."""

    size: int


class Size(Command[int]):
    pass


class Notes(PersistentActor[dict[str, int]]):
    @command_handler
    def note(self, command: Note) -> int:
        self.persist(Noted(text=command.text))
        return self.state["size"]

    @command_handler
    def echo(self, command: Echo) -> str:
        self.persist(Noted(text="echo"))
        return "x" * command.size

    @command_handler
    def size(self, command: Size) -> int:
        return self.state.get("size", 0)

    @event_handler
    def noted(self, event: Noted) -> None:
        self.state["size"] = self.state.get("size", 0) + len(event.text)


# What JSON puts around the text of an event, and of a reply.
AROUND_EVENT = len('{"text":""}')
AROUND_REPLY = len('""')


async def test_an_event_is_stored_up_to_the_limit_and_refused_above_it(url: str) -> None:
    async with EventStore.open(url, max_payload_bytes=LIMIT) as store, ActorSystem(store) as system:
        notes = system.ref(Notes, "1")
        total = 0
        for size in (1024, LIMIT - 1, LIMIT):
            total += size - AROUND_EVENT
            assert await notes.ask(Note(text="x" * (size - AROUND_EVENT))) == total
        for size in (LIMIT + 1, 2 * LIMIT):
            text = "x" * (size - AROUND_EVENT)
            with pytest.raises(PayloadTooLarge) as refused:
                await notes.ask(Note(text=text), command_id=f"note-{size}")
            assert (refused.value.size, refused.value.limit) == (size, LIMIT)
            with pytest.raises(PayloadTooLarge):
                await store.append("Notes-1", [Noted(text="small"), Noted(text=text)])
            assert await notes.ask(Size()) == total
            assert await store.version("Notes-1") == 3


async def test_a_reply_is_remembered_up_to_the_limit_and_refused_above_it(url: str) -> None:
    async with EventStore.open(url, max_payload_bytes=LIMIT) as store, ActorSystem(store) as system:
        notes = system.ref(Notes, "1")
        for number, size in enumerate((LIMIT - 1, LIMIT), start=1):
            for _ in range(2):
                reply = await notes.ask(Echo(size=size - AROUND_REPLY), command_id=str(size))
                assert len(reply) == size - AROUND_REPLY
            assert await store.version("Notes-1") == number
        with pytest.raises(PayloadTooLarge):
            await notes.ask(Echo(size=LIMIT + 1 - AROUND_REPLY), command_id="too large")
        # Neither the event nor the outcome.
        assert await store.version("Notes-1") == 2
        assert (await store.find_command(CommandLookup("Notes-1", "too large"))).outcome is None
        assert await notes.ask(Size(), fresh=True) == 2 * len("echo")
        # A reply that need not be remembered may be of any size.
        assert len(await notes.ask(Echo(size=2 * LIMIT))) == 2 * LIMIT


async def test_a_snapshot_is_stored_up_to_its_limit_and_refused_above_it(url: str) -> None:
    async with EventStore.open(url, max_payload_bytes=LIMIT) as store:
        limit = store.max_snapshot_bytes
        for size in (limit - 1, limit):
            await store.save_snapshot(new_snapshot("Notes-1", 1, "", b"x" * size))
            (found,) = await store.snapshots("Notes-1")
            assert found == new_snapshot("Notes-1", 1, "", b"x" * size)._replace(recorded_at=found.recorded_at)
        with pytest.raises(PayloadTooLarge):
            await store.save_snapshot(new_snapshot("Notes-1", 1, "", b"y" * (limit + 1)))
        (found,) = await store.snapshots("Notes-1")
        assert not isinstance(found, Exception)
        assert found.data == b"x" * limit


async def test_what_is_too_large_is_refused_before_the_database_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    async with EventStore.open(f"sqlite:///{path}?busy_timeout=60") as store, ActorSystem(store) as system:
        await system.ref(Notes, "1").ask(Note(text="x"))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            # Whoever asks the database has to wait.
            other.execute("BEGIN IMMEDIATE")
            start = time.monotonic()
            with pytest.raises(PayloadTooLarge):
                await system.ref(Notes, "1").ask(Note(text="x" * 5 * MEGABYTE))
            with pytest.raises(PayloadTooLarge):
                await store.append("Notes-1", [Noted(text="x" * 5 * MEGABYTE)])
            assert time.monotonic() - start < 30
            other.execute("ROLLBACK")
        assert await store.version("Notes-1") == 1


HUGE = """
import asyncio, sys
from tests.faults.slow_reader import most_memory
from tests.faults.test_limits import Echo, Note, Noted, Notes, Size
from actors import ActorSystem
from actors.cells import staging_cell
from eventstore import EventStore, PayloadTooLarge, codec

BYTES = 100_000_000

async def main(url, what, build):
    if build == "copying":
        honest = codec.encode_event

        def doubled(event, *notes, **how):
            return honest(type(event)(text=event.text + event.text), *notes, **how)

        staging_cell.encode_event = doubled
    async with EventStore.open(url) as store, ActorSystem(store) as system:
        notes = system.ref(Notes, "1")
        await notes.ask(Note(text="x"), command_id="small")
        before = most_memory()
        try:
            match what:
                case "event":
                    await notes.ask(Note(text="x" * BYTES))
                case "reply":
                    await notes.ask(Echo(size=BYTES), command_id="huge")
        except PayloadTooLarge as error:
            assert error.size > BYTES
        else:
            raise AssertionError("it was not refused")
        print((most_memory() - before) / BYTES)
        assert await notes.ask(Size()) == 1

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("what", ["event", "reply"])
def test_a_hundred_megabytes_are_refused_without_taking_three_times_as_much_more(tmp_path: Path, what: str) -> None:
    # Once is the text itself, once its JSON; and the buffer for that grows by doubling.
    assert 0.9 < times_as_much(tmp_path, what) < 3.2


def test_a_build_that_copies_what_is_too_large_is_found_guilty(tmp_path: Path) -> None:
    assert times_as_much(tmp_path, "event", "copying") > 3.2


def times_as_much(folder: Path, what: str, build: str = "honest") -> float:
    """What the memory grew by at most, in sizes of what was refused."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HUGE, f"sqlite:///{folder}/notes.db", what, build],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


# Not allowed any more


def run(program: str, url: str, folder: Path) -> tuple[subprocess.CompletedProcess[str], Record]:
    record_file = folder / "record"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.limits", program, url, str(record_file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    record = Record()
    record.read(record_file.read_text())
    return done, record


FAULTS = {"files": "EMFILE", "threads": "can't start new thread"}


@pytest.mark.parametrize("program", ["files", "threads"])
def test_without_files_or_threads_for_readers_callers_are_told_and_are_served_when_there_are_some(
    url: str, tmp_path: Path, program: str
) -> None:
    if program == "threads" and not url.startswith("sqlite"):
        pytest.skip("a server is read without threads")
    done, record = run(program, url, tmp_path)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)

    assert facts["fault"] == [FAULTS[program]]
    assert facts["foreign"] == []
    assert facts["errors"].keys() <= {"BackendUnavailable", "CircuitOpen"}
    assert sum(facts["errors"].values()) > 0
    # They are told at once, not when the time of each is over, and nobody has to open the store anew.
    assert facts["took"] < 20
    assert facts["served_after"] < 20
    assert verdict(url, record) == []
    assert record.unknown == set()


def test_a_store_that_cannot_be_opened_for_want_of_files_or_threads_says_so(url: str, tmp_path: Path) -> None:
    done, record = run("opening", url, tmp_path)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)

    assert facts["fault"] == list(FAULTS.values())
    assert facts["foreign"] == []
    assert facts["errors"]["BackendUnavailable"] >= 2
    # Nothing is left of what was begun.
    assert facts["left"] == []
    assert verdict(url, record) == []
    assert len(record.acks) == 2


def test_a_process_that_ends_for_want_of_memory_has_lost_nothing_that_it_acknowledged(url: str, tmp_path: Path) -> None:
    done, record = run("memory", url, tmp_path)

    # The library that writes JSON cannot go on without memory: it ends the process, as a kill does.
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert "memory allocation of" in done.stderr
    assert len(record.acks) >= 6
    assert verdict(url, record) == []
