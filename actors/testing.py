"""Scenario: what an actor decides, tried without a store: given events, when a command, then look at the outcome.

outcome = await Scenario(Account).given(Deposited(amount=5)).when(Withdraw(amount=3))
assert outcome.reply == 2
assert outcome.events == (Withdrawn(amount=3),)
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Generator, Sequence
from copy import deepcopy
from typing import Any, Generic, TypeVar, cast

from actors.actor import PersistentActor, new_actor, stream_id_of
from actors.cells.detaching import detached
from actors.command import Command, without_handler
from actors.kit_failure import KitFailure
from actors.replaying.determinism import NotDeterministic, breaches_noted, deterministic
from actors.replaying.replay import apply_stored
from actors.replicas.convergence_check import converges
from eventstore.backend import EventPage, ReplayedEvent
from eventstore.codec import decode_payload, encode_event
from eventstore.errors import ActorError, CodecError, DefinitionError
from eventstore.events import Event

__all__ = ["KitFailure", "NotDeterministic", "Outcome", "Scenario", "converges", "deterministic"]

S = TypeVar("S")
R = TypeVar("R")


class Outcome(Generic[S, R]):
    """What a command led to: `events`, as they would be stored, the `state` after it, and a reply or a `rejection`.

    `rejection` is what the command failed with, a `CommandRejected` or any other exception; None if it did not.
    """

    __slots__ = ("_reply", "events", "rejection", "state")

    def __init__(self, state: S, events: tuple[Event, ...], reply: R | None, rejection: Exception | None) -> None:
        self.state = state
        self.events = events
        self.rejection = rejection
        self._reply = reply

    @property
    def reply(self) -> R:
        """What the handler returned. Raises the rejection if there is one."""
        if self.rejection is not None:
            raise self.rejection
        return cast("R", self._reply)

    def __repr__(self) -> str:
        answer = f"reply={self._reply!r}" if self.rejection is None else f"rejection={self.rejection!r}"
        return f"Outcome({answer}, events={self.events!r}, state={self.state!r})"


class Scenario(Generic[S]):
    """One actor and its history, in memory. Each command goes on from where the one before it ended.

    After each command it is checked, and a breach is a `KitFailure`, that

    * a command that persisted nothing, or the `recovered` hook, left the state as it was;
    * the state, written as JSON and read again, is written the same;
    * the events, written as JSON and read again, rebuild the state that the live actor has: from the first event on,
      and from a snapshot taken before the command.
    """

    def __init__(self, actor: type[PersistentActor[S]], key: str = "test") -> None:
        self._cls = actor
        self._stream_id = stream_id_of(actor, key)
        self._stored: list[ReplayedEvent] = []
        self._live = self._rebuilt()
        self._is_recovered = False

    @property
    def state(self) -> S:
        """The state now."""
        return self._live.actor.state

    def given(self, *events: Event) -> Scenario[S]:
        """Let events have happened. They are applied as a recovery does it, and raise what it would."""
        for event in events:
            self._stored.append(_stored(len(self._stored) + 1, event))
        self._live = self._rebuilt()
        self._is_recovered = False
        return self

    async def when(self, command: Command[R]) -> Outcome[S, R]:
        """Send a command. What it fails with is the outcome's `rejection`; a broken rule is a `KitFailure`."""
        route = self._cls.handlers.commands.get(type(command))
        if route is None:
            raise DefinitionError(without_handler(self._cls, command))
        await self._recover()
        place = f"{self._cls.__qualname__}.{route.name}"
        before, known = self._dumped(place), len(self._stored)
        live, reply, rejection = self._live, None, None
        live.begin(is_async=route.is_async)
        try:
            reply = route.handle(live.actor, command)
            if route.is_async:
                reply = await reply
            reply = detached(reply)
        except Exception as error:
            rejection = error
        rejection = live.end(rejection)
        if live.version != len(self._stored):
            # As in the runtime: what was persisted and never became durable goes, with the state it touched.
            self._live = self._rebuilt()
            self._is_recovered = False
        self._check(place, before, known)
        events = tuple(self._decoded(stored) for stored in self._stored[known:])
        # A copy: the next command must not change what this one led to.
        return Outcome(deepcopy(self._live.actor.state), events, cast("R", reply), rejection)

    def check_determinism(self) -> None:
        """Replay all events twice. Raises `KitFailure` if that gives two states whose JSON differs, or if an event
        handler calls the clock, random numbers, or anything outside of the process (`deterministic`)."""
        with breaches_noted(self._cls) as breaches:
            first, second = (self._cls.state_type.dump(self._rebuilt().actor.state) for _ in range(2))
        for breach in breaches:
            raise KitFailure(breach.handler, str(NotDeterministic(breach)))
        if not self._is_same(first, second):
            raise KitFailure(
                self._cls.__qualname__,
                f"two replays of the same events give {_short(first)} and {_short(second)}: an event handler uses the "
                "event and the state alone, no clock and no random numbers",
            )

    async def _recover(self) -> None:
        if self._is_recovered:
            return
        place = f"{self._cls.__qualname__}.recovered"
        before = self._dumped(self._cls.__qualname__)
        hook = self._live.actor.recovered()
        if inspect.isawaitable(hook):
            await hook
        self._check(place, before, len(self._stored))
        self._is_recovered = True

    def _check(self, place: str, before: bytes, known: int) -> None:
        after = self._dumped(place)
        if known == len(self._stored) and not self._is_same(before, after):
            raise KitFailure(
                place,
                f"it changed the state without an event, from {_short(before)} to {_short(after)}: persist an event, "
                "and change the state in its @event_handler",
            )
        for how, rebuilt in (
            ("all events", self._rebuilt()),
            ("a snapshot taken before it and the events after that", self._rebuilt(snapshot=before, version=known)),
        ):
            state = self._cls.state_type.dump(rebuilt.actor.state)
            if not self._is_same(after, state):
                raise KitFailure(
                    place,
                    f"the live actor has the state {_short(after)}, and {how} give {_short(state)}: change the state "
                    "in event handlers alone, and only by what is stored of the event and of the state",
                )

    def _dumped(self, place: str) -> bytes:
        """The state's JSON, after it was shown that a snapshot of it can be used."""
        state_type = self._cls.state_type
        try:
            dumped = state_type.dump(self._live.actor.state)
            again = state_type.dump(state_type.load(dumped))
        except CodecError as error:
            raise KitFailure(place, f"no snapshot can be made of the state and used: {error}") from error
        if not self._is_same(dumped, again):
            raise KitFailure(place, f"a snapshot of the state {_short(dumped)} is read as {_short(again)}")
        # What JSON does not show, such as an instance of a subclass.
        if (difference := state_type.difference(self._live.actor.state, dumped)) is not None:
            raise KitFailure(place, f"a snapshot of the state would be read as another one: {difference}")
        return dumped

    def _is_same(self, one: bytes, other: bytes) -> bool:
        if _canonical(one) == _canonical(other):
            return True
        # The order of a set means nothing, but its JSON has one.
        load = self._cls.state_type.load
        try:
            return bool(load(one) == load(other))
        except CodecError:
            return False

    def _rebuilt(self, *, snapshot: bytes | None = None, version: int = 0) -> _Live[S]:
        return _Live(self._cls, self._stream_id, self._stored, snapshot=snapshot, version=version)

    def _decoded(self, stored: ReplayedEvent) -> Event:
        version, type_, _, payload, _ = stored
        cls = self._cls.handlers.stored[type_].cls
        return decode_payload(cls, payload, stream_id=self._stream_id, version=version)


class _Live(Generic[S]):
    """An actor rebuilt from stored events, and the stage that takes its new ones: durable as soon as a handler ends."""

    def __init__(
        self,
        cls: type[PersistentActor[S]],
        stream_id: str,
        stored: list[ReplayedEvent],
        *,
        snapshot: bytes | None,
        version: int,
    ) -> None:
        self.stream_id = stream_id
        self.version = version
        self.actor = new_actor(cls, self)
        if snapshot is not None:
            self.actor.state = cls.state_type.load(snapshot)
        apply_stored(self.actor, self, EventPage.of(stored[version:]), through=len(stored))
        self._stored = stored
        self._staged: list[ReplayedEvent] = []
        self._failure: Exception | None = None
        self._is_deciding = self._is_async = False

    def begin(self, *, is_async: bool) -> None:
        """A command handler starts."""
        self._is_deciding, self._is_async = True, is_async

    def end(self, rejection: Exception | None) -> Exception | None:
        """The handler is done. Returns what the command failed with: it cannot hide that an event handler raised."""
        self._is_deciding = False
        rejection = self._failure or rejection
        if rejection is None:
            self.commit()
        return rejection

    def commit(self) -> None:
        """Make what was persisted durable."""
        self._stored.extend(self._staged)
        self._staged.clear()

    def stage(self, events: Sequence[Event]) -> Awaitable[None]:
        """Take events through JSON, and apply them. Called by `PersistentActor.persist`."""
        if not self._is_deciding:
            raise ActorError(f"{self.stream_id!r}: persist works only while a command handler of the actor runs")
        handlers = self.actor.handlers.events
        encoded: list[ReplayedEvent] = []
        for event in events:
            if event.__class__ not in handlers:
                raise DefinitionError(
                    f"{type(self.actor).__qualname__} persists {type(event).__qualname__} but has no @event_handler "
                    "for it"
                )
            encoded.append(_stored(self.version + len(encoded) + 1, event))
        self._is_deciding = False
        try:
            for event in events:
                self.version += 1
                handlers[event.__class__](self.actor, event)
        except Exception as error:
            self._failure = error
            raise
        self._is_deciding = True
        self._staged.extend(encoded)
        return _Durable(self)

    def until_durable(self) -> None:
        """What awaiting `persist` does."""
        if not (self._is_deciding and self._is_async):
            raise ActorError(f"{self.stream_id!r}: only an `async def` handler that runs can await persist")
        self.commit()


class _Durable:
    def __init__(self, live: _Live[Any]) -> None:
        self._live = live

    def __await__(self) -> Generator[None, None, None]:
        self._live.until_durable()
        yield


def _canonical(dumped: bytes) -> str:
    return json.dumps(json.loads(dumped), sort_keys=True)


def _short(dumped: bytes) -> str:
    text = dumped.decode()
    return text if len(text) <= 300 else f"{text[:300]}…"


def _stored(version: int, event: Event) -> ReplayedEvent:
    _, type_, schema_version, payload, _, _, checksum, _ = encode_event(event)
    return version, type_, schema_version, payload, checksum
