"""`eventstore schema`: whether events that are stored can be read, by the code at hand and by that to come."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from eventstore.cli.arguments import Address, Json, Tenant, Url, whole
from eventstore.cli.compatibility import Change, Verdict, changes
from eventstore.cli.decoding import Broken, JournalCheck
from eventstore.cli.described import Modules, as_json, read_description
from eventstore.cli.escaping import escaped, one_line, printable
from eventstore.cli.exits import Exit, OutputFailed
from eventstore.cli.groups import command_group
from eventstore.cli.messages import Messages
from eventstore.cli.output import View, counted, listing, write, write_json, write_line
from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.upcasters import UPCASTERS

schema = command_group("Check that what is stored can be read.", "schema check sqlite:///bank.db bank")

ModuleNames = Annotated[
    list[str],
    typer.Argument(
        metavar="MODULE...",
        help="Modules that define events and actors, such as bank; those of the current directory are found too.",
        show_default=False,
    ),
]


@schema.command(short_help="Write the JSON Schema of every event, command and state.")
def export(
    modules: ModuleNames,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to a file, in the place of what is there."),
    ] = None,
) -> Exit:
    """Write the JSON Schema of every event, command and state that the modules define, as one JSON document.

    Keep it beside the code: what has changed is seen in its differences, and by `eventstore schema diff`.

    \b
    Example:
      eventstore schema export bank --output schema.json
    """
    exported = as_json(Modules(modules).describe())
    if output is None:
        write(exported.decode())
        return Exit.FINE
    try:
        output.write_bytes(exported)
    except OSError as error:
        raise OutputFailed(f"{output} cannot be written: {error.strerror}") from error
    return Exit.FINE


@schema.command(short_help="Decode the journal with the code at hand.")
def check(
    context: typer.Context,
    url: Url,
    modules: ModuleNames,
    all: Annotated[bool, typer.Option("--all", help="Decode every event, not a sample.")] = False,
    sample: Annotated[int, typer.Option(metavar="N", parser=whole(1), help="About so many events.")] = 1000,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Decode the real journal with the code at hand, and list what can no longer be read.

    It checks too that the actors of the modules have a handler for every event in their streams. A sample is the oldest
    and the newest events of each type that the modules know, and stretches of the log that lie apart. Nothing is
    written. The exit code is 1 if anything cannot be read: for a deployment's pipeline.

    \b
    Examples:
      eventstore schema check sqlite:///bank.db bank
      eventstore schema check sqlite:///bank.db bank --all
    """
    return asyncio.run(_check(context.obj, Address(url, tenant), Modules(modules), None if all else sample, json=json))


async def _check(messages: Messages, address: Address, modules: Modules, sample: int | None, *, json: bool) -> Exit:
    if not modules.events:
        messages.note(f"no event is defined in {', '.join(map(escaped, modules.names))}: are these the modules?")
    async with address.store() as store:
        total = (await store.statistics()).events
        with ExitStack() as stack:
            progress: Progress = Silent()
            if is_shown():
                progress = stack.enter_context(bar("events", total if sample is None else min(total, sample)))
            found = JournalCheck(modules, progress.advance)
            await (found.all(store) if sample is None else found.sample(store, sample))
    rows = listing(_BROKEN, json=json)
    for broken in found.broken:
        rows.add(broken)
    rows.flush()
    if json:
        write_json({"summary": {"events": found.events, "of": total, "problems": len(found.broken)}})
    else:
        verdict = ("all can be read", "bold green") if not found.broken else ("not all can be read", "bold red")
        write_line((f"{found.events:,} of {counted(total, 'event')} decoded: ", ""), verdict)
    return Exit.WRONG if found.broken else Exit.FINE


@schema.command(short_help="Compare an export with the code at hand.")
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="What `schema export` wrote before.", show_default=False)],
    modules: ModuleNames,
    json: Json = False,
) -> Exit:
    """Compare an earlier export with what the modules define now, and say what each change asks for.

    A change is compatible, needs an upcaster (and a new version of the event), or is breaking. The exit code is 1 if
    any is not compatible.

    \b
    Example:
      eventstore schema diff schema.json bank
    """
    before, now = read_description(old), Modules(modules).describe()
    UPCASTERS.check()
    order = list(Verdict)
    found = sorted(changes(before, now), key=lambda change: (-order.index(change.verdict), change.what))
    rows = listing(_CHANGES, json=json)
    for change in found:
        rows.add(change)
    rows.flush()
    return Exit.WRONG if any(change.verdict is not Verdict.COMPATIBLE for change in found) else Exit.FINE


def _broken_cells(broken: Broken) -> tuple[str, ...]:
    type_, schema_version, stream_id, version, problem, count = broken
    return printable(type_), str(schema_version), str(count), escaped(stream_id), str(version), one_line(problem)


def _change_record(change: Change) -> dict[str, str]:
    return {"verdict": change.verdict.value, "what": change.what, "text": change.text}


_BROKEN = View(
    ("TYPE", "SCHEMA", "EVENTS", "STREAM", "VERSION", "PROBLEM"),
    _broken_cells,
    Broken._asdict,
    5,
    frozenset({"SCHEMA", "EVENTS", "VERSION"}),
)
_CHANGES: View[Change] = View(
    ("VERDICT", "WHAT", "CHANGE"),
    lambda change: (change.verdict.value, printable(change.what), one_line(change.text)),
    _change_record,
    2,
)
