"""`eventstore audit seal`, `prove` and `keys`: making what proves that a journal is as it was."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from eventstore.cli.arguments import Json, Url, seconds, whole
from eventstore.cli.exits import CommandFailed, Exit, OutputFailed, WrongUsage
from eventstore.cli.files import check_is_new, read_file, write_file
from eventstore.cli.groups import command_group
from eventstore.cli.messages import Messages
from eventstore.cli.output import View, listing, write, write_fields, write_json
from eventstore.errors import BackendUnavailable, KeyFileError, OutcomeUnknown, ProofInvalid, SealRefused
from eventstore.evidence.inclusion import prove as prove_event
from eventstore.evidence.sealing import DEFAULT_EVERY, MOST_EVENTS, Sealer
from eventstore.evidence.seals import ANCHOR, Seal, export, imported
from eventstore.evidence.signing import generate, private_key, public_file, public_key
from eventstore.store import EventStore

# How often it is looked whether so much was appended that another seal is due.
_LOOK_SECONDS = 1.0

keys = command_group("Keys to seal with.", "audit keys new seal.key")


@keys.command(short_help="Make a key.")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to put the private key.", show_default=False)],
    json: Json = False,
) -> Exit:
    """Make an Ed25519 key: the private one in FILE, which nobody else can read, the public one in FILE.pub.

    Seal with the private one, and keep it where nobody comes who may write to the database. Verify with the public one.

    \b
    Example:
      eventstore audit keys new seal.key
    """
    try:
        public = generate(file)
    except KeyFileError as error:
        is_there = isinstance(error.__cause__, FileExistsError)
        raise (WrongUsage if is_there else OutputFailed)(str(error)) from error
    described = {"private_key": str(file), "public_key": str(public_file(file)), "key": public}
    if json:
        write_json(described)
    else:
        write_fields({name.replace("_", " "): value for name, value in described.items()})
    return Exit.FINE


def seal(
    context: typer.Context,
    url: Url,
    key: Annotated[Path, typer.Option(metavar="FILE", help="The private key.", show_default=False)],
    every: Annotated[
        int, typer.Option(metavar="N", parser=whole(1, MOST_EVENTS), help="Events of one seal, at most, up to 100,000.")
    ] = DEFAULT_EVERY,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    within: Annotated[
        float,
        typer.Option(metavar="SECONDS", parser=seconds(0.1), help="With --follow: seal after so long at the latest."),
    ] = 60,
    anchor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the newest seal to a file, to be kept elsewhere.")
    ] = None,
    next_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hand over to another key: its public one.")
    ] = None,
    json: Json = False,
) -> Exit:
    """Seal what was appended since the last seal. An event that is changed before it is sealed is sealed as it is then.

    Any number may run at once: each event is sealed once. It may be stopped at any moment. With --follow a seal is made
    whenever --every events are there, and after --within seconds.

    Columns: number of the seal, first and last position, how many events, and the root of their hashes.

    \b
    Examples:
      eventstore audit seal sqlite:///bank.db --key seal.key --anchor seal.anchor
      eventstore audit seal sqlite:///bank.db --key seal.key --follow
    """
    try:
        signing = private_key(key)
        successor = None if next_key is None else public_key(next_key)
    except KeyFileError as error:
        raise WrongUsage(str(error)) from error
    if follow and successor is not None:
        raise WrongUsage("behind --next-key the other key seals: leave --follow out")

    async def run() -> Exit:
        async with EventStore.open(url, create=False) as store:
            sealing = _Sealing(store, Sealer(store, signing, every=every), anchor, json=json)
            if follow:
                await sealing.follow(context.obj, every, within)
            else:
                await sealing.through_the_end()
                if successor is not None:
                    await sealing.hand_over(successor)
        return Exit.FINE

    try:
        return asyncio.run(run())
    except SealRefused as error:
        raise CommandFailed(str(error)) from error


def prove(
    url: Url,
    position: Annotated[
        int,
        typer.Argument(metavar="POSITION", parser=whole(1), help="Where it stands in the log.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new file to put it in, instead of stdout.")
    ] = None,
) -> Exit:
    """Make a proof that the event at a position was sealed. It holds the event itself, payload and metadata.

    `eventstore audit verify --proof FILE --public-key KEY.pub` checks it without the store.

    \b
    Example:
      eventstore audit prove sqlite:///bank.db 17 --out event-17.proof
    """

    if out is not None:
        check_is_new(out)

    async def run() -> bytes:
        async with EventStore.open(url, create=False) as store:
            return await prove_event(store, position)

    try:
        proof = asyncio.run(run())
    except ProofInvalid as error:
        raise CommandFailed(str(error)) from error
    if out is None:
        write(proof.decode())
    else:
        write_file(out, proof)
    return Exit.FINE


class _Sealing:
    """Makes seals and shows each; the newest goes into the anchor's file."""

    def __init__(self, store: EventStore, sealer: Sealer, anchor: Path | None, *, json: bool) -> None:
        self._store = store
        self._sealer = sealer
        self._anchor = anchor
        self._rows = listing(_SEALS, json=json)
        self._is_checked = False

    async def through_the_end(self) -> None:
        """Seal all there is."""
        await self._check_anchor()
        while (made := await self._sealer.seal()) is not None:
            self._show(made)
        newest = await self._sealer.newest()
        if newest is not None and self._anchor is not None:
            # Also where there was nothing to seal: the file may be new.
            write_file(self._anchor, export(newest, ANCHOR))

    async def hand_over(self, next_key: str) -> None:
        """Make the last seal of this key."""
        made = await self._sealer.seal(next_key=next_key)
        if made is not None:
            self._show(made)

    async def follow(self, messages: Messages, every: int, within: float) -> None:
        """Seal for ever. A database that is away is waited for."""
        is_away = False
        while True:
            try:
                await self.through_the_end()
                is_away = False
                await self._wait(every, within)
            except (BackendUnavailable, OutcomeUnknown) as error:
                if not is_away:
                    messages.warning(f"{error}; it is tried again")
                is_away = True
                await asyncio.sleep(_LOOK_SECONDS)

    async def _wait(self, every: int, within: float) -> None:
        """Until so many events are there, or so long."""
        newest = await self._sealer.newest()
        sealed = 0 if newest is None else newest.statement.last
        deadline = time.monotonic() + within
        while (left := deadline - time.monotonic()) > 0:
            await asyncio.sleep(min(_LOOK_SECONDS, left))
            if (await self._store.read_page(after=sealed, limit=1)).end - sealed >= every:
                return

    async def _check_anchor(self) -> None:
        """An anchor that the journal does not go on from is evidence: it is not overwritten."""
        if self._is_checked or self._anchor is None or not self._anchor.exists():
            return
        try:
            kept, _ = imported(read_file(self._anchor), ANCHOR)
        except ProofInvalid as error:
            raise WrongUsage(f"{self._anchor} is not overwritten: {error}") from error
        number = kept.statement.number
        found = await self._store.seal_after(number - 1)
        if found is None or found.number != number or found.statement != kept.statement.encoded():
            raise CommandFailed(
                f"{self._anchor} names a seal {number} that is not in this journal: it is not overwritten, and nothing "
                "was sealed; run eventstore audit verify with this anchor"
            )
        self._is_checked = True

    def _show(self, made: Seal) -> None:
        self._rows.add(made)
        self._rows.flush()
        if self._anchor is not None:
            write_file(self._anchor, export(made, ANCHOR))


def _cells(made: Seal) -> tuple[str, ...]:
    statement = made.statement
    return (str(statement.number), str(statement.first), str(statement.last), str(statement.count), statement.root)


def _record(made: Seal) -> Mapping[str, Any]:
    return made.statement.model_dump()


_SEALS = View(
    ("SEAL", "FIRST", "LAST", "EVENTS", "ROOT"), _cells, _record, 4, frozenset({"SEAL", "FIRST", "LAST", "EVENTS"})
)
