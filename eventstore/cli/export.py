"""`eventstore export`: events as CloudEvents, one JSON object a line."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Annotated

import typer

from eventstore.backend import EventFilter
from eventstore.cli.arguments import Address, Json, Tenant, Url, whole
from eventstore.cli.exits import Exit, WrongUsage
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import flush, write_bytes
from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.copies.cloud_events import DEFAULT_SOURCE, to_line


def export(
    context: typer.Context,
    url: Url,
    kind: Annotated[list[str] | None, typer.Option(metavar="KIND", help="Only streams of this kind.")] = None,
    type: Annotated[list[str] | None, typer.Option(metavar="TYPE", help="Only events with this stored name.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Only events with this tag.")] = None,
    stream: Annotated[list[str] | None, typer.Option(metavar="STREAM", help="Only events of this stream.")] = None,
    after: Annotated[
        int, typer.Option(metavar="POSITION", parser=whole(0), help="Only events behind this position.")
    ] = 0,
    source: Annotated[
        str, typer.Option(metavar="URI", help="What CloudEvents calls the source: your application's name as a URI.")
    ] = DEFAULT_SOURCE,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Write events to stdout as CloudEvents 1.0, one JSON object a line, in the order of the log, up to its end now.

    Without --tenant they are everybody's, and each line says whose it is.

    --kind, --type, --tag and --stream may each be given several times. `eventstore import` takes the lines back.
    Snapshots, the outcomes of commands and epochs are not events: `eventstore copy` keeps them, and every position.

    \b
    Examples:
      eventstore export sqlite:///bank.db > events.jsonl
      eventstore export sqlite:///bank.db --kind Account --after 1200 --source https://bank.example/ledger
    """
    if not source.isascii() or not source.isprintable() or not source or " " in source:
        raise WrongUsage("--source is a URI, such as https://bank.example/ledger")
    where = EventFilter(tuple(kind or ()), tuple(type or ()), tuple(tag or ()), tuple(stream or ()))
    return asyncio.run(_export(context.obj, Address(url, tenant), where, after, source))


async def _export(messages: Messages, address: Address, where: EventFilter, after: int, source: str) -> Exit:
    is_empty = True
    async with address.store() as store:
        with ExitStack() as stack:
            progress: Progress = Silent()
            if is_shown():
                total = None if where != EventFilter() else (await store.statistics()).events
                progress = stack.enter_context(bar("events", total))
            async for recorded in store.read_all(after=after, where=where):
                write_bytes(to_line(recorded, source=source))
                is_empty = False
                progress.advance(1)
        flush()
        if is_empty:
            is_narrowed = after > 0 or where != EventFilter()
            await note_nothing(messages, store, "event", kinds=where.kinds, is_narrowed=is_narrowed)
    return Exit.FINE
