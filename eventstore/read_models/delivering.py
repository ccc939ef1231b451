"""Delivering: events of the log are decoded and given to the handlers of a projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from eventstore.codec import decode_parts, decode_together
from eventstore.collector import collector_paused
from eventstore.contract.checkpoint import Checkpoint, Status
from eventstore.contract.record_page import RecordPage
from eventstore.errors import BackendUnavailable, OutcomeUnknown, ProjectionError, StoreClosed
from eventstore.event_batch import EventBatch
from eventstore.events import Event, RecordedEvent
from eventstore.projections import Handler, Projection

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

TROUBLE = (BackendUnavailable, OutcomeUnknown)
"""The database's own: nothing is known to be wrong with an event."""

_P = TypeVar("_P", bound=Projection)
_ByType = Mapping[type[Event], Handler | None]


async def handle_events(
    projection: type[Projection],
    checkpoint: Checkpoint,
    events: Sequence[RecordedEvent],
    connection: AsyncConnection | None,
) -> None:
    """Hand events to the handlers of a version. Raises `Poison` for one that cannot be applied."""
    made = new(projection, checkpoint)
    try:
        await _delivered(made, RecordPage.of(events), connection)
        await made.flush(connection)
    except (*TROUBLE, StoreClosed):
        raise
    except Exception as error:
        raise Poison from error


def new(projection: type[_P], checkpoint: Checkpoint) -> _P:
    """The projection for one batch of a version."""
    made = projection()
    made.version = checkpoint.version
    made.partition = checkpoint.partition
    made.is_building = checkpoint.status is Status.BUILDING
    return made


async def _delivered(made: Projection, page: RecordPage, connection: AsyncConnection | None) -> None:
    if any(handler.is_async or handler.takes_connection for handler in made.handlers.values()):
        events, page = _decoded(page)
        chosen = _chosen(made, events)
        await _one_after_another(made, chosen, events, page, connection)
        for handler, batch in _batches(chosen, events, page):
            done = handler.handle(made, batch, connection) if handler.takes_connection else handler.handle(made, batch)
            if handler.is_async:
                await done
    else:
        # What is made here dies here, so the garbage collector need not see it: it would look through the whole program
        # every forty pages, which took a third of the time.
        with collector_paused():
            _delivered_at_once(made, page)


def _delivered_at_once(made: Projection, page: RecordPage) -> None:
    """The same for handlers that wait for nothing."""
    events, page = _decoded(page)
    chosen = _chosen(made, events)
    _one_by_one(made, chosen, events, page)
    for handler, batch in _batches(chosen, events, page):
        handler.handle(made, batch)


def _chosen(made: Projection, events: Sequence[Event]) -> _ByType:
    """The handler of each type of event, if it has one."""
    return {cls: made.handlers.get(cls) or made.handlers.get(Event) for cls in set(map(type, events))}


def _decoded(page: RecordPage) -> tuple[Sequence[Event], RecordPage]:
    """The events of records. What older code has stored may have become several, with the same record each."""
    with collector_paused():
        events = decode_together(page)
    if events is not None:
        return events, page
    parts = [(event, recorded) for recorded in page for event in decode_parts(recorded)]
    return [event for event, _ in parts], RecordPage.of([recorded for _, recorded in parts])


def _one_by_one(made: Projection, chosen: _ByType, events: Sequence[Event], page: RecordPage) -> None:
    """Call handlers that wait for nothing."""
    wanted = {cls: handler for cls, handler in chosen.items() if handler is not None and not handler.takes_batch}
    if not wanted:
        return
    if not any(handler.takes_record for handler in wanted.values()):
        for event in events:
            if (handler := wanted.get(event.__class__)) is not None:
                handler.handle(made, event)
    elif len(chosen) == 1:
        (handle,) = (handler.handle for handler in wanted.values())
        for event, recorded in zip(events, page, strict=True):
            handle(made, event, recorded)
    else:
        for event, recorded in zip(events, page, strict=True):
            if (handler := wanted.get(event.__class__)) is not None:
                if handler.takes_record:
                    handler.handle(made, event, recorded)
                else:
                    handler.handle(made, event)


async def _one_after_another(
    made: Projection, chosen: _ByType, events: Sequence[Event], page: RecordPage, connection: AsyncConnection | None
) -> None:
    """Call handlers, and wait for those that do."""
    if all(handler is None or handler.takes_batch for handler in chosen.values()):
        return
    for event, recorded in zip(events, page, strict=True):
        handler = chosen[event.__class__]
        if handler is None or handler.takes_batch:
            continue
        arguments: list[Any] = [event]
        if handler.takes_record:
            arguments.append(recorded)
        if handler.takes_connection:
            arguments.append(connection)
        done = handler.handle(made, *arguments)
        if handler.is_async:
            await done


def _batches(chosen: _ByType, events: Sequence[Event], page: RecordPage) -> Sequence[tuple[Handler, EventBatch[Event]]]:
    """What each handler gets that wants all of its events at once."""
    handlers = {handler.name: handler for handler in chosen.values() if handler is not None and handler.takes_batch}
    if not handlers:
        return ()
    names = {cls: handler and handler.name for cls, handler in chosen.items()}
    if len(set(names.values())) == 1:
        return [(handler, EventBatch(events, page)) for handler in handlers.values()]
    batches: list[tuple[Handler, EventBatch[Event]]] = []
    for name, handler in sorted(handlers.items()):
        wanted = [names[event.__class__] == name for event in events]
        own = [event for event, is_wanted in zip(events, wanted, strict=True) if is_wanted]
        batches.append((handler, EventBatch(own, page.only(wanted))))
    return batches


class Poison(ProjectionError):
    """What could not be applied is chained."""
