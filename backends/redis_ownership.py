"""RedisLease: a process's lease, on a connection of its own; and claims, as the scripts take and answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis import exceptions as driver

from backends.redis_connection import Argument, RedisConnection, ReplyLost, Script, translated
from backends.redis_journal import RedisJournal
from backends.redis_ownership_scripts import END, RENEW
from backends.redis_url import RedisTarget
from eventstore.backend import Claim, Holder, Holding, Owner, OwnerInfo

_MICROSECONDS = 1_000_000


class RedisLease:
    """Used by one event loop, which is not the backend's. It connects when it is first renewed, and again after a
    failure."""

    def __init__(self, target: RedisTarget, journal: RedisJournal, owner: Owner) -> None:
        self._connection = RedisConnection(target)
        self._journal = journal
        self._owner = owner
        # A renewal whose reply was lost may have begun it.
        self._may_run = False

    async def renew(self, report: bytes) -> None:
        self._may_run = True
        owner, name, seconds = self._owner
        await self._write(RENEW, [owner, name.encode(), round(seconds * _MICROSECONDS), report])

    async def end(self) -> None:
        try:
            if self._may_run:
                await self._write(END, [self._owner.id])
                self._may_run = False
        finally:
            await self._connection.close()

    async def _write(self, script: Script, arguments: Sequence[Argument]) -> None:
        journal = self._journal
        try:
            await self._connection.run(script, journal.key, [*journal.arguments, *arguments])
        except (ReplyLost, driver.RedisError) as error:
            raise translated(error, writing=True) from error


def claim_arguments(claims: Sequence[Claim]) -> list[Argument]:
    arguments: list[Argument] = [len(claims), *(claim.stream_id.encode() for claim in claims)]
    for _, owner, lapsed in claims:
        arguments += (owner or b"", -1 if lapsed is None else lapsed)
    return arguments


def claim_answer(answer: Any) -> int | Holder:
    if isinstance(answer, int):
        return answer
    owner, name, renewals, duration, remaining = answer
    return Holder(owner, name.decode(), renewals, duration / _MICROSECONDS, remaining / _MICROSECONDS)


def release_arguments(owner: bytes, epochs: Mapping[str, int]) -> list[Argument]:
    return [owner, len(epochs), *(stream_id.encode() for stream_id in epochs), *epochs.values()]


def owner_infos(reply: Sequence[Any]) -> list[OwnerInfo]:
    """By name."""
    found = [
        OwnerInfo(owner, name.decode(), renewals, remaining / _MICROSECONDS, report)
        for owner, name, renewals, remaining, report in reply
    ]
    return sorted(found, key=lambda info: (info.name, info.id))


def found_holdings(reply: Sequence[Any]) -> list[Holding]:
    return [Holding(reply[index].decode(), reply[index + 1], reply[index + 2]) for index in range(0, len(reply), 3)]
