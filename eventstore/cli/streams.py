"""`eventstore streams`: what streams there are."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from eventstore.backend import StreamInfo
from eventstore.cli.arguments import Json, Url
from eventstore.cli.escaping import escaped
from eventstore.cli.exits import Exit
from eventstore.cli.output import View, listing
from eventstore.store import EventStore


def streams(
    url: Url,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only those whose ids have this before the first dash.")
    ] = None,
    json: Json = False,
) -> Exit:
    """List the streams in the order of their ids.

    Columns: stream id, version (that of its newest event), and the version up to which events were removed.

    \b
    Example:
      eventstore streams sqlite:///bank.db --kind Account
    """
    return asyncio.run(_streams(url, kind, json=json))


async def _streams(url: str, kind: str | None, *, json: bool) -> Exit:
    rows = listing(_STREAMS, json=json)
    async with EventStore.open(url, create=False) as store:
        async for info in store.streams(kind=kind):
            rows.add(info)
    rows.flush()
    return Exit.FINE


def _cells(info: StreamInfo) -> tuple[str, ...]:
    return escaped(info.stream_id), str(info.version), str(info.truncated)


_STREAMS = View(("STREAM", "VERSION", "TRUNCATED"), _cells, StreamInfo._asdict, 3, frozenset({"VERSION", "TRUNCATED"}))
