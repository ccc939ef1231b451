"""`eventstore verify`: read the whole journal, and list what is damaged."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from eventstore.cli.arguments import Address, Json, Tenant, Url
from eventstore.cli.escaping import of_tenant, one_line
from eventstore.cli.exits import Exit
from eventstore.cli.messages import Messages
from eventstore.cli.nothing import note_nothing
from eventstore.cli.output import View, counted, listing, write_json, write_line
from eventstore.cli.progress import events_bar
from eventstore.verification import Damage, Verification, Verified


def verify(
    context: typer.Context,
    url: Url,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Only streams whose ids have this before the first dash.")
    ] = None,
    tenant: Tenant = None,
    json: Json = False,
) -> Exit:
    """Read every event and every snapshot, check them against their checksums, and list what is damaged.

    It also checks that the versions of each stream have no hole and no repeat, that streams and events agree, and that
    positions rise. It writes nothing, and others may write meanwhile. The exit code is 1 if anything is damaged.

    Columns: stream id, version, position, and what is wrong there.

    \b
    Example:
      eventstore verify sqlite:///bank.db
    """
    return asyncio.run(_verify(context.obj, Address(url, tenant), kind, json=json))


async def _verify(messages: Messages, address: Address, kind: str | None, *, json: bool) -> Exit:
    rows = listing(_DAMAGE, json=json)
    async with address.store() as store, events_bar(store) as progress:
        verification = Verification(store, kind=kind, on_events=progress.advance)
        async for damage in verification.problems():
            with progress.aside():
                rows.add(damage)
                rows.flush()
        verified = verification.verified
        if not (verified.streams or verified.events or verified.problems):
            kinds = () if kind is None else (kind,)
            await note_nothing(messages, store, "stream", kinds=kinds, is_narrowed=kind is not None)
    if json:
        write_json({"summary": vars(verified)})
    else:
        _write_summary(verified)
    return Exit.WRONG if verified.problems else Exit.FINE


def _write_summary(verified: Verified) -> None:
    read = ", ".join(
        counted(number, noun)
        for number, noun in ((verified.streams, "stream"), (verified.events, "event"), (verified.snapshots, "snapshot"))
    )
    verdict = ("no damage", "bold green")
    if verified.problems:
        verdict = (counted(verified.problems, "problem"), "bold red")
    write_line((f"{read} read: ", ""), verdict)


def _cells(damage: Damage) -> tuple[str, ...]:
    stream_id, version, position, problem, tenant = damage
    return (
        "" if stream_id is None else of_tenant(stream_id, tenant),
        "" if version is None else str(version),
        "" if position is None else str(position),
        one_line(problem),
    )


_DAMAGE = View(
    ("STREAM", "VERSION", "POSITION", "PROBLEM"), _cells, Damage._asdict, 3, frozenset({"VERSION", "POSITION"})
)
