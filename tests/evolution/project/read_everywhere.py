"""Read the permits' history with the code of today, in every way there is, and print what each found as JSON.

python read_everywhere.py URL [FROM]    with FROM, the events of that store are put into URL first, as they are stored
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

from permits_today import Do, GetSteps, HandledBy, PermitCase, StepDone, Steps

from actors import ActorSystem, fold
from actors.testing import Scenario
from eventstore import EventFilter, EventStore, stored_names
from eventstore.backend import Expected, StreamWrite
from eventstore.codec import encode_metadata, encoded_event
from eventstore.events import RecordedEvent

Found = dict[str, Steps]


async def put(source: str, target: EventStore) -> None:
    async with EventStore.open(source) as store:
        async for r in store.read_all():
            event = encoded_event(
                r.event_id.bytes, r.type, r.schema_version, r.payload, encode_metadata(r.metadata), r.batch_id.bytes
            )
            await target._backend.append([[StreamWrite(r.stream_id, Expected.ANY, [event])]])


async def decoded(store: EventStore, records: AsyncIterator[RecordedEvent], *, count: int | None = None) -> Found:
    found: Found = {}
    async for recorded in records:
        steps = found.setdefault(recorded.stream_id.removeprefix("permit-"), Steps())
        for event in store.decode_parts(recorded):
            match event:
                case StepDone():
                    steps.done.append((event.line, event.step, event.at))
                case HandledBy():
                    steps.handled.append((steps.done[-1][0] if steps.done else 0, event.resource))
                case _:
                    raise AssertionError(event)
        if count is not None and (count := count - 1) == 0:
            break
    return found


async def streams(store: EventStore) -> AsyncIterator[RecordedEvent]:
    async for info in store.streams(kind="permit"):
        async for recorded in store.read(info.stream_id):
            yield recorded


async def read_everywhere(url: str, source: str | None) -> dict[str, Found]:
    async with EventStore.open(url) as store:
        if source is not None:
            await put(source, store)
        events = (await store.statistics()).events
        found = {
            "read": await decoded(store, streams(store)),
            "read_all": await decoded(store, store.read_all()),
            "read by type": await decoded(
                store, store.read_all(where=EventFilter(types=stored_names(StepDone, HandledBy)))
            ),
            "subscribe": await decoded(store, store.subscribe(), count=events),
        }
        keys = list(found["read"])
        found["fold"] = {key: (await fold(store, PermitCase, key)).state for key in keys}
        async with ActorSystem(store) as system:
            found["ask"] = {key: await system.ref(PermitCase, key).ask(GetSteps()) for key in keys}
            # New events of the new kinds behind the old ones: then there are snapshots too.
            for _ in range(2):
                for key in keys:
                    await system.ref(PermitCase, key).ask(Do(line=0, step="new", at=0, resource="new"))
        for how, use_snapshots in (("fold over snapshots", True), ("fold of all again", False)):
            found[how] = {}
            for key in keys:
                folded = await fold(store, PermitCase, key, use_snapshots=use_snapshots)
                assert (folded.snapshot_version > 0) is use_snapshots, folded
                assert folded.version == await store.version(f"permit-{key}"), "a stored event is one version"
                state = folded.state
                assert state.done[-2:] == [(0, "new", 0)] * 2
                found[how][key] = Steps(done=state.done[:-2], handled=state.handled[:-2])
        scenario = Scenario(PermitCase).given(StepDone(line=1, step="new", at=0))
        assert (await scenario.when(Do(line=2, step="more", at=0, resource="new"))).reply == 3
    return found


def plain(found: dict[str, Found]) -> Any:
    return {how: {key: steps.model_dump(mode="json") for key, steps in of.items()} for how, of in found.items()}


if __name__ == "__main__":
    json.dump(plain(asyncio.run(read_everywhere(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))), sys.stdout)
