"""CommandRetention: for how long an actor's commands are remembered by their ids."""

from __future__ import annotations

from dataclasses import dataclass

from eventstore.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class CommandRetention:
    """Set it on the class: `command_retention = CommandRetention(count=1000)`. By default the outcomes of commands
    are kept until the stream is truncated beyond them.

    The newest `count` outcomes are always there, and so are those stored within the last `seconds`; with both, an
    outcome is kept as long as either holds. What is older is removed from time to time, so it may still be there. Once
    it is gone, a command that comes again is refused with `CommandForgotten` if its id tells when it was made
    (`new_command_id`, any UUIDv7). With other ids nobody can tell, and the command is handled again.
    """

    count: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.count is None and self.seconds is None:
            raise DefinitionError("CommandRetention: give a count, seconds, or both")
        if (self.count is not None and self.count < 1) or (self.seconds is not None and self.seconds <= 0):
            raise DefinitionError("CommandRetention: count is 1 or more, and seconds are above zero")
