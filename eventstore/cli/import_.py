"""`eventstore import`: CloudEvents from stdin, one JSON object a line, appended to a journal."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Annotated, cast

import typer

from eventstore.cli.arguments import Address, Json, Tenant, Url
from eventstore.cli.exits import Exit, WrongUsage
from eventstore.cli.output import counted, write_fields, write_json
from eventstore.cli.progress import bar, is_shown
from eventstore.copies.importing import Import
from eventstore.errors import EventStoreError, ImportRefused
from eventstore.url import parse_store_url

logger = logging.getLogger(__name__)

_READ_BYTES = 256 * 1024


def import_(
    url: Url,
    stream: Annotated[
        str | None, typer.Option(metavar="STREAM", help="For events of others that have no subject: their stream.")
    ] = None,
    renumber: Annotated[
        bool, typer.Option("--renumber", help="Append exported events behind what their streams have.")
    ] = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Append the CloudEvents that come from stdin, one JSON object a line, in their order.

    What `eventstore export` has written gets the ids, versions, metadata and payloads that it had, and new positions
    and times. Of events that others have written, `subject` names the stream. What is stored already, by its id, is
    left out: when an import has ended early, run it again with the whole file. What a tenant's streams had goes back to
    that --tenant alone.

    A line that is not right ends it, and is named by its number. Lines are stored some hundred at a time.

    \b
    Examples:
      eventstore import sqlite:///bank.db < events.jsonl
      eventstore export sqlite:///old.db --kind Account | eventstore import sqlite:///bank.db
    """
    return asyncio.run(_import(Address(url, tenant), stream, renumber=renumber, json=json))


async def _import(address: Address, stream: str | None, *, renumber: bool, json: bool) -> Exit:
    async with address.store() as store:
        with ExitStack() as stack:
            on_events = stack.enter_context(bar("events", None)).advance if is_shown() else None
            importing = Import(store, stream_id=stream, renumber=renumber, on_events=on_events)
            try:
                await importing.run(_lines(longest=4 * store.max_payload_bytes))
            except EventStoreError:
                if not importing.lines:
                    raise
                logger.warning("up to line %d all is stored; what is behind it is not", importing.lines)
                raise
    if json:
        write_json({"url": str(parse_store_url(address.url)), "stored": importing.stored, "known": importing.known})
    else:
        write_fields(
            {
                "stored": counted(importing.stored, "event"),
                "known": counted(importing.known, "was stored already", "were stored already"),
            }
        )
    return Exit.FINE


async def _lines(*, longest: int) -> AsyncGenerator[bytes]:
    """The lines of stdin, without ever waiting for it in the way of a Ctrl-C."""
    source = _stdin()
    rest = b""
    number = 0
    while chunk := await _chunk(source):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield line
        if len(rest) > longest:
            raise ImportRefused(number + 1, f"it is longer than {longest} bytes")
    if rest:
        yield rest


def _stdin() -> int:
    # Python has none where the program was started with it closed.
    if cast("object", sys.stdin) is None:
        raise WrongUsage("stdin is closed: give the events there, as in `eventstore import URL < events.jsonl`")
    return sys.stdin.fileno()


async def _chunk(source: int) -> bytes:
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(source, _settle, readable)
    except PermissionError:
        # A file is readable at any time, and so nobody tells when it is.
        return os.read(source, _READ_BYTES)
    try:
        await readable
    finally:
        loop.remove_reader(source)
    return os.read(source, _READ_BYTES)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
