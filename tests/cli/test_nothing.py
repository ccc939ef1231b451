"""Where nothing was found that is said on stderr, and stdout is as it was."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from eventstore import EventStore

from .conftest import Run, start

NOPE = "nothing matched: the journal has no stream of kind 'Nope'"
DESK = "nothing matched: the journal has no stream of kind 'Desk'"
TENANT = "tenant 'nope' has no streams"
NO_EVENT = "no event matched"

SAID = [
    ("streams {url} --kind Nope", NOPE),
    ("streams {url} --tenant nope", TENANT),
    ("events {url} Account-alice --after 5", NO_EVENT),
    ("tail {url} --kind Nope", NOPE),
    ("tail {url} --kind Nope --kind Nix", f"{NOPE} or 'Nix'"),
    ("tail {url} --kind Account --type nope", NO_EVENT),
    ("tail {url} --tag nope", NO_EVENT),
    ("tail {url} --tenant nope", TENANT),
    ("export {url} --kind Nope", NOPE),
    ("export {url} --stream Account-nobody", NO_EVENT),
    ("export {url} --after 999", NO_EVENT),
    ("verify {url} --kind Nope", NOPE),
    ("verify {url} --tenant nope", TENANT),
    ("retention plan {url} --kind Nope --keep-versions 1 --no-snapshots", NOPE),
    ("retention apply {url} --kind Nope --keep-versions 1 --no-snapshots", NOPE),
    ("retention plan {url} --kind Account --keep-versions 99 --no-snapshots", "there is no event that may go"),
    ("audit query {url} --kind Nope", NOPE),
    ("audit query {url} --user nobody", NO_EVENT),
    ("audit query {url} --kind Nope --csv", NOPE),
    ("audit query {url} --after 999", NO_EVENT),
    ("audit stats {url} --kind Nope", NOPE),
    ("audit stats {url} --tag nope", NO_EVENT),
    ("conflicts list {url} --kind Nope", NOPE),
    ("conflicts list {url}", "there is no conflict"),
    ("replay {url} cli_desk:Desk", DESK),
    ("rebuild snapshots {url} cli_desk:Desk --all", DESK),
]


def words(line: str, url: str) -> list[str]:
    return line.format(url=url).split()


@pytest.mark.parametrize(("line", "said"), SAID)
def test_nothing_found_is_said(cli: Run, url: str, line: str, said: str) -> None:
    result = cli(*words(line, url))
    assert (result.code, result.err) == (0, f"note: {said}\n")


@pytest.mark.parametrize(
    "line", ["streams {url} --kind Nope", "tail {url} --kind Nope", "audit query {url} --kind Nope"]
)
def test_with_json_it_is_an_object_and_stdout_stays_empty(cli: Run, url: str, line: str) -> None:
    result = cli(*words(line, url), "--json")
    assert (result.out, json.loads(result.err)) == ("", {"note": NOPE})


@pytest.mark.parametrize(
    "line",
    [
        "streams {url} --kind Note",
        "tail {url} --kind Nope --kind Note",
        "tail {url} --kind Nope -n 0",
        "export {url} --kind Note",
        "verify {url} --kind Note",
        "events {url} Account-alice --limit 0",
        "audit query {url} --limit 0",
        "audit query {url} --kind Note",
        "audit stats {url} --kind Note",
    ],
)
def test_what_found_something_or_asked_for_nothing_says_nothing(cli: Run, url: str, line: str) -> None:
    assert cli(*words(line, url)).err == ""


@pytest.mark.parametrize("line", [line for line, _ in SAID if "--" not in line or "--kind Nope" in line])
def test_an_empty_journal_is_said_to_be_empty(cli: Run, tmp_path: Path, line: str) -> None:
    async def make() -> None:
        async with EventStore.open(url):
            pass

    url = f"sqlite:///{tmp_path}/empty.db"
    asyncio.run(make())
    assert cli(*words(line, url)).err == "note: the journal is empty\n"


def test_a_kind_of_another_tenant_is_known(cli: Run, own_url: str) -> None:
    async def append() -> None:
        from cli_ledger import Deposited  # type: ignore[import-not-found]

        async with EventStore.open(own_url, tenant="acme") as store:
            await store.append("Parcel-1", [Deposited(amount=1)])

    asyncio.run(append())
    assert cli("tail", own_url, "--kind", "Parcel", "--tag", "nope").err == "note: no event matched\n"
    assert "no stream of kind 'Note'" in cli("tail", own_url, "--kind", "Note", "--tenant", "acme").err


def test_who_follows_a_kind_that_is_not_there_is_told_at_once(url: str) -> None:
    process = start("tail", url, "--follow", "--kind", "Nope")
    assert process.stderr is not None
    assert process.stderr.readline().decode() == f"note: {NOPE}\n"
