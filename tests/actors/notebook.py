"""Notebook: the actor of these tests. Its state shows which events it is made of, and in what order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel, Field

from actors import BackendUnavailable, Command, CommandRejected, PersistentActor, command_handler, event_handler
from eventstore import Event, EventStore

R = TypeVar("R")


class Write(Command[int]):
    """Answered with the number of lines."""

    text: str


class WriteAll(Command[int]):
    texts: tuple[str, ...]


class Read(Command[list[str]]):
    pass


class Refuse(Command[None]):
    reason: str = "no"


class WriteAndRefuse(Command[None]):
    text: str


class Break(Command[None]):
    pass


class WriteAndBreak(Command[None]):
    text: str


class WriteSlowly(Command[int]):
    """Handled by an `async def` handler, which waits for its event to be durable."""

    text: str


class Wait(Command[int]):
    """For handlers that a test defines."""

    text: str = ""


class Written(Event, name="tests.written"):
    text: str


class Torn(Event, name="tests.torn"):
    """Its handler changes the state, and then raises."""


class Unhandled(Event, name="tests.unhandled"):
    pass


class Page(BaseModel):
    lines: list[str] = Field(default_factory=list[str])


class Notebook(PersistentActor[Page]):
    @command_handler
    def write(self, command: Write) -> int:
        self.persist(Written(text=command.text))
        return len(self.state.lines)

    @command_handler
    def write_all(self, command: WriteAll) -> int:
        self.persist(*(Written(text=text) for text in command.texts))
        return len(self.state.lines)

    @command_handler
    def read(self, command: Read) -> list[str]:
        return list(self.state.lines)

    @command_handler
    def refuse(self, command: Refuse) -> None:
        raise CommandRejected(command.reason)

    @command_handler
    def write_and_refuse(self, command: WriteAndRefuse) -> None:
        self.persist(Written(text=command.text))
        raise CommandRejected(f"not {command.text} after all")

    @command_handler
    def break_down(self, command: Break) -> None:
        raise ValueError("broken")

    @command_handler
    def write_and_break(self, command: WriteAndBreak) -> None:
        self.persist(Written(text=command.text))
        raise ValueError(f"broken after {command.text}")

    @command_handler
    async def write_slowly(self, command: WriteSlowly) -> int:
        await self.persist(Written(text=command.text))
        return len(self.state.lines)

    @event_handler
    def written(self, event: Written) -> None:
        self.state.lines.append(event.text)

    @event_handler
    def torn(self, event: Torn) -> None:
        self.state.lines.append("torn")
        raise ValueError("torn")


async def texts(store: EventStore, key: str = "a", kind: str = "Notebook") -> list[str]:
    """What the journal holds of one notebook."""
    return [recorded.json()["text"] async for recorded in store.read(f"{kind}-{key}")]


async def served(ask: Callable[[Command[R]], Awaitable[R]], command: Command[R], seconds: float = 20.0) -> R:
    """Ask until the store serves again: it lets one call try at a time."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await ask(command)
            except BackendUnavailable:
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)
