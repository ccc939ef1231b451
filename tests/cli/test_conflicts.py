"""`conflicts` and `replication`: what replicas did not know of each other, and how far each has read."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from actors import ActorSystem
from actors.replicas.members import Members
from eventstore import EventStore

from .conftest import PROJECT, Run


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two replicas that wrote two events each without the other, then read each other; then `eu` wrote one more."""
    folder = tmp_path_factory.mktemp("replicas")
    urls = {name: f"sqlite:///{folder / name}.db" for name in ("eu", "us")}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(PROJECT))
        asyncio.run(build(urls))
    return urls


async def build(urls: dict[str, str]) -> None:
    from cli_shop import Add, Shop  # type: ignore[import-not-found]

    now = 1_700_000_000_000_000
    async with EventStore.open(urls["eu"]) as eu, EventStore.open(urls["us"]) as us:
        options = {"replicated": [Shop], "replication_seconds": None}
        async with (
            ActorSystem(eu, replica="eu", peers={"us": us}, **options) as one,
            ActorSystem(us, replica="us", peers={"eu": eu}, **options) as other,
        ):
            one.replication.wall = lambda: now
            other.replication.wall = lambda: now + 5
            for system, items in ((one, "ab"), (other, "cd")):
                for item in items:
                    await system.ref(Shop, "x").ask(Add(item=item))
            for _ in range(2):
                await one.replication.pull_from("us")
                await other.replication.pull_from("eu")
            await one.ref(Shop, "x").ask(Add(item="e"))


def test_conflicts_are_listed(cli: Run, urls: dict[str, str]) -> None:
    result = cli("conflicts", "list", urls["eu"])
    assert (result.code, result.err) == (0, "")
    assert [line.split("\t") for line in result.lines] == [
        ["Shop-x", "3", "us", "ShopAdded", "2", "1,2", "eu"],
        ["Shop-x", "4", "us", "ShopAdded", "2", "1,2", "eu"],
    ]
    first, _ = cli("conflicts", "list", urls["us"], "--json", "--kind", "Shop").objects
    assert (first["stream_id"], first["version"], first["origin"]) == ("Shop-x", 3, "eu")
    assert first["payload"] == {"item": "a"}
    assert [(each["origin"], each["sequence"], each["clock"]) for each in first["against"]] == [
        ("us", 1, {"us": 1}),
        ("us", 2, {"us": 2}),
    ]
    nothing = cli("conflicts", "list", urls["eu"], "--kind", "Other")
    assert (nothing.code, nothing.out) == (0, "")
    assert "no stream of kind 'Other'" in nothing.err


def test_both_sides_are_shown_with_the_order_and_the_reason(cli: Run, urls: dict[str, str]) -> None:
    result = cli("conflicts", "show", urls["eu"], "Shop-x", "3")
    assert result.code == 0
    assert result.lines == [
        "conflict   Shop-x at version 3",
        "came from  us",
        "met        2 that it was written without",
        '1. eu 1  version 1  ShopAdded  {"item":"a"}',
        "   knew {eu:1}, time 1700000000000000",
        '2. eu 2  version 2  ShopAdded  {"item":"b"}',
        "   knew {eu:2}, time 1700000000000001; it was written after the one before",
        '3. us 1  version 3  ShopAdded  {"item":"c"}',
        "   knew {us:1}, time 1700000000000005; its time is 4 µs later than that of the one before",
    ]
    (shown,) = cli("conflicts", "show", urls["eu"], "Shop-x", "3", "--json").objects
    assert [side["version"] for side in shown["order"]] == [1, 2, 3]


def test_a_conflict_is_folded_by_another_rule(cli: Run, urls: dict[str, str]) -> None:
    arguments = ("--resolver", "cli_shop:Shop", "--resolver", "cli_shop:FirstOnly")
    result = cli("conflicts", "show", urls["eu"], "Shop-x", "3", *arguments)
    assert result.code == 0
    assert result.lines[-2:] == [
        'cli_shop:Shop: {"items":["a","b","c"]}',
        'cli_shop:FirstOnly: {"items":["a","b"]}',
    ]


def test_what_is_no_conflict_is_not_shown(cli: Run, urls: dict[str, str]) -> None:
    result = cli("conflicts", "show", urls["eu"], "Shop-x", "5")
    assert (result.code, result.out) == (1, "")
    assert result.err == ("error: the event at version 5 of 'Shop-x' met none that it was written without\n")
    assert cli("conflicts", "show", urls["eu"], "Shop-x", "3", "--resolver", "cli_ledger:Account").code == 2


def test_how_far_each_has_read_is_shown(cli: Run, urls: dict[str, str]) -> None:
    alone = [line.split("\t") for line in cli("replication", "status", urls["eu"]).lines]
    assert [line[:3] for line in alone] == [["eu", "us", "Shop"]]
    assert alone[0][4] == ""
    both = cli("replication", "status", urls["eu"], "--peer", f"us={urls['us']}", "--json").objects
    assert [(each["reader"], each["source"], each["kind"]) for each in both] == [
        ("eu", "us", "Shop"),
        ("us", "eu", "Shop"),
    ]
    # One event, and the one before it that is kept in each journal, were not read yet.
    assert both[1]["behind"] > 0
    assert both[0]["behind"] is not None
    away = cli("replication", "status", urls["eu"], "--peer", "ap=sqlite:////nowhere/ap.db")
    assert away.lines[-1].startswith("eu\tap\t\t0\t\tcannot be read")
    assert cli("replication", "status", urls["eu"], "--peer", "us").code == 2
    mistaken = cli("replication", "status", urls["eu"], "--peer", f"ap={urls['us']}")
    assert mistaken.code == 2
    assert "--peer ap=…: that is the store of the replica 'us'" in mistaken.err


def test_looking_writes_nothing(cli: Run, urls: dict[str, str]) -> None:
    def count(url: str) -> int:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            found: int = connection.execute("SELECT count(*) FROM journal_events").fetchone()[0]
            return found

    before = [count(url) for url in urls.values()]
    cli("replication", "status", urls["eu"], "--peer", f"us={urls['us']}")
    cli("conflicts", "list", urls["eu"])
    assert [count(url) for url in urls.values()] == before


def test_a_journal_that_is_no_replicas(cli: Run, url: str) -> None:
    result = cli("replication", "status", url)
    assert result.code == 1
    assert "is no replica's journal" in result.err
    assert cli("conflicts", "list", url).code == 0


def test_replicated_actors_are_shown_and_replayed(cli: Run, urls: dict[str, str]) -> None:
    (shown,) = cli("show", urls["us"], "cli_shop:Shop", "x", "--json").objects
    assert shown["state"] == {"items": ["a", "b", "c", "d"]}
    replayed = cli("replay", urls["us"], "cli_shop:Shop")
    assert replayed.code == 0
    assert "4 events folded" in replayed.out
    assert cli("verify", urls["us"]).code == 0
    refused = cli("rebuild", "snapshots", urls["us"], "cli_shop:Shop", "--all")
    assert refused.code == 2
    assert "its replica takes snapshots" in refused.err
    assert "raise its SnapshotPolicy.revision to have those that are there left aside" in refused.err


def test_a_rule_that_has_changed_is_found_by_a_replay_until_the_revision_is_raised(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(PROJECT))
    from cli_shop import Add, KeptShop  # type: ignore[import-not-found]

    urls = {name: f"sqlite:///{tmp_path / name}.db" for name in ("eu", "us")}

    async def fill() -> None:
        options = {"replicated": [KeptShop], "replication_seconds": None}
        async with (
            ActorSystem(urls["eu"], replica="eu", peers={"us": urls["us"]}, **options) as eu,
            ActorSystem(urls["us"], replica="us", peers={"eu": urls["eu"]}, **options) as us,
        ):
            await eu.ref(KeptShop, "x").ask(Add(item="a"))
            await us.ref(KeptShop, "x").ask(Add(item="b"))
            for system, other in ((eu, "us"), (us, "eu"), (eu, "us")):
                await system.replication.pull_from(other)

    asyncio.run(fill())
    as_it_was, changed, told_of = [
        cli("replay", urls["eu"], f"cli_shop:{name}") for name in ("KeptShop", "RuledShop", "RevisedShop")
    ]
    assert as_it_was.lines == ["1 Shop actor, 2 events folded, 1 snapshot compared: no differences"]
    assert changed.code == 1
    assert "snapshot differs" in changed.lines[0]
    assert told_of.lines == ["1 Shop actor, 2 events folded, 0 snapshots compared: no differences"]


def test_a_conflict_of_a_version_that_is_not_there(cli: Run, urls: dict[str, str]) -> None:
    assert "'Shop-none' is at version 0" in cli("conflicts", "show", urls["eu"], "Shop-none", "1").err
    assert (
        "'Shop-x' is at version 5: there is no version 9 yet" in cli("conflicts", "show", urls["eu"], "Shop-x", "9").err
    )


@pytest.mark.parametrize(
    ("held_back", "note"),
    [
        ({"Shop-b": 1}, "Shop-b is held back: the reader's log says why"),
        ({"Shop-b": 1, "Shop-a": 2, "Shop-c": 2}, "Shop-a and 2 more are held back: the reader's log says why"),
    ],
)
def test_actors_that_could_not_be_merged_are_named(
    cli: Run, urls: dict[str, str], tmp_path: Path, held_back: dict[str, int], note: str
) -> None:
    path = shutil.copy(urls["eu"].removeprefix("sqlite:///"), tmp_path / "own.db")

    async def hold_back() -> None:
        async with EventStore.open(f"sqlite:///{path}") as store:
            members = Members(store, "eu", ())
            cursor = await members.cursor("us", "Shop")
            cursor.held_back = held_back
            await members.keep(cursor)

    asyncio.run(hold_back())
    (line,) = cli("replication", "status", f"sqlite:///{path}").lines
    assert line.split("\t")[5] == note
