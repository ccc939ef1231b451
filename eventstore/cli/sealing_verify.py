"""`eventstore audit verify`: what was changed in a journal since it was sealed, and where."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from eventstore.cli.arguments import Json
from eventstore.cli.escaping import escaped, of_tenant, one_line
from eventstore.cli.exits import CommandFailed, Exit, WrongUsage
from eventstore.cli.files import read_file
from eventstore.cli.output import View, counted, listing, timestamp, write_fields, write_json, write_line
from eventstore.cli.progress import events_bar
from eventstore.errors import KeyFileError, ProofInvalid
from eventstore.evidence.inclusion import check
from eventstore.evidence.seal_findings import Finding
from eventstore.evidence.seal_verification import SealVerification, Verified
from eventstore.evidence.seals import ANCHOR, Seal, imported
from eventstore.evidence.signing import public_key as key_in
from eventstore.store import EventStore


def verify(
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="The store; none with --proof.", show_default=False)
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", metavar="FILE", help="The public key.", show_default=False)
    ] = None,
    anchor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A seal that was kept elsewhere (audit seal --anchor).")
    ] = None,
    proof: Annotated[Path | None, typer.Option(metavar="FILE", help="Check a proof instead (audit prove).")] = None,
    json: Json = False,
) -> Exit:
    """Compare every event with what was sealed of it: what was changed, deleted, inserted or moved is listed.

    The public key may be any that the seals were signed with. Whoever holds the private one can seal anew what he has
    changed, and whoever can delete events can delete the newest seals: an --anchor that was kept elsewhere shows both.
    The exit code is 1 if anything is not as it was sealed. Truncations that were recorded are listed, and are no fault.

    Columns: what was found, stream id, version, position, and how it is and was.

    \b
    Examples:
      eventstore audit verify sqlite:///bank.db --public-key seal.key.pub --anchor seal.anchor
      eventstore audit verify --proof event-17.proof --public-key seal.key.pub
    """
    if public_key is None:
        raise WrongUsage("name the public key: --public-key FILE")
    if (url is None) == (proof is None):
        raise WrongUsage("name a store or a proof: URL, or --proof FILE")
    if proof is not None and anchor is not None:
        raise WrongUsage("a proof is checked without an anchor")
    try:
        public = key_in(public_key)
    except KeyFileError as error:
        raise WrongUsage(str(error)) from error
    if proof is not None:
        return _check(proof, public, json=json)
    kept = None if anchor is None else _anchor(anchor)
    return asyncio.run(_verify(str(url), public, kept, json=json))


async def _verify(url: str, public: str, anchor: Seal | None, *, json: bool) -> Exit:
    rows = listing(_FINDINGS, json=json)
    async with EventStore.open(url, create=False) as store, events_bar(store) as progress:
        verification = SealVerification(store, public, anchor=anchor, on_events=progress.advance)
        async for finding in verification.findings():
            with progress.aside():
                rows.add(finding)
                rows.flush()
    verified = verification.verified
    if json:
        write_json({"summary": vars(verified)})
    else:
        _write_summary(verified)
    return Exit.WRONG if verified.problems else Exit.FINE


def _write_summary(verified: Verified) -> None:
    text = (
        f"{counted(verified.seals, 'seal')}, {counted(verified.events, 'event')} through position {verified.sealed} of "
        f"{verified.end}"
    )
    if verified.truncated:
        text += f", {counted(verified.truncated, 'event')} removed by recorded truncations"
    verdict = ("as sealed", "bold green")
    if verified.problems:
        verdict = (counted(verified.problems, "problem"), "bold red")
    write_line((f"{text}: ", ""), verdict)


def _check(proof: Path, public: str, *, json: bool) -> Exit:
    try:
        recorded, seal = check(read_file(proof), public)
    except ProofInvalid as error:
        raise CommandFailed(f"{proof}: {error}") from error
    shown: dict[str, Any] = {
        "stream_id": recorded.stream_id,
        "tenant": recorded.tenant,
        "version": recorded.version,
        "position": recorded.position,
        "type": recorded.type,
        "recorded_at": timestamp(recorded.recorded_at),
        "seal": seal.statement.number,
        "sealed_at": seal.statement.sealed_at,
        "key": seal.statement.key,
    }
    if json:
        write_json({**shown, "is_proven": True})
    else:
        # Most have no tenant.
        write_fields({name.replace("_", " "): escaped(str(value)) for name, value in shown.items() if value != ""})
    return Exit.FINE


def _anchor(path: Path) -> Seal:
    try:
        return imported(read_file(path), ANCHOR)[0]
    except ProofInvalid as error:
        raise CommandFailed(f"{path}: {error}") from error


def _cells(finding: Finding) -> tuple[str, ...]:
    what, stream_id, version, position, text, tenant = finding
    return (
        what.value,
        "" if stream_id is None else of_tenant(stream_id, tenant),
        "" if version is None else str(version),
        "" if position is None else str(position),
        one_line(text),
    )


def _record(finding: Finding) -> dict[str, Any]:
    return {**finding._asdict(), "what": finding.what.value, "is_problem": finding.is_problem}


_FINDINGS = View(
    ("FOUND", "STREAM", "VERSION", "POSITION", "HOW"), _cells, _record, 4, frozenset({"VERSION", "POSITION"})
)
