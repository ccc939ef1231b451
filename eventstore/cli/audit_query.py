"""`eventstore audit query`: the events of the whole journal that are asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Annotated

import typer

from eventstore.auditing.audit_find import find
from eventstore.cli.arguments import Json, Url, whole
from eventstore.cli.audit_csv import CsvRows
from eventstore.cli.audit_filters import filtered
from eventstore.cli.audit_parquet import ParquetFile
from eventstore.cli.exits import Exit, WrongUsage
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import Listing, listing
from eventstore.cli.recorded import LOG_EVENTS
from eventstore.cli.targets import imported_module
from eventstore.codec import decode_parts, encode_event
from eventstore.contract.audit_query import AuditQuery
from eventstore.events import RecordedEvent
from eventstore.store import EventStore


def query(
    context: typer.Context,
    url: Url,
    query: AuditQuery,
    newest: Annotated[bool, typer.Option("--newest", help="The newest first.")] = False,
    limit: Annotated[int | None, typer.Option(metavar="COUNT", parser=whole(0), help="At most so many.")] = None,
    after: Annotated[
        int | None,
        typer.Option(
            metavar="CURSOR", parser=whole(0), help="Go on behind this position, the last of the page before."
        ),
    ] = None,
    decode: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Show events as this module's classes and upcasters read them."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, safe to open in a spreadsheet.")] = False,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a Parquet file (needs pyarrow).", dir_okay=False)
    ] = None,
    json: Json = False,
) -> Exit:
    """Find events in the whole journal.

    Options may be given several times: any value of one will do, and each option must hold; of --where and --meta every
    condition must. They look at what is stored, with --decode too. What is appended meanwhile does not come.

    \b
    Examples:
      eventstore audit query sqlite:///bank.db --user ann --from -2h
      eventstore audit query sqlite:///bank.db --type Deposited --where '/amount>=50' --csv > large.csv
      eventstore audit query sqlite:///bank.db --kind Account --newest --limit 100 --after 4711
    """
    if json + csv + (parquet is not None) > 1:
        raise WrongUsage("--json, --csv and --parquet are three forms of one answer: choose one")
    for module in decode or ():
        imported_module(module)
    with ExitStack() as stack:
        rows: Listing[RecordedEvent]
        if parquet is not None:
            rows = stack.enter_context(ParquetFile(parquet))
        elif csv:
            rows = CsvRows()
        else:
            rows = listing(LOG_EVENTS, json=json)
        return asyncio.run(
            _query(context.obj, url, query, after, limit, newest=newest, decoded=bool(decode), rows=rows)
        )


async def _query(
    messages: Messages,
    url: str,
    query: AuditQuery,
    after: int | None,
    limit: int | None,
    *,
    newest: bool,
    decoded: bool,
    rows: Listing[RecordedEvent],
) -> Exit:
    last, count = None, 0
    async with EventStore.open(url, create=False) as store:
        found: AsyncGenerator[RecordedEvent, None] = find(store, query, cursor=after, limit=limit, backwards=newest)
        async with aclosing(found):
            async for recorded in found:
                last, count = recorded.position, count + 1
                for shown in _decoded(recorded) if decoded else (recorded,):
                    rows.add(shown)
        rows.flush()
        if last is None and limit != 0:
            is_narrowed = query != AuditQuery() or after is not None
            await note_nothing(messages, store, "event", kinds=query.where.kinds, is_narrowed=is_narrowed)
    if last is not None and count == limit:
        messages.note(f"there may be more: go on with --after {last}")
    return Exit.FINE


def _decoded(recorded: RecordedEvent) -> Sequence[RecordedEvent]:
    """The event as today's classes read it; several, if an upcaster has split it."""
    shown: list[RecordedEvent] = []
    for event in decode_parts(recorded):
        now = encode_event(event)
        shown.append(recorded._replace(type=now.type, schema_version=now.schema_version, payload=now.payload))
    return shown


query_command = filtered(query)
