"""A handler may raise anything, also what is no Exception: its asker is told, and the actor serves the next."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from actors import ActorError, ActorSystem, RecoveryError, Restart, Resume, command_handler, event_handler
from tests.actors.notebook import Notebook, Read, Wait, Write, WriteAndRefuse, Written, until


class Odd(BaseException):
    pass


def read_a_cancelled_future() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    future.result()


class Plain(Notebook):
    """`Wait` raises what is no Exception; with a text it persists that first."""

    supervision = Resume()

    @command_handler
    def wait(self, command: Wait) -> int:
        if command.text:
            self.persist(Written(text=command.text))
        read_a_cancelled_future()
        return 0


class Awaiting(Notebook):
    supervision = Resume()

    @command_handler
    async def wait(self, command: Wait) -> int:
        if command.text:
            self.persist(Written(text=command.text))
        raise Odd("not an Exception")


async def asked(work: Any) -> Any:
    """What comes of an ask, in a task of its own, which must not be taken for cancelled."""
    try:
        return await work
    except Exception as error:
        return error


@pytest.mark.parametrize("is_in_memory", [True, False])
@pytest.mark.parametrize("text", ["", "lost"])
@pytest.mark.parametrize(("cls", "cause"), [(Plain, asyncio.CancelledError), (Awaiting, Odd)])
async def test_the_asker_is_told_and_those_behind_are_served(
    system: ActorSystem, cls: type[Notebook], cause: type[BaseException], text: str, is_in_memory: bool
):
    notebook = system.ref(cls, "a")
    if is_in_memory:
        await notebook.ask(Read())
    commands = (Wait(text=text), Write(text="1"), Read())
    told, *others = await asyncio.gather(*(asked(notebook.ask(command, timeout=20)) for command in commands))
    assert isinstance(told, ActorError)
    assert isinstance(told.__cause__, cause)
    assert others == [1, ["1"]]
    assert await notebook.ask(Read()) == ["1"]
    failures = system.stats().failures
    assert [count for count, _ in failures.values()] == ([1] if text else [])


async def test_supervision_sees_what_an_event_handler_raised(system: ActorSystem):
    class Torn(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

        @event_handler
        def written(self, event: Written) -> None:
            self.state.lines.append(event.text)
            raise Odd("half changed")

    notebook = system.ref(Torn, "a")
    with pytest.raises(ActorError, match="half changed"):
        await notebook.ask(Write(text="lost"))
    assert await notebook.ask(Read(), timeout=20) == []
    assert system.stats().restarted == {"Torn-a": 1}


async def test_in_a_transaction_it_is_no_cancellation_either(system: ActorSystem):
    with pytest.raises(ActorError) as caught:
        async with system.transaction() as tx:
            await tx.ask(system.ref(Plain, "a"), Wait(text="lost"))
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    assert await system.ref(Plain, "a").ask(Read(), timeout=20) == []


async def test_a_hook_may_raise_it_too(system: ActorSystem):
    is_sound = False

    class Hooked(Notebook):
        supervision = Resume()

        def recovered(self) -> None:
            if not is_sound:
                read_a_cancelled_future()

    with pytest.raises(RecoveryError, match="CancelledError"):
        await system.ref(Hooked, "a").ask(Read(), timeout=20)
    is_sound = True
    assert await system.ref(Hooked, "a").ask(Read(), timeout=20) == []


async def test_so_may_an_event_handler_that_catches_up(system: ActorSystem):
    class Tearing(Notebook):
        supervision = Resume()
        is_sound = False

        @event_handler
        def written(self, event: Written) -> None:
            self.state.lines.append(event.text)
            if not self.is_sound:
                raise Odd("half changed")

    notebook = system.ref(Tearing, "a")
    await notebook.ask(Read())
    await system.store.append("Tearing-a", [Written(text="1")])
    with pytest.raises(RecoveryError, match="half changed"):
        await notebook.ask(Read(), fresh=True, timeout=20)
    Tearing.is_sound = True
    assert await notebook.ask(Read(), timeout=20) == ["1"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_async", [True, False])
def test_what_ends_the_program_ends_the_loop_and_not_the_actor(error: type[BaseException], is_async: bool) -> None:
    class Ending(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            raise error

        @command_handler
        def write_and_refuse(self, command: WriteAndRefuse) -> None:
            raise error

    system = ActorSystem("memory://")
    notebook: Any = None
    asking: list[asyncio.Task[Any]] = []

    async def begin() -> None:
        nonlocal notebook
        await system.__aenter__()
        notebook = system.ref(Ending, "a")
        commands = (Wait() if is_async else WriteAndRefuse(text=""), Read())
        asking.extend(asyncio.ensure_future(notebook.ask(command, timeout=20)) for command in commands)
        await until(lambda: all(task.done() for task in asking))

    async def go_on() -> list[str]:
        assert await asking[1] == []
        read: list[str] = await notebook.ask(Read(), timeout=20)
        await system.close()
        return read

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, __: None)
    try:
        with pytest.raises(error):
            loop.run_until_complete(begin())
        going = loop.create_task(go_on())
        while not going.done():
            # The asker is told of it too, and so is the loop then.
            with contextlib.suppress(error):
                loop.run_until_complete(going)
        assert going.result() == []
    finally:
        loop.close()
