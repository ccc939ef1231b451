"""`eventstore audit query`: the events of the whole journal that are asked for."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from eventstore.backend import EventFilter
from eventstore.cli.arguments import Json, Url
from eventstore.cli.exits import Exit
from eventstore.cli.output import Listing, listing
from eventstore.cli.recorded import LOG_EVENTS
from eventstore.events import RecordedEvent
from eventstore.store import EventStore


def query(
    url: Url,
    kind: Annotated[list[str] | None, typer.Option(metavar="KIND", help="Only streams of this kind.")] = None,
    type: Annotated[list[str] | None, typer.Option(metavar="TYPE", help="Only events with this stored name.")] = None,
    tag: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Only events with this tag.")] = None,
    json: Json = False,
) -> Exit:
    """Find events in the whole journal.

    \b
    Example:
      eventstore audit query sqlite:///bank.db --kind Account --type Deposited
    """
    where = EventFilter(kinds=tuple(kind or ()), types=tuple(type or ()), tags=tuple(tag or ()))
    return asyncio.run(_query(url, where, listing(LOG_EVENTS, json=json)))


async def _query(url: str, where: EventFilter, rows: Listing[RecordedEvent]) -> Exit:
    async with EventStore.open(url, create=False) as store:
        async for recorded in store.read_all(where=where):
            rows.add(recorded)
    rows.flush()
    return Exit.FINE
