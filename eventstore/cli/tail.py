"""`eventstore tail`: the end of the whole log, and what is appended to it."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated

import typer

from eventstore.backend import EventFilter
from eventstore.cli.arguments import Address, Json, Tenant, Url, whole
from eventstore.cli.exits import Exit, ReaderGone
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing, note_unknown_kinds
from eventstore.cli.output import Listing, listing
from eventstore.cli.recorded import LOG_EVENTS
from eventstore.events import RecordedEvent


def tail(
    context: typer.Context,
    url: Url,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new events until Ctrl-C.")] = False,
    count: Annotated[
        int, typer.Option("-n", "--last", metavar="COUNT", parser=whole(0), help="Begin with the last so many.")
    ] = 10,
    kind: Annotated[list[str] | None, typer.Option(metavar="KIND", help="Only streams of this kind.")] = None,
    type: Annotated[list[str] | None, typer.Option(metavar="TYPE", help="Only events with this stored name.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Only events with this tag.")] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show the last events of the whole log, and follow it.

    --kind, --type and --tag may each be given several times: any of the values will do, and each kind of condition
    must hold.

    \b
    Examples:
      eventstore tail sqlite:///bank.db -n 100
      eventstore tail sqlite:///bank.db --follow --kind Account --type Deposited
    """
    rows = listing(LOG_EVENTS, json=json)
    where = EventFilter(kinds=tuple(kind or ()), types=tuple(type or ()), tags=tuple(tag or ()))
    return asyncio.run((_follow if follow else _tail)(context.obj, Address(url, tenant), count, where, rows))


async def _tail(
    messages: Messages, address: Address, count: int, where: EventFilter, rows: Listing[RecordedEvent]
) -> Exit:
    is_empty = True
    async with address.store() as store:
        async for recorded in store.read_all(last=count, where=where):
            rows.add(recorded)
            is_empty = False
        rows.flush()
        if is_empty and count:
            await note_nothing(messages, store, "event", kinds=where.kinds, is_narrowed=where != EventFilter())
    return Exit.FINE


async def _follow(
    messages: Messages, address: Address, count: int, where: EventFilter, rows: Listing[RecordedEvent]
) -> Exit:
    async with address.store() as store:
        await note_unknown_kinds(messages, store, where.kinds)
        # Only the reading is cancelled, never the closing of the store.
        with _cancelled_when_nobody_reads():
            async for recorded in store.subscribe(last=count, where=where):
                rows.add(recorded)
                rows.flush()
    return Exit.FINE


@contextmanager
def _cancelled_when_nobody_reads() -> Generator[None]:
    """Raise `ReaderGone` when the reader of a pipe goes away, not only when there is something to write to it."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    is_reader_gone = False

    def reader_gone() -> None:
        nonlocal is_reader_gone
        is_reader_gone = True
        loop.remove_reader(output)
        if task is not None:
            task.cancel()

    output = sys.stdout.fileno()
    is_pipe = stat.S_ISFIFO(os.fstat(output).st_mode)
    if is_pipe:
        # The end that writes is never readable, but a selector reports its errors whatever it is asked for.
        loop.add_reader(output, reader_gone)
    try:
        yield
    except asyncio.CancelledError:
        if not is_reader_gone:
            raise
        raise ReaderGone from None
    finally:
        if is_pipe:
            loop.remove_reader(output)
