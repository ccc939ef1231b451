"""`eventstore streams`: what streams there are."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from eventstore.backend import StreamInfo
from eventstore.cli.arguments import Address, Json, Tenant, Url
from eventstore.cli.escaping import of_tenant
from eventstore.cli.exits import Exit
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import View, listing


def streams(
    context: typer.Context,
    url: Url,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only those whose ids have this before the first dash.")
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """List the streams in the order of their ids. Without --tenant those of no tenant come first, then each tenant's.

    Behind the id of a tenant's stream stands the tenant.

    Columns: stream id, version (that of its newest event), and the version up to which events were removed.

    \b
    Example:
      eventstore streams sqlite:///bank.db --kind Account
    """
    return asyncio.run(_streams(context.obj, Address(url, tenant), kind, json=json))


async def _streams(messages: Messages, address: Address, kind: str | None, *, json: bool) -> Exit:
    rows = listing(_STREAMS, json=json)
    is_empty = True
    async with address.store() as store:
        async for each in store.tenants():
            async for info in store.streams(kind=kind, tenants=(each,)):
                rows.add(info)
                is_empty = False
        rows.flush()
        if is_empty:
            await note_nothing(messages, store, "stream", kinds=() if kind is None else (kind,), is_narrowed=False)
    return Exit.FINE


def _cells(info: StreamInfo) -> tuple[str, ...]:
    return of_tenant(info.stream_id, info.tenant), str(info.version), str(info.truncated)


_STREAMS = View(("STREAM", "VERSION", "TRUNCATED"), _cells, StreamInfo._asdict, 3, frozenset({"VERSION", "TRUNCATED"}))
