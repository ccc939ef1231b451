"""`eventstore replication status`: which replicas take part, and how far each has read the other's log."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, NamedTuple

import typer

from actors.replicas.members import CURSOR, Cursor, CursorBegun, Members
from actors.replicas.peer import MEMBERS, ReplicaNamed
from eventstore.backend import EventFilter
from eventstore.cli.arguments import Address, Json, Tenant, Url
from eventstore.cli.escaping import escaped, one_line
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.groups import command_group
from eventstore.cli.output import View, listing
from eventstore.errors import EventStoreError
from eventstore.store import EventStore

replication = command_group(
    "Look at how replicas are getting on with each other.", "replication status sqlite:///laptop.db"
)


class _Seen(NamedTuple):
    """How far one replica has read the events of one kind in another's log. `behind` are positions, None: not known."""

    reader: str
    source: str
    kind: str
    position: int
    behind: int | None
    note: str


@replication.command(short_help="Show which replicas take part, and how far each has read.")
def status(
    url: Url,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL",
            help="Another replica's store: then it is shown how far behind each is. May be repeated.",
        ),
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show which replicas take part, as one of them knows it, and how far each has read the other's log.

    Columns: who reads, whose log, the kind of events, the position that was read up to, how many positions are left to
    read (only where the other's store was given with --peer), and whether the other has left, cannot be reached, or has
    actors whose events could not be merged: these are tried again by themselves.

    \b
    Example:
      eventstore replication status sqlite:///laptop.db --peer server=postgresql://server/shop
    """
    urls = dict(_named(given) for given in peer or ())
    return asyncio.run(_status(Address(url, tenant), urls, json=json))


def _named(given: str) -> tuple[str, str]:
    name, sign, url = given.partition("=")
    if not sign or not name or not url:
        raise WrongUsage(f"--peer {given!r}: write NAME=URL, such as server=postgresql://server/shop")
    return name, url


async def _status(address: Address, urls: dict[str, str], *, json: bool) -> Exit:
    rows = listing(_SEEN, json=json)
    async with address.store() as store:
        name = await replica_of(store)
        members = Members(store, name, ())
        await members.read()
        ends = {name: await store.end()}
        cursors = await _cursors(store, members)
        notes = dict.fromkeys(members.left, "has left for good")
        for other, other_url in urls.items():
            try:
                async with Address(other_url, address.tenant).store() as other_store:
                    found = await replica_of(other_store)
                    if found != other:
                        # How far behind others are would be told by the wrong log.
                        raise WrongUsage(
                            f"--peer {other}=…: that is the store of the replica {found!r}, not of {other!r}"
                        )
                    ends[other] = await other_store.end()
                    theirs = Members(other_store, found, ())
                    await theirs.read()
                    cursors += [each for each in await _cursors(other_store, theirs) if each[1].replica == name]
            except EventStoreError as error:
                notes[other] = f"cannot be read: {error}"
        for reader, cursor in cursors:
            end = ends.get(cursor.replica)
            behind = None if end is None else max(0, end - cursor.position)
            note = notes.get(cursor.replica, "") or notes.get(reader, "") or _held_back(cursor)
            rows.add(_Seen(reader, cursor.replica, cursor.kind, cursor.position, behind, note))
        known = {cursor.replica for _, cursor in cursors}
        for other in sorted({*members.others, *members.left, *urls} - known):
            rows.add(_Seen(name, other, "", 0, None, notes.get(other, "nothing was read yet")))
    rows.flush()
    return Exit.FINE


async def replica_of(store: EventStore) -> str:
    """The name of the replica whose journal it is."""
    async for recorded in store.read(MEMBERS, limit=1):
        named = store.decode(recorded)
        if isinstance(named, ReplicaNamed):
            return named.replica
    raise CommandFailed(f"{store.url} is no replica's journal")


async def _cursors(store: EventStore, members: Members) -> list[tuple[str, Cursor]]:
    """How far the store's replica has read others, each with its name."""
    found: list[Cursor] = []
    async for recorded in store.read_all(where=EventFilter(kinds=(CURSOR,), tenants=(store.tenant,))):
        begun = store.decode(recorded)
        if isinstance(begun, CursorBegun):
            cursor = await members.kept_cursor(begun.replica, begun.kind)
            found.append(cursor or Cursor(begun.replica, begun.kind))
    return [(members.replica, cursor) for cursor in sorted(found, key=lambda each: (each.replica, each.kind))]


def _held_back(cursor: Cursor) -> str:
    count = len(cursor.held_back)
    if not count:
        return ""
    first = min(cursor.held_back)
    return f"{first}{f' and {count - 1} more are' if count > 1 else ' is'} held back: the reader's log says why"


def _cells(seen: _Seen) -> tuple[str, ...]:
    return (
        escaped(seen.reader),
        escaped(seen.source),
        escaped(seen.kind),
        str(seen.position),
        "" if seen.behind is None else str(seen.behind),
        one_line(seen.note),
    )


def _record(seen: _Seen) -> dict[str, Any]:
    return seen._asdict()


_NUMBERS = frozenset({"READ", "BEHIND"})
_SEEN = View(("READER", "LOG OF", "KIND", "READ", "BEHIND", "NOTE"), _cells, _record, 5, _NUMBERS)
