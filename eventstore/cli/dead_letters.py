"""`eventstore dead-letters`: events that projections could not apply."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer

from eventstore.cli.arguments import Address, Json, Tenant, Url, whole
from eventstore.cli.escaping import escaped, of_tenant, one_line, printable
from eventstore.cli.exits import CommandFailed, Exit
from eventstore.cli.groups import command_group
from eventstore.cli.messages import Messages
from eventstore.cli.output import View, counted, json_cell, listing, timestamp, write_fields, write_json, write_line
from eventstore.cli.projection_status import live_checkpoints_named
from eventstore.cli.projections import Name, Target
from eventstore.cli.targets import projection_class
from eventstore.contract.checkpoint import DeadLetter, Status
from eventstore.projections import Projection
from eventstore.read_models.projection_control import letter_event, purge_letters, replay_letter
from eventstore.store import EventStore

dead_letters = command_group("Events that projections could not apply.", "dead-letters list sqlite:///bank.db")

Positions = Annotated[
    list[int] | None,
    typer.Argument(metavar="POSITION", parser=whole(1), help="The events' positions; all if none is given."),
]


@dead_letters.command("list", short_help="List events that could not be applied.")
def list_(
    context: typer.Context,
    url: Url,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One projection; all if none is given.")] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """List events that projections could not apply, and what was raised. They are in the journal as before.

    \b
    Example:
      eventstore dead-letters list sqlite:///bank.db balances
    """
    return asyncio.run(_list(context.obj, Address(url, tenant), name, json=json))


async def _list(messages: Messages, address: Address, name: str | None, *, json: bool) -> Exit:
    rows = listing(_LETTERS, json=json)
    is_empty = True
    async with address.store() as store:
        if name is not None:
            await _letters(store, name)
        for checkpoint in await store.checkpoints():
            if checkpoint.status is Status.LIVE and name in (None, checkpoint.name):
                for letter in checkpoint.letters:
                    rows.add(_Row(checkpoint.name, letter))
                    is_empty = False
    rows.flush()
    if is_empty:
        messages.note("there are no dead letters")
    return Exit.FINE


@dead_letters.command(short_help="Show one, with the event.")
def show(
    url: Url,
    name: Name,
    position: Annotated[int, typer.Argument(metavar="POSITION", parser=whole(1), help="Where it stands in the log.")],
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Show an event that could not be applied, as it is stored, and what was raised.

    \b
    Example:
      eventstore dead-letters show sqlite:///bank.db balances 1207
    """
    return asyncio.run(_show(Address(url, tenant), name, position, json=json))


async def _show(address: Address, name: str, position: int, *, json: bool) -> Exit:
    async with address.store() as store:
        (letter,) = _chosen(await _letters(store, name), [position], name)
        event = await letter_event(store, letter)
    if json:
        write_json(_record(_Row(name, letter)) | {"payload": None if event is None else event.json()})
        return Exit.FINE
    fields = {
        "projection": escaped(name),
        "event": f"{of_tenant(letter.stream_id, letter.tenant)} version {letter.version}, position {letter.position}",
        "type": printable(letter.type),
        "parked": f"{letter.parked_at}, after {counted(letter.attempts, 'attempt')}",
        "error": one_line(letter.error),
    }
    if event is not None:
        fields |= {"recorded": timestamp(event.recorded_at), "payload": json_cell(event.payload)}
    else:
        fields["payload"] = "was removed from the journal"
    write_fields(fields)
    return Exit.FINE


@dead_letters.command(short_help="Try to apply them again.")
def replay(url: Url, target: Target, positions: Positions = None, tenant: Tenant = None) -> Exit:
    """Apply events that could not be applied again, in the order of the log, after their cause was mended. Those that
    succeed are no dead letters any more. The exit code is 1 if one fails.

    They come after events that followed them: that the read model can bear it is for its handlers to see to. Else
    rebuild it.

    \b
    Example:
      eventstore dead-letters replay sqlite:///bank.db bank:Balances
    """
    return asyncio.run(_replay(Address(url, tenant), projection_class(target), positions or []))


async def _replay(address: Address, projection: type[Projection], positions: list[int]) -> Exit:
    applied = failed = 0
    async with address.store() as store:
        for letter in _chosen(await _letters(store, projection.name), positions, projection.name):
            error = await replay_letter(store, projection, letter)
            applied, failed = applied + (error is None), failed + (error is not None)
            if error is not None:
                write_line((f"position {letter.position}: ", "bold"), (one_line(error), ""))
    write_line((f"{applied:,} applied, {failed:,} failed again", ""))
    return Exit.WRONG if failed else Exit.FINE


@dead_letters.command(short_help="Forget them.")
def purge(url: Url, name: Name, positions: Positions = None, tenant: Tenant = None) -> Exit:
    """Forget events that could not be applied: the read model does without them. They stay in the journal.

    \b
    Example:
      eventstore dead-letters purge sqlite:///bank.db balances 1207
    """
    return asyncio.run(_purge(Address(url, tenant), name, positions or []))


async def _purge(address: Address, name: str, positions: list[int]) -> Exit:
    async with address.store() as store:
        chosen = _chosen(await _letters(store, name), positions, name)
        count = await purge_letters(store, name, {letter.position for letter in chosen})
    write_line((f"{count:,} forgotten", ""))
    return Exit.FINE


async def _letters(store: EventStore, name: str) -> list[DeadLetter]:
    parts = await live_checkpoints_named(store, name)
    return sorted((letter for part in parts for letter in part.letters), key=lambda letter: letter.position)


def _chosen(letters: Sequence[DeadLetter], positions: list[int], name: str) -> list[DeadLetter]:
    known = {letter.position: letter for letter in letters}
    for position in positions:
        if position not in known:
            raise CommandFailed(f"{name!r} has no dead letter at position {position}")
    return sorted(known[position] for position in positions) if positions else sorted(letters)


class _Row(NamedTuple):
    projection: str
    letter: DeadLetter


def _cells(row: _Row) -> tuple[str, ...]:
    letter = row.letter
    return (
        escaped(row.projection),
        str(letter.position),
        of_tenant(letter.stream_id, letter.tenant),
        str(letter.version),
        printable(letter.type),
        letter.parked_at,
        one_line(letter.error),
    )


def _record(row: _Row) -> dict[str, Any]:
    return {"projection": row.projection, **row.letter._asdict()}


_LETTERS = View(
    ("PROJECTION", "POSITION", "STREAM", "VERSION", "TYPE", "PARKED", "ERROR"),
    _cells,
    _record,
    6,
    frozenset({"POSITION", "VERSION"}),
)
