"""Mailboxes: bounded, in order, nothing dropped, nobody forgotten."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from actors import ActorRef, ActorStopped, ActorSystem, AskTimeout, Command, MailboxFull, Restart, command_handler
from backends.conformance.cases import case
from eventstore import BackendUnavailable, EventStore, InvalidArgument
from eventstore.backend import Load
from tests.actors.faults import Faults, refused
from tests.actors.notebook import Break, Notebook, Read, Refuse, Wait, Write, Written, texts, until


class Gated(Notebook):
    """`Wait` is handled until the test opens the gate."""

    gate: asyncio.Event
    inside: asyncio.Event

    @command_handler
    async def wait(self, command: Wait) -> int:
        type(self).inside.set()
        await type(self).gate.wait()
        self.persist(Written(text=command.text))
        return len(self.state.lines)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    gate = asyncio.Event()
    monkeypatch.setattr(Gated, "gate", gate, raising=False)
    monkeypatch.setattr(Gated, "inside", asyncio.Event(), raising=False)
    return gate


async def occupied(system: ActorSystem) -> asyncio.Task[int]:
    """An actor that handles a command until the gate is opened; what comes now waits in its mailbox."""
    task = asyncio.create_task(system.ref(Gated, "a").ask(Wait(text="first")))
    await Gated.inside.wait()
    return task


@case("C167")
async def test_a_full_mailbox_refuses_the_next_command_with_a_typed_error(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=3) as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        waiting = [asyncio.create_task(notebook.ask(Write(text=str(number)))) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(MailboxFull, match="'Gated-a' has 3 commands waiting"):
            await notebook.ask(Write(text="refused"))
        with pytest.raises(MailboxFull):
            await notebook.tell(Write(text="refused"))
        gate.set()
        assert await asyncio.gather(first, *waiting) == [1, 2, 3, 4]
        assert await notebook.ask(Read()) == ["first", "0", "1", "2"]


async def test_a_mailbox_that_was_full_accepts_again_when_it_is_served(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=1) as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        second = asyncio.create_task(notebook.ask(Read()))
        await asyncio.sleep(0)
        with pytest.raises(MailboxFull):
            await notebook.ask(Read())
        gate.set()
        await asyncio.gather(first, second)
        assert await notebook.ask(Read()) == ["first"]


async def test_a_full_mailbox_of_one_actor_is_no_business_of_another(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=1) as system:
        first = await occupied(system)
        waiting = asyncio.create_task(system.ref(Gated, "a").ask(Read()))
        await asyncio.sleep(0)
        assert await system.ref(Gated, "b").ask(Write(text="x")) == 1
        gate.set()
        await asyncio.gather(first, waiting)


@case("C167")
async def test_with_waiting_everyone_gets_in_and_in_order(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=2, mailbox_overflow="wait") as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        waiting = [asyncio.create_task(notebook.ask(Write(text=str(number)))) for number in range(50)]
        for _ in range(5):
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(first, *waiting) == list(range(1, 52))
        assert await texts(system.store, kind="Gated") == ["first", *map(str, range(50))]


async def test_waiting_for_room_ends_with_the_ask(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=1, mailbox_overflow="wait") as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        second = asyncio.create_task(notebook.ask(Write(text="second")))
        await asyncio.sleep(0)
        with pytest.raises(MailboxFull, match=r"no room within 0\.02 s: the command was not accepted"):
            await notebook.ask(Write(text="never accepted"), timeout=0.02)
        gate.set()
        await asyncio.gather(first, second)
        assert await notebook.ask(Read()) == ["first", "second"]


async def test_who_waited_for_room_in_vain_is_forgotten(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=1, mailbox_overflow="wait", ask_timeout=0.02) as system:
        first = asyncio.create_task(system.ref(Gated, "a").ask(Wait(text="first"), timeout=60))
        await Gated.inside.wait()
        notebook = system.ref(Gated, "a")
        await notebook.tell(Write(text="second"))
        for _ in range(3):
            with pytest.raises(MailboxFull, match="not accepted"):
                await notebook.tell(Write(text="never accepted"))
        cell: Any = notebook._live_cell()  # pyright: ignore[reportPrivateUsage]
        assert not cell._mailbox._waiters
        gate.set()
        await first


class TellItself(Command[str]):
    pass


class Selfish(Gated, kind="Selfish"):
    me: ActorRef[Any]

    @command_handler
    async def tell_itself(self, command: TellItself) -> str:
        Gated.inside.set()
        await Gated.gate.wait()
        try:
            await Selfish.me.tell(Read())
        except MailboxFull as error:
            return str(error)
        return "accepted"


async def test_a_handler_does_not_wait_for_room_in_its_own_mailbox(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=1, mailbox_overflow="wait", ask_timeout=60) as system:
        ref = Selfish.me = system.ref(Selfish, "a")
        told = asyncio.create_task(ref.ask(TellItself()))
        await Gated.inside.wait()
        await ref.tell(Read())
        gate.set()
        async with asyncio.timeout(30):
            assert "its own handler cannot wait for room" in await told


async def test_who_waits_for_room_gets_in_with_the_first_command_that_leaves(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=2, mailbox_overflow="wait", ask_timeout=60) as system:
        notebook = system.ref(Gated, "a")
        asks = [await occupied(system)]
        for text in ("second", "third"):
            asks.append(asyncio.create_task(notebook.ask(Wait(text=text))))
            await asyncio.sleep(0)
        asks.append(asyncio.create_task(notebook.ask(Write(text="fourth"))))
        cell: Any = notebook._live_cell()  # pyright: ignore[reportPrivateUsage]
        await until(lambda: bool(cell._mailbox._waiters))
        # The second is handled now, and the mailbox is not empty before the third is.
        original, Gated.gate = Gated.gate, asyncio.Event()
        original.set()
        await until(lambda: not cell._mailbox._waiters)
        await until(lambda: len(cell._mailbox) == 2)
        Gated.gate.set()
        await asyncio.gather(*asks)
        assert await notebook.ask(Read()) == ["first", "second", "third", "fourth"]


async def test_room_that_someone_gave_up_waiting_for_goes_to_the_next(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=1, mailbox_overflow="wait", ask_timeout=20.0) as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        # The one in the mailbox is handled by an async handler too, so that the mailbox stays in use.
        second = asyncio.create_task(notebook.ask(Wait(text="second")))
        await asyncio.sleep(0)
        third = asyncio.create_task(notebook.ask(Write(text="third")))
        fourth = asyncio.create_task(notebook.ask(Write(text="fourth")))
        await asyncio.sleep(0)
        Gated.inside.clear()
        await until(lambda: not gate.is_set())
        # `third` is woken when `second` leaves the mailbox, and cancelled before it runs.
        original = Gated.gate
        Gated.gate = asyncio.Event()
        original.set()

        async def cancel_when_woken() -> None:
            await Gated.inside.wait()
            third.cancel()

        canceller = asyncio.create_task(cancel_when_woken())
        await canceller
        await asyncio.sleep(0.01)
        Gated.gate.set()
        await asyncio.gather(first, second, third, return_exceptions=True)
        async with asyncio.timeout(20):
            await fourth
        assert (await notebook.ask(Read()))[-1] == "fourth"


@pytest.mark.parametrize("overflow", ["reject", "wait"])
async def test_ten_thousand_commands_are_served_without_recursion(
    url: str, gate: asyncio.Event, overflow: str, monkeypatch: pytest.MonkeyPatch
):
    async with ActorSystem(url, mailbox_size=20_000, mailbox_overflow=overflow) as system:  # type: ignore[arg-type]
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        waiting = [
            asyncio.create_task(notebook.ask(Write(text="x") if number % 2 else Refuse())) for number in range(10_000)
        ]
        await asyncio.sleep(0)
        gate.set()
        await first
        replies = await asyncio.gather(*waiting, return_exceptions=True)
        assert replies[1::2] == list(range(2, 5002))
        assert len(await notebook.ask(Read())) == 5001


async def test_ten_thousand_tells_are_all_handled_in_order(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    for number in range(10_000):
        while True:
            try:
                await notebook.tell(Write(text=str(number)))
            except MailboxFull:
                await asyncio.sleep(0.001)
            else:
                break
    # The mailbox may be full to the brim.
    lines: list[str] = []
    while len(lines) < 10_000:
        try:
            lines = await notebook.ask(Read())
        except MailboxFull:
            await asyncio.sleep(0.001)
    assert lines == [str(number) for number in range(10_000)]


async def test_a_long_mailbox_does_not_keep_others_from_running(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=20_000) as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        waiting = [asyncio.create_task(notebook.ask(Read())) for _ in range(5000)]
        await asyncio.sleep(0)
        gate.set()
        await first
        turns = 0
        while not all(task.done() for task in waiting):
            turns += 1
            await asyncio.sleep(0)
        assert turns > 20


async def test_an_actor_with_commands_in_its_mailbox_stays_in_memory(url: str, gate: asyncio.Event):
    async with ActorSystem(url, mailbox_size=2000, max_live=1) as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        waiting = [asyncio.create_task(notebook.ask(Read())) for _ in range(1000)]
        await asyncio.sleep(0)
        gate.set()
        await first
        # More than one turn's commands are left, and each of these wants the room of another actor.
        for number in range(5):
            assert await system.ref(Notebook, str(number)).ask(Read()) == []
        async with asyncio.timeout(20):
            assert await asyncio.gather(*waiting) == [["first"]] * 1000


# tell


async def test_tell_returns_when_the_command_is_accepted_and_not_when_it_is_handled(url: str, gate: asyncio.Event):
    async with ActorSystem(url) as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        async with asyncio.timeout(20):
            await notebook.tell(Write(text="told"))
        gate.set()
        await first
        assert await notebook.ask(Read()) == ["first", "told"]


async def test_asks_and_tells_keep_their_order(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    for number in range(20):
        if number % 2:
            await notebook.tell(Write(text=str(number)))
        else:
            await notebook.ask(Write(text=str(number)))
    assert await notebook.ask(Read()) == [str(number) for number in range(20)]


@pytest.mark.parametrize("command", [Refuse(reason="too late"), Break()], ids=lambda c: type(c).__name__)
async def test_a_tell_that_fails_is_logged_with_actor_command_and_error(
    system: ActorSystem, caplog: pytest.LogCaptureFixture, command: Break | Refuse
):
    with caplog.at_level(logging.ERROR):
        await system.ref(Notebook, "a").tell(command)
        await system.ref(Notebook, "a").ask(Read())
    error = "CommandRejected: too late" if isinstance(command, Refuse) else "ValueError: broken"
    assert f"telling 'Notebook-a' a {type(command).__name__} failed: {error}" in caplog.text


async def test_a_tell_whose_append_failed_is_logged(
    faults: Faults, faulty: ActorSystem, caplog: pytest.LogCaptureFixture
):
    class Quick(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

    faults.next.append(refused(BackendUnavailable("gone")))
    with caplog.at_level(logging.ERROR):
        await faulty.ref(Quick, "a").tell(Write(text="lost"))
        await until(lambda: "telling 'Quick-a' a Write failed: BackendUnavailable: gone" in caplog.text)
    assert faulty.stats().failures == {}


async def test_a_tell_behind_a_lost_conflict_is_decided_again(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    await faults.direct.append("Notebook-a", [Written(text="other")])
    await notebook.tell(Write(text="1"))
    await notebook.tell(Write(text="2"))
    assert await notebook.ask(Read()) == ["other", "1", "2"]


# Asking


async def test_an_ask_that_times_out_ends_the_waiting_and_not_the_command(url: str, gate: asyncio.Event):
    async with ActorSystem(url) as system:
        notebook = system.ref(Gated, "a")
        with pytest.raises(AskTimeout, match=r"'Gated-a' did not reply within 0\.0\d+ s; the command is not undone"):
            await notebook.ask(Wait(text="x"), timeout=0.02)
        gate.set()
        assert await notebook.ask(Read()) == ["x"]


async def test_an_ask_that_times_out_in_the_mailbox_is_still_handled(url: str, gate: asyncio.Event):
    async with ActorSystem(url) as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        with pytest.raises(AskTimeout):
            await notebook.ask(Write(text="x"), timeout=0.02)
        gate.set()
        await first
        assert await notebook.ask(Read()) == ["first", "x"]


async def test_an_ask_that_times_out_while_its_append_is_in_flight_is_still_stored(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    with pytest.raises(AskTimeout):
        await notebook.ask(Write(text="x"), timeout=0.02)
    faults.release()
    assert await notebook.ask(Read()) == ["x"]


async def test_an_ask_that_times_out_during_recovery_is_still_handled(faults: Faults, faulty: ActorSystem):
    gate = asyncio.Event()

    async def wait(_: Load) -> None:
        await gate.wait()

    faults.before_load = wait
    notebook = faulty.ref(Notebook, "a")
    with pytest.raises(AskTimeout):
        await notebook.ask(Write(text="x"), timeout=0.02)
    gate.set()
    assert await notebook.ask(Read()) == ["x"]


@pytest.mark.parametrize("timeout", [0.0, -1.0])
async def test_a_timeout_that_is_over_ends_the_waiting_at_once(url: str, gate: asyncio.Event, timeout: float):
    async with ActorSystem(url) as system:
        first = await occupied(system)
        with pytest.raises(AskTimeout):
            await system.ref(Gated, "a").ask(Read(), timeout=timeout)
        gate.set()
        await first


@pytest.mark.parametrize("timeout", ["5", float("nan"), float("-inf")])
async def test_a_timeout_that_is_no_number_is_refused_before_anything_is_done(system: ActorSystem, timeout: Any):
    notebook = system.ref(Notebook, "a")
    for _ in range(2):  # By its mailbox, and then without one.
        with pytest.raises(InvalidArgument, match=r"timeout is a number of seconds, not .*: nothing was done"):
            await notebook.ask(Write(text="x"), timeout=timeout)
        assert await notebook.ask(Read()) == []
    with pytest.raises(InvalidArgument, match="timeout is a number of seconds"):
        async with system.transaction(timeout=timeout) as tx:
            await tx.ask(notebook, Write(text="x"))
    with pytest.raises(InvalidArgument, match="timeout is a number of seconds"):
        await notebook.batch([Write(text="x")], timeout=timeout)
    assert await notebook.ask(Read()) == []


async def test_the_timeout_of_the_system_holds_where_none_is_given(url: str, gate: asyncio.Event):
    async with ActorSystem(url, ask_timeout=0.02) as system:
        with pytest.raises(AskTimeout):
            await system.ref(Gated, "a").ask(Wait(text="x"))
        gate.set()


async def test_an_ask_without_end_is_possible(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    assert await notebook.ask(Write(text="x"), timeout=float("inf")) == 1
    assert await notebook.ask(Write(text="y"), timeout=float("inf")) == 2


async def test_a_cancelled_ask_ends_the_waiting_and_not_the_command(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    asking = asyncio.create_task(notebook.ask(Write(text="x")))
    await faults.held()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    faults.release()
    assert await notebook.ask(Read()) == ["x"]


async def test_a_cancelled_ask_in_the_mailbox_is_still_handled(url: str, gate: asyncio.Event):
    async with ActorSystem(url) as system:
        first = await occupied(system)
        notebook = system.ref(Gated, "a")
        asking = asyncio.create_task(notebook.ask(Write(text="x")))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.set()
        await first
        assert await notebook.ask(Read()) == ["first", "x"]


async def test_cancelling_the_asker_does_not_cancel_an_async_handler(url: str, gate: asyncio.Event):
    async with ActorSystem(url) as system:
        asking = await occupied(system)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.set()
        assert await system.ref(Gated, "a").ask(Read()) == ["first"]


async def test_a_failure_that_nobody_waits_for_any_more_disturbs_nobody(faults: Faults, faulty: ActorSystem):
    class Quick(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [asyncio.create_task(notebook.ask(Write(text="x"))), asyncio.create_task(notebook.ask(Break()))]
    await faults.held()
    for ask in asks:
        ask.cancel()
    faults.next.append(refused(BackendUnavailable("gone")))
    faults.release()
    await asyncio.gather(*asks, return_exceptions=True)
    assert await notebook.ask(Read()) == []


async def test_asking_before_the_system_is_entered_and_after_it_was_closed_is_refused(url: str):
    system = ActorSystem(url)
    with pytest.raises(Exception, match="not open"):
        await system.ref(Notebook, "a").ask(Read())
    async with system:
        notebook = system.ref(Notebook, "a")
        await notebook.ask(Write(text="x"))
    for command in (Read(), Write(text="y")):
        with pytest.raises(ActorStopped):
            await notebook.ask(command)
        with pytest.raises(ActorStopped):
            await notebook.tell(command)


async def test_a_system_that_was_never_used_closes(store: EventStore):
    async with ActorSystem(store):
        pass
