"""CellRuntime: what live actors need of the process that they live in."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Literal, Protocol

from actors.actor import PersistentActor
from actors.cells.mailbox import Envelope
from eventstore.backend import CommandLookup, CommandOutcome, CommandsFound
from eventstore.calls.group_commit import GroupCommit

if TYPE_CHECKING:
    from actors.cells.cell import Cell
    from actors.cells.living_cell import LivingCell


class CellRuntime(Protocol):
    """What a cell needs of the runtime it lives in."""

    loop: asyncio.AbstractEventLoop
    new_reply: Callable[[], asyncio.Future[Any]]
    commits: GroupCommit
    mailbox_size: int
    mailbox_overflow: Literal["reject", "wait"]
    max_payload_bytes: int
    has_inline: bool
    is_open: bool
    is_shut: bool

    def start_task(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None) -> object: ...

    def recover(self, cell: LivingCell, pause: float) -> Coroutine[Any, Any, None]: ...

    def catch_up(self, cell: Cell) -> Coroutine[Any, Any, None]: ...

    def find_command(self, lookup: CommandLookup) -> Coroutine[Any, Any, CommandsFound]: ...

    def owns_streams(self, lease: int) -> bool: ...

    def is_exclusive(self, cls: type[PersistentActor[Any]]) -> bool: ...

    def forget(self, cell: LivingCell) -> None: ...

    def supervise(self, cell: LivingCell, error: BaseException) -> None: ...

    def save_snapshot(self, cell: LivingCell, version: int, data: bytes) -> None: ...

    def command_remembered(self, cell: LivingCell, outcome: CommandOutcome) -> None: ...

    def tell_failed(self, cell: LivingCell, envelope: Envelope, error: BaseException) -> None: ...
