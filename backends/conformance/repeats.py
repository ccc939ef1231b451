"""Repeats: the same command, or the identical append, sent again or from two stores at once, is stored once."""

from __future__ import annotations

import asyncio

import pytest

from backends.conformance.commands import append_alone, found_command, is_refused, remembered, stored
from backends.conformance.events import collect, happened, outcome, write
from backends.conformance.fixtures import StoreFixtures, backend_of, reopened
from eventstore.backend import Appended, Backend
from eventstore.store import EventStore


class Repeats(StoreFixtures):
    # The identical append again

    @pytest.mark.parametrize("payloads", [(), (b"1", b"2")], ids=["without events", "with events"])
    async def test_the_identical_append_is_answered_with_its_original_versions(
        self, store: EventStore, backend: Backend, payloads: tuple[bytes, ...]
    ) -> None:
        await store.append("a", happened(0))
        batch = [write("a", *payloads, expected=1, commands=[outcome("c"), outcome("d")])]
        first = await append_alone(backend, *batch)
        assert isinstance(first, Appended)
        assert await append_alone(backend, *batch) == first._replace(is_duplicate=True)
        await store.append("a", happened(3, 4))
        await stored(backend, outcome("e"))
        assert await append_alone(backend, *batch) == first._replace(is_duplicate=True)
        assert await store.version("a") == 3 + len(payloads)
        assert await remembered(backend) == {"c", "d", "e"}

    @pytest.mark.parametrize("payloads", [(), (b"1", b"2")], ids=["without events", "with events"])
    async def test_the_identical_append_is_known_after_the_store_was_closed_and_opened(
        self, store: EventStore, backend: Backend, payloads: tuple[bytes, ...]
    ) -> None:
        batch = [write("a", *payloads, expected=0, commands=[outcome("c")])]
        first = await append_alone(backend, *batch)
        assert isinstance(first, Appended)
        async with reopened(store) as again:
            assert await append_alone(backend_of(again), *batch) == first._replace(is_duplicate=True)

    @pytest.mark.parametrize("payloads", [(), (b"1", b"2")], ids=["without events", "with events"])
    async def test_an_owner_that_is_fenced_learns_that_its_outcome_was_stored(
        self, store: EventStore, backend: Backend, payloads: tuple[bytes, ...]
    ) -> None:
        batch = [write("a", *payloads, epoch=await store.claim("a"), commands=[outcome("c")])]
        first = await append_alone(backend, *batch)
        assert isinstance(first, Appended)
        await store.claim("a")
        assert await append_alone(backend, *batch) == first._replace(is_duplicate=True)

    @pytest.mark.parametrize("payloads", [(), (b"1", b"2")], ids=["without events", "with events"])
    async def test_the_identical_append_twice_in_one_group_is_stored_once(
        self, store: EventStore, backend: Backend, payloads: tuple[bytes, ...]
    ) -> None:
        batch = [write("a", *payloads, commands=[outcome("c")])]
        first, second = await backend.append([batch, batch])
        assert isinstance(first, Appended)
        assert second == first._replace(is_duplicate=True)
        assert len(await collect(store.read_all())) == len(payloads)

    async def test_the_identical_append_over_several_streams_is_known(
        self, store: EventStore, backend: Backend
    ) -> None:
        await store.append("b", happened(1, 2, 3))
        batch = [write("a", commands=[outcome("c")]), write("b", commands=[outcome("c")])]
        first = await append_alone(backend, *batch)
        await store.append("b", happened(4))
        assert first == Appended(0, (0, 3))
        assert await append_alone(backend, *batch) == Appended(0, (0, 3), is_duplicate=True)

    async def test_outcomes_that_are_stored_in_part_are_not_the_identical_append(self, backend: Backend) -> None:
        done = outcome("c")
        await stored(backend, done)
        assert is_refused(await append_alone(backend, write("a", commands=[done, outcome("d")])), "a", "c")
        assert is_refused(await append_alone(backend, write("a", b"1", commands=[done])), "a", "c")
        assert await remembered(backend) == {"c"}

    # At once

    @pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
    async def test_of_two_executions_in_two_stores_one_is_stored(
        self, store: EventStore, backend: Backend, other: EventStore, payloads: tuple[bytes, ...]
    ) -> None:
        for number in range(20):
            command_id = f"c{number}"
            executions = [outcome(command_id), outcome(command_id)]
            results = await asyncio.gather(
                *(
                    append_alone(executor, write(f"a{number % 3}", *payloads, commands=[execution]))
                    for executor, execution in zip((backend, backend_of(other)), executions, strict=True)
                )
            )
            assert sorted(type(result).__name__ for result in results) == ["Appended", "DuplicateCommand"]
            winner = executions[isinstance(results[1], Appended)]
            found = await found_command(backend, f"a{number % 3}", command_id)
            assert found is not None
            assert found.outcome_id == winner.outcome_id
        assert len(await collect(store.read_all())) == 20 * len(payloads)

    async def test_of_the_identical_append_in_two_stores_one_is_stored(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        for number in range(10):
            batch = [write("a", commands=[outcome(f"c{number}")])]
            results = await asyncio.gather(append_alone(backend, *batch), append_alone(backend_of(other), *batch))
            assert {result.is_duplicate for result in results if isinstance(result, Appended)} == {False, True}

    async def test_a_store_that_knows_the_stream_refuses_what_another_one_remembers(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        # A backend that remembers what its last append found must notice the outcome.
        await store.append("a", happened(1))
        await stored(backend_of(other), outcome("c"))
        result = await append_alone(backend, write("a", b"2", expected=1, commands=[outcome("c")]))
        assert is_refused(result, "a", "c")
        assert await store.version("a") == 1
