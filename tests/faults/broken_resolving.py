"""Stores that find out about a lost reply in a wrong way: the verdict must find each of them guilty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

from eventstore import Appended, BackendUnavailable, OutcomeUnknown
from eventstore.backend import AppendOutcome, Backend, Batch
from eventstore.codec import new_event_id
from tests.faults.broken import TakingLostForRefused, Wrapped

_LOOKED_AT = 1000


class Looking(Wrapped):
    """After a lost reply it reads whether the events are there, and decides by that."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        try:
            return await self._backend.append(batches)
        except OutcomeUnknown:
            found = [await self._found(batch) for batch in batches]
            # What is not there now may be there in a moment.
            if None in found:
                return await self.not_there(batches)
            return [appended for appended in found if appended is not None]

    async def not_there(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        raise NotImplementedError

    async def _found(self, batch: Batch) -> Appended | None:
        versions: list[int] = []
        position = 0
        for write in batch:
            page = await self._backend.read_stream(
                write.stream_id, after=0, through=None, limit=_LOOKED_AT, backwards=True
            )
            places = {event.event_id.bytes: event for event in page.events}
            stored = [places.get(event.event_id) for event in write.events]
            if None in stored:
                return None
            versions.append(max((event.version for event in stored if event), default=page.version))
            position = max((event.position for event in stored if event), default=position)
        return Appended(position, tuple(versions))


class LookingThenRefusing(Looking):
    """What it does not find was not stored, it says."""

    async def not_there(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        raise BackendUnavailable("the connection was lost, and the events are not there: nothing was stored")


class LookingThenRetrying(Looking):
    """What it does not find it appends again, as something new."""

    async def not_there(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        return await self.store([renamed(batch) for batch in batches])


class ResolvingWithoutIds(Wrapped):
    """Appends again after a lost reply, but neither the events nor the commands have the ids they had."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        try:
            return await self._backend.append(batches)
        except OutcomeUnknown:
            return await self.store([renamed(batch, keeps_commands=False) for batch in batches])


class Forgetting(Wrapped):
    """Stores events, and not what came of their commands."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        return await self._backend.append([[write._replace(commands=()) for write in batch] for batch in batches])


BROKEN: dict[str, Callable[[Backend], Wrapped]] = {
    "looking, then refusing": LookingThenRefusing,
    "looking, then retrying": LookingThenRetrying,
    "taking lost for refused": TakingLostForRefused,
    "resolving without ids": ResolvingWithoutIds,
    "forgetting commands": Forgetting,
}


def renamed(batch: Batch, *, keeps_commands: bool = True) -> Batch:
    """The batch as a new one, which the store cannot know."""
    batch_id = new_event_id()
    ids = chain([batch_id], iter(new_event_id, None))
    return [
        write._replace(
            events=[event._replace(event_id=next(ids), batch_id=batch_id) for event in write.events],
            commands=[each._replace(outcome_id=new_event_id()) for each in write.commands] if keeps_commands else (),
        )
        for write in batch
    ]
