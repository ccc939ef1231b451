"""Two read models beside the journal of `permits.py`, in the same database: the cases, and who hands over to whom.

    python examples/permit_reports.py --store sqlite:///permits.db             # to the end of the journal
    python examples/permit_reports.py --store sqlite:///permits.db --follow    # and then on, until Ctrl-C
    python examples/permit_reports.py --store sqlite:///permits.db --rebuild   # made anew, beside what is read

Tables: `permit_cases(case_id, events, first_at, last_at)`, times as ISO 8601 in UTC, and
`handovers(from_resource, to_resource, n)`: consecutive events of one case, in the order of its stream, by two
resources.

Each event changes a read model once, whenever this program is killed: the change, and how far the read model has come,
are one transaction. It needs SQL: SQLite or Postgres. Start it as often as you like; one works, the others wait for
its end.

Exit code: 0, 1 if a read model is stopped by an event (`eventstore projections status` says which), 2 for wrong usage,
3 if the store failed, 130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from permits import PermitCase, RowTaken
from sqlalchemy import Column, Integer, MetaData, Table, Text, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import (
    CapabilityError,
    EventStore,
    EventStoreError,
    Projection,
    ProjectionRunner,
    ProjectionStopped,
    RecordedEvent,
    event_handler,
    rebuild,
)

read_model = MetaData()

permit_cases = Table(
    "permit_cases",
    read_model,
    Column("case_id", Text, primary_key=True),
    Column("events", Integer, nullable=False),
    Column("first_at", Text, nullable=False),
    Column("last_at", Text, nullable=False),
)

handovers = Table(
    "handovers",
    read_model,
    Column("from_resource", Text, primary_key=True),
    Column("to_resource", Text, primary_key=True),
    Column("n", Integer, nullable=False),
)

# Who had a case last, for the next event of that case: it may come in another batch.
last_resources = Table(
    "permit_last_resources",
    read_model,
    Column("case_id", Text, primary_key=True),
    Column("resource", Text, nullable=False),
)


class PermitCases(Projection, name="permit_cases", kinds=(PermitCase.kind,)):
    """What each case is. A batch is added up first, and then written with two statements."""

    tables = (permit_cases,)

    def __init__(self) -> None:
        self.cases: dict[str, tuple[int, str, str]] = {}

    @event_handler
    def row_taken(self, event: RowTaken, recorded: RecordedEvent) -> None:
        at = in_utc(event.row.time)
        events, first_at, last_at = self.cases.get(case := case_of(recorded), (0, at, at))
        self.cases[case] = (events + 1, min(first_at, at), max(last_at, at))

    async def flush(self, connection: AsyncConnection | None) -> None:
        if connection is None or not self.cases:
            return
        table = self.table(permit_cases)
        rows = await connection.execute(select(table).where(table.c.case_id.in_(self.cases)))
        known = {row.case_id: row for row in rows}
        changed: list[dict[str, Any]] = []
        new: list[dict[str, Any]] = []
        for case, (events, first_at, last_at) in self.cases.items():
            if (row := known.get(case)) is None:
                new.append({"case_id": case, "events": events, "first_at": first_at, "last_at": last_at})
            else:
                first_at, last_at = min(first_at, row.first_at), max(last_at, row.last_at)
                changed.append({"id": case, "events": row.events + events, "first_at": first_at, "last_at": last_at})
        if new:
            await connection.execute(insert(table), new)
        if changed:
            await connection.execute(update(table).where(table.c.case_id == bindparam("id")), changed)


class Handovers(Projection, name="handovers", kinds=(PermitCase.kind,)):
    """Who hands over to whom, how often."""

    tables = (handovers, last_resources)

    def __init__(self) -> None:
        self.resources: dict[str, list[str]] = {}

    @event_handler
    def row_taken(self, event: RowTaken, recorded: RecordedEvent) -> None:
        self.resources.setdefault(case_of(recorded), []).append(event.row.resource)

    async def flush(self, connection: AsyncConnection | None) -> None:
        if connection is None or not self.resources:
            return
        last = self.table(last_resources)
        rows = await connection.execute(select(last).where(last.c.case_id.in_(self.resources)))
        before = {row.case_id: row.resource for row in rows}
        counts: Counter[tuple[str, str]] = Counter()
        for case, resources in self.resources.items():
            previous = before.get(case)
            for resource in resources:
                if previous is not None and resource != previous:
                    counts[previous, resource] += 1
                previous = resource
        newest = {case: resources[-1] for case, resources in self.resources.items()}
        await self.write_last(connection, newest, before)
        await self.write_counts(connection, counts)

    async def write_last(self, connection: AsyncConnection, newest: dict[str, str], before: dict[str, str]) -> None:
        last = self.table(last_resources)
        new = [{"case_id": case, "resource": resource} for case, resource in newest.items() if case not in before]
        changed = [
            {"id": case, "resource": resource}
            for case, resource in newest.items()
            if before.get(case, resource) != resource
        ]
        if new:
            await connection.execute(insert(last), new)
        if changed:
            await connection.execute(update(last).where(last.c.case_id == bindparam("id")), changed)

    async def write_counts(self, connection: AsyncConnection, counts: Counter[tuple[str, str]]) -> None:
        table = self.table(handovers)
        known = {(row.from_resource, row.to_resource) for row in await connection.execute(select(table))}
        new = [
            {"from_resource": one, "to_resource": other, "n": n}
            for (one, other), n in counts.items()
            if (one, other) not in known
        ]
        more = [{"one": one, "other": other, "more": n} for (one, other), n in counts.items() if (one, other) in known]
        if new:
            await connection.execute(insert(table), new)
        if more:
            pair = (table.c.from_resource == bindparam("one"), table.c.to_resource == bindparam("other"))
            await connection.execute(update(table).where(*pair).values(n=table.c.n + bindparam("more")), more)


def case_of(recorded: RecordedEvent) -> str:
    return recorded.stream_id.removeprefix(f"{PermitCase.kind}-")


def in_utc(time: str) -> str:
    """A moment as a text that sorts as the moments do."""
    return datetime.fromisoformat(time).astimezone(UTC).isoformat(timespec="microseconds")


READ_MODELS: tuple[type[Projection], ...] = (PermitCases, Handovers)


async def run(url: str, *, follow: bool, is_rebuild: bool) -> None:
    async with EventStore.open(url, create=False) as store:
        if is_rebuild:
            for projection in READ_MODELS:
                await rebuild(store, projection)
        async with asyncio.TaskGroup() as tasks:
            for projection in READ_MODELS:
                tasks.create_task(ProjectionRunner(store, projection).run(follow=follow))
        await report(store)


async def report(store: EventStore) -> None:
    transaction = await store.begin_sql(seconds=10)
    try:
        connection = transaction.connection
        cases = await connection.scalar(select(func.count()).select_from(permit_cases))
        events = await connection.scalar(select(func.coalesce(func.sum(permit_cases.c.events), 0)))
        total = await connection.scalar(select(func.coalesce(func.sum(handovers.c.n), 0)))
    finally:
        await transaction.rollback()
    print(f"permit_cases: {cases:,} cases, {events:,} events; handovers: {total:,}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Keep two read models beside the journal of permits.py.")
    parser.add_argument("--store", metavar="URL", default="sqlite:///permits.db", help="default: %(default)s")
    parser.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    parser.add_argument("--rebuild", action="store_true", help="make them anew, beside those that are read")
    arguments = parser.parse_args()
    code = 0
    try:
        asyncio.run(run(arguments.store, follow=arguments.follow, is_rebuild=arguments.rebuild))
    except* CapabilityError as errors:
        print(f"This store does not do: {errors.exceptions[0]}", file=sys.stderr)
        code = 2
    except* ProjectionStopped as errors:
        print(errors.exceptions[0], file=sys.stderr)
        code = 1
    except* EventStoreError as errors:
        print(f"The store failed: {errors.exceptions[0]}", file=sys.stderr)
        code = 3
    except* KeyboardInterrupt:
        code = 130
    return code


if __name__ == "__main__":
    sys.exit(main())
