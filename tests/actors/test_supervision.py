"""Supervision: what becomes of an actor that failed, and how it is seen."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

import pytest

from actors import (
    ActorStopped,
    ActorSystem,
    DefinitionError,
    Escalate,
    Match,
    RecoveryError,
    Restart,
    Resume,
    Stop,
    Supervision,
    command_handler,
)
from backends.conformance.cases import case
from eventstore import BackendUnavailable, EventStore, OutcomeUnknown
from eventstore.backend import Load
from tests.actors.faults import Fault, Faults, refused, request_lost
from tests.actors.notebook import Break, Notebook, Read, Refuse, Wait, Write, WriteAndBreak, Written, texts, until


async def fail(system: ActorSystem, cls: type[Notebook], times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ValueError, match="broken"):
            await system.ref(cls, "a").ask(WriteAndBreak(text="x"))


# Restart


async def test_a_failed_actor_restarts_after_a_pause_and_serves_what_came_meanwhile(system: ActorSystem):
    class Pausing(Notebook):
        supervision = Restart(first_pause_seconds=0.2)

    began = time.monotonic()
    await fail(system, Pausing)
    assert await asyncio.gather(*(system.ref(Pausing, "a").ask(Write(text=text)) for text in "123")) == [1, 2, 3]
    assert time.monotonic() - began >= 0.2


async def test_the_pauses_grow_twofold_up_to_the_longest(system: ActorSystem):
    class Growing(Notebook):
        supervision = Restart(first_pause_seconds=0.02, longest_pause_seconds=0.06)

    pauses: list[float] = []
    for _ in range(4):
        began = time.monotonic()
        await fail(system, Growing)
        await system.ref(Growing, "a").ask(Read())
        pauses.append(time.monotonic() - began)
    # How long they are exactly is shown in test_stats.py, without a clock.
    for pause, least in zip(pauses, (0.02, 0.04, 0.06, 0.06), strict=True):
        assert least <= pause


async def test_failures_older_than_the_window_are_forgotten(system: ActorSystem):
    class Forgiving(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=1, window_seconds=0.05)

    for _ in range(4):
        await fail(system, Forgiving)
        await asyncio.sleep(0.07)
    assert await system.ref(Forgiving, "a").ask(Read()) == []


async def test_too_many_failures_stop_the_actor(system: ActorSystem):
    class Limited(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=2)

    await fail(system, Limited, times=3)
    with pytest.raises(ActorStopped, match=r"was stopped after ValueError: broken after x; .*restart\(\)"):
        await system.ref(Limited, "a").ask(Read())
    assert system.stats().stopped == 1


@pytest.mark.parametrize("limit", [0, 40, 100])
async def test_any_number_of_restarts_is_counted(system: ActorSystem, limit: int):
    class Limited(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=limit)

    await fail(system, Limited, times=limit + 1)
    with pytest.raises(ActorStopped):
        await system.ref(Limited, "a").ask(Read())


async def test_without_a_limit_it_is_never_given_up(system: ActorSystem):
    class Unlimited(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

    await fail(system, Unlimited, times=50)
    assert await system.ref(Unlimited, "a").ask(Read()) == []
    assert system.stats().failures["Unlimited-a"][0] == 50


@case("C160", "C167")
async def test_commands_that_wait_when_an_actor_fails_are_kept_over_the_restart(faults: Faults, faulty: ActorSystem):
    class Pausing(Notebook):
        supervision = Restart(first_pause_seconds=0.02)

    notebook = faulty.ref(Pausing, "a")
    await notebook.ask(Read())
    replies = await asyncio.gather(
        notebook.ask(WriteAndBreak(text="x")),
        notebook.ask(Write(text="1")),
        notebook.ask(Write(text="2")),
        return_exceptions=True,
    )
    assert isinstance(replies[0], ValueError)
    assert replies[1:] == [1, 2]


async def test_a_failure_is_counted_beyond_the_actors_stay_in_memory(url: str):
    class Leaving(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=1)

    async with ActorSystem(url, idle_seconds=0.02) as system:
        await fail(system, Leaving)
        await system.ref(Leaving, "a").ask(Read())
        await until(lambda: system.stats().live == 0)
        assert system.stats().failures["Leaving-a"][0] == 1
        await fail(system, Leaving)
        with pytest.raises(ActorStopped):
            await system.ref(Leaving, "a").ask(Read())


class Unready(Notebook):
    """Its recovery fails for as long as `is_down`."""

    is_down: ClassVar[bool] = True

    def recovered(self) -> None:
        if self.is_down:
            raise LookupError("nothing there")


@case("C155", "C160")
async def test_recoveries_that_fail_are_paused_as_well(system: ActorSystem):
    class Pausing(Unready):
        supervision = Restart(first_pause_seconds=0.2)

    began = time.monotonic()
    with pytest.raises(RecoveryError):
        await system.ref(Pausing, "a").ask(Read())
    Pausing.is_down = False
    assert await system.ref(Pausing, "a").ask(Read()) == []
    assert time.monotonic() - began >= 0.2


async def test_recoveries_that_fail_too_often_stop_the_actor(system: ActorSystem):
    class Limited(Unready):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=1)

    for _ in range(2):
        with pytest.raises(RecoveryError):
            await system.ref(Limited, "a").ask(Read())
    with pytest.raises(ActorStopped):
        await system.ref(Limited, "a").ask(Read())


# The database's own troubles


@pytest.mark.parametrize("policy", [Stop(), Restart(max_restarts=0)], ids=lambda policy: type(policy).__name__)
@pytest.mark.parametrize("trouble", [refused(BackendUnavailable("gone")), request_lost], ids=["refused", "unknown"])
async def test_an_append_that_the_database_did_not_take_is_no_failure_of_the_actor(
    faults: Faults, faulty: ActorSystem, monkeypatch: pytest.MonkeyPatch, policy: Supervision, trouble: Fault
):
    class Strict(Notebook):
        supervision = policy

    # Too short for so many tries that the circuit breaker opens.
    monkeypatch.setattr(faulty.store.commits, "_resolve_within", 0.0)
    notebook = faulty.ref(Strict, "a")
    faults.always = trouble
    with pytest.raises((BackendUnavailable, OutcomeUnknown)):
        await notebook.ask(Write(text="x"))
    faults.always = None
    assert await notebook.ask(Write(text="1")) == 1
    stats = faulty.stats()
    assert (stats.stopped, stats.failures, stats.restarts) == (0, {}, 0)


@pytest.mark.parametrize(
    "policy",
    [Stop(), Restart(first_pause_seconds=1000, longest_pause_seconds=1000)],
    ids=lambda policy: type(policy).__name__,
)
async def test_while_the_database_is_down_every_ask_is_refused_quickly_whatever_the_policy(
    faults: Faults, faulty: ActorSystem, policy: Supervision
):
    class Strict(Notebook):
        supervision = policy

    async def down(_: Load) -> None:
        raise BackendUnavailable("gone")

    faults.before_load = down
    for _ in range(4):
        async with asyncio.timeout(20):
            with pytest.raises(BackendUnavailable):
                await faulty.ref(Strict, "a").ask(Read())
    faults.before_load = None
    assert await faulty.ref(Strict, "a").ask(Read()) == []
    assert faulty.stats().failures == {}


# Stop


class Stopping(Notebook):
    supervision = Stop()


async def test_an_actor_that_is_to_stop_answers_every_command_with_that(system: ActorSystem):
    await fail(system, Stopping)
    notebook = system.ref(Stopping, "a")
    for command in (Read(), Write(text="y"), Refuse()):
        with pytest.raises(ActorStopped):
            await notebook.ask(command)
        with pytest.raises(ActorStopped):
            await notebook.tell(command)
    assert await texts(system.store, kind="Stopping") == []


async def test_a_stopped_actor_fails_the_commands_that_waited(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Stopping, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [asyncio.create_task(notebook.ask(Write(text="stored")))]
    await faults.held()
    asks += [
        asyncio.create_task(notebook.ask(command)) for command in (WriteAndBreak(text="x"), Read(), Write(text="y"))
    ]
    await asyncio.sleep(0)
    faults.release()
    replies = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(reply) for reply in replies] == [int, ValueError, ActorStopped, ActorStopped]
    assert await texts(faulty.store, kind="Stopping") == ["stored"]


async def test_restart_brings_a_stopped_actor_back_with_the_state_of_the_journal(system: ActorSystem):
    notebook = system.ref(Stopping, "a")
    await notebook.ask(Write(text="1"))
    await fail(system, Stopping)
    notebook.restart()
    assert await notebook.ask(Read()) == ["1"]
    assert await notebook.ask(Write(text="2")) == 2
    assert system.stats().failures == {}
    assert system.stats().stopped == 0


async def test_restart_through_one_reference_is_seen_by_all(system: ActorSystem):
    one, another = system.ref(Stopping, "a"), system.ref(Stopping, "a")
    await one.ask(Read())
    await another.ask(Read())
    await fail(system, Stopping)
    one.restart()
    assert await another.ask(Read()) == []
    assert await one.ask(Write(text="1")) == 1


async def test_restart_of_an_actor_that_is_not_stopped_does_nothing(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    notebook.restart()
    await notebook.ask(Write(text="1"))
    notebook.restart()
    assert await notebook.ask(Write(text="2")) == 2
    assert system.stats().live == 1


async def test_a_stopped_actor_stays_stopped_while_others_come_and_go(url: str):
    async with ActorSystem(url, idle_seconds=0.02, max_live=2) as system:
        await fail(system, Stopping)
        for number in range(5):
            await system.ref(Notebook, str(number)).ask(Read())
        await asyncio.sleep(0.06)
        with pytest.raises(ActorStopped):
            await system.ref(Stopping, "a").ask(Read())


@pytest.mark.parametrize("command", [Refuse(), Break()], ids=lambda command: type(command).__name__)
async def test_what_is_no_failure_does_not_stop_it(system: ActorSystem, command: Refuse | Break):
    notebook = system.ref(Stopping, "a")
    with pytest.raises(Exception, match=r"no|broken"):
        await notebook.ask(command)
    assert await notebook.ask(Read()) == []


async def test_a_conflict_does_not_stop_it(system: ActorSystem, other: EventStore):
    notebook = system.ref(Stopping, "a")
    await notebook.ask(Read())
    await other.append("Stopping-a", [Written(text="other")])
    assert await notebook.ask(Write(text="1")) == 2


async def test_an_async_handler_that_raises_after_persist_is_supervised(system: ActorSystem):
    class Async(Notebook):
        supervision = Stop()

        @command_handler
        async def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            await asyncio.sleep(0)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await system.ref(Async, "a").ask(Wait())
    with pytest.raises(ActorStopped):
        await system.ref(Async, "a").ask(Read())
    assert await texts(system.store, kind="Async") == []


async def test_a_handler_whose_own_task_is_cancelled_fails_its_command_alone(system: ActorSystem):
    class Cancelling(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            raise asyncio.CancelledError

    notebook = system.ref(Cancelling, "a")
    with pytest.raises(ActorStopped, match="the handler of Wait was cancelled"):
        await notebook.ask(Wait())
    assert await notebook.ask(Write(text="x")) == 1


async def test_an_error_that_cannot_even_say_what_it_is_is_a_failure_like_any_other(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    class Speechless(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    class Quick(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            raise Speechless

    with pytest.raises(Speechless):
        await system.ref(Quick, "a").ask(Wait())
    assert await system.ref(Quick, "a").ask(Write(text="1")) == 1
    assert system.stats().failures == {"Quick-a": (1, "Speechless: (its text cannot be made)")}
    assert "actor 'Quick-a' failed: Speechless" in caplog.text


# Resume


class Resuming(Notebook):
    supervision = Resume()


async def test_an_actor_that_resumes_goes_on_at_once_with_the_state_of_the_journal(system: ActorSystem):
    notebook = system.ref(Resuming, "a")
    await notebook.ask(Write(text="1"))
    began = time.monotonic()
    for _ in range(40):
        await fail(system, Resuming)
        assert await notebook.ask(Read()) == ["1"]
    # With the pauses of a restart it would take a quarter of an hour.
    assert time.monotonic() - began < 60
    assert await notebook.ask(Write(text="2")) == 2
    assert await texts(system.store, kind="Resuming") == ["1", "2"]


async def test_resuming_counts_as_a_failure_and_not_as_a_restart(system: ActorSystem):
    await fail(system, Resuming, times=2)
    stats = system.stats()
    assert stats.failures == {"Resuming-a": (2, "ValueError: broken after x")}
    assert (stats.restarts, stats.restarted) == (0, {})


async def test_commands_that_wait_when_an_actor_resumes_are_served_in_their_order(faulty: ActorSystem):
    notebook = faulty.ref(Resuming, "a")
    await notebook.ask(Read())
    replies = await asyncio.gather(
        notebook.ask(WriteAndBreak(text="x")),
        notebook.ask(Write(text="1")),
        notebook.ask(Read()),
        return_exceptions=True,
    )
    assert isinstance(replies[0], ValueError)
    assert replies[1:] == [1, ["1"]]


async def test_a_recovery_that_fails_is_tried_again_with_the_next_command(system: ActorSystem):
    class Hopeful(Unready):
        supervision = Resume()

    for _ in range(3):
        with pytest.raises(RecoveryError):
            await system.ref(Hopeful, "a").ask(Read())
    Hopeful.is_down = False
    assert await system.ref(Hopeful, "a").ask(Read()) == []


# Escalate


class Escalating(Notebook):
    supervision = Escalate()


async def test_who_escalates_gets_the_systems_policy(url: str):
    async with ActorSystem(url, supervision=Resume()) as system:
        await fail(system, Escalating, times=3)
        assert await system.ref(Escalating, "a").ask(Read()) == []
        assert system.stats().restarts == 0


async def test_a_class_that_says_nothing_gets_the_systems_policy(url: str):
    async with ActorSystem(url, supervision=Stop()) as system:
        await fail(system, Notebook)
        await fail(system, Resuming)
        with pytest.raises(ActorStopped):
            await system.ref(Notebook, "a").ask(Read())
        assert await system.ref(Resuming, "a").ask(Read()) == []


async def test_the_systems_policy_is_to_restart_if_nothing_is_said(system: ActorSystem):
    await fail(system, Escalating)
    assert await system.ref(Escalating, "a").ask(Read()) == []
    assert system.stats().restarted == {"Escalating-a": 1}


@pytest.mark.parametrize("policy", [Escalate(), Match({KeyError: Resume()}), Match({ValueError: Escalate()})])
async def test_a_system_has_nobody_to_escalate_to_and_stops_the_actor(url: str, policy: Supervision):
    async with ActorSystem(url, supervision=policy) as system:
        await fail(system, Escalating)
        with pytest.raises(ActorStopped):
            await system.ref(Escalating, "a").ask(Read())


# Match


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LookupError("x"), "stops"),
        (KeyError("x"), "resumes"),
        (IndexError("x"), "stops"),
        (OSError("x"), "restarts"),
        (ConnectionResetError("x"), "resumes"),
        (ValueError("x"), "restarts"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
@pytest.mark.parametrize("is_reversed", [False, True], ids=["general_first", "special_first"])
async def test_the_most_specific_class_that_is_named_decides(
    system: ActorSystem, error: Exception, expected: str, is_reversed: bool
):
    policies: list[tuple[type[Exception], Any]] = [
        (Exception, Restart(first_pause_seconds=0)),
        (LookupError, Stop()),
        (KeyError, Resume()),
        (ConnectionError, Resume()),
    ]

    class Matching(Notebook):
        supervision = Match(dict(reversed(policies) if is_reversed else policies), otherwise=Stop())

        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            raise error

    with pytest.raises(type(error)):
        await system.ref(Matching, "a").ask(Wait())
    stats = system.stats()
    assert (stats.stopped, stats.restarts) == {"stops": (1, 0), "resumes": (0, 0), "restarts": (0, 1)}[expected]


async def test_what_no_class_fits_is_decided_by_otherwise_or_else_by_the_system(url: str):
    class Stopped(Notebook):
        supervision = Match({KeyError: Resume()}, otherwise=Stop())

    class Unsaid(Notebook):
        supervision = Match({KeyError: Stop()})

    async with ActorSystem(url, supervision=Resume()) as system:
        await fail(system, Stopped)
        await fail(system, Unsaid)
        assert system.stats().stopped_actors == ["Stopped-a"]
        assert system.stats().restarts == 0


async def test_each_policy_of_a_match_counts_its_own_failures(system: ActorSystem):
    class Matching(Notebook):
        supervision = Match(
            {
                ValueError: Restart(first_pause_seconds=0, max_restarts=1),
                KeyError: Restart(first_pause_seconds=0, max_restarts=2),
            }
        )

        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            raise KeyError(command.text)

    await fail(system, Matching)
    for _ in range(2):
        with pytest.raises(KeyError):
            await system.ref(Matching, "a").ask(Wait())
    assert system.stats().stopped == 0
    await fail(system, Matching)
    assert system.stats().stopped == 1


async def test_a_match_is_as_it_was_made(system: ActorSystem):
    policies: dict[type[BaseException], Any] = {ValueError: Resume()}

    class Matching(Notebook):
        supervision = Match(policies, otherwise=Stop())

    policies[ValueError] = Stop()
    await fail(system, Matching)
    assert system.stats().stopped == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Match({"ValueError": Stop()}), "every key is one class of exceptions, not 'ValueError'"),
        (lambda: Match({int: Stop()}), "every key is one class of exceptions, not <class 'int'>"),
        (lambda: Match({ValueError(): Stop()}), "every key is one class of exceptions"),
        (lambda: Match({(KeyError, ValueError): Stop()}), "every key is one class of exceptions"),
        (lambda: Match({KeyError: "stop"}), "the policy for KeyError: it is one of .* not 'stop'"),
        (lambda: Match({KeyError: Stop}), r"write Stop\(…\)"),
        (lambda: Match({}, otherwise=None), "otherwise: it is one of"),
        (lambda: Match({KeyError: Match({})}), "the policy for KeyError is a Match itself; name all"),
        (lambda: Match({}, otherwise=Match({})), "otherwise is a Match itself; name all"),
        (lambda: ActorSystem("memory://", supervision="restart"), "ActorSystem: supervision: it is one of"),
        (lambda: ActorSystem("memory://", supervision=Restart), r"write Restart\(…\)"),
        (lambda: type("Bad", (Notebook,), {"supervision": Stop}), r"Bad.supervision: .*; write Stop\(…\)"),
        (lambda: type("Bad", (Notebook,), {"supervision": None}), "Bad.supervision: it is one of"),
    ],
)
def test_a_policy_that_is_none_is_refused_where_it_is_said(make: Any, message: str):
    with pytest.raises(DefinitionError, match=message):
        make()
