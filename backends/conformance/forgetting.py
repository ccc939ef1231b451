"""Forgetting commands: by count, by age and with the stream; what was issued up to then is refused, not done again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from backends.conformance.commands import append_alone, found, found_command, is_refused, remembered, stored
from backends.conformance.events import collect, happened, outcome, write
from backends.conformance.fixtures import StoreFixtures, backend_of, reopened
from eventstore.backend import Appended, Backend, CommandLookup
from eventstore.errors import CommandForgotten, ConcurrencyError, FencedError
from eventstore.store import EventStore

# Milliseconds since 1970, long before anything of these tests is recorded.
NOON = 1_500_000_000_000


async def _forgotten(backend: Backend, stream_id: str = "a") -> int:
    """Up to when a stream's commands may be forgotten."""
    (answer,) = await found(backend, CommandLookup(stream_id, "c"))
    return answer.forgotten


async def _recorded_at(backend: Backend, command_id: str) -> datetime:
    found = await found_command(backend, "a", command_id)
    assert found is not None
    return found.recorded_at


async def _store_apart(backend: Backend, *command_ids: str) -> None:
    """Outcomes with different times, each with an event."""
    for command_id in command_ids:
        await append_alone(backend, write("a", b"1", commands=[outcome(command_id)]))
        await asyncio.sleep(0.003)


def _is_forgotten(result: object, stream_id: str, command_id: str) -> bool:
    return isinstance(result, CommandForgotten) and (result.stream_id, result.command_id) == (stream_id, command_id)


class Forgetting(StoreFixtures):
    # By count and by age

    @pytest.mark.parametrize(
        ("keep", "left"),
        [(0, set[str]()), (1, {"a"}), (2, {"a", "d"}), (4, {"a", "b", "c", "d"}), (5, {"a", "b", "c", "d"})],
    )
    async def test_the_newest_are_kept(self, backend: Backend, keep: int, left: set[str]) -> None:
        # The newest is that which was stored last, whatever its id.
        for command_id in ("b", "c", "d", "a"):
            await stored(backend, outcome(command_id))
        assert await backend.forget_commands("a", keep=keep, before=None) == 4 - len(left)
        assert await remembered(backend) == left
        assert await backend.forget_commands("a", keep=keep, before=None) == 0

    async def test_of_outcomes_of_one_write_the_last_are_the_newest(self, backend: Backend) -> None:
        await stored(backend, outcome("c"), outcome("b"), outcome("a"))
        assert await backend.forget_commands("a", keep=1, before=None) == 2
        assert await remembered(backend) == {"a"}

    async def test_those_recorded_before_a_time_are_forgotten_and_one_recorded_then_is_not(
        self, backend: Backend
    ) -> None:
        await _store_apart(backend, "c", "d", "e")
        assert await backend.forget_commands("a", keep=0, before=await _recorded_at(backend, "d")) == 1
        assert await remembered(backend) == {"d", "e"}

    async def test_a_microsecond_later_it_is_forgotten(self, backend: Backend) -> None:
        await _store_apart(backend, "c", "d")
        before = await _recorded_at(backend, "c") + timedelta(microseconds=1)
        assert await backend.forget_commands("a", keep=0, before=before) == 1
        assert await remembered(backend) == {"d"}

    async def test_a_time_before_all_forgets_none_and_one_after_all_forgets_all(self, backend: Backend) -> None:
        await _store_apart(backend, "c", "d")
        assert await backend.forget_commands("a", keep=0, before=datetime(1971, 1, 1, tzinfo=UTC)) == 0
        assert await backend.forget_commands("a", keep=0, before=datetime(2999, 1, 1, tzinfo=UTC)) == 2

    async def test_an_outcome_is_kept_if_the_count_or_the_age_keeps_it(self, backend: Backend) -> None:
        await _store_apart(backend, "c", "d", "e", "f")
        before = await _recorded_at(backend, "e")
        # The count keeps d, e and f; the age keeps e and f.
        assert await backend.forget_commands("a", keep=3, before=before) == 1
        assert await remembered(backend) == {"d", "e", "f"}
        # The count keeps f alone.
        assert await backend.forget_commands("a", keep=1, before=before) == 1
        assert await remembered(backend) == {"e", "f"}

    async def test_forgetting_leaves_other_streams_and_the_events(self, store: EventStore, backend: Backend) -> None:
        await append_alone(
            backend, write("a", b"1", commands=[outcome("c")]), write("b", b"2", commands=[outcome("c")])
        )
        assert await backend.forget_commands("a", keep=0, before=None) == 1
        assert await remembered(backend, "b") == {"c"}
        assert len(await collect(store.read_all())) == 2

    async def test_an_unknown_stream_has_nothing_to_forget(self, store: EventStore, backend: Backend) -> None:
        assert await backend.forget_commands("a", keep=0, before=None) == 0
        assert await collect(store.streams()) == []

    async def test_a_forgotten_command_without_a_time_is_taken_for_a_new_one(self, backend: Backend) -> None:
        # The store cannot know better.
        await stored(backend, outcome("c"))
        await backend.forget_commands("a", keep=0, before=None)
        assert await found_command(backend, "a", "c") is None
        again = outcome("c", payload=b'"again"')
        assert isinstance(await append_alone(backend, write("a", b"1", commands=[again])), Appended)
        found = await found_command(backend, "a", "c")
        assert found is not None
        assert (found.outcome_id, found.payload) == (again.outcome_id, b'"again"')

    async def test_a_command_that_is_stored_again_is_among_the_newest(self, backend: Backend) -> None:
        await stored(backend, outcome("c"))
        await stored(backend, outcome("d"))
        await backend.forget_commands("a", keep=1, before=None)
        await stored(backend, outcome("c"))
        assert await backend.forget_commands("a", keep=1, before=None) == 1
        assert await remembered(backend) == {"c"}

    async def test_an_append_whose_outcome_is_forgotten_is_still_known_by_its_events(self, backend: Backend) -> None:
        batch = write("a", b"1", expected=0, commands=[outcome("c", issued_at=NOON)])
        first = await append_alone(backend, batch)
        assert isinstance(first, Appended)
        await backend.forget_commands("a", keep=0, before=None)
        assert await append_alone(backend, batch) == first._replace(is_duplicate=True)
        assert await remembered(backend) == set()

    # What was issued up to then

    async def test_the_latest_time_at_which_a_forgotten_command_was_issued_is_remembered(
        self, store: EventStore, backend: Backend
    ) -> None:
        await stored(backend, *(outcome(str(at), issued_at=at) for at in (NOON + 3, NOON + 7, NOON + 5, NOON + 9)))
        assert await _forgotten(backend) == 0
        await backend.forget_commands("a", keep=1, before=None)
        assert await _forgotten(backend) == NOON + 7
        assert await _forgotten(backend, "b") == 0
        async with reopened(store) as again:
            assert await _forgotten(backend_of(again)) == NOON + 7

    async def test_it_never_goes_back(self, backend: Backend) -> None:
        # The second was issued earlier than what is forgotten then, but was stored before that.
        await stored(backend, outcome("c", issued_at=NOON))
        await stored(backend, outcome("d", issued_at=NOON - 5))
        await stored(backend, outcome("e"))
        for keep in (2, 1, 0):
            assert await backend.forget_commands("a", keep=keep, before=None) == 1
            assert await _forgotten(backend) == NOON

    async def test_an_id_that_tells_no_time_leaves_it(self, backend: Backend) -> None:
        await stored(backend, outcome("c", issued_at=0))
        await backend.forget_commands("a", keep=0, before=None)
        assert await _forgotten(backend) == 0

    @pytest.mark.parametrize("issued_at", [2**45, 2**48 - 1], ids=["later", "the latest"])
    async def test_an_id_from_the_future_counts_as_issued_when_it_was_recorded(
        self, backend: Backend, issued_at: int
    ) -> None:
        # Else one wrong clock would have every later command refused.
        await stored(backend, outcome("c", issued_at=issued_at))
        recorded_at = await _recorded_at(backend, "c")
        await backend.forget_commands("a", keep=0, before=None)
        assert await _forgotten(backend) == _milliseconds(recorded_at)

    async def test_nothing_is_remembered_where_nothing_is_forgotten(self, backend: Backend) -> None:
        await stored(backend, outcome("c", issued_at=NOON))
        await backend.forget_commands("a", keep=1, before=None)
        await backend.forget_commands("a", keep=0, before=datetime(1971, 1, 1, tzinfo=UTC))
        assert await _forgotten(backend) == 0

    @pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
    async def test_what_was_issued_up_to_then_is_refused_and_what_was_issued_later_is_not(
        self, store: EventStore, backend: Backend, payloads: tuple[bytes, ...]
    ) -> None:
        await stored(backend, outcome("c", issued_at=NOON))
        await backend.forget_commands("a", keep=0, before=None)
        for issued_at in (1, NOON - 1, NOON):
            result = await append_alone(backend, write("a", *payloads, commands=[outcome("d", issued_at=issued_at)]))
            assert _is_forgotten(result, "a", "d")
        assert await remembered(backend) == set()
        assert await collect(store.read_all()) == []
        for number, issued_at in enumerate((NOON + 1, 0)):
            later = outcome(f"e{number}", issued_at=issued_at)
            assert isinstance(await append_alone(backend, write("a", *payloads, commands=[later])), Appended)
        assert isinstance(
            await append_alone(backend, write("b", *payloads, commands=[outcome("d", issued_at=NOON)])), Appended
        )

    async def test_a_forgotten_command_takes_nothing_of_its_neighbours_with_it(
        self, store: EventStore, backend: Backend
    ) -> None:
        await stored(backend, outcome("c", issued_at=NOON))
        await backend.forget_commands("a", keep=0, before=None)
        results = await backend.append(
            [
                [write("a", b"1", commands=[outcome("d", issued_at=NOON + 1)])],
                [write("b", b"2"), write("a", b"3", commands=[outcome("c", issued_at=NOON)])],
                [write("b", b"4", expected=0)],
            ]
        )
        assert [type(result) for result in results] == [Appended, CommandForgotten, Appended]
        assert [event.payload for event in await collect(store.read_all())] == [b"1", b"4"]

    async def test_an_old_command_that_is_still_remembered_is_told_so(self, backend: Backend) -> None:
        await stored(backend, outcome("c", issued_at=NOON))
        await stored(backend, outcome("d", issued_at=NOON - 1))
        await backend.forget_commands("a", keep=1, before=None)
        result = await append_alone(backend, write("a", b"1", commands=[outcome("d", issued_at=NOON - 1)]))
        assert is_refused(result, "a", "d")

    async def test_the_owner_counts_before_a_forgotten_command_and_that_before_the_version(
        self, store: EventStore, backend: Backend
    ) -> None:
        earlier, current = await store.claim("a"), await store.claim("a")
        await stored(backend, outcome("c", issued_at=NOON))
        await backend.forget_commands("a", keep=0, before=None)
        late = write("a", b"1", expected=9, epoch=earlier, commands=[outcome("d", issued_at=NOON)])
        assert isinstance(await append_alone(backend, late), FencedError)
        late = late._replace(epoch=current)
        assert _is_forgotten(await append_alone(backend, late), "a", "d")
        late = late._replace(commands=[outcome("d", issued_at=NOON + 1)])
        assert isinstance(await append_alone(backend, late), ConcurrencyError)

    async def test_what_another_store_has_forgotten_is_refused(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        # A backend that remembers what its last append found must notice that something was forgotten.
        await append_alone(backend, write("a", b"1", commands=[outcome("c", issued_at=NOON)]))
        await backend_of(other).forget_commands("a", keep=0, before=None)
        result = await append_alone(backend, write("a", b"2", expected=1, commands=[outcome("d", issued_at=NOON)]))
        assert _is_forgotten(result, "a", "d")
        assert await store.version("a") == 1

    async def test_what_was_truncated_by_another_store_is_refused(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        await append_alone(backend, write("a", b"1", commands=[outcome("c", issued_at=NOON)]))
        await other.truncate("a", 1, reason="test")
        result = await append_alone(backend, write("a", b"2", expected=1, commands=[outcome("d", issued_at=NOON)]))
        assert _is_forgotten(result, "a", "d")
        assert await store.version("a") == 1

    # With the stream

    async def test_truncation_forgets_the_outcomes_up_to_its_version_and_keeps_later_ones(
        self, store: EventStore, backend: Backend
    ) -> None:
        await stored(backend, outcome("at 0", issued_at=NOON + 9))
        for version in (1, 2, 3):
            command = outcome(f"at {version}", issued_at=NOON + version)
            await append_alone(backend, write("a", b"1", commands=[command]))
        await stored(backend, outcome("at 3 too"))
        await store.truncate("a", 2, reason="test")
        assert await remembered(backend) == {"at 3", "at 3 too"}
        assert await _forgotten(backend) == NOON + 9
        again = outcome("at 1", issued_at=NOON + 1)
        assert _is_forgotten(await append_alone(backend, write("a", b"1", commands=[again])), "a", "at 1")

    async def test_truncation_above_the_version_forgets_all_outcomes(self, store: EventStore, backend: Backend) -> None:
        await append_alone(backend, write("a", b"1", commands=[outcome("c", issued_at=NOON)]))
        await store.truncate("a", 2**63 - 1, reason="test")
        assert await remembered(backend) == set()
        assert await _forgotten(backend) == NOON

    async def test_truncation_that_removes_no_event_forgets_no_outcome(
        self, store: EventStore, backend: Backend
    ) -> None:
        await store.append("a", happened(1, 2))
        await store.truncate("a", 2, reason="test")
        await stored(backend, outcome("c", issued_at=NOON))
        await stored(backend, outcome("d", issued_at=NOON), stream_id="empty")
        for stream_id, through in (("a", 2), ("a", 0), ("a", 9), ("empty", 5)):
            assert await store.truncate(stream_id, through, reason="test") == 0
        assert (await remembered(backend, "a"), await remembered(backend, "empty")) == ({"c"}, {"d"})
        assert await _forgotten(backend) == 0

    async def test_truncation_leaves_the_outcomes_of_other_streams(self, store: EventStore, backend: Backend) -> None:
        for stream_id in ("a", "b"):
            await append_alone(backend, write(stream_id, b"1", commands=[outcome("c", issued_at=NOON)]))
        await store.truncate("a", 1, reason="test")
        assert await remembered(backend, "b") == {"c"}
        assert await _forgotten(backend, "b") == 0


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
