"""`eventstore copy`: a journal's records, as they are, into another journal of whichever backend."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Annotated

import typer

from eventstore.cli.arguments import Json
from eventstore.cli.escaping import escaped, printable
from eventstore.cli.exits import Exit, WrongUsage
from eventstore.cli.output import counted, timestamp, write_fields, write_json
from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.contract.archive import Fence
from eventstore.copies.copying import Compared, Copy
from eventstore.errors import CopyDiffers
from eventstore.store import EventStore
from eventstore.url import parse_store_url


def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="The store to copy.", show_default=False)],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="An empty journal, or an earlier copy.", show_default=False)
    ],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every record of the two afterwards.")] = False,
    cutover: Annotated[
        bool, typer.Option("--cutover", help="Refuse every append to FROM from now on, and copy the last of it.")
    ] = False,
    json: Json = False,
) -> Exit:
    """Copy a journal as it is, between any two backends: positions, versions, ids, times, checksums, epochs, the
    outcomes of commands, snapshots, and what was truncated. Run again it goes on from where it was, whatever ended it.

    The application may be running; TO is nobody else's meanwhile. A new SQLite file is created, any other TO needs
    `eventstore migrate` first. The positions of projections and leases are not copied.

    --cutover moves a live application: all is copied, then FROM is fenced, which cannot be undone: its writers get
    FencedError, and nothing is lost. `eventstore doctor FROM` says so from then on.

    --verify exits with 1 and names the first difference, if there is one. It is exact when nobody writes to FROM.

    \b
    Examples:
      eventstore copy sqlite:///bank.db postgresql://bank@db/bank --follow
      eventstore copy sqlite:///bank.db postgresql://bank@db/bank --cutover --verify
    """
    if follow and (cutover or verify):
        raise WrongUsage("--follow goes on until Ctrl-C: end it, and run the same command with --cutover or --verify")
    if source == target:
        raise WrongUsage("FROM and TO are the same store")
    return asyncio.run(_copy(source, target, follow=follow, verify=verify, cutover=cutover, json=json))


async def _copy(source: str, target: str, *, follow: bool, verify: bool, cutover: bool, json: bool) -> Exit:
    fence: Fence | None = None
    compared: Compared | None = None
    difference: str | None = None
    async with EventStore.open(source, create=False) as old, EventStore.open(target) as new:
        if not new.capabilities.survives_restart:
            raise WrongUsage("TO is in memory, and would be gone when this command ends: nothing was copied or fenced")
        with ExitStack() as stack:
            shown = _Shown()
            copying = Copy(old, new, on_events=shown.advance)
            await copying.begin()
            if is_shown():
                total = max((await old.statistics()).events - (await new.statistics()).events, 0)
                shown.bar = stack.enter_context(bar("events", total))
            if follow:
                await copying.follow()
            elif cutover:
                fence = await copying.cut_over(_reason())
            else:
                await copying.catch_up()
                await copying.bring_streams()
        if verify:
            with ExitStack() as stack:
                if is_shown():
                    shown.bar = stack.enter_context(bar("compared", (await new.statistics()).events))
                try:
                    compared = await copying.compare()
                except CopyDiffers as error:
                    difference = error.difference
    _report(source, target, copying, fence, compared, difference, json=json)
    return Exit.FINE if difference is None else Exit.WRONG


class _Shown:
    """Where the progress goes: to whichever bar is there."""

    def __init__(self) -> None:
        self.bar: Progress = Silent()

    def advance(self, count: int) -> None:
        self.bar.advance(count)


def _reason() -> str:
    """Without the new store's URL: whoever is refused may not be meant to see it."""
    return f"it was moved to another store by `eventstore copy --cutover` at {timestamp(datetime.now(UTC))}"


def _report(
    source: str,
    target: str,
    copying: Copy,
    fence: Fence | None,
    compared: Compared | None,
    difference: str | None,
    *,
    json: bool,
) -> None:
    shown = {"source": str(parse_store_url(source)), "target": str(parse_store_url(target))}
    if json:
        write_json(
            {
                **shown,
                "position": copying.position,
                "events": copying.events,
                "fence": None if fence is None else fence._asdict(),
                "verified": None if compared is None else vars(compared),
                "difference": difference,
            }
        )
        return
    fields = {name: printable(url) for name, url in shown.items()}
    fields["copied"] = f"{counted(copying.events, 'event')} now; TO is a copy up to position {copying.position:,}"
    if fence is not None:
        fields["fenced"] = f"FROM takes no events any more since {timestamp(fence.fenced_at)}: {escaped(fence.reason)}"
    if compared is not None:
        counts = ", ".join(
            (
                counted(compared.events, "event"),
                counted(compared.streams, "stream"),
                counted(compared.commands, "outcome of a command", "outcomes of commands"),
                counted(compared.snapshots, "snapshot"),
            )
        )
        fields["verified"] = f"{counts}: all the same"
        fields["digest"] = compared.digest
    if difference is not None:
        fields["differs"] = escaped(difference)
    write_fields(fields)
