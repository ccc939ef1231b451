"""`--tenant`: whose streams a command is about; and what is shown of tenants without it."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actors import ActorSystem
from eventstore import EventStore, JournalCorrupt
from eventstore.url import parse_store_url

from .conftest import PROJECT, Run
from .test_verify import flip, unprotected

ACCOUNT = "cli_ledger:Account"


@pytest.fixture(scope="module")
def tenants_journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Acme's alice has 30, Bolt's 1, and the one of no tenant 7."""
    path = tmp_path_factory.mktemp("tenants") / "bank.db"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(PROJECT))
        asyncio.run(_build(f"sqlite:///{path}"))
    return path


async def _build(url: str) -> None:
    from cli_ledger import Account, Deposit  # type: ignore[import-not-found]

    for tenant, amounts in ((None, [7]), ("acme", [10, 20]), ("bolt", [1])):
        async with ActorSystem(url, tenant=tenant) as system:
            for amount in amounts:
                await system.ref(Account, "alice").ask(Deposit(amount=amount))
    async with EventStore.open(url, tenant="acme") as store:
        await store.append("Other-1", [Account_event(5)])


def Account_event(amount: int) -> Any:
    from cli_ledger import Deposited

    return Deposited(amount=amount)


@pytest.fixture
def tenants_url(tenants_journal: Path) -> str:
    return f"sqlite:///{tenants_journal}"


def test_streams_are_a_tenants_or_everybodys(cli: Run, tenants_url: str) -> None:
    assert cli("streams", tenants_url, "--tenant", "acme").lines == [
        "Account-alice (acme)\t2\t0",
        "Other-1 (acme)\t1\t0",
    ]
    assert cli("streams", tenants_url, "--kind", "Account").lines == [
        "Account-alice\t1\t0",
        "Account-alice (acme)\t2\t0",
        "Account-alice (bolt)\t1\t0",
    ]
    assert [each["tenant"] for each in cli("streams", tenants_url, "--json").objects] == ["", "acme", "acme", "bolt"]


def test_events_are_those_of_the_tenants_stream(cli: Run, tenants_url: str) -> None:
    found = cli("events", tenants_url, "Account-alice", "--tenant", "acme", "--json").objects
    assert [(each["payload"]["amount"], each["tenant"]) for each in found] == [(10, "acme"), (20, "acme")]
    assert [each["payload"]["amount"] for each in cli("events", tenants_url, "Account-alice", "--json").objects] == [7]
    assert cli("events", tenants_url, "Account-alice", "--tenant", "nobody").code == 1


def test_tail_shows_a_tenants_log_or_everybodys(cli: Run, tenants_url: str) -> None:
    everything = cli("tail", tenants_url, "--json").objects
    assert [each["tenant"] for each in everything] == ["", "acme", "acme", "bolt", "acme"]
    assert cli("tail", tenants_url, "--tenant", "acme", "--json").objects == [
        each for each in everything if each["tenant"] == "acme"
    ]
    assert [line.split("\t")[2] for line in cli("tail", tenants_url, "-n", "2").lines] == [
        "Account-alice (bolt)",
        "Other-1 (acme)",
    ]


def test_actors_are_folded_as_the_tenants(cli: Run, tenants_url: str) -> None:
    for tenant, amount in (("acme", 30), ("bolt", 1)):
        (shown,) = cli("show", tenants_url, ACCOUNT, "alice", "--tenant", tenant, "--json").objects
        assert shown["state"]["amount"] == amount
        (replayed,) = cli("replay", tenants_url, ACCOUNT, "--tenant", tenant, "--json").objects
        assert (replayed["summary"]["actors"], replayed["summary"]["problems"]) == (1, 0)
    assert cli("rebuild", "snapshots", tenants_url, ACCOUNT, "alice", "--tenant", "acme").code == 0
    (shown,) = cli("show", tenants_url, ACCOUNT, "alice", "--json").objects
    assert (shown["state"]["amount"], shown["snapshot_version"]) == (7, 0)


def test_time_travel_is_through_the_tenants_history(cli: Run, tenants_url: str) -> None:
    for tenant, end, amount in ((("--tenant", "acme"), 2, 30), (("--tenant", "bolt"), 1, 1), ((), 1, 7)):
        *_, summary = cli("diff", tenants_url, ACCOUNT, "alice", "0", *tenant, "--json").objects
        assert summary["summary"]["after"] == end
        (blamed,) = cli("blame", tenants_url, ACCOUNT, "alice", "/amount", *tenant, "--json").objects
        assert (blamed["value"], blamed["version"]) == (amount, end)
    (found,) = cli("bisect", tenants_url, ACCOUNT, "alice", "amount < 30", "--tenant", "acme", "--json").objects
    assert (found["version"], found["tenant"]) == (2, "acme")
    for command in (("diff", "0"), ("blame",), ("bisect", "True")):
        name, *rest = command
        assert cli(name, tenants_url, ACCOUNT, "alice", *rest, "--tenant", "nobody").code == 1


def test_processes_that_fold_are_told_the_tenant(cli: Run, tenants_url: str, tmp_path: Path) -> None:
    for tenant, events in ((("--tenant", "acme"), 2), ((), 1)):
        checked = cli("replay", tenants_url, ACCOUNT, "--check", *tenant, "--json")
        (summary,) = checked.objects
        assert (checked.code, summary["summary"]["actors"], summary["summary"]["events"]) == (0, 1, events)
    old, new = str(PROJECT), str(shutil.copytree(PROJECT, tmp_path / "new"))
    compared = cli("whatif", tenants_url, ACCOUNT, "--old", old, "--new", new, "--tenant", "acme", "--json")
    (summary,) = compared.objects
    assert (compared.code, summary["summary"]["actors"], summary["summary"]["events"]) == (0, 1, 2)


def test_a_replay_is_taken_up_again_for_the_same_tenant(cli: Run, tenants_url: str, tmp_path: Path) -> None:
    file = tmp_path / "replay.json"
    work = {"replay": str(parse_store_url(tenants_url)), "tenant": "bolt", "class": ACCOUNT, "check": False}
    file.write_text(json.dumps({"work": work, "after": "a", "so_far": {"actors": 1}}), "utf-8")
    for tenant, code in ((("--tenant", "acme"), 2), ((), 2), (("--tenant", "bolt"), 0)):
        assert cli("replay", tenants_url, ACCOUNT, "--resume", str(file), *tenant).code == code


def test_a_fork_is_of_no_tenant(cli: Run, tenants_url: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch.db"
    forked = cli("fork", tenants_url, ACCOUNT, "alice", str(scratch), "--tenant", "acme")
    assert (forked.code, forked.lines) == (0, [f"Account-alice: version 2 in sqlite:///{scratch}, 2 events copied"])
    there = cli("events", f"sqlite:///{scratch}", "Account-alice", "--json").objects
    here = cli("events", tenants_url, "Account-alice", "--tenant", "acme", "--json").objects
    assert [each["event_id"] for each in there] == [each["event_id"] for each in here]
    assert [each["tenant"] for each in there] == ["", ""]
    # Another tenant's stream of that id is another history.
    for tenant in (("--tenant", "bolt"), ()):
        refused = cli("fork", tenants_url, ACCOUNT, "alice", str(scratch), *tenant)
        assert (refused.code, "has a stream 'Account-alice' already" in refused.err) == (1, True)


def test_owners_conflicts_and_projections_are_the_tenants(cli: Run, tenants_url: str) -> None:
    commands = (("owners",), ("owners", "--streams"), ("conflicts", "list"), ("projections", "list"))
    for command in (*commands, ("dead-letters", "list")):
        result = cli(*command, tenants_url, "--tenant", "acme")
        assert (result.code, result.out) == (0, "")


def test_verify_reads_everybodys_streams_or_a_tenants(cli: Run, tenants_url: str) -> None:
    (whole,) = cli("verify", tenants_url, "--json").objects
    assert (whole["summary"]["streams"], whole["summary"]["events"], whole["summary"]["problems"]) == (4, 5, 0)
    (part,) = cli("verify", tenants_url, "--tenant", "acme", "--json").objects
    assert (part["summary"]["streams"], part["summary"]["events"], part["summary"]["problems"]) == (2, 3, 0)


def test_verify_says_whose_the_damaged_event_is(cli: Run, tenants_journal: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged.db"
    with closing(sqlite3.connect(tenants_journal)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    url = f"sqlite:///{copy}"
    with unprotected(url) as connection:
        for position in (2, 3):
            ((payload,),) = connection.execute("SELECT payload FROM journal_events WHERE position = ?", (position,))
            damaged = flip(payload.encode(), payload.index("1" if position == 2 else "2")).decode()
            connection.execute("UPDATE journal_events SET payload = ? WHERE position = ?", (damaged, position))
    for arguments in ((), ("--tenant", "acme")):
        result = cli("verify", url, "--json", *arguments)
        *found, summary = result.objects
        assert result.code == 1
        assert [(each["tenant"], each["stream_id"], each["version"], each["position"]) for each in found] == [
            ("acme", "Account-alice", 1, 2),
            ("acme", "Account-alice", 2, 3),
        ]
        assert summary["summary"]["problems"] == 2
    assert cli("verify", url, "--tenant", "bolt").code == 0


async def test_of_several_damaged_events_the_one_is_named_that_was_to_be_read(
    tenants_journal: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "damaged.db"
    with closing(sqlite3.connect(tenants_journal)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    with unprotected(f"sqlite:///{copy}") as connection:
        connection.execute("UPDATE journal_events SET payload = x'ff' WHERE position IN (2, 3)")
    async with EventStore.open(f"sqlite:///{copy}", tenant="acme") as store:
        for after, damaged in ((0, 2), (2, 3)):
            with pytest.raises(JournalCorrupt) as error:
                await store.read_page(after=after, limit=10)
            assert error.value.position == damaged


@pytest.mark.parametrize("name", ["", "a/b", "x" * 65])
def test_an_odd_name_is_wrong_usage(cli: Run, tenants_url: str, name: str) -> None:
    result = cli("streams", tenants_url, "--tenant", name)
    assert result.code == 2
    assert "a tenant's name" in result.err


@pytest.mark.parametrize("name", ["a/b", "acme ", "x" * 65])
def test_an_audit_of_an_odd_name_is_wrong_usage_too(cli: Run, tenants_url: str, name: str) -> None:
    result = cli("audit", "stats", tenants_url, "--tenant", "acme", "--tenant", name)
    assert (result.code, result.out) == (2, "")
    assert "a tenant's name" in result.err


def test_an_audit_may_ask_for_the_streams_of_no_tenant(cli: Run, tenants_url: str) -> None:
    assert {each["tenant"] for each in cli("audit", "query", tenants_url, "--tenant", "", "--json").objects} == {""}
