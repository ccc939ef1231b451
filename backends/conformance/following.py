"""Following: an append that is given while another one is under way comes after it, and is decided on what it left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backends.conformance.commands import found_command
from backends.conformance.events import happened, outcome, write
from backends.conformance.fixtures import StoreFixtures
from eventstore.backend import Appended, AppendOutcome, Backend, Batch
from eventstore.errors import ConcurrencyError
from eventstore.store import EventStore


class Following(StoreFixtures):
    async def test_an_append_behind_another_goes_on_where_that_one_ends(self, backend: Backend) -> None:
        await _known(backend, "a", "b", "c", "d")
        second = [[write("b", b"2", b"3", expected=1)], [write("c", b"2"), write("d", b"2", expected=1)]]
        outcomes = await _one_behind_another(backend, [[write("a", b"2")], [write("a", b"3", b"4")]], second)
        assert outcomes == ([Appended(5, (2,)), Appended(7, (4,))], [Appended(9, (3,)), Appended(11, (2, 2))])
        new = [[write("e", b"1", b"2", expected=0)], [write("d", b"3", expected=2)]]
        outcomes = await _one_behind_another(backend, [[write("a", b"5")]], new)
        assert outcomes == ([Appended(12, (5,))], [Appended(14, (2,)), Appended(15, (3,))])

    async def test_an_append_behind_another_may_be_one_that_is_stored_already(self, backend: Backend) -> None:
        await _known(backend, "a", "b", "c")
        second = [[write("b", b"2", b"3", expected=1)], [write("c", b"2")]]
        outcomes = await _one_behind_another(backend, [[write("a", b"2")]], second)
        again = [each._replace(is_duplicate=True) for each in outcomes[1] if isinstance(each, Appended)]
        assert await _one_behind_another(backend, [[write("a", b"3")]], second) == ([Appended(8, (3,))], again)

    async def test_an_append_behind_another_sees_what_other_stores_have_stored(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        await _known(backend, "a", "b", "c", "d")
        await other.append("b", happened(0))
        await other.append("d", happened(0))
        second = [[write("b", b"2", expected=1)], [write("c", b"2", expected=1)], [write("d", b"2")]]
        first, (lost, *others) = await _one_behind_another(backend, [[write("a", b"2")]], second)
        assert isinstance(lost, ConcurrencyError)
        assert (first, others) == ([Appended(7, (2,))], [Appended(8, (2,)), Appended(9, (3,))])
        assert await store.version("b") == 2

    async def test_an_append_behind_another_may_rest_on_it(self, store: EventStore, backend: Backend) -> None:
        await _known(backend, "a", "b", "c")
        first = [[write("a", b"2", commands=[outcome("x")])]]
        second = [[write("a", b"3", expected=2)], [write("b", b"2"), write("c", b"2")]]
        outcomes = await _one_behind_another(backend, first, second)
        assert outcomes == ([Appended(4, (2,))], [Appended(5, (3,)), Appended(7, (2, 2))])
        first = [[write("a", b"4", expected=2)], [write("b", b"3")]]
        second = [[write("a", expected=3, commands=[outcome("y")])], [write("d", b"1", expected=0)]]
        (refused, _), stored = await _one_behind_another(backend, first, second)
        assert isinstance(refused, ConcurrencyError)
        assert stored == [Appended(0, (3,)), Appended(9, (1,))]
        assert await found_command(backend, "a", "y")
        assert await store.version("a") == 3


async def _known(backend: Backend, *stream_ids: str) -> None:
    await backend.append([[write(stream_id, b"1")] for stream_id in stream_ids])


async def _one_behind_another(
    backend: Backend, first: Sequence[Batch], second: Sequence[Batch]
) -> tuple[list[AppendOutcome], list[AppendOutcome]]:
    """What comes of two appends, the second of which is given when the backend has begun with the first."""
    appending = asyncio.ensure_future(backend.append(first))
    for _ in range(3):
        await asyncio.sleep(0)
    behind = asyncio.ensure_future(backend.append(second))
    return list(await appending), list(await behind)
