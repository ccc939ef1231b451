"""Seals: stored one after the other, each number once and as it was given; and the record of what was truncated."""

from __future__ import annotations

import asyncio

from backends.conformance.events import Happened, collect, happened, write
from backends.conformance.fixtures import StoreFixtures, backend_of, reopened
from eventstore.backend import Backend, StoredSeal
from eventstore.codec import checksum_of
from eventstore.store import EventStore

FIRST = StoredSeal(1, b'{"number":1}', bytes(range(64)), b"\x00\xff leaves \n", b"")


def seal(number: int, leaves: bytes = b"leaves") -> StoredSeal:
    return FIRST._replace(number=number, leaves=leaves)


async def numbers_of(backend: Backend, *, after: int = 0, limit: int = 9, backwards: bool = False) -> list[int]:
    return [each.number for each in await backend.seals(after=after, limit=limit, backwards=backwards)]


class Seals(StoreFixtures):
    async def test_a_seal_is_read_as_it_was_given(self, backend: Backend) -> None:
        assert list(await backend.seals(after=0, limit=9, backwards=False)) == []
        large = FIRST._replace(number=2, leaves=bytes(range(256)) * 2000, removals=b"\x00")
        assert await backend.add_seal(FIRST)
        assert await backend.add_seal(large)
        assert list(await backend.seals(after=0, limit=9, backwards=False)) == [FIRST, large]

    async def test_only_the_next_number_is_stored(self, backend: Backend) -> None:
        assert not await backend.add_seal(seal(2))
        assert await backend.add_seal(FIRST)
        for number in (0, 1, 3):
            assert not await backend.add_seal(seal(number, b"others"))
        assert list(await backend.seals(after=0, limit=9, backwards=False)) == [FIRST]
        assert await backend.add_seal(seal(2))

    async def test_they_are_read_in_pages_from_both_ends(self, backend: Backend) -> None:
        for number in range(1, 13):
            assert await backend.add_seal(seal(number))
        assert await numbers_of(backend, limit=3) == [1, 2, 3]
        assert await numbers_of(backend, after=3, limit=3) == [4, 5, 6]
        assert await numbers_of(backend, after=8, limit=9) == [9, 10, 11, 12]
        assert await numbers_of(backend, after=12) == []
        assert await numbers_of(backend, limit=2, backwards=True) == [12, 11]
        assert await numbers_of(backend, after=10, backwards=True) == [12, 11]

    async def test_of_many_who_add_one_number_one_succeeds(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        for number in (1, 2):
            given = [seal(number, b"%d" % index) for index in range(8)]
            added = await asyncio.gather(
                *(each.add_seal(one) for one in given for each in (backend, backend_of(other)))
            )
            assert added.count(True) == 1
            assert (await backend.seals(after=number - 1, limit=9, backwards=False))[0] == given[added.index(True) // 2]

    async def test_they_are_there_after_the_store_was_closed_and_opened(
        self, store: EventStore, backend: Backend
    ) -> None:
        await backend.add_seal(FIRST)
        async with reopened(store) as again:
            assert list(await backend_of(again).seals(after=0, limit=9, backwards=False)) == [FIRST]
            assert not await backend_of(again).add_seal(FIRST)

    async def test_each_truncation_is_recorded_with_what_it_removed(self, store: EventStore, backend: Backend) -> None:
        assert list(await backend.removals(after=0, limit=9)) == []
        await store.append("a", happened(1, 2, 3))
        await store.append("b-\u00e9 '\"", happened(1, 2))
        [before] = [each.recorded_at async for each in store.read("a", limit=1)]
        await store.truncate("a", 2, reason="the user asked: \u00e9 \"'")
        await store.truncate("a", 1, reason="nothing is left of it")
        await store.truncate("b-\u00e9 '\"", 9, reason="")
        await store.truncate("a", 3, reason="more")
        found = list(await backend.removals(after=0, limit=9))
        assert [removal[1:5] for removal in found] == [
            ("a", 2, 2, "the user asked: \u00e9 \"'"),
            ("b-\u00e9 '\"", 2, 2, ""),
            ("a", 3, 1, "more"),
        ]
        assert [removal.number for removal in found] == sorted({removal.number for removal in found})
        assert all(abs((removal.recorded_at - before).total_seconds()) < 600 for removal in found)
        assert list(await backend.removals(after=0, limit=2)) == found[:2]
        assert list(await backend.removals(after=found[0].number, limit=9)) == found[1:]
        async with reopened(store) as again:
            assert list(await backend_of(again).removals(after=0, limit=9)) == found

    async def test_metadata_is_read_as_it_was_given(self, store: EventStore, backend: Backend) -> None:
        notes = b'{ "user" : "\xc3\xa9",\t"values":{"share":1.50}}'
        payload = b'{"number":1}'
        checksum = checksum_of(Happened.__event_type__, 1, payload, notes)
        made = write("a", payload, b'{"number":2}')
        events = [made.events[0]._replace(metadata=notes, checksum=checksum), made.events[1]]
        await backend.append([[made._replace(events=events)]])
        for records in (store.read("a"), store.read_all()):
            assert [recorded.metadata_bytes for recorded in await collect(records)] == [notes, None]
