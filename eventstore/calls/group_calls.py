"""GroupCalls: what a store asks its backend for many callers at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from eventstore.backend import Backend
from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.calls.group_call import GroupCall
from eventstore.contract.loading import Load, Loaded
from eventstore.contract.owner import Claim, Holder
from eventstore.contract.remembered_command import CommandLookup, CommandsFound


class GroupCalls:
    """What many actors ask at the same time: each kind of question has a queue of its own."""

    def __init__(self, backend: Backend, breaker: CircuitBreaker) -> None:
        self.loads: GroupCall[Load, Loaded] = GroupCall(backend.load, breaker)
        self.commands: GroupCall[CommandLookup, CommandsFound] = GroupCall(backend.find_commands, breaker)
        self._backend = backend
        self.claims: GroupCall[Claim, int | Holder] = GroupCall(self._claim, breaker)

    def __iter__(self) -> Iterator[GroupCall[Any, Any]]:
        return iter((self.loads, self.commands, self.claims))

    async def _claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        if len({claim.stream_id for claim in claims}) == len(claims):
            return await self._backend.claim(claims)
        # Two systems of one process want the same stream: one after the other.
        return [answer for claim in claims for answer in await self._backend.claim([claim])]
