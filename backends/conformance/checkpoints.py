"""Checkpoints: how far readers of the log have come, each replaced by one who has seen it as it is."""

from __future__ import annotations

import asyncio

from backends.conformance.fixtures import StoreFixtures, backend_of, reopened
from eventstore.backend import Backend, CheckpointKey, StoredCheckpoint
from eventstore.store import EventStore

NEW = StoredCheckpoint("reader", 1, 0, 7, 3, bytes(range(16)), '{"text":"Zoë \\u0000"}'.encode())


class Checkpoints(StoreFixtures):
    async def test_a_checkpoint_is_read_as_it_was_saved(self, backend: Backend) -> None:
        assert await backend.checkpoints() == []
        large = NEW._replace(name="large", position=2**53 - 1, events=2**53 - 1, checksum=b"\xff" * 16, state=b"{}")
        for checkpoint in (NEW, large):
            assert await backend.change_checkpoints([checkpoint])
        assert list(await backend.checkpoints()) == [large._replace(revision=1), NEW._replace(revision=1)]

    async def test_it_is_replaced_by_who_has_seen_its_revision_and_by_nobody_else(self, backend: Backend) -> None:
        assert await backend.change_checkpoints([NEW])
        assert not await backend.change_checkpoints([NEW._replace(position=8)])
        assert not await backend.change_checkpoints([NEW._replace(revision=2, position=8)])
        assert await backend.change_checkpoints([NEW._replace(revision=1, position=9)])
        assert not await backend.change_checkpoints([NEW._replace(revision=1, position=8)])
        assert list(await backend.checkpoints()) == [NEW._replace(revision=2, position=9)]

    async def test_one_that_is_not_there_is_not_replaced(self, backend: Backend) -> None:
        assert not await backend.change_checkpoints([NEW._replace(revision=1)])
        assert list(await backend.checkpoints()) == []

    async def test_versions_of_one_name_stand_beside_each_other_in_order(self, backend: Backend) -> None:
        names = [("b", 1), ("a", 10), ("a", 9), ("ä", 1), ("B", 1), ("\N{GRINNING FACE}", 1), ("\uffee", 1)]
        for name, version in names:
            assert await backend.change_checkpoints([NEW._replace(name=name, version=version)])
        found = [(checkpoint.name, checkpoint.version) for checkpoint in await backend.checkpoints()]
        assert found == sorted(names, key=lambda item: (item[0].encode(), item[1]))

    async def test_it_is_removed_by_who_has_seen_its_revision(self, backend: Backend) -> None:
        await backend.change_checkpoints([NEW])
        await backend.change_checkpoints([NEW._replace(version=2)])
        assert not await backend.change_checkpoints([], [CheckpointKey("reader", 1, 2)])
        assert not await backend.change_checkpoints([], [CheckpointKey("reader", 1, 0)])
        assert not await backend.change_checkpoints([], [CheckpointKey("nobody", 1, 1)])
        assert await backend.change_checkpoints([], [CheckpointKey("reader", 1, 1)])
        assert not await backend.change_checkpoints([], [CheckpointKey("reader", 1, 1)])
        assert list(await backend.checkpoints()) == [NEW._replace(version=2, revision=1)]
        assert await backend.change_checkpoints([NEW]), "it can begin anew"

    async def test_several_are_changed_in_one_step_or_none(self, backend: Backend) -> None:
        one, two, three = (NEW._replace(version=version) for version in (1, 2, 3))
        assert await backend.change_checkpoints([one, two])
        before = [one._replace(revision=1), two._replace(revision=1)]
        seen = [checkpoint.key for checkpoint in before]
        for saving, removing in (
            ([three, one._replace(revision=2)], [seen[1]]),
            ([three, one], [seen[1]]),
            ([three], [seen[0], CheckpointKey("reader", 2, 2)]),
            ([three], [seen[0], CheckpointKey("reader", 2, 0)]),
            ([three], [CheckpointKey("nobody", 1, 1), seen[0]]),
        ):
            assert not await backend.change_checkpoints(saving, removing)
            assert list(await backend.checkpoints()) == before
        assert await backend.change_checkpoints([three, before[1]._replace(position=9)], seen[:1])
        assert list(await backend.checkpoints()) == [
            two._replace(revision=2, position=9),
            three._replace(revision=1),
        ]

    async def test_of_many_who_replace_one_at_once_one_succeeds(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        for revision in (0, 1):
            changes = [NEW._replace(revision=revision, position=number) for number in range(8)]
            saved = await asyncio.gather(
                *(each.change_checkpoints([change]) for change in changes for each in (backend, backend_of(other)))
            )
            assert saved.count(True) == 1
            winner = changes[saved.index(True) // 2]
            assert list(await backend.checkpoints()) == [winner._replace(revision=revision + 1)]

    async def test_it_is_there_after_the_store_was_closed_and_opened(self, store: EventStore, backend: Backend) -> None:
        await backend.change_checkpoints([NEW])
        async with reopened(store) as again:
            assert list(await backend_of(again).checkpoints()) == [NEW._replace(revision=1)]
