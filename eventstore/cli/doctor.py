"""`eventstore doctor`: what a store is, what it promises, and whether anything is wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from eventstore.backend import Capabilities, Durability, OwnerInfo, Statistics
from eventstore.cli.arguments import Json, Url
from eventstore.cli.escaping import escaped, one_line, printable
from eventstore.cli.exits import Exit
from eventstore.cli.output import counted, timestamp, write_fields, write_json, write_line
from eventstore.cli.processes import is_running, process_record, write_process
from eventstore.cli.recorded import checked_payload
from eventstore.contract.archive import Fence
from eventstore.errors import EventStoreError, SchemaError
from eventstore.store import EventStore
from eventstore.url import StoreUrl, parse_store_url

_MEANINGS = {
    Durability.POWER_LOSS: "what was acknowledged survives a crash of the process and a loss of power",
    Durability.PROCESS_CRASH: "what was acknowledged survives a crash of the process; a loss of power can take the "
    "last commits",
    Durability.NONE: "nothing survives the end of the process",
}


def doctor(url: Url, json: Json = False) -> Exit:
    """Report what a store is, what it promises, and what is wrong with it. The exit code is 1 if anything is.

    Processes that own actors exclusively are shown with what they report of their actors; others report nothing.

    \b
    Example:
      eventstore doctor sqlite:///bank.db
    """
    diagnosis = asyncio.run(_examine(parse_store_url(url)))
    if json:
        _write_json(diagnosis)
    else:
        _write_report(diagnosis)
    return Exit.WRONG if diagnosis.problems else Exit.FINE


@dataclass
class Diagnosis:
    """What was found out before something went wrong, if anything did."""

    url: StoreUrl
    database: str | None = None
    schema: str | None = None
    expected_schema: str | None = None
    durability: Durability | None = None
    capabilities: Capabilities | None = None
    statistics: Statistics | None = None
    # Events that readers of the whole log do not see yet, because an append with a lower position may still commit.
    lag: int | None = None
    owners: Sequence[OwnerInfo] | None = None
    fence: Fence | None = None
    # Up to which position of another journal this one is a copy.
    copied: int | None = None
    problems: list[EventStoreError] = field(default_factory=list[EventStoreError])


async def _examine(url: StoreUrl) -> Diagnosis:
    diagnosis = Diagnosis(url)
    try:
        async with EventStore.open(url.raw, create=False) as store:
            diagnosis.database = store.database
            diagnosis.schema = diagnosis.expected_schema = store.schema_revision
            diagnosis.durability = store.durability
            diagnosis.capabilities = store.capabilities
            diagnosis.statistics = statistics = await store.statistics()
            page = await store.read_page(after=statistics.last_position, limit=1)
            diagnosis.lag = max(0, statistics.last_position - page.end)
            diagnosis.owners = await store.owners()
            if store.capabilities.archive:
                diagnosis.fence = await store.archive().fenced()
                diagnosis.copied = await store.archive().copied()
            async for newest in store.read_all(last=1):
                checked_payload(newest)
    except EventStoreError as error:
        diagnosis.problems.append(error)
        if isinstance(error, SchemaError):
            diagnosis.schema, diagnosis.expected_schema = error.found, error.expected
    return diagnosis


def _write_report(diagnosis: Diagnosis) -> None:
    fields = {"url": printable(str(diagnosis.url)), "backend": diagnosis.url.scheme}
    if diagnosis.database is not None:
        fields["database"] = printable(diagnosis.database)
    if diagnosis.schema is not None or diagnosis.expected_schema is not None:
        fields["schema"] = printable(diagnosis.schema or "none")
        if diagnosis.schema != diagnosis.expected_schema:
            fields["schema"] += f"; this version expects {diagnosis.expected_schema}"
    if diagnosis.durability is not None:
        fields["durability"] = f"{diagnosis.durability.value}: {_MEANINGS[diagnosis.durability]}"
        if (asked := _asked(diagnosis.url)) not in (None, diagnosis.durability.value):
            fields["durability"] += f" (the URL asks for {printable(asked or '')})"
    if diagnosis.capabilities is not None:
        held = [name for name, is_held in asdict(diagnosis.capabilities).items() if is_held]
        fields["capabilities"] = ", ".join(held) or "none"
    if diagnosis.statistics is not None:
        streams, events, snapshots, last_position, size_bytes = diagnosis.statistics
        fields["streams"] = f"{streams:,}"
        fields["events"] = f"{events:,}, the last at position {last_position:,}"
        fields["snapshots"] = f"{snapshots:,}"
        fields["size"] = counted(size_bytes, "byte")
    if diagnosis.lag is not None:
        fields["lag"] = (
            counted(diagnosis.lag, "position is not settled yet", "positions are not settled yet")
            if diagnosis.lag
            else "none"
        )
    if diagnosis.copied is not None:
        fields["copy"] = f"of another journal, up to position {diagnosis.copied:,}"
    if diagnosis.fence is not None:
        fields["fenced"] = f"since {timestamp(diagnosis.fence.fenced_at)}: {escaped(diagnosis.fence.reason)}"
    if diagnosis.owners is not None:
        fields["processes"] = _processes(diagnosis.owners)
    write_fields(fields)
    for info in diagnosis.owners or ():
        write_process(info)
    for problem in diagnosis.problems:
        write_line(("problem: ", "bold red"), (f"{type(problem).__name__}: {one_line(str(problem))}", ""))
    if not diagnosis.problems:
        if diagnosis.fence is not None:
            write_line(("healthy, and fenced: it can be read, and nothing may be added any more", "bold yellow"))
        else:
            write_line(("healthy", "bold green"))


def _processes(owners: Sequence[OwnerInfo]) -> str:
    running = sum(map(is_running, owners))
    text = f"{running:,} with a lease" if running else "none with a lease"
    return text if running == len(owners) else f"{text}, {len(owners) - running:,} whose lease ran out"


def _write_json(diagnosis: Diagnosis) -> None:
    durability = diagnosis.durability
    write_json(
        {
            "url": str(diagnosis.url),
            "backend": diagnosis.url.scheme,
            "database": diagnosis.database,
            "schema": {"found": diagnosis.schema, "expected": diagnosis.expected_schema},
            "durability": None
            if durability is None
            else {"level": durability.value, "meaning": _MEANINGS[durability], "asked": _asked(diagnosis.url)},
            "capabilities": None if diagnosis.capabilities is None else asdict(diagnosis.capabilities),
            "statistics": None if diagnosis.statistics is None else diagnosis.statistics._asdict(),
            "lag": diagnosis.lag,
            "processes": None if diagnosis.owners is None else [process_record(info) for info in diagnosis.owners],
            "copied": diagnosis.copied,
            "fence": None if diagnosis.fence is None else diagnosis.fence._asdict(),
            "problems": [{"error": type(error).__name__, "message": str(error)} for error in diagnosis.problems],
            "healthy": not diagnosis.problems,
        }
    )


def _asked(url: StoreUrl) -> str | None:
    """The durability that the URL names; None where it leaves that to the backend."""
    return url.parameters.get("durability")
