"""CommandMemory: what a live actor knows of the commands that its journal remembers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from actors.cells.mailbox import Envelope
from actors.cells.replies import read_reply
from actors.command import Command
from actors.command_identity import CommandIdentity
from eventstore.backend import CommandLookup, CommandsFound
from eventstore.errors import (
    CodecError,
    CommandForgotten,
    CommandRejected,
    DefinitionError,
    DuplicateCommand,
    DuplicateCommandMismatch,
)

# So many ids are asked for when an actor gets its first command with an id, and so many are kept at most.
_RECENT = 256
_MOST = 4 * _RECENT


class CommandMemory:
    """The remembered ids above a floor, in the order of their bytes: an id above it that is not here is new.

    Ids that rise, as UUIDv7 do, are above it for good. Of others it must be asked for each once there are many. It is
    only what this process knows: another may have stored more, which the append finds out.
    """

    __slots__ = ("_find", "_floor", "_forgotten", "_ids", "_is_loaded", "_stream_id")

    def __init__(self, stream_id: str, find: Callable[[CommandLookup], Awaitable[CommandsFound]]) -> None:
        self._stream_id = stream_id
        self._find = find
        self._ids: set[str] = set()
        self._floor: str | None = None
        self._forgotten = 0
        self._is_loaded = False

    def is_new(self, identity: CommandIdentity) -> bool:
        """Whether the command is certainly not remembered, as far as this process knows, nor forgotten."""
        command_id, _, issued_at = identity
        if self._floor is None or command_id in self._ids:
            return False
        return command_id > self._floor and not 0 < issued_at <= self._forgotten

    def add(self, command_id: str) -> None:
        """This one is remembered from now on."""
        if self._floor is None:
            return
        self._ids.add(command_id)
        if len(self._ids) > _MOST:
            rising = sorted(self._ids)
            self._ids = set(rising[_MOST // 2 :])
            self._floor = rising[_MOST // 2 - 1]

    async def look_up(self, command_id: str) -> CommandsFound:
        """What the journal says of an id."""
        found = await self._find(CommandLookup(self._stream_id, command_id, 0 if self._is_loaded else _RECENT))
        if not self._is_loaded:
            self._is_loaded = True
            self._ids = set(found.recent)
            self._floor = found.known_above
        self._forgotten = max(self._forgotten, found.forgotten)
        return found

    async def recall(self, envelope: Envelope, identity: CommandIdentity) -> bool:
        """Ask the journal for a command. Returns whether the envelope has got its result or its error by that."""
        command_id, fingerprint, issued_at = identity
        found = await self.look_up(command_id)
        stored = found.outcome
        if stored is None:
            if 0 < issued_at <= found.forgotten:
                envelope.error = CommandForgotten(self._stream_id, command_id)
            elif envelope.is_decided:
                envelope.error = DuplicateCommand(self._stream_id, command_id)
        elif stored.fingerprint != fingerprint:
            envelope.error = DuplicateCommandMismatch(self._stream_id, command_id)
        else:
            try:
                envelope.result = read_reply(cast("type[Command[Any]]", type(envelope.command)), stored)
            except (CommandRejected, CodecError, DefinitionError) as error:
                envelope.error = error
        return stored is not None or envelope.error is not None
