"""The console script `eventstore`, which a Ctrl-C ends quietly from its first moment on: it imports nothing at first.

To import the command line takes half a second, in which Python would answer a Ctrl-C with a traceback, or even let the
import go on without it.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

_INTERRUPTED = 130
"""`eventstore.cli.exits.Exit.INTERRUPTED`, which is not there yet."""


def main() -> int:
    """Run the command line, and return its exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        # It is not to be ended by that, as behind `nohup`, or behind `&` in a script.
        return _imported()()
    signal.signal(signal.SIGINT, _end)
    try:
        run = _imported()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        _end()
    finally:
        # Nothing is left to be done but to go.
        signal.signal(signal.SIGINT, _end)


def _imported() -> Callable[[], int]:
    from eventstore.cli.app import main as run

    return run


def _end(_number: int = signal.SIGINT, _frame: FrameType | None = None) -> NoReturn:
    """End at once: before a command is at work nothing has to be closed, and after it all is."""
    if os.isatty(2):
        # The shell's prompt stands on a line of its own, behind the `^C` of the terminal.
        os.write(2, b"\n")
    os._exit(_INTERRUPTED)
