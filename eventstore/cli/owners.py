"""`eventstore owners`: which processes own actors, by their leases, and which streams they hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated, Any, NamedTuple

import typer

from eventstore.backend import Holding, OwnerInfo
from eventstore.cli.arguments import Address, Json, Tenant, Url
from eventstore.cli.escaping import escaped
from eventstore.cli.exits import Exit
from eventstore.cli.messages import Messages
from eventstore.cli.output import View, listing
from eventstore.cli.processes import is_running, lease_words
from eventstore.events import stream_kind
from eventstore.store import EventStore

# Holdings that are shown with one look at the leases.
PAGE = 500

_NOBODY = "(gone)"


def owners(
    context: typer.Context,
    url: Url,
    streams: Annotated[bool, typer.Option("--streams", help="Show each stream that is held, instead.")] = False,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Count or show only streams with this before the first dash.")
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """List the processes that own actors exclusively, or with --streams what they own.

    Columns: owner, its lease, how many streams it holds, and its id; or stream id, writer epoch, owner, and whether
    the stream is held or free to take. An owner that is (gone) has no lease any more: what it held is free to take.

    \b
    Example:
      eventstore owners sqlite:///bank.db --streams --kind Account
    """
    return asyncio.run((_streams if streams else _owners)(context.obj, Address(url, tenant), kind, json=json))


class _Owner(NamedTuple):
    """A process, and how many streams it holds. Without `info`, all those whose leases are no longer known."""

    info: OwnerInfo | None
    streams: int


class _Held(NamedTuple):
    holding: Holding
    info: OwnerInfo | None

    @property
    def is_free(self) -> bool:
        return self.info is None or not is_running(self.info)


async def _owners(messages: Messages, address: Address, kind: str | None, *, json: bool) -> Exit:
    rows = listing(_OWNERS, json=json)
    async with address.store() as store:
        counts: Counter[bytes] = Counter()
        async for holding in _holdings(store, kind):
            counts[holding.owner] += 1
        # After the holdings: who began in between would seem to be gone, and what it holds free to take.
        infos = await store.owners()
    for info in infos:
        rows.add(_Owner(info, counts.pop(info.id, 0)))
    # Together: a backend may leave to each process that ever ended what nobody has claimed since.
    if counts:
        rows.add(_Owner(None, counts.total()))
    rows.flush()
    if not infos and not counts:
        messages.note("no process has a lease; only those that own actors exclusively take one")
    return Exit.FINE


async def _streams(messages: Messages, address: Address, kind: str | None, *, json: bool) -> Exit:
    rows = listing(_HELD, json=json)
    is_empty = True
    async with address.store() as store:
        async for page in _pages(_holdings(store, kind)):
            infos = {info.id: info for info in await store.owners()}
            for holding in page:
                rows.add(_Held(holding, infos.get(holding.owner)))
            is_empty = False
    rows.flush()
    if is_empty:
        what = "stream" if kind is None else f"stream of kind {kind!r}"
        messages.note(f"no {what} is held; one is while its actor is in memory and owned exclusively")
    return Exit.FINE


async def _holdings(store: EventStore, kind: str | None) -> AsyncIterator[Holding]:
    async for holding in store.holdings():
        if kind is None or stream_kind(holding.stream_id) == kind:
            yield holding


async def _pages(holdings: AsyncIterator[Holding]) -> AsyncIterator[list[Holding]]:
    page: list[Holding] = []
    async for holding in holdings:
        page.append(holding)
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


def _owner_cells(owner: _Owner) -> tuple[str, ...]:
    info, count = owner
    if info is None:
        return _NOBODY, "none", str(count), ""
    return escaped(info.name), lease_words(info), str(count), info.id.hex()


def _owner_record(owner: _Owner) -> dict[str, Any]:
    info = owner.info
    return {
        "id": None if info is None else info.id.hex(),
        "name": None if info is None else info.name,
        "is_running": info is not None and is_running(info),
        "remaining": None if info is None else info.remaining,
        "renewals": None if info is None else info.renewals,
        "streams": owner.streams,
    }


def _held_cells(held: _Held) -> tuple[str, ...]:
    (stream_id, epoch, _), info = held
    name = _NOBODY if info is None else escaped(info.name)
    state = "held" if not held.is_free else "free to take"
    lease = "its owner has no lease any more" if info is None else f"the lease {lease_words(info)}"
    return escaped(stream_id), str(epoch), name, f"{state}: {lease}"


def _held_record(held: _Held) -> dict[str, Any]:
    (stream_id, epoch, owner), info = held
    return {
        "stream_id": stream_id,
        "epoch": epoch,
        "owner_id": owner.hex(),
        "owner": None if info is None else info.name,
        "is_free": held.is_free,
        "remaining": None if info is None else info.remaining,
    }


_OWNERS = View(("OWNER", "LEASE", "STREAMS", "ID"), _owner_cells, _owner_record, 3, frozenset({"STREAMS"}))
_HELD = View(("STREAM", "EPOCH", "OWNER", "STATE"), _held_cells, _held_record, 3, frozenset({"EPOCH"}))
