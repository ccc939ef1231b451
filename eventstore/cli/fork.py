"""`eventstore fork`: the beginning of one actor's stream, in a scratch file of its own."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated

import typer

from actors.actor import stream_id_of
from eventstore.cli.arguments import Address, At, AtTime, Json, Key, Target, Tenant, Url
from eventstore.cli.escaping import escaped, printable
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.output import counted, write_json, write_line
from eventstore.cli.targets import actor_class
from eventstore.cli.versions import head_of, parse_wanted, version_of
from eventstore.copies.forking import ForkRefused, fork
from eventstore.store import EventStore


def fork_(
    url: Url,
    target: Target,
    key: Key,
    to: Annotated[
        str, typer.Argument(metavar="TO.db", help="The SQLite file that gets the stream.", show_default=False)
    ],
    at: At = None,
    at_time: AtTime = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Copy the stream of an actor, up to a version, into a SQLite file of its own: to try there what would have been.

    Payloads, metadata and the ids of the events are those of the original; their times and positions are the file's
    own. The file is made if it is not there; a stream that is in it already is only gone on with. With --tenant it is
    that tenant's stream, and in the file one of no tenant. The original is only read.

    \b
    Examples:
      eventstore fork sqlite:///bank.db bank:Account alice scratch.db --at 3
      eventstore fork sqlite:///bank.db bank:Account alice scratch.db --at-time 2026-01-31T12:00:00Z
    """
    wanted = parse_wanted(at, at_time)
    if "://" in to and not to.startswith("sqlite:"):
        raise WrongUsage(f"{printable(to.partition('://')[0])}:// is no SQLite file: name one, such as scratch.db")
    target_url = to if "://" in to else f"sqlite:///{to}"
    return asyncio.run(
        _fork(Address(url, tenant), stream_id_of(actor_class(target), key), target_url, wanted, json=json)
    )


async def _fork(
    address: Address, stream_id: str, target_url: str, wanted: int | datetime | None, *, json: bool
) -> Exit:
    async with address.store() as source:
        head = await head_of(source, stream_id)
        through = head.version if wanted is None else await version_of(source, stream_id, head, wanted)
        if head.truncated:
            raise CommandFailed(
                f"the events of {stream_id!r} up to version {head.truncated} were removed: what they led to cannot be "
                "forked"
            )
        async with EventStore.open(target_url) as target:
            try:
                forked = await fork(source, target, stream_id, through=through)
            except ForkRefused as error:
                raise CommandFailed(str(error)) from error
    if json:
        write_json({"stream_id": stream_id, "version": forked.version, "events": forked.events, "to": target_url})
    else:
        write_line(
            (f"{escaped(stream_id)}: ", "bold"),
            (f"version {forked.version} in {escaped(target_url)}, {counted(forked.events, 'event')} copied", ""),
        )
    return Exit.FINE
