"""`eventstore events`: the events of one stream."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from eventstore.cli.arguments import Address, Json, Tenant, Url, whole
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import Listing, listing
from eventstore.cli.recorded import STREAM_EVENTS
from eventstore.events import RecordedEvent, checked_stream_id


def events(
    context: typer.Context,
    url: Url,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="The stream's id, such as Account-alice.")],
    after: Annotated[
        int, typer.Option(metavar="VERSION", parser=whole(0), help="Only events behind this version.")
    ] = 0,
    through: Annotated[
        int | None, typer.Option(metavar="VERSION", parser=whole(0), help="Only events up to this version.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="COUNT", parser=whole(0), help="At most so many.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Newest first.")] = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show the events of one stream, with their payloads as stored: no event class is needed.

    \b
    Examples:
      eventstore events sqlite:///bank.db Account-alice
      eventstore events sqlite:///bank.db Account-alice --reverse --limit 10
    """
    messages: Messages = context.obj
    checked_stream_id(stream)
    if through is not None and after > through:
        raise WrongUsage(f"--after {after} lies behind --through {through}: no event is in between")
    rows = listing(STREAM_EVENTS, json=json)
    return asyncio.run(
        _events(Address(url, tenant), stream, after, through, limit, reverse=reverse, rows=rows, messages=messages)
    )


async def _events(
    address: Address,
    stream: str,
    after: int,
    through: int | None,
    limit: int | None,
    *,
    reverse: bool,
    rows: Listing[RecordedEvent],
    messages: Messages,
) -> Exit:
    is_empty = True
    async with address.store() as store:
        head = await store.head(stream)
        if head.version == 0:
            raise CommandFailed(f"stream {stream!r} has no events: `eventstore streams` lists what there is")
        if after < head.truncated:
            messages.note(f"the events of {stream!r} up to version {head.truncated} were removed")
        async for recorded in store.read(stream, after=after, through=through, limit=limit, backwards=reverse):
            rows.add(recorded)
            is_empty = False
        rows.flush()
        if is_empty and limit != 0:
            await note_nothing(messages, store, "event", is_narrowed=True)
    return Exit.FINE
