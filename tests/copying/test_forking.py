"""Forking where events have been removed: it is refused, and they are not taken for lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from backends.conformance.events import happened
from eventstore import EventStore
from eventstore.copies import forking
from eventstore.copies.forking import ForkRefused, fork
from eventstore.events import RecordedEvent


async def test_a_stream_whose_events_were_all_removed_is_not_forked(tmp_path: Path) -> None:
    async with (
        EventStore.open(f"sqlite:///{tmp_path}/own.db") as source,
        EventStore.open(f"sqlite:///{tmp_path}/scratch.db") as target,
    ):
        await source.append("a", happened(1, 2, 3))
        await source.truncate("a", 3, reason="a test")
        with pytest.raises(ForkRefused, match="up to version 3 were removed"):
            await fork(source, target, "a", through=3)


@pytest.mark.parametrize("through", [3, 4])
async def test_a_stream_whose_events_are_removed_while_it_is_forked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: int
) -> None:
    read = EventStore.read

    async def read_once(store: EventStore, stream_id: str, **options: Any) -> AsyncGenerator[RecordedEvent]:
        async for recorded in read(store, stream_id, **options):
            yield recorded
        await store.truncate(stream_id, through, reason="a test")

    async with (
        EventStore.open(f"sqlite:///{tmp_path}/own.db") as source,
        EventStore.open(f"sqlite:///{tmp_path}/scratch.db") as target,
    ):
        await source.append("a", happened(1, 2, 3, 4))
        monkeypatch.setattr(forking, "_PAGE", 2)
        monkeypatch.setattr(EventStore, "read", read_once)
        with pytest.raises(ForkRefused, match=f"up to version {through} were removed"):
            await fork(source, target, "a", through=4)
        # What was there before is a beginning of the stream, and the file can be used.
        assert await target.version("a") == 2
