"""Desks: journals with one history, on every database, and what is in a journal as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors import ActorSystem, with_metadata
from actors.time_travel.folding import fold
from eventstore import EventStore, Metadata
from eventstore.backend import EncodedEvent, StreamWrite
from eventstore.codec import encoded_event, new_event_id
from eventstore.errors import SnapshotUnusable
from eventstore.snapshots import new_snapshot

DESK = "cli_desk:Desk"


async def build(url: str) -> None:
    """One desk: 6 events, of which the first was stored by older code; a snapshot at 3. The fifth closes a ticket that
    is closed already."""
    from cli_desk import Close, Desk, Open  # type: ignore[import-not-found]

    async with EventStore.open(url) as store:
        await store.append_writes([StreamWrite("Desk-a", 0, [_older("t0")])])
        async with ActorSystem(store) as system:
            desk = system.ref(Desk, "a")
            await desk.ask(Open(ticket="t/1", owner="ann"), command_id="open-1")
            with with_metadata(Metadata(user="boss")):
                await desk.ask(Open(ticket="t~2", owner="bob"))
                await desk.ask(Close(ticket="t/1"), command_id="close-1")
            await desk.ask(Close(ticket="t/1"), command_id="close-2")
            await desk.ask(Open(ticket="t4", owner="ann"))
        await save(store, "a", 3)


def _older(ticket: str) -> EncodedEvent:
    event_id = new_event_id()
    return encoded_event(event_id, "cli-desk.opened", 1, b'{"ticket":"%b"}' % ticket.encode(), None, event_id)


async def save(store: EventStore, key: str, version: int) -> None:
    from cli_desk import Desk

    data = Desk.state_type.dump((await fold(store, Desk, key, through=version)).state)
    snapshot = new_snapshot(f"Desk-{key}", version, Desk.state_type.fingerprint, data)
    await store.save_snapshot(snapshot, keep=10)


async def contents(url: str) -> dict[str, Any]:
    """Everything that a journal holds, for comparing it before and after."""
    async with EventStore.open(url, create=False) as store:
        streams = [info async for info in store.streams()]
        snapshots = {
            info.stream_id: [
                str(found) if isinstance(found, SnapshotUnusable) else tuple(found)
                for found in await store.snapshots(info.stream_id, limit=1000)
            ]
            for info in streams
        }
        return {
            "events": [tuple(recorded) async for recorded in store.read_all()],
            "streams": streams,
            "snapshots": snapshots,
            "checkpoints": await store.checkpoints(),
            "owners": await store.owners(),
        }


def on_every_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal on the database that the parameter names."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'desk.db'}"
    return str(request.getfixturevalue(f"{request.param}_url"))


DATABASES = ("sqlite", "postgres", "redis")
