"""`eventstore retention`: what would go is shown, goes when it is told to, and an actor recovers afterwards."""

from __future__ import annotations

import asyncio

import pytest

from actors import ActorSystem

from .conftest import Run

ACCOUNT = "cli_ledger:Account"


def test_a_plan_is_shown_and_nothing_is_done(cli: Run, own_url: str) -> None:
    before = cli("tail", own_url, "-n", "100").out
    shown = cli("retention", "plan", own_url, "--keep-versions", "0", "--actor", ACCOUNT)
    assert (shown.code, shown.err) == (0, "")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in shown.lines[:-1]}
    assert rows["Account-alice"] == ["5", "4", "4", "44", "1", "goes"] or rows["Account-alice"][-1] == "goes"
    assert rows["Account-carol"][:3] == ["5", "4", "1"]
    assert "no snapshot" in rows["Account-" + "\\x1b[31mred\\x1b[0m\\u202e\\r\\n\\t\\\\ [bold]x[/bold] é"][-1]
    assert "may go" in shown.lines[-1]
    assert cli("tail", own_url, "-n", "100").out == before


def test_what_was_planned_goes_and_the_actor_recovers(cli: Run, own_url: str) -> None:
    from cli_ledger import Account, Deposit  # type: ignore[import-not-found]

    plan = cli("retention", "plan", own_url, "--keep-versions", "0", "--actor", ACCOUNT, "--json").objects
    done = cli("retention", "apply", own_url, "--keep-versions", "0", "--actor", ACCOUNT, "--json")
    assert done.code == 1
    assert done.objects[:-1] == plan[:-1]
    assert done.objects[-1]["summary"] == plan[-1]["summary"]
    assert done.objects[-1]["summary"]["refused"] == 1
    left = cli("events", own_url, "Account-alice", "--json").objects
    assert [event["version"] for event in left] == [5]
    again = cli("retention", "apply", own_url, "--keep-versions", "0", "--actor", ACCOUNT, "--json")
    assert again.objects[-1]["summary"]["streams"] == 0

    async def asked() -> int:
        async with ActorSystem(own_url) as system:
            found: int = await system.ref(Account, "alice").ask(Deposit(amount=1))
            return found

    assert asyncio.run(asked()) == 151


def test_a_refused_stream_ends_with_1(cli: Run, own_url: str) -> None:
    done = cli("retention", "apply", own_url, "--keep-versions", "0", "--kind", "Note", "--json")
    assert (done.code, done.objects[0]["refusal"]["error"]) == (1, "RetentionRefused")
    done = cli("retention", "apply", own_url, "--keep-versions", "0", "--kind", "Note", "--no-snapshots")
    assert (done.code, cli("events", own_url, "Note-1").out) == (0, "")


def test_the_policy_is_recorded_as_the_reason(cli: Run, own_url: str) -> None:
    import sqlite3
    from contextlib import closing

    arguments = ("retention", "apply", own_url, "--older-than", "0h", "--keep-versions", "1", "--actor", ACCOUNT)
    assert cli(*arguments).code == 0
    with closing(sqlite3.connect(own_url.removeprefix("sqlite:///"))) as connection:
        reasons = {reason for (reason,) in connection.execute("SELECT reason FROM journal_removals")}
    assert reasons == {"test", "retention: older than 0h, not among the newest 1"}


def test_nothing_is_old_yet(cli: Run, own_url: str) -> None:
    shown = cli("retention", "plan", own_url, "--older-than", "365d", "--json")
    assert (shown.code, len(shown.objects)) == (0, 1)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--older-than", "1y"],
        ["--older-than", "-1d"],
        ["--older-than", "999999w"],
        ["--keep-versions", "-1"],
        ["--keep-versions", "1", "--actor", ACCOUNT, "--kind", "Account"],
        ["--keep-versions", "1", "--actor", ACCOUNT, "--no-snapshots"],
        ["--keep-versions", "1", "--no-snapshots"],
        ["--keep-versions", "1", "--actor", "cli_ledger:Nobody"],
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(cli: Run, url: str, options: list[str]) -> None:
    for name in ("plan", "apply"):
        result = cli("retention", name, url, *options)
        assert (result.code, result.out) == (2, "")


def test_a_store_that_is_not_there_is_not_made(cli: Run, tmp_path: object) -> None:
    result = cli("retention", "plan", f"sqlite:///{tmp_path}/typo.db", "--keep-versions", "1")
    assert result.code == 3
