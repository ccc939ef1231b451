"""`eventstore projections`: read models beside the journal: run them, look at them, make them anew."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from eventstore.cli.arguments import Address, Json, Tenant, Url, seconds, whole
from eventstore.cli.escaping import escaped, of_tenant
from eventstore.cli.exits import CommandFailed, Exit
from eventstore.cli.groups import command_group
from eventstore.cli.messages import Messages
from eventstore.cli.output import counted, listing, write_fields, write_json, write_line
from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.cli.projection_progress import projection_progress, shown_on
from eventstore.cli.projection_status import (
    PROJECTIONS,
    PartitionStatus,
    fields_of,
    live_checkpoints_named,
    record_of,
    say_where,
    status_of,
)
from eventstore.cli.targets import projection_class
from eventstore.projections import Projection
from eventstore.read_models.completeness import Completeness, check_completeness
from eventstore.read_models.projection_control import (
    forget,
    pause,
    resume,
    seek,
)
from eventstore.read_models.projection_runner import ProjectionRunner
from eventstore.store import EventStore

projections = command_group("Run read models, and look after them.", "projections list sqlite:///bank.db")

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:CLASS",
        help="The projection's class, such as bank:Balances; modules are looked for in the current directory too.",
        show_default=False,
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The projection's name, as `list` shows it.")]


@projections.command("list", short_help="List the projections, and how far they are.")
def list_(context: typer.Context, url: Url, tenant: Tenant = None, json: Json = False) -> Exit:
    """List every projection that was ever run on the store: position, lag, events applied, dead letters, and its state.

    The lag counts positions of the log, those of events included that the projection does not want.

    \b
    Example:
      eventstore projections list sqlite:///bank.db
    """
    return asyncio.run(_list(context.obj, Address(url, tenant), json=json))


async def _list(messages: Messages, address: Address, *, json: bool) -> Exit:
    rows = listing(PROJECTIONS, json=json)
    async with address.store() as store:
        checkpoints = await store.checkpoints()
        end = await store.end()
    for checkpoint in checkpoints:
        rows.add(PartitionStatus(checkpoint, max(0, end - checkpoint.position)))
    rows.flush()
    if not checkpoints:
        messages.note("no projection was ever run on this store")
    return Exit.FINE


@projections.command(short_help="Show one projection.")
def status(url: Url, name: Name, tenant: Tenant = None, json: Json = False) -> Exit:
    """Show how far one projection is, who runs it, and why it is paused if it is. The exit code is 1 if it is paused,
    or has dead letters.

    \b
    Example:
      eventstore projections status sqlite:///bank.db balances
    """
    return asyncio.run(_status(Address(url, tenant), name, json=json))


async def _status(address: Address, name: str, *, json: bool) -> Exit:
    async with address.store() as store:
        rows = await status_of(store, name)
    if json:
        write_json(record_of(rows))
    else:
        write_fields(fields_of(name, rows))
    is_wrong = any(row.checkpoint.pause is not None or row.checkpoint.letters for row in rows)
    return Exit.WRONG if is_wrong else Exit.FINE


@projections.command(short_help="Bring a projection forward.")
def run(
    context: typer.Context,
    url: Url,
    target: Target,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    lease: Annotated[
        float, typer.Option(metavar="SECONDS", parser=seconds(0.5), help="Take over from who is silent so long.")
    ] = 10,
    tenant: Tenant = None,
) -> Exit:
    """Bring a projection forward through the log, to its end, or with --follow until Ctrl-C or SIGTERM. Then another
    can go on at once. Without --follow the exit code is 1 if a SIGTERM came first.

    It may be started several times, on several machines: one works, the others wait until that one is gone. The
    partitions of a projection are spread evenly over all that follow it.

    \b
    Examples:
      eventstore projections run sqlite:///bank.db bank:Balances
      eventstore projections run sqlite:///bank.db bank:Balances --follow
    """
    return asyncio.run(_run(context.obj, Address(url, tenant), projection_class(target), follow=follow, lease=lease))


async def _run(
    messages: Messages, address: Address, projection: type[Projection], *, follow: bool, lease: float
) -> Exit:
    async with address.store() as store:
        with ExitStack() as stack:
            progress = await projection_progress(store, projection, stack, follow=follow)
            runner = ProjectionRunner(store, projection, lease_seconds=lease, on_progress=shown_on(progress))
            was_told = await _run_until_told(runner, follow=follow)
        await say_where(store, projection.name, messages)
    if was_told and not follow:
        raise CommandFailed("ended by SIGTERM before the end of the log; run it again to go on from there")
    return Exit.FINE


async def _run_until_told(runner: ProjectionRunner, *, follow: bool) -> bool:
    """Run, and come back at a SIGTERM once it has let go of the projection. That is how a service is ended. Returns
    whether it was."""
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(runner.run(follow=follow))
    is_told = False

    def tell() -> None:
        nonlocal is_told
        # A second one ends the program at once.
        loop.remove_signal_handler(signal.SIGTERM)
        is_told = True
        running.cancel()

    loop.add_signal_handler(signal.SIGTERM, tell)
    try:
        await running
    except asyncio.CancelledError:
        if not is_told:
            raise
        return True
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
    return False


@projections.command("pause", short_help="Let nobody bring a projection forward.")
def pause_(
    context: typer.Context,
    url: Url,
    name: Name,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why: it is shown.")] = "by eventstore projections pause",
    tenant: Tenant = None,
) -> Exit:
    """Pause a projection, wherever it runs. It stops after the batch that it is at.

    \b
    Example:
      eventstore projections pause sqlite:///bank.db balances --reason "moving the database"
    """
    return asyncio.run(_change(context.obj, Address(url, tenant), name, lambda store: pause(store, name, reason)))


@projections.command("resume", short_help="Let a paused projection go on.")
def resume_(context: typer.Context, url: Url, name: Name, tenant: Tenant = None) -> Exit:
    """Let a paused projection go on. If it was an event that stopped it, that is tried again.

    \b
    Example:
      eventstore projections resume sqlite:///bank.db balances
    """
    return asyncio.run(_change(context.obj, Address(url, tenant), name, lambda store: resume(store, name)))


@projections.command("seek", short_help="Let a projection go on elsewhere in the log.")
def seek_(
    context: typer.Context,
    url: Url,
    target: Target,
    position: Annotated[
        int, typer.Argument(metavar="POSITION", parser=whole(0), help="It goes on with the event behind it.")
    ],
    tenant: Tenant = None,
) -> Exit:
    """Let a projection go on behind another position. Events that it had come again, dead letters among them; those
    that are passed over it does not get, and `check` takes them as applied: what its read model makes of that is up to
    you. To have it right, rebuild it instead.

    \b
    Example:
      eventstore projections seek sqlite:///bank.db bank:Balances 1200
    """
    projection = projection_class(target)
    return asyncio.run(
        _change(context.obj, Address(url, tenant), projection.name, lambda store: seek(store, projection, position))
    )


@projections.command("forget", short_help="Forget a projection that nobody needs, or whose checkpoint is damaged.")
def forget_(url: Url, name: Name, tenant: Tenant = None) -> Exit:
    """Forget how far a projection is, in every version of its read model: no event is kept for it any more. This is for
    one that nobody runs any more, and for one whose checkpoint is damaged. Its tables stay: drop what nobody reads.

    End whatever runs it before: it would begin at the first event, on the tables as they are. To have it again, rebuild
    it.

    \b
    Example:
      eventstore projections forget sqlite:///bank.db balances
    """
    return asyncio.run(_forget(Address(url, tenant), name))


async def _forget(address: Address, name: str) -> Exit:
    async with address.store() as store:
        count = await forget(store, name)
    write_line((f"{escaped(name)}: ", "bold"), (f"forgotten, with {counted(count, 'checkpoint')}", ""))
    return Exit.FINE


@projections.command(short_help="Compare a projection with the journal.")
def check(url: Url, target: Target, tenant: Tenant = None, json: Json = False) -> Exit:
    """Read the journal up to where the projection is, and compare: how many events it was given, and a checksum of
    their ids. The exit code is 1 if that is not what it should have been given; the first event that is missing is
    named, in what the projection was given or in the journal itself.

    \b
    Example:
      eventstore projections check sqlite:///bank.db bank:Balances
    """
    return asyncio.run(_check(Address(url, tenant), projection_class(target), json=json))


async def _check(address: Address, projection: type[Projection], *, json: bool) -> Exit:
    async with address.store() as store:
        with ExitStack() as stack:
            parts = await live_checkpoints_named(store, projection.name)
            progress: Progress = Silent()
            if is_shown():
                progress = stack.enter_context(bar("events", sum(part.events for part in parts)))
            found = await check_completeness(store, projection, on_events=progress.advance)
    if json:
        write_json(
            {
                "projection": projection.name,
                "is_complete": found.is_complete,
                "truncated": found.truncated,
                "applied": found.applied,
                "expected": found.expected,
                "first_missing": None
                if found.first is None
                else {
                    "position": found.first.position,
                    "stream_id": found.first.stream_id,
                    "tenant": found.first.tenant,
                    "version": found.first.version,
                },
                "first_gone": None if found.gone is None else found.gone._asdict(),
                "after": found.after,
                "through": found.through,
            }
        )
    else:
        write_line(
            (f"{counted(found.applied, 'event')} applied, {found.expected:,} in the journal: ", ""), _verdict(found)
        )
    return Exit.FINE if found.is_complete else Exit.WRONG


def _verdict(found: Completeness) -> tuple[str, str]:
    if found.is_complete:
        return "complete", "bold green"
    if found.first is not None:
        place = found.first
        where = f"{of_tenant(place.stream_id, place.tenant)} version {place.version}, position {place.position}"
        return f"the first that is missing is {where}", "bold red"
    if found.gone is not None:
        where = f"{of_tenant(found.gone.stream_id, found.gone.tenant)} version {found.gone.version}"
        return f"the journal itself has lost some, the first of which is {where}: eventstore verify", "bold red"
    if found.truncated:
        return "they cannot be compared, for events were removed from the journal; rebuild it to have new sums", "bold"
    return f"they are not the same ones behind position {found.after} and up to {found.through}", "bold red"


async def _change(
    messages: Messages, address: Address, name: str, work: Callable[[EventStore], Awaitable[Any]]
) -> Exit:
    async with address.store() as store:
        await live_checkpoints_named(store, name)
        await work(store)
        await say_where(store, name, messages)
    return Exit.FINE
