"""The program: its commands, and the one place where what went wrong becomes a message and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer

from eventstore.cli.audit import audit
from eventstore.cli.bisect import bisect_
from eventstore.cli.blame import blame_
from eventstore.cli.completion import completion_mended
from eventstore.cli.conflicts import conflicts
from eventstore.cli.copy import copy
from eventstore.cli.dead_letters import dead_letters
from eventstore.cli.diff import diff
from eventstore.cli.doctor import doctor
from eventstore.cli.events import events
from eventstore.cli.exits import CommandFailed, Exit, ReaderGone
from eventstore.cli.export import export
from eventstore.cli.fork import fork_
from eventstore.cli.groups import other_name
from eventstore.cli.import_ import import_
from eventstore.cli.messages import Messages, logged_to
from eventstore.cli.migrate import migrate
from eventstore.cli.output import flush, write
from eventstore.cli.owners import owners
from eventstore.cli.projections import projections
from eventstore.cli.rebuild import rebuild, snapshots
from eventstore.cli.replay import replay
from eventstore.cli.replication import replication
from eventstore.cli.retention import retention
from eventstore.cli.schema import schema
from eventstore.cli.show import show
from eventstore.cli.streams import streams
from eventstore.cli.tail import tail
from eventstore.cli.verify import verify
from eventstore.cli.whatif import whatif
from eventstore.errors import (
    EventStoreError,
    ImportRefused,
    InvalidArgument,
    InvalidQuery,
    InvalidStreamId,
    InvalidTenant,
    ProjectionError,
    UpcasterError,
)

_TRACEBACK = "EVENTSTORE_TRACEBACK"

_EXIT_CODES = f"""\b
Exit codes:
    0  fine
    1  something is wrong: a difference, a store that is not healthy, upcasters that lead nowhere, nothing by that name
    2  wrong usage
    3  the store cannot be opened, or cannot serve
   70  an unexpected error ({_TRACEBACK}=1 shows where)
  130  Ctrl-C
  141  the reader of the output went away, as `head` does

\b
Example:
  eventstore tail sqlite:///bank.db --follow
"""

app = typer.Typer(
    name="eventstore",
    pretty_exceptions_enable=False,
    # Plain help: the examples keep their lines, and rich is not imported for it.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXIT_CODES,
)

for _name, _command, _summary in (
    ("streams", streams, "List the streams."),
    ("events", events, "Show the events of one stream."),
    ("tail", tail, "Show the end of the log, and follow it."),
    ("show", show, "Show the state of an actor, now or earlier."),
    ("diff", diff, "Show what changed in an actor between two versions."),
    ("blame", blame_, "Show which event set a value of an actor's state."),
    ("bisect", bisect_, "Find the event after which something does not hold any more."),
    ("fork", fork_, "Copy an actor up to a version, to a file to try things in."),
    ("replay", replay, "Fold actors again, and check their snapshots."),
    ("whatif", whatif, "Compare what two versions of your code make of the journal."),
    ("verify", verify, "Check every event and snapshot, and list what is damaged."),
    ("owners", owners, "List the processes that own actors, and what they own."),
    ("copy", copy, "Copy a journal to another store, and move to it."),
    ("export", export, "Write events as CloudEvents, one a line."),
    ("import", import_, "Append CloudEvents, one a line."),
    ("migrate", migrate, "Create the journal, or bring it up to date."),
    ("doctor", doctor, "Report what a store is, and what is wrong."),
):
    app.command(_name, short_help=_summary)(_command)
# Beside `show` and `replay` it is looked for as well.
other_name(app, "snapshot", snapshots, known_as="rebuild snapshots", short_help="Take snapshots of actors.")
app.add_typer(rebuild, name="rebuild", short_help="Make anew what is made of the events.")
app.add_typer(audit, name="audit", short_help="Questions to the whole journal.")
app.add_typer(replication, name="replication", short_help="How replicas are getting on with each other.")
app.add_typer(conflicts, name="conflicts", short_help="Events of replicas that did not know each other.")
app.add_typer(projections, name="projections", short_help="Run read models, and look after them.")
app.add_typer(dead_letters, name="dead-letters", short_help="Events that projections could not apply.")
app.add_typer(retention, name="retention", short_help="Remove old events that nobody needs any more.")
app.add_typer(schema, name="schema", short_help="Check that what is stored can be read.")


@app.callback(invoke_without_command=True)
def eventstore(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Look into a journal of events, and look after it. Commands that show something write nothing.

    On a terminal the output is a table, elsewhere it is tab-separated lines without a header, with --json it is JSON.
    """
    if show_version:
        write(f"eventstore-actors {version('eventstore-actors')}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(Exit.USAGE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit code. Errors are one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    messages = Messages(arguments)
    with logged_to(messages):
        try:
            code = _run(arguments, messages)
            flush()
        except KeyboardInterrupt:
            code = Exit.INTERRUPTED
        except ReaderGone:
            code = Exit.READER_GONE
        except Exception as error:
            code = _failed(error, messages)
        # Typer makes this code of a Ctrl-C itself, in some releases.
        if code == Exit.INTERRUPTED:
            messages.after_interrupt()
    _discard_what_cannot_be_written()
    return code


def _run(arguments: Sequence[str], messages: Messages) -> int:
    _prepare_streams(is_json=messages.is_json)
    with completion_mended(arguments):
        command = typer.main.get_command(app)
        code = command.main(list(arguments), prog_name="eventstore", standalone_mode=False, obj=messages)
    return int(code or Exit.FINE)


def _failed(error: Exception, messages: Messages) -> int:
    """Say what went wrong. Returns the exit code for it."""
    name, text, code = type(error).__name__, str(error), Exit.UNEXPECTED
    match error:
        case CommandFailed():
            code = error.code
        case ImportRefused() | UpcasterError() | ProjectionError():
            code = Exit.WRONG
        case InvalidStreamId() | InvalidTenant() | InvalidQuery() | InvalidArgument():
            code = Exit.USAGE
        case EventStoreError():
            code = Exit.STORE
        case TimeoutError():
            text, code = text or "the store did not answer in time", Exit.STORE
        case _ if (format_message := getattr(error, "format_message", None)) is not None:
            # What Typer raises for a command line it cannot parse is in another place in each of its releases.
            name, text, code = "WrongUsage", f"{format_message()} (see --help)", Exit.USAGE
        case _:
            text = f"unexpected {name}: {text}; {_TRACEBACK}=1 shows where"
    if os.environ.get(_TRACEBACK) and code != Exit.USAGE:
        sys.stderr.write(messages.masked("".join(traceback.format_exception(error))))
    messages.error(text, name=name, code=code)
    return code


def _prepare_streams(*, is_json: bool) -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # The program was started with it closed.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, TextIOWrapper):
            # What the terminal's encoding lacks is escaped. JSON has one encoding.
            stream.reconfigure(errors="backslashreplace", encoding="utf-8" if is_json else None)


def _discard_what_cannot_be_written() -> None:
    """Flush; where that fails, let the interpreter flush into nothing at exit, instead of failing once more."""
    try:
        sys.stdout.flush()
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
