"""Exit codes, and the errors that the command line itself raises."""

from __future__ import annotations

from enum import IntEnum

from eventstore.errors import BackendUnavailable, OutcomeUnknown, StoreClosed

STORE_TROUBLE = (BackendUnavailable, OutcomeUnknown, StoreClosed, TimeoutError)
"""Errors of the store as a whole: there is no point in going on with the next actor."""


class Exit(IntEnum):
    """What the command tells the shell. Documented in `eventstore --help` and docs/cli.md."""

    FINE = 0
    WRONG = 1
    USAGE = 2
    STORE = 3
    UNEXPECTED = 70
    INTERRUPTED = 130
    READER_GONE = 141


class CommandFailed(Exception):
    """What was asked for is not there, or a check found something wrong."""

    code = Exit.WRONG


class ReaderGone(CommandFailed):
    """Nobody reads the output any more, as after `| head`. There is nobody to be told, either."""

    code = Exit.READER_GONE


class OutputFailed(CommandFailed):
    """Stdout took no more, as on a full disk: the output is not complete."""

    code = Exit.STORE


class WrongUsage(CommandFailed):
    """The command line was understood, but asks for something that cannot be meant. Nothing was done."""

    code = Exit.USAGE
