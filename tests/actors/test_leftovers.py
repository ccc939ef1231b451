"""What a handler has left running persists nothing any more, whoever is handled meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from actors import ActorError, ActorSystem, Resume, command_handler
from tests.actors.notebook import Notebook, Read, Wait, Write, WriteAll, Written, texts


class Leaving(Notebook):
    """`Wait` leaves a task behind, `Write` an async handler that goes on until the task has ended."""

    supervision = Resume()
    left: asyncio.Task[None] | None = None
    going = asyncio.Event()

    @command_handler
    async def wait(self, command: Wait) -> int:
        cls = type(self)

        async def later() -> None:
            await cls.going.wait()
            self.persist(Written(text="left"))

        cls.left = asyncio.create_task(later())
        return 1

    @command_handler
    async def write(self, command: Write) -> int:
        cls = type(self)
        self.persist(Written(text=command.text))
        cls.going.set()
        assert cls.left is not None
        await asyncio.wait([cls.left])
        return len(self.state.lines)


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Leaving, "going", asyncio.Event())


def refused() -> ActorError:
    assert Leaving.left is not None
    error = Leaving.left.exception()
    assert isinstance(error, ActorError)
    return error


async def test_it_is_no_part_of_the_handler_that_runs_then(system: ActorSystem):
    notebook = system.ref(Leaving, "a")
    await notebook.ask(Wait())
    assert await notebook.ask(Write(text="own"), timeout=20) == 1
    assert "an earlier handler" in str(refused())
    assert await notebook.ask(Read()) == ["own"] == await texts(system.store, kind="Leaving")
    assert system.stats().failures == {}


async def test_nor_of_a_transaction(system: ActorSystem):
    notebook = system.ref(Leaving, "a")
    async with system.transaction() as tx:
        await tx.ask(notebook, Wait())
        assert await tx.ask(notebook, Write(text="own")) == 1
    assert "an earlier handler" in str(refused())
    assert await texts(system.store, kind="Leaving") == ["own"]


async def test_the_parts_of_a_handler_that_runs_may_persist(system: ActorSystem):
    class Parted(Notebook):
        @command_handler
        async def write_all(self, command: WriteAll) -> int:
            async def part(text: str) -> None:
                await asyncio.sleep(0)
                self.persist(Written(text=text))

            async with asyncio.TaskGroup() as group:
                for text in command.texts:
                    group.create_task(part(text))
            async with system.transaction() as tx:
                await tx.ask(system.ref(Notebook, "other"), Write(text="x"))
                self.persist(Written(text="within"))
            return len(self.state.lines)

    assert await system.ref(Parted, "a").ask(WriteAll(texts=("1", "2")), timeout=20) == 3
    assert await texts(system.store, kind="Parted") == ["1", "2", "within"]
