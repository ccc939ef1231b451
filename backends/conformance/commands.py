"""Commands with ids: an outcome is stored with its events or not at all, and the same command is not stored twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from backends.conformance.events import collect, happened, outcome, versions, write
from backends.conformance.fixtures import StoreFixtures, backend_of, reopened
from eventstore.backend import (
    Appended,
    AppendOutcome,
    Backend,
    CommandLookup,
    CommandOutcome,
    CommandsFound,
    Expected,
    Load,
    StoredCommand,
    StreamWrite,
)
from eventstore.errors import ConcurrencyError, DuplicateCommand, DuplicateEventError, FencedError
from eventstore.store import EventStore

# Ids that a database might fold, trim, normalise, split or take for something else.
ODD_IDS = [
    *("c", "C", " c", "c ", "c:d", "c:", ":c", "'", '"', "\\", "%", "c_d", "c-d", "null", "0", "00", "{c}", "[c]"),
    *(
        "\u00e9",
        "e\u0301",
        "\u00df",
        "ss",
        "\uffff",
        "\U0001f600",
        "\U0001f469\u200d\U0001f680",
        "a'); --",
        "\t",
        "a\nb",
    ),
    *("x" * 255, "x" * 254 + "y", "\u00e9" * 127 + "e"),
]

ODD_PAYLOADS = {
    "null": b"null",
    "spaces": b' { "a" : 1.0 , "a":1e2 } ',
    "escapes": rb'"\u00e9\/\u0000"',
    "emoji": '"\U0001f469\u200d\U0001f680 e\u0301\u00e9 \u2028"'.encode(),
    "one MiB": b'"' + "\u00e9".encode() * (512 * 1024 - 1) + b'"',
}


async def found_command(backend: Backend, stream_id: str, command_id: str) -> StoredCommand | None:
    (answer,) = await backend.find_commands([CommandLookup(stream_id, command_id)])
    return answer.outcome


async def remembered(backend: Backend, stream_id: str = "a", *, limit: int = 1000) -> set[str]:
    """Every command id that a stream remembers. More are asked for than there are in any test."""
    (answer,) = await backend.find_commands([CommandLookup(stream_id, "nobody's", recent=limit)])
    check_recent(answer, limit, set(answer.recent))
    return set(answer.recent)


async def append_alone(backend: Backend, *writes: StreamWrite) -> AppendOutcome:
    (result,) = await backend.append([writes])
    return result


async def stored(backend: Backend, *commands: CommandOutcome, stream_id: str = "a") -> Appended:
    """Outcomes without events, stored for sure."""
    result = await append_alone(backend, write(stream_id, commands=commands))
    assert isinstance(result, Appended), result
    return result


def check_recent(answer: CommandsFound, recent: int, there: set[str]) -> None:
    """Whether a stream that remembers these commands may be answered for so."""
    assert len(answer.recent) == len(set(answer.recent)) <= recent
    assert set(answer.recent) <= there
    if recent > len(there):
        assert answer.known_above == "", "fewer ids than asked for, so these are all"
    if answer.known_above is not None:
        above = answer.known_above.encode()
        assert {command_id for command_id in there if command_id.encode() > above} <= set(answer.recent)


def is_refused(result: AppendOutcome, stream_id: str, command_id: str) -> bool:
    return isinstance(result, DuplicateCommand) and (result.stream_id, result.command_id) == (stream_id, command_id)


class Commands(StoreFixtures):
    # Stored and found

    async def test_an_outcome_is_found_as_it_was_stored_with_its_events(self, backend: Backend) -> None:
        done = outcome("c", payload=b'{"total": 7}')
        result = await append_alone(backend, write("a", b"1", b"2", expected=0, commands=[done]))
        assert isinstance(result, Appended)
        assert (result.versions, result.is_duplicate) == ((2,), False)
        found = await found_command(backend, "a", "c")
        assert found is not None
        assert found[:5] == done[:5]
        assert found.version == 2
        assert found.recorded_at.tzinfo is not None
        assert abs(found.recorded_at - datetime.now(UTC)) < timedelta(minutes=5)

    async def test_a_rejection_is_found_as_one(self, backend: Backend) -> None:
        await stored(backend, outcome("yes"), outcome("no", is_rejection=True))
        answers = [await found_command(backend, "a", command_id) for command_id in ("yes", "no")]
        assert [answer.is_rejection for answer in answers if answer] == [False, True]

    @pytest.mark.parametrize("name", ODD_PAYLOADS)
    async def test_an_outcomes_payload_comes_back_byte_for_byte(self, backend: Backend, name: str) -> None:
        await stored(backend, outcome("c", payload=ODD_PAYLOADS[name]))
        found = await found_command(backend, "a", "c")
        assert found is not None
        assert found.payload == ODD_PAYLOADS[name]

    async def test_outcomes_are_there_after_the_store_was_closed_and_opened(
        self, store: EventStore, backend: Backend
    ) -> None:
        done, refused = outcome("c"), outcome("d", is_rejection=True)
        await append_alone(backend, write("a", b"1", commands=[done]))
        await stored(backend, refused)
        before = [await found_command(backend, "a", command_id) for command_id in ("c", "d")]
        async with reopened(store) as again:
            backend = backend_of(again)
            assert [await found_command(backend, "a", command_id) for command_id in ("c", "d")] == before
            assert is_refused(await append_alone(backend, write("a", b"2", commands=[outcome("c")])), "a", "c")
            assert is_refused(await append_alone(backend, write("a", commands=[outcome("d")])), "a", "d")

    async def test_an_outcome_is_found_by_another_store(self, backend: Backend, other: EventStore) -> None:
        # It has looked before, so it may remember something of the stream.
        assert await found_command(backend_of(other), "a", "c") is None
        await append_alone(backend, write("a", b"1", commands=[outcome("c")]))
        assert await found_command(backend_of(other), "a", "c") == await found_command(backend, "a", "c")

    async def test_several_outcomes_of_one_write_are_stored_at_its_version(self, backend: Backend) -> None:
        commands = [outcome(command_id) for command_id in ("c", "d", "e")]
        await append_alone(backend, write("a", b"1", b"2", commands=commands))
        answers = [await found_command(backend, "a", command.command_id) for command in commands]
        assert [(answer.outcome_id, answer.version) for answer in answers if answer] == [
            (command.outcome_id, 2) for command in commands
        ]

    async def test_each_write_of_a_batch_has_its_outcomes_at_its_own_version(self, backend: Backend) -> None:
        result = await append_alone(
            backend,
            write("a", b"1", commands=[outcome("c")]),
            write("b", b"2", commands=[outcome("c")]),
            write("a", b"3", b"4", commands=[outcome("d")]),
        )
        assert isinstance(result, Appended)
        assert result.versions == (1, 1, 3)
        answers = [await found_command(backend, *place) for place in (("a", "c"), ("b", "c"), ("a", "d"))]
        assert [answer.version for answer in answers if answer] == [1, 1, 3]

    async def test_outcomes_without_events_leave_the_stream_as_it_is(self, store: EventStore, backend: Backend) -> None:
        await store.append("a", happened(1, 2))
        result = await stored(backend, outcome("c"))
        assert result == Appended(0, (2,))
        found = await found_command(backend, "a", "c")
        assert found is not None
        assert found.version == 2
        assert (await store.append("a", happened(3), expected_version=2)).versions == (3,)
        assert await versions(store.read_all()) == [1, 2, 3]

    async def test_a_command_of_a_stream_that_does_not_exist_is_remembered(
        self, store: EventStore, backend: Backend
    ) -> None:
        assert await append_alone(backend, write("a", expected=0, commands=[outcome("c")])) == Appended(0, (0,))
        found = await found_command(backend, "a", "c")
        assert found is not None
        assert found.version == 0
        assert is_refused(await append_alone(backend, write("a", b"1", commands=[outcome("c")])), "a", "c")

    async def test_a_remembered_command_makes_no_stream(self, store: EventStore, backend: Backend) -> None:
        await stored(backend, outcome("c"))
        assert await collect(store.streams()) == []
        assert await store.version("a") == 0
        assert (await store.load(Load("a"))).version == 0
        assert (await store.statistics()).streams == 0
        result = await append_alone(backend, write("a", b"1", expected=Expected.STREAM_EXISTS))
        assert isinstance(result, ConcurrencyError)
        assert (await store.append("a", happened(1), expected_version=Expected.NO_STREAM)).versions == (1,)
        assert await remembered(backend) == {"c"}

    async def test_a_version_is_expected_of_a_write_without_events_too(
        self, store: EventStore, backend: Backend
    ) -> None:
        await store.append("a", happened(1))
        result = await append_alone(backend, write("a", expected=0, commands=[outcome("c")]))
        assert isinstance(result, ConcurrencyError)
        assert await remembered(backend) == set()
        assert isinstance(await append_alone(backend, write("a", expected=1, commands=[outcome("c")])), Appended)

    async def test_every_id_is_a_command_of_its_own(self, backend: Backend) -> None:
        for command_id in ODD_IDS:
            await stored(backend, outcome(command_id, payload=ascii(command_id).encode()))
        answers = await backend.find_commands([CommandLookup("a", command_id) for command_id in ODD_IDS])
        assert [
            (answer.outcome.command_id, answer.outcome.payload) if answer.outcome else None for answer in answers
        ] == [(command_id, ascii(command_id).encode()) for command_id in ODD_IDS]
        assert await remembered(backend) == set(ODD_IDS)
        for command_id in ODD_IDS:
            assert is_refused(await append_alone(backend, write("a", commands=[outcome(command_id)])), "a", command_id)

    # Refused

    async def test_a_remembered_id_refuses_the_whole_batch(self, store: EventStore, backend: Backend) -> None:
        await append_alone(backend, write("a", b"1", commands=[outcome("c")]))
        result = await append_alone(
            backend, write("b", b"2", commands=[outcome("d")]), write("a", b"3", commands=[outcome("e"), outcome("c")])
        )
        assert is_refused(result, "a", "c")
        assert len(await collect(store.read_all())) == 1
        assert await store.version("b") == 0
        assert await remembered(backend, "a") == {"c"}
        assert await remembered(backend, "b") == set()

    async def test_a_refused_outcome_leaves_the_first_one(self, backend: Backend) -> None:
        first = outcome("c", payload=b'"first"')
        await stored(backend, first)
        await append_alone(backend, write("a", b"1", commands=[outcome("c", payload=b'"second"')]))
        found = await found_command(backend, "a", "c")
        assert found is not None
        assert found[:5] == first[:5]

    async def test_a_remembered_id_takes_nothing_of_its_neighbours_with_it(
        self, store: EventStore, backend: Backend
    ) -> None:
        await append_alone(backend, write("a", b"1", commands=[outcome("c")]))
        results = await backend.append(
            [
                [write("b", b"2", commands=[outcome("c")])],
                [write("a", b"3", commands=[outcome("c")])],
                [write("a", b"4", expected=1, commands=[outcome("d")])],
                [write("b", commands=[outcome("e")])],
            ]
        )
        assert [type(result) for result in results] == [Appended, DuplicateCommand, Appended, Appended]
        assert [event.payload for event in await collect(store.read_all())] == [b"1", b"2", b"4"]
        assert (await remembered(backend, "a"), await remembered(backend, "b")) == ({"c", "d"}, {"c", "e"})

    async def test_an_id_is_remembered_for_one_stream(self, backend: Backend) -> None:
        await append_alone(backend, write("a", b"1", commands=[outcome("c")]))
        assert isinstance(await append_alone(backend, write("b", b"2", commands=[outcome("c")])), Appended)
        assert isinstance(await append_alone(backend, write("A", commands=[outcome("c")])), Appended)
        assert await found_command(backend, "d", "c") is None

    async def test_one_id_twice_in_one_write_is_refused(self, store: EventStore, backend: Backend) -> None:
        result = await append_alone(backend, write("a", b"1", commands=[outcome("c"), outcome("c")]))
        assert is_refused(result, "a", "c")
        assert await remembered(backend) == set()
        assert await collect(store.read_all()) == []

    async def test_one_id_twice_in_one_batch_is_refused(self, store: EventStore, backend: Backend) -> None:
        result = await append_alone(
            backend, write("a", b"1", commands=[outcome("c")]), write("a", b"2", commands=[outcome("c")])
        )
        assert is_refused(result, "a", "c")
        assert await remembered(backend) == set()
        assert await collect(store.read_all()) == []

    @pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
    async def test_of_one_id_twice_in_one_group_the_first_is_stored(
        self, store: EventStore, backend: Backend, payloads: tuple[bytes, ...]
    ) -> None:
        first, second = outcome("c"), outcome("c")
        results = await backend.append([[write("a", *payloads, commands=[each])] for each in (first, second)])
        assert isinstance(results[0], Appended)
        assert is_refused(results[1], "a", "c")
        found = await found_command(backend, "a", "c")
        assert found is not None
        assert found.outcome_id == first.outcome_id
        assert len(await collect(store.read_all())) == len(payloads)

    async def test_a_refused_batch_in_a_group_lets_a_later_one_use_its_ids(self, backend: Backend) -> None:
        results = await backend.append(
            [
                [write("a", b"1", expected=5, commands=[outcome("c")])],
                [write("a", b"2", expected=0, commands=[outcome("c")])],
            ]
        )
        assert [type(result) for result in results] == [ConcurrencyError, Appended]

    async def test_the_owner_counts_before_the_command_and_the_command_before_the_version(
        self, store: EventStore, backend: Backend
    ) -> None:
        earlier, current = await store.claim("a"), await store.claim("a")
        await append_alone(backend, write("a", b"1", epoch=current, commands=[outcome("c")]))
        fenced = await append_alone(backend, write("a", b"2", expected=9, epoch=earlier, commands=[outcome("c")]))
        assert isinstance(fenced, FencedError)
        repeated = await append_alone(backend, write("a", b"2", expected=9, epoch=current, commands=[outcome("c")]))
        assert is_refused(repeated, "a", "c")
        overtaken = await append_alone(backend, write("a", b"2", expected=9, epoch=current, commands=[outcome("d")]))
        assert isinstance(overtaken, ConcurrencyError)

    async def test_writes_are_looked_at_in_their_order(self, backend: Backend) -> None:
        await stored(backend, outcome("c"))
        late, repeated = write("b", b"1", expected=9), write("a", b"2", commands=[outcome("c")])
        assert isinstance(await append_alone(backend, late, repeated), ConcurrencyError)
        assert is_refused(await append_alone(backend, repeated, late), "a", "c")

    async def test_an_event_id_that_is_taken_counts_before_the_command(self, backend: Backend) -> None:
        one = write("a", b"1", commands=[outcome("c")])
        await append_alone(backend, one)
        more = one._replace(events=[*one.events, *write("a", b"2").events])
        assert isinstance(await append_alone(backend, more), DuplicateEventError)

    # Found

    async def test_many_questions_are_answered_in_their_order(self, store: EventStore, backend: Backend) -> None:
        await store.append("empty", happened(1))
        for stream_id in ("a", "b"):
            await stored(backend, *(outcome(f"{stream_id}{n}") for n in range(50)), stream_id=stream_id)
        asked = [(stream_id, f"{name}{n}") for n in range(50) for stream_id in "ab" for name in "ab"]
        asked += [("empty", "a1"), ("nobody", "a1")]
        answers = await backend.find_commands([CommandLookup(*each) for each in asked])
        assert [answer.outcome.command_id if answer.outcome else None for answer in answers] == [
            command_id if command_id.startswith(stream_id) else None for stream_id, command_id in asked
        ]
        assert list(await backend.find_commands([])) == []

    async def test_one_id_may_be_asked_for_several_times(self, backend: Backend) -> None:
        await stored(backend, outcome("c"))
        one, other = await backend.find_commands([CommandLookup("a", "c"), CommandLookup("a", "c", recent=5)])
        assert one.outcome == other.outcome
        assert (one.outcome is not None, list(one.recent), list(other.recent)) == (True, [], ["c"])

    async def test_nothing_is_known_of_a_stream_that_does_not_exist(self, store: EventStore, backend: Backend) -> None:
        (answer,) = await backend.find_commands([CommandLookup("a", "c", recent=10)])
        assert (answer.outcome, list(answer.recent), answer.known_above, answer.forgotten) == (None, [], "", 0)
        assert await collect(store.streams()) == []

    @pytest.mark.parametrize("recent", [0, 1, 2, 3, 17, len(ODD_IDS) - 1, len(ODD_IDS), len(ODD_IDS) + 1, 1000])
    async def test_every_id_above_the_known_one_is_among_the_recent(self, backend: Backend, recent: int) -> None:
        # Not in the order in which they are stored, and the greatest is not the latest.
        await stored(backend, *(outcome(command_id) for command_id in sorted(ODD_IDS, key=lambda each: each[::-1])))
        await stored(backend, outcome("other"), stream_id="b")
        (answer,) = await backend.find_commands([CommandLookup("a", "c", recent=recent)])
        check_recent(answer, recent, set(ODD_IDS))

    async def test_the_known_ids_follow_what_is_stored_and_forgotten(self, backend: Backend) -> None:
        there: set[str] = set()
        for number, command_id in enumerate(ODD_IDS):
            await stored(backend, outcome(command_id))
            there.add(command_id)
            if number % 5 == 4:
                await backend.forget_commands("a", keep=number // 2, before=None)
                there = await remembered(backend)
                assert len(there) == number // 2
            (answer,) = await backend.find_commands([CommandLookup("a", "c", recent=4)])
            check_recent(answer, 4, there)
