"""`eventstore snapshot`: take a snapshot of actors now."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import typer

from actors.actor import PersistentActor, stream_id_of
from actors.recovery import fold
from actors.replicated_actor import ReplicatedActor
from eventstore.cli.arguments import Address, Full, Json, Target, Tenant, Url
from eventstore.cli.escaping import escaped, one_line
from eventstore.cli.exits import STORE_TROUBLE, CommandFailed, Exit, WrongUsage
from eventstore.cli.output import Listing, View, listing
from eventstore.cli.targets import actor_class, actor_keys
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore


def snapshot(
    url: Url,
    target: Target,
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY", help="The actors' keys.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every actor of the class.")] = False,
    full: Full = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Take a snapshot of actors, so that their next recovery starts there. Older ones go as the class's policy says.

    An actor that cannot be rebuilt is reported, and the others go on; the exit code is 1 then.

    \b
    Examples:
      eventstore snapshot sqlite:///bank.db bank:Account alice bob
      eventstore snapshot sqlite:///bank.db bank:Account --all --full
    """
    if bool(keys) == all:
        raise WrongUsage("name the actors by their keys, or all of the class with --all")
    rows = listing(_OUTCOMES, json=json)
    cls = actor_class(target)
    if issubclass(cls, ReplicatedActor):
        raise WrongUsage(f"{target} is replicated: its replica takes snapshots, because it knows what the others have")
    return asyncio.run(_snapshot(Address(url, tenant), cls, keys or (), rows, full=full))


class Outcome(NamedTuple):
    """What became of one actor. `version` is that of its newest snapshot now."""

    stream_id: str
    version: int | None
    outcome: str
    problem: str | None = None


async def _snapshot(
    address: Address, cls: type[PersistentActor[Any]], keys: Sequence[str], rows: Listing[Outcome], *, full: bool
) -> Exit:
    exit_code = Exit.FINE
    async with address.store() as store:
        async for key in actor_keys(store, cls, keys):
            outcome = await _take(store, cls, key, full=full)
            if outcome.problem is not None:
                exit_code = Exit.WRONG
            rows.add(outcome)
    rows.flush()
    return exit_code


async def _take(store: EventStore, cls: type[PersistentActor[Any]], key: str, *, full: bool) -> Outcome:
    stream_id = stream_id_of(cls, key)
    try:
        state, version, snapshot_version = await fold(store, cls, key, use_snapshots=not full)
        if version == 0:
            raise CommandFailed("it has no events")
        if version == snapshot_version:
            return Outcome(stream_id, version, "is there already")
        taken = new_snapshot(stream_id, version, cls.state_type.fingerprint, cls.state_type.dump(state))
        await store.save_snapshot(taken, keep=cls.snapshot_policy.keep)
    except STORE_TROUBLE:
        raise
    except Exception as error:
        return Outcome(stream_id, None, "failed", str(error) or type(error).__name__)
    return Outcome(stream_id, version, "saved")


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
