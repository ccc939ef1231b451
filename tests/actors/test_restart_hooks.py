"""The hooks before and after a restart: when they are called, on which actor, and what their own failures do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, ClassVar

import pytest

from actors import ActorStopped, ActorSystem, DefinitionError, RecoveryError, Restart, Resume, Stop, command_handler
from eventstore import BackendUnavailable, EventStore
from tests.actors.faults import Faults, refused
from tests.actors.notebook import (
    Notebook,
    Read,
    Wait,
    Write,
    WriteAndBreak,
    WriteAndRefuse,
    Written,
    texts,
    until,
)


class Hooked(Notebook):
    """It notes what is called, on an actor of what state."""

    supervision = Restart(first_pause_seconds=0.0)

    calls: ClassVar[list[tuple[Any, ...]]] = []

    def before_restart(self, error: BaseException) -> None:
        self.calls.append(("before", str(error), list(self.state.lines)))

    def recovered(self) -> Awaitable[None] | None:
        self.calls.append(("recovered", list(self.state.lines)))
        return None

    def after_restart(self, error: BaseException) -> Awaitable[None] | None:
        self.calls.append(("after", str(error), list(self.state.lines)))
        return None


@pytest.fixture(autouse=True)
def no_calls():
    Hooked.calls.clear()


async def fail(system: ActorSystem, cls: type[Notebook]) -> None:
    with pytest.raises(ValueError, match="broken"):
        await system.ref(cls, "a").ask(WriteAndBreak(text="x"))


async def test_one_is_called_on_the_actor_that_failed_the_other_on_the_rebuilt_one(system: ActorSystem):
    notebook = system.ref(Hooked, "a")
    await notebook.ask(Write(text="1"))
    await fail(system, Hooked)
    assert await notebook.ask(Read()) == ["1"]
    assert Hooked.calls == [
        ("recovered", []),
        ("before", "broken after x", ["1", "x"]),
        ("recovered", ["1"]),
        ("after", "broken after x", ["1"]),
    ]


async def test_the_hook_after_a_restart_may_be_async_and_ends_before_the_first_command(system: ActorSystem):
    class Slow(Hooked):
        async def after_restart(self, error: BaseException) -> None:
            await asyncio.sleep(0.02)
            self.calls.append(("after",))

        @command_handler
        def read(self, command: Read) -> list[str]:
            self.calls.append(("read",))
            return []

    await fail(system, Slow)
    await system.ref(Slow, "a").ask(Read())
    assert Hooked.calls[-2:] == [("after",), ("read",)]


async def test_it_may_ask_other_actors(system: ActorSystem):
    class Asking(Hooked):
        async def after_restart(self, error: BaseException) -> None:
            await system.ref(Notebook, "log").ask(Write(text=f"{self.key}: {error}"))

    await fail(system, Asking)
    await system.ref(Asking, "a").ask(Read())
    assert await texts(system.store, "log") == ["a: broken after x"]


async def test_neither_is_called_when_an_actor_resumes_or_stops(system: ActorSystem):
    class Resuming(Hooked):
        supervision = Resume()

    class Stopping(Hooked):
        supervision = Stop()

    class Limited(Hooked):
        supervision = Restart(max_restarts=0)

    for cls in (Resuming, Stopping, Limited):
        await fail(system, cls)
    await system.ref(Resuming, "a").ask(Read())
    system.ref(Stopping, "a").restart()
    await system.ref(Stopping, "a").ask(Read())
    with pytest.raises(ActorStopped):
        await system.ref(Limited, "a").ask(Read())
    assert {name for name, *_ in Hooked.calls} == {"recovered"}


async def test_neither_is_called_when_an_actor_leaves_memory_and_comes_back(url: str):
    async with ActorSystem(url, idle_seconds=0.02) as system:
        await system.ref(Hooked, "a").ask(Write(text="1"))
        await until(lambda: system.stats().live == 0)
        await system.ref(Hooked, "a").ask(Read())
    assert Hooked.calls == [("recovered", []), ("recovered", ["1"])]


async def test_neither_is_called_after_a_conflict_or_a_refusal(system: ActorSystem, other: EventStore):
    notebook = system.ref(Hooked, "a")
    await notebook.ask(Read())
    await other.append("Hooked-a", [Written(text="other")])
    assert await notebook.ask(Write(text="1")) == 2
    with pytest.raises(Exception, match="not x after all"):
        await notebook.ask(WriteAndRefuse(text="x"))
    assert await notebook.ask(Read()) == ["other", "1"]
    assert {name for name, *_ in Hooked.calls} == {"recovered"}


async def test_neither_is_called_for_the_databases_own_troubles(faults: Faults, faulty: ActorSystem):
    faults.next.append(refused(BackendUnavailable("gone")))
    with pytest.raises(BackendUnavailable):
        await faulty.ref(Hooked, "a").ask(Write(text="x"))
    assert await faulty.ref(Hooked, "a").ask(Read()) == []
    assert {name for name, *_ in Hooked.calls} == {"recovered"}


async def test_a_hook_before_the_restart_that_raises_is_logged_and_changes_nothing(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    class Failing(Hooked):
        def before_restart(self, error: BaseException) -> None:
            self.persist(Written(text="not here"))

    await fail(system, Failing)
    assert await system.ref(Failing, "a").ask(Write(text="1")) == 1
    assert "Failing.before_restart failed for 'Failing-a'" in caplog.text
    assert "persist works only while a command handler of the actor runs" in caplog.text
    assert system.stats().failures == {"Failing-a": (1, "ValueError: broken after x")}
    assert await texts(system.store, kind="Failing") == ["1"]


async def test_a_hook_before_the_restart_that_ends_the_program_leaves_an_actor_that_can_serve(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    class Ending(Hooked):
        error: ClassVar[type[BaseException]] = SystemExit

        def before_restart(self, error: BaseException) -> None:
            raise self.error

    notebook = system.ref(Ending, "a")
    with pytest.raises(SystemExit):
        # Decided in this very turn, as the actor is ready: so it is raised here, as out of the loop otherwise.
        await notebook.ask(Write(text="1"))
        await notebook.ask(WriteAndBreak(text="x"))
    assert await notebook.ask(Read()) == ["1"]
    Ending.error = asyncio.CancelledError
    await fail(system, Ending)
    assert await notebook.ask(Read()) == ["1"]
    assert "Ending.before_restart failed for 'Ending-a'" in caplog.text


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_hook_after_the_restart_that_raises_is_a_failure_of_its_own(system: ActorSystem, is_async: bool):
    class Failing(Hooked):
        def after_restart(self, error: BaseException) -> Awaitable[None] | None:
            async def fail() -> None:
                await asyncio.sleep(0)
                raise OSError("no line")

            if is_async:
                return fail()
            raise OSError("no line")

    await fail(system, Failing)
    with pytest.raises(RecoveryError, match="cannot recover: OSError: no line"):
        await system.ref(Failing, "a").ask(Read())
    count, last = system.stats().failures["Failing-a"]
    assert (count, last) == (2, "RecoveryError: actor 'Failing-a' cannot recover: OSError: no line")
    # It has left memory, and comes to life as any other does: no restart, no hook.
    assert await system.ref(Failing, "a").ask(Write(text="1")) == 1


async def test_a_rebuild_that_fails_ends_the_restart(system: ActorSystem):
    class Unready(Hooked):
        is_down: ClassVar[bool] = False

        def before_restart(self, error: BaseException) -> None:
            Unready.is_down = True

        def recovered(self) -> None:
            if Unready.is_down:
                Unready.is_down = False
                raise LookupError("nothing there")

    await fail(system, Unready)
    with pytest.raises(RecoveryError):
        await system.ref(Unready, "a").ask(Read())
    assert await system.ref(Unready, "a").ask(Read()) == []
    assert Hooked.calls == []


async def test_each_actor_is_told_its_own_error(system: ActorSystem):
    class Telling(Hooked):
        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            raise ValueError(command.text)

    asks = [system.ref(Telling, str(number)).ask(Wait(text=str(number))) for number in range(20)]
    await asyncio.gather(*asks, return_exceptions=True)
    for number in range(20):
        await system.ref(Telling, str(number)).ask(Read())
    assert sorted(int(call[1]) for call in Hooked.calls if call[0] == "after") == list(range(20))


def test_a_hook_before_the_restart_cannot_be_async():
    with pytest.raises(DefinitionError, match=r"Bad\.before_restart cannot be async; after_restart can"):

        class Bad(Notebook):
            async def before_restart(self, error: BaseException) -> None: ...
