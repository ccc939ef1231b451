"""An event log of permit cases, taken into the journal by one persistent actor per case, and reported from there.

    python examples/permits.py log.csv                              # into permits.db
    python examples/permits.py log.csv --store sqlite:///other.db --json
    python examples/permits.py log.csv --store postgresql://me:pw@host/permits

A SQLite file is made by itself. On Postgres and Redis run `eventstore migrate URL` once, before the first time.

The log is a CSV file in the form of process mining: one row per event, with the case, the activity, the time and who
did it. Kill this program whenever you like and run it again: it goes on where it was, and no row is stored twice.

Exit code: 0, 1 if rows were left out (each is named on stderr), 2 if the file cannot be used, 3 if the store failed,
130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import heapq
import json
import logging
import os
import stat
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, BinaryIO, NamedTuple

from pydantic import BaseModel
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from actors import (
    ActorSystem,
    Command,
    CommandRejected,
    PersistentActor,
    command_handler,
    event_handler,
    with_metadata,
)
from eventstore import Event, EventStore, EventStoreError, InvalidStreamId, Metadata, PayloadTooLarge
from eventstore.backend import EventFilter

CASE, ACTIVITY, TIME = "case:concept:name", "concept:name", "time:timestamp"
RESOURCE, TRANSITION = "org:resource", "lifecycle:transition"
REQUIRED = (CASE, ACTIVITY, TIME, RESOURCE, TRANSITION)

# Rows under way at once. Those of different cases share a commit, so many take little longer than one.
WINDOW = 512
MAX_LIVE_CASES = 10_000
LONGEST_LINE_BYTES = 1024 * 1024
TOP = 10


# The actor: one case of a permit.


class Row(BaseModel, frozen=True):
    """One row of the log. The time is kept as it was written; `data` holds all the other columns."""

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


class OtherFile(CommandRejected):
    """The case has another row from this line of the file."""


class Taken(BaseModel):
    """The rows a case has: the line of each in the file, and a digest of its content."""

    digests: dict[int, str] = {}
    last_line: int = 0


class PermitCase(PersistentActor[Taken], kind="permit"):
    """Takes in the rows of its case in the order of the file, each once.

    What makes a row itself? Not its content, for two equal rows are still two events. Not its time, which repeats and
    is not in order. It is its place in the file. So the state knows the line of each row, and as it is made of the
    events alone, it cannot disagree with what is stored: whatever the moment of a crash, a row is there or it is not.
    The digest tells when the file is not the one it was: then a line that is known holds a row that is not.
    """

    @command_handler
    def take_in(self, command: TakeIn) -> bool:
        row = command.row
        known = self.state.digests.get(row.line)
        if known is None and row.line > self.state.last_line:
            self.persist(RowTaken(row=row))
            return True
        if known is None:
            raise CommandRejected(f"case {self.key!r} has later rows already, and is kept in the order of the file")
        if known != row.digest():
            raise OtherFile(f"case {self.key!r} has another row from this line: the file has changed, use a new store")
        return False

    @event_handler
    def row_taken(self, event: RowTaken) -> None:
        self.state.digests[event.row.line] = event.row.digest()
        self.state.last_line = event.row.line


# The file.


class UnusableFile(Exception):
    """It is no event log, or cannot be read."""


class Entry(NamedTuple):
    """One row as it was read: the case and the row, or the problem with it."""

    line: int
    case: str = ""
    row: Row | None = None
    problem: str = ""


class Lines:
    """The lines of a file, one at a time, for a CSV reader that may take several of them for one row."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._again: deque[str] = deque()
        self._taken: list[str] = []
        self.row_line = 1
        self.bytes_read = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        self._taken.append(line)
        return line

    def begin_row(self) -> None:
        """The next line is the first one of a row."""
        self.row_line += len(self._taken)
        self._taken.clear()

    def give_back(self) -> None:
        """Take only the first line for the row: a quote that was opened by mistake swallows those after it."""
        self._again.extendleft(reversed(self._taken[1:]))
        del self._taken[1:]

    @property
    def is_text(self) -> bool:
        """Whether the row is UTF-8 all through."""
        try:
            "".join(self._taken).encode()
        except UnicodeEncodeError:
            return False
        return True

    def _read(self) -> str:
        try:
            line = self._file.readline(LONGEST_LINE_BYTES)
        except OSError as error:
            raise UnusableFile(f"it cannot be read: {error.strerror}") from error
        if not line:
            raise StopIteration
        if len(line) == LONGEST_LINE_BYTES and not line.endswith(b"\n"):
            raise UnusableFile(f"line {self.row_line + len(self._taken)} has more than {LONGEST_LINE_BYTES:,} bytes")
        self.bytes_read += len(line)
        # What is not UTF-8 becomes surrogates, which `is_text` finds: one such row should not end the reading.
        return line.decode(errors="surrogateescape")


class Log:
    """An event log in CSV form: the header is read at once, the rows in file order as it is iterated over."""

    def __init__(self, file: BinaryIO) -> None:
        self.lines = Lines(file)
        self._rows = csv.reader(self.lines, strict=True)
        self._header = self._read_header()
        status = os.fstat(file.fileno())
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None

    def __iter__(self) -> Iterator[Entry]:
        while True:
            self.lines.begin_row()
            try:
                cells = next(self._rows)
            except StopIteration:
                return
            except csv.Error as error:
                self.lines.give_back()
                yield Entry(self.lines.row_line, problem=f"it is no CSV: {error}")
            else:
                if cells:  # An empty line is no row.
                    yield self._entry(self.lines.row_line, cells)

    def _entry(self, line: int, cells: list[str]) -> Entry:
        if not self.lines.is_text:
            return Entry(line, problem="it is not UTF-8")
        if len(cells) != len(self._header):
            return Entry(line, problem=f"it has {len(cells)} columns, the header has {len(self._header)}")
        data = dict(zip(self._header, cells, strict=True))
        case, activity, time, resource, transition = (data.pop(name) for name in REQUIRED)
        if not case.strip():
            return Entry(line, problem="it has no case")
        try:
            is_complete = datetime.fromisoformat(time).tzinfo is not None
        except ValueError:
            return Entry(line, problem=f"it has no valid timestamp: {time!r}")
        if not is_complete:
            return Entry(line, problem=f"its timestamp has no UTC offset: {time!r}")
        row = Row(line=line, activity=activity, time=time, resource=resource, transition=transition, data=data)
        return Entry(line, case, row)

    def _read_header(self) -> list[str]:
        header: list[str] = []
        try:
            header = next(self._rows, header)
        except csv.Error as error:
            raise UnusableFile(f"its header is no CSV: {error}") from error
        if not self.lines.is_text or any("\0" in name for name in header):
            raise UnusableFile("it is not UTF-8 text")
        header[:1] = [name.removeprefix("\ufeff") for name in header[:1]]
        missing = [name for name in REQUIRED if name not in header]
        if missing:
            raise UnusableFile(f"its header lacks {', '.join(missing)}")
        if len(set(header)) < len(header):
            raise UnusableFile("its header has a column twice")
        return header


# Taking it in.


class Intake:
    """Asks the cases to take in their rows: many cases at once, and the rows of one case one after the other."""

    def __init__(self, system: ActorSystem, stderr: Console) -> None:
        self._system = system
        self._stderr = stderr
        self._room = asyncio.Semaphore(WINDOW)
        self._newest: dict[str, asyncio.Task[None]] = {}
        self.new = self.known = self.left_out = 0

    async def run(self, log: Log, progress: Progress) -> None:
        bar = progress.add_task("taking in", total=log.size)
        async with asyncio.TaskGroup() as tasks:
            for entry in log:
                await self._room.acquire()
                progress.update(bar, completed=log.lines.bytes_read)
                before = self._newest.get(entry.case) if entry.row else None
                task = tasks.create_task(self._deal_with(entry, before))
                task.add_done_callback(lambda task, case=entry.case: self._done(case, task))
                self._newest[entry.case] = task

    async def _deal_with(self, entry: Entry, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            # If that row cannot be stored, this one must not be either: there would be a gap in the case.
            await before
        if entry.row is None:
            self._leave_out(entry, entry.problem)
            return
        try:
            # Who did it can be asked of the journal then: `eventstore blame`, `eventstore audit query --user`.
            with with_metadata(Metadata(user=entry.row.resource or None)):
                is_new = await self._system.ref(PermitCase, entry.case).ask(TakeIn(row=entry.row))
        except OtherFile:
            raise
        except (CommandRejected, InvalidStreamId, PayloadTooLarge) as error:
            self._leave_out(entry, str(error))
        else:
            self.new += is_new
            self.known += not is_new

    def _done(self, case: str, task: asyncio.Task[None]) -> None:
        self._room.release()
        if self._newest.get(case) is task:
            del self._newest[case]

    def _leave_out(self, entry: Entry, problem: str) -> None:
        self.left_out += 1
        say(self._stderr, f"line {entry.line} is left out: {problem}")


# The report.


@dataclass(slots=True)
class Case:
    """What the report needs to know of a case while it goes through the log."""

    first: datetime
    last: datetime
    resource: str


@dataclass
class Report:
    """What the journal tells about the cases. The file is not looked at."""

    events: int = 0
    cases: dict[str, Case] = field(default_factory=dict[str, Case])
    activities: Counter[str] = field(default_factory=Counter[str])
    handovers: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])

    def add(self, case_id: str, row: Row) -> None:
        """Count one event. The events of a case come in the order of its stream."""
        self.events += 1
        self.activities[row.activity] += 1
        time = datetime.fromisoformat(row.time)
        case = self.cases.get(case_id)
        if case is None:
            self.cases[case_id] = Case(time, time, row.resource)
            return
        if row.resource != case.resource:
            self.handovers[case.resource, row.resource] += 1
        case.resource = row.resource
        case.first = min(case.first, time)
        case.last = max(case.last, time)

    def longest(self) -> list[tuple[str, timedelta]]:
        durations = [(case_id, case.last - case.first) for case_id, case in self.cases.items()]
        return heapq.nsmallest(TOP, durations, key=lambda item: (-item[1], item[0]))


async def report_of(store: EventStore) -> Report:
    report = Report()
    async for recorded in store.read_all(where=EventFilter(kinds=(PermitCase.kind,))):
        event = store.decode(recorded)
        if isinstance(event, RowTaken):
            report.add(recorded.stream_id.removeprefix(f"{PermitCase.kind}-"), event.row)
    return report


def top(counts: Counter[Any]) -> list[tuple[Any, int]]:
    """The most frequent first; those of one frequency in the order of their names."""
    return heapq.nsmallest(TOP, counts.items(), key=lambda item: (-item[1], item[0]))


def as_json(report: Report) -> str:
    return json.dumps(
        {
            "cases": len(report.cases),
            "events": report.events,
            "activities": [{"activity": name, "events": events} for name, events in top(report.activities)],
            "longest_cases": [{"case": case, "seconds": time.total_seconds()} for case, time in report.longest()],
            "handovers": {
                "total": report.handovers.total(),
                "pairs": [{"from": one, "to": other, "count": n} for (one, other), n in top(report.handovers)],
            },
        },
        indent=2,
    )


def print_report(report: Report, console: Console) -> None:
    say(console, f"{len(report.cases):,} cases, {report.events:,} events, {report.handovers.total():,} hand-overs")
    activities = [(name, f"{events:,}") for name, events in top(report.activities)]
    handovers = [
        (f"{one or '(none)'} → {other or '(none)'}", f"{number:,}") for (one, other), number in top(report.handovers)
    ]
    print_table(console, "The most frequent activities", ("activity", "events"), activities)
    print_table(console, "The longest cases", ("case", "from first to last event"), report.longest())
    print_table(console, "The most frequent hand-overs", ("from one resource to another", "times"), handovers)


def print_table(console: Console, title: str, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column(headings[0], overflow="fold")
    table.add_column(headings[1], justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    console.print()
    console.print(table)


def say(console: Console, message: str) -> None:
    console.print(printable(message), soft_wrap=True)


def printable(text: str) -> Text:
    """Text from a file must not be able to command a terminal, or Rich."""
    return Text("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text))


# The program.


async def run(log: Log, *, store: str, is_json: bool, stderr: Console) -> int:
    async with ActorSystem(store, max_live=MAX_LIVE_CASES) as system:
        intake = Intake(system, stderr)
        with Progress(console=stderr, disable=not sys.stderr.isatty()) as progress:
            await intake.run(log, progress)
        say(stderr, f"{intake.new:,} rows taken in, {intake.known:,} known already, {intake.left_out:,} left out")
        report = await report_of(system.store)
    show(report, is_json=is_json)
    return 1 if intake.left_out else 0


def show(report: Report, *, is_json: bool) -> None:
    # What is not a terminal has no width, and 80 would be narrow.
    console = Console(width=None if sys.stdout.isatty() else 120)
    with console.capture() as printed:
        print_report(report, console)
    try:
        print(as_json(report) if is_json else printed.get(), end="\n" if is_json else "", flush=True)
    except BrokenPipeError:
        # The reader has seen enough (`| head`). What is left must not be written again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> int:
    parser = argparse.ArgumentParser(description="Take an event log into the journal, and report from there.")
    parser.add_argument("path", metavar="PATH", help="the event log, a CSV file")
    parser.add_argument("--store", metavar="URL", default="sqlite:///permits.db", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    stderr = Console(stderr=True)
    # What an actor suffers reaches us as the error of an ask, and is told once, below.
    logging.getLogger("actors").addHandler(logging.NullHandler())
    code = 0
    try:
        with opened(arguments.path) as file:
            code = asyncio.run(run(Log(file), store=arguments.store, is_json=arguments.json, stderr=stderr))
    except* (UnusableFile, OtherFile) as errors:
        say(stderr, f"{arguments.path} cannot be used: {errors.exceptions[0]}")
        code = 2
    except* EventStoreError as errors:
        # One says it: the others came of the same cause.
        say(stderr, f"The store failed: {errors.exceptions[0]}")
        code = 3
    except* KeyboardInterrupt:
        say(stderr, "Interrupted. Run it again, and it goes on from here.")
        code = 130
    return code


def opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UnusableFile(error.strerror) from error


if __name__ == "__main__":
    sys.exit(main())
