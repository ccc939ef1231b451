"""Versions on the command line: numbers, or moments that a version belongs to."""

from __future__ import annotations

from datetime import datetime

from eventstore.backend import Loaded
from eventstore.cli.arguments import MOST
from eventstore.cli.exits import CommandFailed, WrongUsage
from eventstore.cli.output import timestamp
from eventstore.errors import JournalCorrupt
from eventstore.events import RecordedEvent
from eventstore.store import EventStore


async def head_of(store: EventStore, stream_id: str) -> Loaded:
    """Where an actor's stream is. Raises `CommandFailed` if it has no events."""
    head = await store.head(stream_id)
    if head.version == 0:
        raise CommandFailed(f"there is no actor {stream_id!r}: it has no events")
    return head


async def version_of(store: EventStore, stream_id: str, head: Loaded, wanted: int | datetime) -> int:
    """The version that is meant, by its number or by a moment. Raises `CommandFailed` if there was none."""
    if isinstance(wanted, datetime):
        return await version_at(store, stream_id, head, wanted)
    if wanted > head.version:
        raise CommandFailed(f"{stream_id!r} is at version {head.version}: there is no version {wanted} yet")
    return wanted


def parse_version(text: str) -> int | datetime:
    """A version's number, or a moment."""
    if text.isdecimal() and text.isascii():
        if len(text) > len(str(MOST)):
            raise WrongUsage(f"{text!r} is greater than any version: give one that there is, such as 3")
        return int(text)
    if not ("0" <= text[:1] <= "9"):
        raise WrongUsage(f"{text!r} is neither a version, such as 3, nor a time, such as 2026-01-31T12:00:00Z")
    return parse_moment(text)


def parse_wanted(at: str | None, at_time: str | None) -> int | datetime | None:
    """What `--at` and `--at-time` ask for; None: neither was given."""
    if at is not None and at_time is not None:
        raise WrongUsage("--at and --at-time exclude each other: give one of them")
    if at_time is not None:
        return parse_moment(at_time, name="--at-time ")
    if at is None:
        return None
    if not (at.isdecimal() and at.isascii() and len(at) <= len(str(MOST)) and int(at) <= MOST):
        raise WrongUsage(
            f"--at {at!r} is no version, which is a number from 0 on; a time is given as --at-time, in ISO 8601 with "
            "an offset, such as 2026-01-31T12:00:00Z"
        )
    return int(at)


def parse_moment(text: str, *, name: str = "") -> datetime:
    """A moment out of ISO 8601. A time without an offset is refused: guessing its zone would show another state."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise WrongUsage(f"{name}{text!r} is no ISO 8601 time, such as 2026-01-31T12:00:00Z") from error
    if moment.tzinfo is None:
        raise WrongUsage(f"{name}{text!r} has no offset: add Z for UTC, or one such as +01:00")
    return moment


async def version_at(store: EventStore, stream_id: str, head: Loaded, moment: datetime) -> int:
    """The version a stream had at a moment: that of the last event recorded then or before.

    It is found by bisection, because the times of one stream never go back.
    """
    before, through = head.truncated, head.version
    while before < through:
        middle = (before + through + 1) // 2
        if (await event_at(store, stream_id, middle)).recorded_at <= moment:
            before = middle
        else:
            through = middle - 1
    if before > head.truncated:
        return before
    if head.truncated:
        raise CommandFailed(
            f"the state of {stream_id!r} at that time is not known: "
            f"its events up to version {head.truncated} were removed"
        )
    first = timestamp((await event_at(store, stream_id, 1)).recorded_at)
    raise CommandFailed(f"{stream_id!r} did not exist then: its first event was recorded at {first}")


async def event_at(store: EventStore, stream_id: str, version: int) -> RecordedEvent:
    """One event. Raises `JournalCorrupt` if it is not there."""
    async for recorded in store.read(stream_id, after=version - 1, limit=1):
        if recorded.version == version:
            return recorded
    raise JournalCorrupt(f"the event at version {version} is missing", stream_id=stream_id, version=version)
