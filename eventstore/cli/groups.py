"""Groups of commands: `eventstore GROUP COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from eventstore.cli.exits import Exit


def command_group(summary: str, example: str) -> typer.Typer:
    """A group, which shows its help where no command is named, as wrong usage. The example is without the program."""
    group = typer.Typer(
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )

    text = f"{summary}\n\n\b\nExample:\n  eventstore {example}"
    group.callback(invoke_without_command=True, help=text)(_show_help)
    return group


def other_name(group: typer.Typer, name: str, command: Callable[..., Exit], *, known_as: str, short_help: str) -> None:
    """Let a command have another name, in a group where it is looked for, too. Both are as typed behind the program."""
    text = (command.__doc__ or "").replace(known_as, name)
    group.command(name.rpartition(" ")[2], short_help=short_help, help=text)(command)


def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(Exit.USAGE)
