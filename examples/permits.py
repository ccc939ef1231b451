"""An event log of permit cases, taken into the journal by one persistent actor per case, and reported from there.

    python examples/permits.py log.csv                              # into permits.db
    python examples/permits.py log.csv --store sqlite:///other.db --json

The log is a CSV file in the form of process mining: one row per event, with the case, the activity, the time and who
did it. Kill this program whenever you like and run it again: it goes on where it was, and no row is stored twice.

Exit code: 0, 1 if rows were left out (they are named on stderr), 2 if the file is no event log, 3 if the store failed.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import heapq
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from actors import ActorRef, ActorSystem, Command, CommandRejected, PersistentActor, command_handler, event_handler
from eventstore import Event, EventStore, EventStoreError, InvalidStreamId

CASE, ACTIVITY, TIME = "case:concept:name", "concept:name", "time:timestamp"
RESOURCE, TRANSITION = "org:resource", "lifecycle:transition"
REQUIRED = (CASE, ACTIVITY, TIME, RESOURCE, TRANSITION)

# So many rows are under way at once. Rows of different cases share a commit, so more of them cost little more than one.
WINDOW = 512
LONGEST_LINE_BYTES = 1024 * 1024
TOP = 10


# The actor.


class Row(BaseModel, frozen=True):
    """One row of the log. The time stays as it was written; `data` has all the other columns."""

    line: int
    activity: str
    time: str
    resource: str
    transition: str
    data: dict[str, str]

    def digest(self) -> str:
        return blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()


class TakeIn(Command[bool]):
    """Answered with whether the row was new."""

    row: Row


class RowTaken(Event, name="permit.row-taken"):
    row: Row


class Taken(BaseModel):
    """The rows that a case has, by their line in the file.

    What makes a row itself? Not its content: two rows may be equal in everything and still be two events. Not its
    time: it can repeat, and the rows are not in the order of time. It is its place in the file. The journal keeps the
    line of each row, so after a crash the actor knows by itself what it has: there is no other book that could
    disagree. The digest finds out when the file was changed, or is another one: then a known line holds an unknown row.
    """

    digests: dict[int, str] = {}
    last_line: int = 0


class PermitCase(PersistentActor[Taken], kind="permit"):
    @command_handler
    def take_in(self, command: TakeIn) -> bool:
        row = command.row
        known = self.state.digests.get(row.line)
        if known is None and row.line > self.state.last_line:
            self.persist(RowTaken(row=row))
            return True
        if known == row.digest():
            return False
        raise CommandRejected(
            f"case {self.key!r} was taken in from another file, or from this one before it was changed: use a new store"
        )

    @event_handler
    def row_taken(self, event: RowTaken) -> None:
        self.state.digests[event.row.line] = event.row.digest()
        self.state.last_line = event.row.line


# The file.


class UnusableFile(Exception):
    """The file is not an event log at all."""


class Entry(NamedTuple):
    """A row of the file and its case, or what is wrong with it."""

    line: int
    case: str
    row: Row | None
    problem: str = ""


class Lines:
    """The lines of a file as the CSV reader takes them: it may take several for one row.

    They are read one at a time, so the file may be of any length.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self.first_line = 1
        self.bytes_read = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        self._row.append(line)
        return line

    def start_row(self) -> None:
        self.first_line += len(self._row)
        self._row.clear()

    def give_back(self) -> None:
        """Let all but the first line of the row be read again: a quote that is never closed has swallowed them."""
        self._again.extendleft(reversed(self._row[1:]))
        del self._row[1:]

    @property
    def is_text(self) -> bool:
        """Whether all bytes of the row were UTF-8."""
        return not any("\udc80" <= character <= "\udcff" for line in self._row for character in line)

    def _read(self) -> str:
        line = self._file.readline(LONGEST_LINE_BYTES)
        if not line:
            raise StopIteration
        self.bytes_read += len(line)
        if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
            raise UnusableFile(f"line {self.first_line + len(self._row)} is longer than {LONGEST_LINE_BYTES:,} bytes")
        # Bytes that are not UTF-8 become lone surrogates, so that one bad row does not end the reading.
        return line.decode(errors="surrogateescape")


class Log:
    """An event log in CSV form. The header is read at once; iterating gives the rows in file order."""

    def __init__(self, file: BinaryIO) -> None:
        self.lines = Lines(file)
        self._rows = csv.reader(self.lines, strict=True)
        self._header = self._read_header()

    def __iter__(self) -> Iterator[Entry]:
        while True:
            self.lines.start_row()
            try:
                cells = next(self._rows)
            except StopIteration:
                return
            except csv.Error as error:
                self.lines.give_back()
                yield Entry(self.lines.first_line, "", None, str(error))
            else:
                if cells:  # The reader makes an empty row of an empty line.
                    yield self._entry(self.lines.first_line, cells)

    def _entry(self, line: int, cells: list[str]) -> Entry:
        if not self.lines.is_text:
            return Entry(line, "", None, "it is not UTF-8 text")
        if len(cells) != len(self._header):
            return Entry(line, "", None, f"it has {len(cells)} columns, the header has {len(self._header)}")
        data = dict(zip(self._header, cells, strict=True))
        case, activity, time = data.pop(CASE), data.pop(ACTIVITY), data.pop(TIME)
        resource, transition = data.pop(RESOURCE), data.pop(TRANSITION)
        if not case.strip():
            return Entry(line, "", None, f"it has no case ({CASE})")
        try:
            if datetime.fromisoformat(time).tzinfo is None:
                return Entry(line, case, None, f"its time has no UTC offset: {time!r}")
        except ValueError:
            return Entry(line, case, None, f"its time is not one: {time!r}")
        row = Row(line=line, activity=activity, time=time, resource=resource, transition=transition, data=data)
        return Entry(line, case, row)

    def _read_header(self) -> list[str]:
        try:
            header = next(self._rows, [])
        except csv.Error as error:
            raise UnusableFile(f"its header cannot be read: {error}") from error
        if not self.lines.is_text or any("\0" in name for name in header):
            raise UnusableFile("it is not UTF-8 text")
        if header:
            header[0] = header[0].removeprefix("\ufeff")
        missing = [name for name in REQUIRED if name not in header]
        if missing:
            raise UnusableFile(f"its header lacks {', '.join(missing)}")
        if len(set(header)) < len(header):
            raise UnusableFile("its header names a column twice")
        return header


# Taking it in.


class Intake:
    """Asks the cases to take in their rows: many cases at once, the rows of one case one after the other."""

    def __init__(self, system: ActorSystem, console: Console) -> None:
        self._system = system
        self._console = console
        self._room = asyncio.Semaphore(WINDOW)
        # The newest row of each case that is under way. A row waits for the one before it: it may only be stored when
        # that one is, or after a failure there would be a gap that nobody finds.
        self._newest: dict[str, asyncio.Task[None]] = {}
        self.taken = 0
        self.known = 0
        self.left_out = 0

    async def run(self, log: Log, progress: Progress) -> None:
        bar = progress.add_task("taking in", total=progress_total(log))
        async with asyncio.TaskGroup() as rows:
            for entry in log:
                await self._room.acquire()
                progress.update(bar, completed=log.lines.bytes_read)
                rows.create_task(self._start(rows, entry))

    ...


def progress_total(log: Log) -> float | None:
    return None
