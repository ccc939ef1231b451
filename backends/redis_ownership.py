"""RedisLease: a process's lease, on a connection of its own; and claims, as the scripts take and answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redis import exceptions as driver

from backends.redis_connection import Argument, RedisConnection, ReplyLost, Script, translated
from backends.redis_journal import RedisJournal
from backends.redis_ownership_scripts import END, RENEW
from backends.redis_tenant import RedisTenant, split
from backends.redis_url import RedisTarget
from eventstore.backend import Claim, Holder, Holding, Owner, OwnerInfo

_MICROSECONDS = 1_000_000


class RedisLease:
    """Used by one event loop, which is not the backend's. It connects when it is first renewed, and again after a
    failure."""

    def __init__(self, target: RedisTarget, journal: RedisJournal, tenant: RedisTenant, owner: Owner) -> None:
        self._connection = RedisConnection(target)
        self._journal = journal
        self._owner = owner._replace(id=tenant.owner(owner.id))
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


def claim_arguments(tenant: RedisTenant, claims: Sequence[Claim]) -> list[Argument]:
    arguments: list[Argument] = [len(claims), *(tenant.name(claim.stream_id) for claim in claims)]
    for _, owner, lapsed in claims:
        arguments += (tenant.owner(owner) if owner else b"", -1 if lapsed is None else lapsed)
    return arguments


def claim_answer(tenant: RedisTenant, answer: Any) -> int | Holder:
    if isinstance(answer, int):
        return answer
    holder, name, renewals, duration, remaining = answer
    owner = tenant.own_owner(holder) or holder
    return Holder(owner, name.decode(), renewals, duration / _MICROSECONDS, remaining / _MICROSECONDS)


def release_arguments(tenant: RedisTenant, owner: bytes, epochs: Mapping[str, int]) -> list[Argument]:
    return [tenant.owner(owner), len(epochs), *map(tenant.name, epochs), *epochs.values()]


def owner_infos(tenant: RedisTenant, reply: Sequence[Any]) -> list[OwnerInfo]:
    """The tenant's own, by name."""
    found = [
        OwnerInfo(owner, name.decode(), renewals, remaining / _MICROSECONDS, report)
        for stored, name, renewals, remaining, report in reply
        if (owner := tenant.own_owner(stored)) is not None
    ]
    return sorted(found, key=lambda info: (info.name, info.id))


def found_holdings(tenant: RedisTenant, reply: Sequence[Any]) -> list[Holding]:
    return [
        Holding(split(reply[index])[1], reply[index + 1], tenant.own_owner(reply[index + 2]) or reply[index + 2])
        for index in range(0, len(reply), 3)
    ]
