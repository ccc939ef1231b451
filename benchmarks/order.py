"""Order: what an ordered log costs several writer processes, and what its readers miss (row 8, Postgres).

Run as a module it is one of the writers: `python -m benchmarks.order URL NUMBER`.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg

from backends.postgres import PostgresBackend
from benchmarks import servers
from benchmarks.bare_postgres import INSERT, bare_postgres, columns_of, rows
from benchmarks.databases import POSTGRES
from benchmarks.harness import EVENTS_PER_SECOND, Figure, Goal, Plan, Ratio, Side, compared, interleaved, progress
from eventstore import EventStore
from eventstore.backend import Batch, EncodedEvent, Expected, StreamWrite
from eventstore.codec import encoded_event, new_event_id
from eventstore.url import parse_store_url

_WRITERS = 4
_EVENTS = 64
_NAIVE_PAGE = "SELECT position FROM journal_events WHERE position > $1 ORDER BY position LIMIT 500"
_WITHOUT_LOCK = "pg_advisory_xact_lock_shared"

_Store = Callable[[Any], Awaitable[object]]


async def against_plain_inserts(plan: Plan) -> list[Ratio]:
    """Row 8: four processes that append to the journal / that insert the same rows into a table of their own.

    Each appends 64 events to 64 streams at a time, made beforehand. Line 8a is the journal's own statement against
    itself without the lock that readers go by. Line 8b counts what a reader misses beside four other writers, which
    stall before they commit, and roll back one transaction in ten.
    """
    async with servers.postgres() as url:
        async with bare_postgres(servers.dsn_of(url)), _writers(url) as writers:

            def side(how: str, name: str) -> Side:
                async def measure(seconds: float) -> float:
                    return sum(await asyncio.gather(*(writer.measure(how, seconds) for writer in writers)))

                return Side(name, POSTGRES.durability, measure)

            sides = [
                side("ordered", f"{_WRITERS} processes append {_EVENTS} events at a time"),
                side("plain", f"{_WRITERS} processes insert {_EVENTS} rows at a time"),
                side("unordered", "append without the lock that readers go by"),
            ]
            figures = await interleaved(sides, plan)
        missed = await _missed(url, max(2.0, plan.rounds * plan.seconds))
    ordered, plain, unordered = sides
    return [
        compared(
            "8",
            f"Postgres: ordered append / plain insert, {_WRITERS} writer processes",
            (ordered, plain),
            figures[:2],
            EVENTS_PER_SECOND,
            Goal(0.80, 1.0),
        ),
        compared(
            "8a",
            "Postgres: append / the same statement without its lock",
            (ordered, unordered),
            (figures[0], figures[2]),
            EVENTS_PER_SECOND,
        ),
        missed,
    ]


class _Writer:
    """One of the processes, told by a line what to do, and answering by a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def measure(self, how: str, seconds: float) -> float:
        """Events per second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{how} {seconds}\n".encode())
        async with asyncio.timeout(seconds * 10 + 60):
            answer = await self._process.stdout.readline()
        assert answer, "a writer has ended"
        return float(answer)

    async def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def _writers(url: str) -> AsyncGenerator[Sequence[_Writer], None]:
    async with AsyncExitStack() as stack:
        writers: list[_Writer] = []
        for number in range(_WRITERS):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "benchmarks.order", url, str(number),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            writers.append(_Writer(process))
            stack.push_async_callback(writers[-1].end)
        yield writers


# What a reader misses


async def _missed(url: str, seconds: float) -> Ratio:
    progress(f"  {_WRITERS} writers that stall and roll back, and a reader, for {seconds:.0f} s")
    async with EventStore.open(url) as store:
        start = (await store.statistics()).last_position
        command = (sys.executable, "-m", "tests.backends.postgres_writer", url)
        processes = [
            await asyncio.create_subprocess_exec(*command, str(seed), str(seconds), stdout=asyncio.subprocess.PIPE)
            for seed in range(_WRITERS)
        ]
        have_ended = asyncio.Event()

        async def ends() -> None:
            try:
                await asyncio.gather(*(process.communicate() for process in processes))
            finally:
                have_ended.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(ends())
            reader = group.create_task(_follow(store, start, have_ended))
            naive_reader = group.create_task(_follow_naively(url, start, have_ended))
        assert not any(process.returncode for process in processes), "a writer failed"
        stored = {recorded.position async for recorded in store.read_all(after=start)}
    seen = reader.result()
    assert len(set(seen)) == len(seen), "the reader got an event twice"
    missed = len(stored - set(seen))
    missed_naively = len(stored - set(naive_reader.result()))
    return Ratio(
        "8b",
        f"Postgres: events missed by a reader beside {_WRITERS} writers that stall and roll back",
        missed,
        missed,
        missed,
        Goal(0, 0, is_upper_limit=True),
        (
            Figure("stored while the reader followed", POSTGRES.durability, f"{len(stored):,} events"),
            Figure("missed by a reader that goes by the last position it has seen", "", f"{missed_naively:,} events"),
        ),
        digits=0,
    )


async def _follow(store: EventStore, position: int, have_ended: asyncio.Event) -> list[int]:
    seen: list[int] = []
    while True:
        is_last = have_ended.is_set()
        page = await store.read_page(after=position, limit=500)
        seen += [recorded.position for recorded in page.events]
        position = page.position
        if page.is_end:
            if is_last:
                return seen
            await asyncio.sleep(0.002)


async def _follow_naively(url: str, position: int, have_ended: asyncio.Event) -> list[int]:
    seen: list[int] = []
    connection = await asyncpg.connect(servers.dsn_of(url), timeout=10, command_timeout=60)
    try:
        while True:
            is_last = have_ended.is_set()
            found = await connection.fetch(_NAIVE_PAGE, seen[-1] if seen else position)
            seen += [row[0] for row in found]
            if is_last and not found:
                return seen
            await asyncio.sleep(0.002)
    finally:
        await connection.close(timeout=5)


# One writer


async def _write(url: str, number: int) -> None:
    """Serve the commands of stdin: how to write, and for how many seconds."""
    connection = await asyncpg.connect(servers.dsn_of(url), timeout=10, command_timeout=60)
    plain_rows = rows(range(1 + number * _EVENTS, 1 + (number + 1) * _EVENTS))
    insert = (await connection.prepare(INSERT)).fetch
    ways: dict[str, tuple[Iterator[Any], _Store]] = {
        "plain": (_plain_groups(plain_rows), lambda columns: insert(*columns))
    }
    for how in ("ordered", "unordered"):
        backend = PostgresBackend(parse_store_url(url))
        await backend.open()
        if how == "unordered":
            _without_lock(backend)
        ways[how] = (_groups(f"{how}{number}"), backend.append)
        await ways[how][1](next(ways[how][0]))
    while line := await asyncio.to_thread(sys.stdin.readline):
        how, seconds = line.split()
        print(await _stored(*ways[how], float(seconds)), flush=True)


async def _stored(groups: Iterator[Any], store: _Store, seconds: float) -> float:
    taken = 0.0
    count = 0
    while taken < seconds:
        # Making events is not the database's work: it is done between the measurements.
        for group in list(itertools.islice(groups, 20)):
            start = time.perf_counter()
            await store(group)
            taken += time.perf_counter() - start
            count += 1
    return count * _EVENTS / taken


def _plain_groups(made: Iterator[tuple[object, ...]]) -> Iterator[Sequence[Sequence[object]]]:
    while True:
        yield columns_of(list(itertools.islice(made, _EVENTS)))


def _groups(name: str) -> Iterator[Sequence[Batch]]:
    while True:
        yield [[StreamWrite(f"{name}-{stream}", Expected.ANY, [_event()])] for stream in range(_EVENTS)]


def _event() -> EncodedEvent:
    event_id = new_event_id()
    return encoded_event(event_id, "benchmark.deposited", 1, b'{"amount":1}', None, event_id)


def _without_lock(backend: PostgresBackend) -> None:
    statements = backend._sql._appends_one_each
    for which, statement in statements.items():
        assert _WITHOUT_LOCK in statement
        statements[which] = statement.replace(_WITHOUT_LOCK, "abs")


if __name__ == "__main__":
    asyncio.run(_write(sys.argv[1], int(sys.argv[2])))
