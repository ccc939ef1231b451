"""`eventstore rebuild`: make anew what is made of the events: snapshots of actors, read models of projections."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Annotated, Any, NamedTuple

import typer

from actors.actor import PersistentActor, stream_id_of
from actors.replicas.replicated_actor import ReplicatedActor
from actors.time_travel.folding import fold
from eventstore.cli.arguments import Address, Full, Json, Target, Tenant, Url
from eventstore.cli.escaping import escaped, one_line
from eventstore.cli.exits import STORE_TROUBLE, CommandFailed, Exit, WrongUsage
from eventstore.cli.groups import command_group, other_name
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import Listing, View, listing
from eventstore.cli.projection_progress import projection_progress, shown_on
from eventstore.cli.projection_status import say_where, write_status
from eventstore.cli.projections import projections
from eventstore.cli.targets import actor_class, actor_keys, projection_class
from eventstore.events import Snapshot
from eventstore.projections import Projection
from eventstore.read_models.rebuild import rebuild as rebuild_projection
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore

rebuild = command_group(
    "Make anew what is made of the events.", "rebuild snapshots sqlite:///bank.db bank:Account --all"
)


@rebuild.command(short_help="Take snapshots of actors.")
def snapshots(
    context: typer.Context,
    url: Url,
    target: Target,
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY", help="The actors' keys.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every actor of the class.")] = False,
    full: Full = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Take a snapshot of actors, so that their next recovery starts there. Older ones go as the class's policy says.

    Without --full it builds on the newest snapshot there is, and an actor whose snapshot is of the newest version is
    passed over: one that was ended goes on where it was.

    An actor that cannot be rebuilt is reported, and the others go on; the exit code is 1 then.

    \b
    Examples:
      eventstore rebuild snapshots sqlite:///bank.db bank:Account alice bob
      eventstore rebuild snapshots sqlite:///bank.db bank:Account --all --full
    """
    if bool(keys) == all:
        raise WrongUsage("name the actors by their keys, or all of the class with --all")
    rows = listing(_OUTCOMES, json=json)
    cls = actor_class(target)
    if issubclass(cls, ReplicatedActor):
        raise WrongUsage(
            f"{target} is replicated: its replica takes snapshots, because it knows what the others have; where "
            "handlers or resolve compute something else than before, raise its SnapshotPolicy.revision to have those "
            "that are there left aside"
        )
    return asyncio.run(_take_all(context.obj, Address(url, tenant), cls, keys or (), rows, full=full))


@rebuild.command("projections", short_help="Make read models anew, beside the live ones.")
def projections_(
    context: typer.Context,
    url: Url,
    targets: Annotated[
        list[str],
        typer.Argument(metavar="MODULE:CLASS", help="The projections' classes.", show_default=False),
    ],
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Build a new version of each read model beside the live one, from the first event, one after another. When it has
    all that the live one has it takes its place, on SQL stores in one transaction, and the old one is dropped.

    An event that cannot be applied stops it, and the live read model stays. One that was killed is taken up again, or
    begun anew if its class has changed.

    \b
    Example:
      eventstore rebuild projections sqlite:///bank.db bank:Balances bank:Totals
    """
    classes = [projection_class(target) for target in targets]
    return asyncio.run(_rebuild_projections(context.obj, Address(url, tenant), classes, json=json))


# Whoever has projections looks for it beside `projections run`.
other_name(
    projections,
    "projections rebuild",
    projections_,
    known_as="rebuild projections",
    short_help="Make read models anew, beside the live ones.",
)


async def _rebuild_projections(
    messages: Messages, address: Address, classes: Sequence[type[Projection]], *, json: bool
) -> Exit:
    async with address.store() as store:
        for projection in classes:
            await _rebuild_projection(store, projection)
            if json:
                await write_status(store, projection.name)
            else:
                await say_where(store, projection.name, messages)
    return Exit.FINE


async def _rebuild_projection(store: EventStore, projection: type[Projection]) -> None:
    with ExitStack() as stack:
        progress = await projection_progress(store, None, stack)
        await rebuild_projection(store, projection, on_progress=shown_on(progress))


class Outcome(NamedTuple):
    """What became of one actor. `version` is that of its newest snapshot now."""

    stream_id: str
    version: int | None
    outcome: str
    problem: str | None = None


async def _take_all(
    messages: Messages,
    address: Address,
    cls: type[PersistentActor[Any]],
    keys: Sequence[str],
    rows: Listing[Outcome],
    *,
    full: bool,
) -> Exit:
    exit_code = Exit.FINE
    is_empty = True
    async with address.store() as store:
        async for key in actor_keys(store, cls, keys):
            outcome = await _take(store, cls, key, full=full)
            if outcome.problem is not None:
                exit_code = Exit.WRONG
            rows.add(outcome)
            is_empty = False
        rows.flush()
        if is_empty:
            await note_nothing(messages, store, "actor", kinds=(cls.kind,), is_narrowed=False)
    return exit_code


async def _take(store: EventStore, cls: type[PersistentActor[Any]], key: str, *, full: bool) -> Outcome:
    stream_id = stream_id_of(cls, key)
    try:
        state, version, snapshot_version = await fold(store, cls, key, use_snapshots=not full)
        if version == 0:
            raise CommandFailed("it has no events")
        if version == snapshot_version:
            return Outcome(stream_id, version, "is there already")
        taken = new_snapshot(stream_id, version, cls.state_type.fingerprint, cls.state_type.kept(state))
        if not await store.save_snapshot(taken, keep=cls.snapshot_policy.keep):
            await _check_place(store, taken)
    except STORE_TROUBLE:
        raise
    except Exception as error:
        return Outcome(stream_id, None, "failed", str(error) or type(error).__name__)
    return Outcome(stream_id, version, "saved")


async def _check_place(store: EventStore, taken: Snapshot) -> None:
    """Whether it was not stored because newer ones are there by now. Else it is reported."""
    for there in await store.snapshots(taken.stream_id, through=taken.version, limit=1):
        if isinstance(there, Snapshot) and there.version == taken.version:
            raise CommandFailed(
                f"at version {taken.version} stands a snapshot of another schema, which other code needs: it can be "
                "taken when the actor has another event"
            )


def _cells(outcome: Outcome) -> tuple[str, ...]:
    text = outcome.outcome if outcome.problem is None else f"{outcome.outcome}: {one_line(outcome.problem)}"
    return escaped(outcome.stream_id), "" if outcome.version is None else str(outcome.version), text


def _record(outcome: Outcome) -> Mapping[str, Any]:
    return {
        "stream_id": outcome.stream_id,
        "version": outcome.version,
        "saved": outcome.outcome == "saved",
        "problem": outcome.problem,
    }


_OUTCOMES = View(("STREAM", "VERSION", "OUTCOME"), _cells, _record, 2, frozenset({"VERSION"}))
