"""Repetition: whether a transaction with an id was stored before, by what each of its actors remembers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.transactions.participant import Participant
from eventstore.errors import CommandForgotten, ConcurrencyError, DuplicateCommandMismatch, EventStoreError


class Repetition:
    """Found out from the first command on; every further actor must know the same."""

    def __init__(self) -> None:
        self.streams: tuple[str, ...] | None = None
        """Those of all participants, where the transaction was stored before."""

    @property
    def is_known(self) -> bool:
        """Whether it was stored before."""
        return self.streams is not None

    async def contradiction(
        self, participant: Participant, before: Sequence[Participant], command_id: str
    ) -> EventStoreError | None:
        """Learn from one more participant; what is wrong if it knows another thing than those before it."""
        if participant.remembered is not None:
            if participant.remembered != self.streams and before:
                return await self._surprise(participant, participant.remembered, before, command_id)
            self.streams = participant.remembered
        elif self.streams is not None:
            if participant.stream_id in self.streams:
                return CommandForgotten(participant.stream_id, command_id)
            return DuplicateCommandMismatch(participant.stream_id, command_id)
        return None

    def check_end(self, asked: Mapping[str, Participant], command_id: str) -> None:
        """Raises `DuplicateCommandMismatch` unless the same was asked of the same actors as when it was stored."""
        streams = self.streams or ()
        if set(asked) != set(streams):
            raise DuplicateCommandMismatch(next(iter(streams), ""), command_id)
        for participant in asked.values():
            participant.check_repeated(command_id)

    async def _surprise(
        self, participant: Participant, remembered: tuple[str, ...], before: Sequence[Participant], command_id: str
    ) -> EventStoreError:
        """Why one participant remembers the transaction, and those before it have taken it for new."""
        for earlier in before:
            # Another process may have stored it after they were asked.
            if await earlier.remembers_by_now(command_id):
                return ConcurrencyError(earlier.stream_id, "", None)
        forgetful = [earlier.stream_id for earlier in before if earlier.stream_id in remembered]
        if self.streams is None and forgetful:
            return CommandForgotten(forgetful[0], command_id)
        return DuplicateCommandMismatch(participant.stream_id, command_id)
