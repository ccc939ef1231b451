"""`eventstore bisect`: the event after which something does not hold any more of an actor's state."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from types import CodeType
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from actors.actor import PersistentActor, stream_id_of
from actors.canonical import is_object
from actors.time_travel.bisection import Bisected, BisectionRefused, Predicate, PredicateRaised, bisect
from eventstore.cli.arguments import Address, Full, Json, Key, Target, Tenant, Url
from eventstore.cli.escaping import escaped, printable_json
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.output import counted, json_cell, timestamp, write_fields, write_json
from eventstore.cli.recorded import event_record
from eventstore.cli.targets import actor_class
from eventstore.cli.versions import event_at, head_of, parse_version, version_of
from eventstore.events import RecordedEvent

_LONGEST_STATE = 200


def bisect_(
    url: Url,
    target: Target,
    key: Key,
    expression: Annotated[
        str, typer.Argument(metavar="EXPRESSION", help="What should hold, such as 'amount >= 0'.", show_default=False)
    ],
    after: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Begin here, where it holds: a version, or a time.")
    ] = None,
    through: Annotated[
        str | None, typer.Option(metavar="VERSION", help="End here, where it does not hold: a version, or a time.")
    ] = None,
    full: Full = False,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Find the event after which something that held of an actor's state does not hold any more.

    EXPRESSION is Python, with the names `state`, `version`, and those of the state's fields. It is evaluated as code of
    your own, in this process: it can do whatever you can. What it prints goes to stderr. Few states are looked at:
    twenty of a million. Where the expression fails and holds again in between, the event found is one of several. The
    exit code is 1 if it holds at the end, does not hold at the beginning, or raises; the state that it raised for is
    named.

    \b
    Examples:
      eventstore bisect sqlite:///bank.db bank:Account alice 'amount >= 0'
      eventstore bisect sqlite:///bank.db bank:Account alice 'len(state.history) < 3' --after 1 --through 20
    """
    predicate = predicate_of(expression)
    ends = [None if text is None else parse_version(text) for text in (after, through)]
    return asyncio.run(
        _bisect(Address(url, tenant), actor_class(target), key, expression, predicate, ends, full=full, json=json)
    )


def predicate_of(expression: str) -> Predicate:
    """The function that evaluates a Python expression with a state and its fields as names. Raises `WrongUsage`."""
    try:
        code: CodeType = compile(expression.strip(), "<expression>", "eval")
    except (SyntaxError, ValueError) as error:
        raise WrongUsage(f"the expression {expression!r} is no Python expression: {error}") from error

    def holds(state: Any, version: int) -> object:
        # One dictionary for all names, because what is nested in an expression does not see a second.
        names = {**_fields_of(state), "state": state, "version": version}
        try:
            # What it prints is not the command's output.
            with redirect_stdout(sys.stderr):
                return bool(eval(code, names))  # noqa: S307
        except SystemExit as error:
            raise WrongUsage(f"the expression {expression!r} ends the program: write what should hold") from error

    return holds


def _fields_of(state: Any) -> Mapping[str, Any]:
    if isinstance(state, BaseModel):
        return {name: getattr(state, name) for name in type(state).model_fields}
    if is_dataclass(state):
        return {field.name: getattr(state, field.name) for field in fields(state)}
    if is_object(state):
        return state
    return {}


async def _bisect(
    address: Address,
    cls: type[PersistentActor[Any]],
    key: str,
    expression: str,
    predicate: Predicate,
    ends: list[Any],
    *,
    full: bool,
    json: bool,
) -> Exit:
    stream_id = stream_id_of(cls, key)
    async with address.store() as store:
        head = await head_of(store, stream_id)
        after, through = [None if each is None else await version_of(store, stream_id, head, each) for each in ends]
        try:
            found = await bisect(store, cls, key, predicate, after=after, through=through, use_snapshots=not full)
        except BisectionRefused as error:
            raise CommandFailed(str(error)) from error
        except PredicateRaised as error:
            if isinstance(error.__cause__, WrongUsage):
                raise error.__cause__ from None
            shown = printable_json(error.state.decode())
            shown = shown if len(shown) <= _LONGEST_STATE else f"{shown[:_LONGEST_STATE]}…"
            raise CommandFailed(f"{error}; the state there is {shown}") from error
        event = await event_at(store, stream_id, found.version)
    if json:
        record = {"expression": expression, "tried": list(found.tried), "folded": found.folded}
        write_json({**record, **event_record(event)})
    else:
        write_fields(_described(stream_id, expression, found, event))
    return Exit.FINE


def _described(stream_id: str, expression: str, found: Bisected, event: RecordedEvent) -> dict[str, str]:
    tried, folded = len(found.tried), found.folded
    described = {
        "actor": escaped(stream_id),
        "holds": f"{escaped(expression)} at version {found.version - 1}, and not at version {found.version}",
        "event": f"{escaped(event.type)} {event.event_id}",
        "payload": json_cell(event.payload),
        "recorded": timestamp(event.recorded_at),
    }
    if event.metadata is not None and event.metadata.command_id is not None:
        described["command"] = escaped(event.metadata.command_id)
    if event.metadata is not None and event.metadata.user is not None:
        described["user"] = escaped(event.metadata.user)
    described["looked at"] = f"{counted(tried, 'state')}, {counted(folded, 'event')} folded"
    return described
