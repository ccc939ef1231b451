"""What has moved: which streams got events in a part of the log, without the events."""

from __future__ import annotations

from backends.conformance.events import collect, happened, write
from backends.conformance.fixtures import StoreFixtures, backend_of
from eventstore.backend import Backend
from eventstore.store import EventStore


async def _moved(backend: Backend, *, after: int, limit: int) -> tuple[dict[str, int], int]:
    """Everything up to the end of the log, part by part: each stream's version, and where the log ended."""
    versions: dict[str, int] = {}
    while True:
        part = await backend.moved(after=after, limit=limit)
        versions |= part.versions
        if part.is_end:
            return versions, part.position
        assert part.position > after
        after = part.position


class MovedStreams(StoreFixtures):
    async def test_streams_with_new_events_have_moved_to_the_version_of_the_newest(
        self, store: EventStore, backend: Backend
    ) -> None:
        seen = await store.append("a", happened(1, 2))
        await store.append("still", happened(1))
        seen = await store.append("a", happened(3))
        await store.append("b", happened(1, 2))
        last = await store.append("a", happened(4, 5))
        for limit in (1, 2, 3, 1000):
            assert await _moved(backend, after=seen.position, limit=limit) == ({"a": 5, "b": 2}, last.position)
            everything, _ = await _moved(backend, after=0, limit=limit)
            assert everything == {"a": 5, "still": 1, "b": 2}

    async def test_a_part_tells_the_versions_in_it_and_where_it_ends(self, store: EventStore, backend: Backend) -> None:
        await store.append("a", happened(1, 2, 3))
        await store.append("b", happened(1))
        positions = [event.position for event in await collect(store.read_all())]
        part = await backend.moved(after=0, limit=positions[1])
        assert (dict(part.versions), part.is_end) == ({"a": 2}, False)
        assert positions[1] <= part.position < positions[2]

    async def test_nothing_has_moved_at_the_end_of_the_log(self, store: EventStore, backend: Backend) -> None:
        assert await _moved(backend, after=0, limit=10) == ({}, 0)
        last = await store.append("a", happened(1))
        part = await backend.moved(after=last.position, limit=10)
        assert (dict(part.versions), part.position, part.is_end) == ({}, last.position, True)

    async def test_what_is_no_event_moves_no_stream(self, store: EventStore, backend: Backend) -> None:
        await store.claim("a")
        await backend.append([[write("b")]])
        assert await _moved(backend, after=0, limit=10) == ({}, 0)

    async def test_a_truncated_stream_is_passed_or_told_of_and_what_follows_is_found(
        self, store: EventStore, backend: Backend
    ) -> None:
        await store.append("a", happened(1, 2))
        await store.truncate("a", 2, reason="test")
        last = await store.append("b", happened(1))
        for limit in (1, 10):
            versions, position = await _moved(backend, after=0, limit=limit)
            assert position == last.position
            assert versions.pop("a", 2) == 2
            assert versions == {"b": 1}

    async def test_what_another_store_appends_has_moved(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        seen = await store.append("a", happened(1))
        await other.append("a", happened(2))
        last = await store.append("b", happened(1))
        for each in (backend, backend_of(other)):
            assert await _moved(each, after=seen.position, limit=10) == ({"a": 2, "b": 1}, last.position)
