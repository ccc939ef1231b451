"""Phase: what a live actor does."""

from __future__ import annotations

from enum import Enum, auto


class Phase(Enum):
    """What a cell does, and with that whether it may take commands."""

    RECOVERING = auto()
    LIVE = auto()
    HANDLING = auto()
    """An async handler runs."""
    HELD = auto()
    """A transaction has it for itself."""
    PAUSED = auto()
    """It failed, and waits for its restart."""
    STOPPED = auto()
    """The system has closed."""
    PASSIVE = auto()
    """It has left memory: whoever still holds it must ask the system for a new one."""
