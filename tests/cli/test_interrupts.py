"""Ctrl-C ends every command at its work: its exit code says so, there is no traceback, and the journal is as it was, or
the same command goes on where this one was."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eventstore.cli.reference import described
from tests.starter import ENVIRONMENT, Done, Starter

URL = "sqlite:///long.db"
ACTOR = "work:Counter"
ACTORS, EVENTS, LONG = 30, 150, 3000
ALL = ACTORS * EVENTS + LONG

# A handler sends the signal itself, in the midst of what the command does with it: there is no earlier and no later.
WORK = f"""
import asyncio, logging, os, signal
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, Table, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from actors import PersistentActor, event_handler
from eventstore import Event, EventStore, Projection, ProjectionRunner, RecordedEvent

STRIKE, MENDED = Path("strike"), Path("mended")
calls = 0


def strike():
    global calls
    calls += 1
    if STRIKE.exists():
        number, command = map(int, STRIKE.read_text().split())
        if calls > number:
            STRIKE.unlink()
            os.kill(command, signal.SIGINT)


class Added(Event, name="work.added"):
    amount: int


class Sum(BaseModel):
    amount: int = 0


class Counter(PersistentActor[Sum]):
    @event_handler
    def added(self, event: Added) -> None:
        strike()
        self.state.amount += event.amount


sums = Table("sums", MetaData(), Column("id", Integer, primary_key=True), Column("amount", Integer))


class Sums(Projection, name="sums", kinds=("Counter",)):
    tables = (sums,)
    batch_size = 50

    def __init__(self) -> None:
        self.rows: list[dict[str, int]] = []

    @event_handler
    def added(self, event: Added, recorded: RecordedEvent) -> None:
        strike()
        self.rows.append({{"id": recorded.position, "amount": event.amount}})

    async def flush(self, connection: AsyncConnection | None) -> None:
        if connection is not None and self.rows:
            await connection.execute(insert(self.table(sums)), self.rows)


picked = Table("picked", MetaData(), Column("id", Integer, primary_key=True), Column("amount", Integer))


class Picky(Projection, name="picky", kinds=("Picky",)):
    tables = (picked,)
    retries = 0

    @event_handler
    async def added(self, event: Added, recorded: RecordedEvent, connection: AsyncConnection) -> None:
        if not MENDED.exists():
            raise ValueError("not mended yet")
        strike()


async def main() -> None:
    async with EventStore.open("{URL}") as store:
        for key in range({ACTORS}):
            await store.append(f"Counter-{{key}}", [Added(amount=number) for number in range({EVENTS})])
        await store.append("Counter-long", [Added(amount=number) for number in range({LONG})])
        await store.append("Picky-1", [Added(amount=number) for number in range(20)])
        await ProjectionRunner(store, Picky).run(follow=False)


if __name__ == "__main__":
    logging.disable()
    asyncio.run(main())
"""


@dataclass
class Place:
    """A folder with a long journal, in which one command is run."""

    folder: Path

    def value(self, sql: str, file: str = "long.db") -> Any:
        """One value out of a file, None as long as there is none."""
        try:
            with closing(sqlite3.connect(f"file:{self.folder / file}?mode=ro", uri=True)) as connection:
                (row,) = connection.execute(sql).fetchall() or [(None,)]
                return row[0]
        except sqlite3.OperationalError:
            return None

    def contents(self) -> list[str]:
        """All that is in the journal."""
        with closing(sqlite3.connect(self.folder / "long.db")) as connection:
            return list(connection.iterdump())


Condition = Callable[[Place], bool]


def is_opened(place: Place) -> bool:
    """It has the journal open: SQLite keeps a log beside the file meanwhile."""
    return (place.folder / "long.db-wal").exists()


def has(sql: str, file: str = "long.db") -> Condition:
    """A question to a file is answered with a number above 0."""
    return lambda place: (place.value(sql, file) or 0) > 0


def struck(place: Place) -> bool:
    """A handler has sent the signal."""
    return not (place.folder / "strike").exists()


class Interrupted(NamedTuple):
    """A command, how it is known to be at work, and what is true when it, or `again`, has been run after that. One of
    which nothing is said reads alone, and leaves the journal as it was. `first` is run before."""

    words: str
    is_at_work: Condition = is_opened
    ends_right: Condition | None = None
    strikes_at: int = 700
    first: str = ""
    again: str = ""


def same(sql: str, file: str, number: int) -> Condition:
    return lambda place: place.value(sql, file) == number


COUNT = "SELECT count(*) FROM journal_events"
COPIED = same(COUNT, "to.db", ALL + 20)
SNAPSHOTS = "SELECT count(*) FROM journal_snapshots"
SEALED = "SELECT max(number) FROM journal_seals"
SUMS = "SELECT (SELECT count(*) FROM {0}) = {1} AND (SELECT sum(amount) FROM {0}) = {2}".format(
    "sums", ALL, ACTORS * sum(range(EVENTS)) + sum(range(LONG))
)
RIGHT_SUMS = same(SUMS, "long.db", 1)
DEAD = "SELECT json_array_length(state, '$.letters') FROM journal_checkpoints WHERE name = 'picky'"
SEAL = "audit seal {url} --key seal.key --every 100"
ALL_SEALED = same(SEALED, "long.db", -(-(ALL + 20) // 100))

TABLE = [
    Interrupted("streams {url}"),
    Interrupted("events {url} Counter-long"),
    Interrupted("tail {url} --follow"),
    Interrupted("show {url} {actor} long --full", struck),
    Interrupted("diff {url} {actor} long 1", struck),
    Interrupted("blame {url} {actor} long", struck),
    Interrupted("bisect {url} {actor} long version<2500", struck),
    Interrupted("fork {url} {actor} long to.db", has(COUNT, "to.db"), same(COUNT, "to.db", LONG)),
    Interrupted("replay {url} {actor}", struck),
    Interrupted("replay {url} {actor} --check", struck),
    Interrupted("whatif {url} {actor} --new new", struck),
    Interrupted("verify {url}"),
    Interrupted("copy {url} sqlite:///to.db", has(COUNT, "to.db"), COPIED),
    Interrupted("copy {url} sqlite:///to.db --follow", COPIED, COPIED, again="copy {url} sqlite:///to.db"),
    Interrupted("export {url}"),
    Interrupted("import sqlite:///to.db", has(COUNT, "to.db"), COPIED),
    Interrupted("rebuild snapshots {url} {actor} --all", has(SNAPSHOTS), same(SNAPSHOTS, "long.db", ACTORS + 1)),
    Interrupted("rebuild projections {url} work:Sums", struck, RIGHT_SUMS),
    Interrupted("projections run {url} work:Sums", struck, RIGHT_SUMS),
    Interrupted(
        "projections run {url} work:Sums --follow", struck, RIGHT_SUMS, again="projections run {url} work:Sums"
    ),
    Interrupted("projections check {url} work:Picky"),
    Interrupted("dead-letters replay {url} work:Picky", struck, same(DEAD, "long.db", 0), strikes_at=5),
    Interrupted("audit query {url} --where /amount>=0 --parquet found.parquet"),
    Interrupted("audit stats {url} --where /amount>=0"),
    Interrupted(SEAL, has(SEALED), ALL_SEALED),
    Interrupted(f"{SEAL} --follow", has(SEALED), ALL_SEALED, again=SEAL),
    Interrupted("audit verify {url} --public-key seal.key.pub", first=SEAL),
    Interrupted("retention plan {url} --kind Counter --no-snapshots --keep-versions 10"),
    Interrupted(
        "retention apply {url} --kind Counter --no-snapshots --keep-versions 10",
        has("SELECT count(*) FROM journal_removals"),
        same(COUNT, "long.db", (ACTORS + 1) * 10 + 20),
    ),
    Interrupted("schema check {url} work --all"),
]

SHORT = """owners, migrate, doctor, audit trace, audit prove, audit keys new, replication status, conflicts list,
    conflicts show, projections list, projections status, projections pause, projections resume, projections seek,
    projections forget,    dead-letters list, dead-letters show, dead-letters purge, schema export, schema diff"""
"""What lasts no longer than a look at a few rows, or is one transaction."""


def test_no_command_is_left_out() -> None:
    lasting = {each.words.partition(" {")[0].partition(" sqlite")[0] for each in TABLE}
    short = {" ".join(name.split()) for name in SHORT.split(",")}
    # Other names of `rebuild projections` and `rebuild snapshots`.
    lasting |= {"projections rebuild", "snapshot"}
    assert lasting | short == {each.name.removeprefix("eventstore ") for each in described() if not each.is_group}
    assert not lasting & short


@pytest.fixture(scope="module")
def long_journal(tmp_path_factory: pytest.TempPathFactory, starter: Starter) -> Path:
    folder = tmp_path_factory.mktemp("long")
    (folder / "new").mkdir()
    for place in (folder, folder / "new"):
        (place / "work.py").write_text(WORK, "utf-8")
    subprocess.run([sys.executable, "work.py"], cwd=folder, env=ENVIRONMENT, check=True, timeout=180)
    for words in ("audit keys new seal.key", "migrate sqlite:///to.db", f"export {URL}"):
        assert starter.run(words.split(), folder).code == 0
    (folder / ".out").rename(folder / "lines")
    return folder


@pytest.mark.parametrize("each", TABLE, ids=lambda each: each.words.replace(" {url}", "").replace(" {actor}", ""))
def test_ctrl_c_in_its_midst(each: Interrupted, long_journal: Path, tmp_path: Path, starter: Starter) -> None:
    for number in range(20):
        place = Place(Path(shutil.copytree(long_journal, tmp_path / str(number))))
        (place.folder / "mended").touch()
        if each.first:
            assert _run(each.first, place, starter).code == 0
        before = place.contents()
        done = _interrupted(each, place, starter)
        if done.code != 0:
            break
        # It had ended before the signal came.
    assert (done.code, done.err) == (130, ""), done
    assert not list(place.folder.glob("found.parquet*"))
    # A closed store leaves no log, or an empty one where it may not remove it.
    log = place.folder / "long.db-wal"
    assert not log.exists() or log.stat().st_size == 0
    if each.ends_right is None:
        assert place.contents() == before
    else:
        again = _run(each.again or each.words, place, starter)
        assert again.code == 0, again
        assert each.ends_right(place)


def test_after_ctrl_c_the_prompt_stands_on_a_line_of_its_own(long_journal: Path) -> None:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "eventstore.cli", "tail", URL, "--follow", "--json"],
        cwd=long_journal,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=180) == 130
    assert os.read(controller, 100) == b"\r\n"
    os.close(controller)


# Imported instead of the module of its name. Ctrl-C comes while that would be imported, or when the program ends.
SHIM = """
import atexit, os, signal, sys
def strike():
    os.kill(os.getpid(), signal.SIGINT)
{when}
sys.path.remove(os.path.dirname(__file__))
del sys.modules[__name__]
import typer
"""


SWALLOWED = """
try:
    strike()
except BaseException:
    pass
"""
"""As the machinery of imports does with what is raised in its callbacks."""


@pytest.mark.parametrize(
    "when", ["strike()", SWALLOWED, "atexit.register(strike)"], ids=["import", "swallowed", "exit"]
)
@pytest.mark.parametrize(("begin", "code"), [("", 130), ("trap '' INT; ", 0)], ids=["ends", "ignored"])
@pytest.mark.parametrize("program", ["eventstore", "python -P -m eventstore.cli"])
def test_ctrl_c_while_python_imports_or_ends(when: str, begin: str, code: int, program: str, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(SHIM.format(when=when), "utf-8")
    done = subprocess.run(
        ["sh", "-c", f"{begin}exec {Path(sys.executable).parent}/{program} --version"],
        env={**ENVIRONMENT, "PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}"},
        capture_output=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, b"")


def _run(words: str, place: Place, starter: Starter) -> Done:
    return starter.run(_words(words), place.folder, place.folder / "lines")


def _words(words: str) -> list[str]:
    return words.format(url=URL, actor=ACTOR).split()


def _interrupted(each: Interrupted, place: Place, starter: Starter) -> Done:
    process = starter.start(_words(each.words), place.folder, place.folder / "lines")
    if each.is_at_work is struck:
        # Whichever process of the command runs the handler, it is the command that is interrupted.
        (place.folder / "strike.new").write_text(f"{each.strikes_at} {process}")
        (place.folder / "strike.new").rename(place.folder / "strike")
    else:
        deadline = time.monotonic() + 120
        while not each.is_at_work(place) and not starter.has_ended(process):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process, signal.SIGINT)
    return starter.wait(process, place.folder)
