"""The reference of the command line, made of the commands themselves: `python -m eventstore.cli.reference docs/cli.md`.

What stands in the page above the mark is written by hand, and stays.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import typer

from eventstore.cli.app import app
from eventstore.cli.shape import Shape, in_words
from eventstore.cli.shapes import SHAPES

MARK = "<!-- What follows is made of the commands: `make reference`. -->"

# What Typer's commands and parameters are is in another place in each of its releases, so they are not named here.
_Command = Any
_Parameter = Any


class Described(NamedTuple):
    """A command, or a group of commands, and its name with those of the groups that it is in."""

    name: str
    command: _Command

    @property
    def is_group(self) -> bool:
        return hasattr(self.command, "commands")


def described() -> Iterator[Described]:
    """Every command and every group, each group before its commands."""
    yield from _below("eventstore", typer.main.get_command(app))


def reference() -> str:
    """The reference, as Markdown."""
    commands = [each for each in described() if each.name != "eventstore"]
    return "\n\n".join([f"{MARK}\n\n## Reference", *map(_section, commands)]) + "\n"


def brought_up_to_date(page: str) -> str:
    """A page with the reference as it is now below the mark."""
    head, mark, _ = page.partition(MARK)
    if not mark:
        raise ValueError(f"the page has no line: {MARK}")
    return head + reference()


def _below(name: str, command: _Command) -> Iterator[Described]:
    yield Described(name, command)
    for part, inner in getattr(command, "commands", {}).items():
        yield from _below(f"{name} {part}", inner)


def _section(each: Described) -> str:
    text, examples = _description(each.command.help)
    parameters = [parameter for parameter in each.command.params if not parameter.hidden]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    parts = [f"### {each.name}", f"```\n{_synopsis(each, arguments, options)}\n```", *text]
    if each.is_group:
        parts.append("\n".join(_commands(each)))
    if arguments:
        parts.append("**Arguments**\n\n" + "\n".join(_parameter(each, argument) for argument in arguments))
    if options:
        parts.append("**Options**\n\n" + "\n".join(_parameter(each, option) for option in options))
    if shapes := SHAPES.get(each.name.removeprefix("eventstore ")):
        parts.append("**With `--json`**, an object a line\n\n" + "\n".join(map(_shape, shapes)))
    if not each.is_group:
        own = "1 as said above, the others " if re.search(r"exit code is 1|exits with 1", each.command.help) else ""
        parts.append(f"**Exit codes**: {own}[as everywhere](#exit-codes)")
    parts.append(f"**{'Examples' if examples.count(chr(10)) else 'Example'}**\n\n```sh\n{examples}\n```")
    return "\n\n".join(parts)


def _description(text: str) -> tuple[list[str], str]:
    """The paragraphs of a command's help, and its examples."""
    paragraphs: list[str] = []
    examples: list[str] = []
    for part in dedent(text).strip().split("\n\n"):
        if part.startswith("\b"):
            _, _, *lines = part.splitlines()
            examples += [line.strip() for line in lines]
        else:
            paragraphs.append(_plain(" ".join(part.split())))
    return paragraphs, "\n".join(examples)


def _synopsis(each: Described, arguments: Sequence[_Parameter], options: Sequence[_Parameter]) -> str:
    words = [each.name]
    words += [f"{option.opts[0]} {option.metavar}" for option in options if option.required]
    if not all(option.required for option in options):
        words.append("[OPTION]...")
    words += [_shown(argument) for argument in arguments]
    if each.is_group:
        words.append("COMMAND")
    return " ".join(words)


def _shown(argument: _Parameter) -> str:
    """An argument in the synopsis: in brackets where it may be left out, with dots where it may come again."""
    name = _name(argument)
    return f"{name if argument.required else f'[{name}]'}{'...' if argument.nargs < 0 else ''}"


def _name(parameter: _Parameter) -> str:
    return str(parameter.metavar or parameter.name.upper()).strip("[].")


def _parameter(each: Described, parameter: _Parameter) -> str:
    name = _name(parameter)
    if parameter.param_type_name == "option":
        names = ", ".join(parameter.opts)
        name = names if parameter.is_flag else f"{names} {name}"
    # The help with what the parser knows of it: whether it is required, its default, and its bounds.
    context = each.command.context_class(each.command, info_name=each.name)
    text = re.sub(r" *\[([^]]*)\]$", r" (\1)", str(parameter.get_help_record(context)[1]))
    return f"* `{name}`: {_plain(text.strip())}".rstrip(": ")


def _commands(each: Described) -> Iterator[str]:
    for name, command in each.command.commands.items():
        summary = _plain(str(command.short_help or _description(command.help)[0][0]))
        yield f"* [`{each.name} {name}`](#{f'{each.name} {name}'.replace(' ', '-')}): {summary}"


def _shape(shape: Shape) -> str:
    return f"* {shape.of}: {in_words(shape.fields)}"


def _plain(text: str) -> str:
    """Text in which Markdown sees nothing but text, and code where there are backticks and options."""
    parts = text.split("`")
    parts[::2] = [
        re.sub(r"(?<![\w-])--[a-z][a-z-]*", r"`\g<0>`", re.sub(r"[*<_|\[\]\\]", r"\\\g<0>", part))
        for part in parts[::2]
    ]
    return "`".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Bring pages up to date."""
    for name in arguments:
        page = Path(name)
        page.write_text(brought_up_to_date(page.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
