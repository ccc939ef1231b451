"""`diff`, `blame`, `bisect` and `fork`: what was, since when, because of what, and what would have been."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from actors.time_travel.bisection import bisect
from actors.time_travel.blame import blame
from actors.time_travel.folding import Fold
from eventstore import EventStore
from eventstore.cli.targets import actor_class
from eventstore.snapshots import new_snapshot

from .conftest import PROJECT, Change, Run
from .desks import DATABASES, DESK, build, contents, on_every_database
from .test_conflicts import build as build_replicas
from .test_program import in_a_terminal

ACCOUNT = "cli_ledger:Account"


@pytest.fixture(scope="module")
def desk_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('desk') / 'desk.db'}"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(PROJECT))
        asyncio.run(build(url))
    return url


@pytest.fixture(scope="module")
def shop_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A replica with a, b of its own, c, d that came from another, and e."""
    folder = tmp_path_factory.mktemp("shops")
    urls = {name: f"sqlite:///{folder / name}.db" for name in ("eu", "us")}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(PROJECT))
        asyncio.run(build_replicas(urls))
    return urls["us"]


class TestDiff:
    def test_changes_are_named_by_pointers(self, cli: Run, desk_url: str) -> None:
        result = cli("diff", desk_url, DESK, "a", "1", "4")
        assert (result.code, result.err.replace("this module prints while it is imported\n", "")) == (0, "")
        assert [line.split("\t") for line in result.lines] == [
            ["added", "/tickets/t~02", "", '{"owner":"bob","is_open":true}'],
            ["changed", "/owners/0", '"nobody"', '"ann"'],
            ["added", "/owners/1", "", '"bob"'],
            ["added", "/owners/2", "", '"nobody"'],
            ["changed", "/open", "1", "2"],
        ]

    def test_backwards_the_same_is_the_other_way_round(self, cli: Run, desk_url: str) -> None:
        first, *_ = cli("diff", desk_url, DESK, "a", "4", "0", "--json").objects
        assert first == {"pointer": "/tickets/t0", "kind": "removed", "before": {"owner": "nobody", "is_open": True}}

    def test_json_ends_with_a_summary(self, cli: Run, desk_url: str) -> None:
        *changes, summary = cli("diff", desk_url, DESK, "a", "5", "--json").objects
        assert [(each["kind"], each["pointer"]) for each in changes] == [("added", "/tickets/t4"), ("changed", "/open")]
        assert summary == {"summary": {"stream_id": "Desk-a", "before": 5, "after": 6, "changes": 2}}

    def test_times_stand_for_versions(self, cli: Run, desk_url: str) -> None:
        events = cli("events", desk_url, "Desk-a", "--json").objects
        moments = [events[version - 1]["recorded_at"] for version in (2, 3)]
        *_, summary = cli("diff", desk_url, DESK, "a", *moments, "--json").objects
        assert (summary["summary"]["before"], summary["summary"]["after"]) == (2, 3)

    def test_nothing_is_said_of_what_is_the_same(self, cli: Run, desk_url: str) -> None:
        result = cli("diff", desk_url, DESK, "a", "3", "3")
        assert (result.code, result.out) == (0, "")
        assert "the same state at versions 3 and 3" in result.err

    def test_a_terminal_gets_colours(self, desk_url: str) -> None:
        shown = in_a_terminal("diff", desk_url, DESK, "a", "3", "4").out
        assert re.search(r"\x1b\[1;31m- /tickets/t~11 ", shown)
        assert re.search(r"\x1b\[1;33m~ /open +\x1b\[0m\x1b\[33m3 -> 2\x1b", shown)

    @pytest.mark.parametrize(
        ("versions", "code", "message"),
        [
            (("1", "7"), 1, "'Desk-a' is at version 6: there is no version 7 yet"),
            (("first",), 2, "neither a version, such as 3, nor a time"),
            (("2026-01-31T12:00:00",), 2, "has no offset"),
            (("²",), 2, "neither a version"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(
        self, cli: Run, desk_url: str, versions: tuple[str, ...], code: int, message: str
    ) -> None:
        result = cli("diff", desk_url, DESK, "a", *versions)
        assert (result.code, result.out) == (code, "")
        assert message in result.err

    def test_a_replicated_actor_is_folded_in_the_order_of_all_replicas(self, cli: Run, shop_url: str) -> None:
        changes = cli("diff", shop_url, "cli_shop:Shop", "x", "2", "4").lines
        assert [line.split("\t") for line in changes] == [
            ["changed", "/items/0", '"c"', '"a"'],
            ["changed", "/items/1", '"d"', '"b"'],
            ["added", "/items/2", "", '"c"'],
            ["added", "/items/3", "", '"d"'],
        ]


class TestBlame:
    def test_the_event_that_set_a_value_is_named(self, cli: Run, desk_url: str) -> None:
        events = cli("events", desk_url, "Desk-a", "--json").objects
        (row,) = cli("blame", desk_url, DESK, "a", "/open", "--at", "4", "--json").objects
        assert row == {
            "pointer": "/open",
            "value": 2,
            "is_removed": False,
            "version": 4,
            "recorded_at": events[3]["recorded_at"],
            "type": "cli-desk.closed",
            "event_id": events[3]["event_id"],
            "command_id": "close-1",
            "user": "boss",
        }

    def test_without_a_pointer_every_value_is_told_of(self, cli: Run, desk_url: str) -> None:
        rows = [line.split("\t") for line in cli("blame", desk_url, DESK, "a").lines]
        assert [(row[0], row[1], row[2]) for row in rows] == [
            ("/tickets/t0/owner", '"nobody"', "1"),
            ("/tickets/t0/is_open", "true", "1"),
            ("/tickets/t~02/owner", '"bob"', "3"),
            ("/tickets/t~02/is_open", "true", "3"),
            ("/tickets/t4/owner", '"ann"', "6"),
            ("/tickets/t4/is_open", "true", "6"),
            ("/owners/0", '"ann"', "2"),
            ("/owners/1", '"bob"', "3"),
            ("/owners/2", '"nobody"', "3"),
            ("/open", "2", "6"),
        ]

    def test_the_whole_history_of_a_value(self, cli: Run, desk_url: str) -> None:
        rows = [line.split("\t") for line in cli("blame", desk_url, DESK, "a", "/open", "--all").lines]
        assert [row[:4] for row in rows] == [
            [str(version), "changed", "/open", value] for version, value in enumerate("123212", start=1)
        ]
        assert [row[7] for row in rows] == ["", "open-1", "", "close-1", "close-2", ""]
        assert [row[8] for row in rows] == ["", "", "boss", "boss", "", ""]

    def test_that_the_first_events_were_removed_is_told_beside_the_rest(self, cli: Run, url: str) -> None:
        for pointer in ("/amount", "/nothing"):
            result = cli("blame", url, ACCOUNT, "carol", pointer, "--all", "--json")
            assert "events of 'Account-carol' up to version 3 were removed" in result.err

    def test_what_was_removed_is_told_of_with_what_removed_it(self, cli: Run, desk_url: str) -> None:
        (row,) = cli("blame", desk_url, DESK, "a", "/tickets/t~11/owner", "--json").objects
        assert (row["is_removed"], row["version"], "value" in row) == (True, 4, False)
        kinds = [row["kind"] for row in cli("blame", desk_url, DESK, "a", "/tickets/t~11", "--all", "--json").objects]
        assert kinds == ["added", "removed"]

    def test_what_holds_others_is_set_when_one_of_them_is(self, cli: Run, desk_url: str) -> None:
        for pointer, version in (("/tickets", 6), ("/owners", 3), ("/tickets/t~02", 3), ("", 6)):
            (row,) = cli("blame", desk_url, DESK, "a", pointer, "--json").objects
            assert (row["pointer"], row["version"]) == (pointer, version)

    def test_what_became_empty_was_set_by_what_emptied_it(self, cli: Run, desk_url: str) -> None:
        async def empty() -> dict[str, int]:
            async with EventStore.open(desk_url) as store:
                desk = actor_class(DESK)
                return {each.pointer: each.version for each in await blame(store, desk, "b")}

        async def fill() -> None:
            from cli_desk import Closed, Opened  # type: ignore[import-not-found]

            async with EventStore.open(desk_url) as store:
                await store.append("Desk-b", [Opened(ticket="t", owner="o"), Closed(ticket="t"), Closed(ticket="u")])

        asyncio.run(fill())
        assert asyncio.run(empty()) == {"/tickets": 2, "/owners/0": 1, "/open": 3}

    def test_what_was_never_set_is_of_the_initial_state(self, cli: Run, url: str) -> None:
        (row,) = cli("blame", url, ACCOUNT, "alice", "/notes", "--json").objects
        assert (row["value"], row["version"], row["event_id"]) == ([], 0, None)

    def test_where_events_were_removed_the_snapshot_is_where_it_begins(self, cli: Run, url: str) -> None:
        rows = {row["pointer"]: row for row in cli("blame", url, ACCOUNT, "carol", "--json").objects}
        assert (rows["/history/0"]["version"], rows["/history/0"]["event_id"]) == (4, None)
        assert rows["/history/4"]["version"] == 5
        assert rows["/history/4"]["event_id"] is not None

    def test_what_was_never_there_is_an_error(self, cli: Run, desk_url: str) -> None:
        result = cli("blame", desk_url, DESK, "a", "/closed")
        assert (result.code, result.out) == (1, "")
        assert result.err == "error: 'Desk-a' has nothing at '/closed', and never had\n"
        result = cli("blame", desk_url, DESK, "a", "open")
        assert (result.code, result.out) == (2, "")
        assert "it begins with a slash, such as /open" in result.err

    def test_of_a_replicated_actor_it_is_the_event_that_came(self, cli: Run, shop_url: str) -> None:
        rows = {
            row["pointer"]: row["version"] for row in cli("blame", shop_url, "cli_shop:Shop", "x", "--json").objects
        }
        # The other's two came as versions 3 and 4, and go before the own two.
        assert rows == {"/items/0": 3, "/items/1": 4, "/items/2": 4, "/items/3": 4}

    def test_a_long_history_is_walked_through_once(self, cli: Run, own_url: str, change: Change) -> None:
        async def fill(store: EventStore) -> None:
            from cli_ledger import Deposited  # type: ignore[import-not-found]

            amounts = [1 if number in (3, 700, 1200) else 0 for number in range(1, 1501)]
            await store.append("Account-long", [Deposited(amount=amount) for amount in amounts])

        change(fill)
        rows = cli("blame", own_url, ACCOUNT, "long", "/amount", "--all", "--json").objects
        assert [row["version"] for row in rows] == [3, 700, 1200]
        (row,) = cli("blame", own_url, ACCOUNT, "long", "/history/1300", "--json").objects
        assert row["version"] == 1301


class TestBisect:
    def test_the_event_is_found(self, cli: Run, desk_url: str) -> None:
        expression = "open == len(tickets)"
        (found,) = cli("bisect", desk_url, DESK, "a", expression, "--json").objects
        assert (found["version"], found["expression"], found["metadata"]["command_id"]) == (5, expression, "close-2")
        result = cli("bisect", desk_url, DESK, "a", "state.open == len(state.tickets) or version < 5")
        assert result.code == 0
        fields = dict(re.split(r" {2,}", line, maxsplit=1) for line in result.lines)
        assert fields["holds"].endswith("at version 4, and not at version 5")
        assert fields["command"] == "close-2"

    def test_few_states_are_looked_at_and_few_events_folded(self, own_url: str, change: Change) -> None:
        async def fill(store: EventStore) -> None:
            from cli_ledger import Deposited

            await store.append("Account-long", [Deposited(amount=1) for _ in range(1000)])

        change(fill)
        looked: list[int] = []

        def below(state: object, version: int) -> bool:
            looked.append(version)
            return state.amount < 777  # type: ignore[attr-defined, no-any-return]

        async def search(*, use_snapshots: bool) -> tuple[int, int]:
            looked.clear()
            async with EventStore.open(own_url) as store:
                found = await bisect(store, actor_class(ACCOUNT), "long", below, use_snapshots=use_snapshots)
            assert list(found.tried) == looked
            assert len(looked) <= 12
            return found.version, found.folded

        async def keep() -> None:
            from cli_ledger import Account

            async with EventStore.open(own_url) as store:
                folding = await Fold.earliest(store, Account, "long")
                from eventstore.snapshots import new_snapshot

                for version in (500, 750, 770, 790):
                    await folding.through(version)
                    data = folding.dump()
                    snapshot = new_snapshot("Account-long", version, Account.state_type.fingerprint, data)
                    await store.save_snapshot(snapshot, keep=9)

        version, folded = asyncio.run(search(use_snapshots=True))
        assert version == 777
        # To the end once, and then half of what is left each time.
        assert folded <= 1000 + 500 + 250 + 125 + 63 + 32 + 16 + 8 + 4 + 2 + 1 + 12
        asyncio.run(keep())
        version, with_snapshots = asyncio.run(search(use_snapshots=True))
        assert version == 777
        assert with_snapshots < folded - 600
        assert asyncio.run(search(use_snapshots=False)) == (777, folded)

    def test_a_predicate_that_changes_the_state_misleads_nobody(self, desk_url: str) -> None:
        def emptying(state: object, version: int) -> bool:
            state.tickets.clear()  # type: ignore[attr-defined]
            state.open += 100  # type: ignore[attr-defined]
            return bool(state.open < 102 or version <= 2)  # type: ignore[attr-defined]

        async def search() -> int:
            async with EventStore.open(desk_url) as store:
                return (await bisect(store, actor_class(DESK), "a", emptying, after=0, through=4)).version

        assert asyncio.run(search()) == 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("open >= 0",), "it holds at version 6 too, where the search ends: choose another end"),
            (("open > 0",), "it does not hold at version 0 already, where the search begins: choose a later beginning"),
            (("open < 3", "--after", "3", "--through", "3"), "no events behind version 3 and up to 3"),
            (("tickets['t0']",), "at version 0: it raises KeyError: 't0'; the state there is {"),
            (("opne",), "at version 0: it raises NameError"),
        ],
    )
    def test_where_there_is_nothing_to_find_it_is_refused(
        self, cli: Run, desk_url: str, arguments: tuple[str, ...], message: str
    ) -> None:
        result = cli("bisect", desk_url, DESK, "a", *arguments)
        assert (result.code, result.out) == (1, "")
        assert message in result.err

    def test_what_is_no_expression_is_wrong_usage(self, cli: Run, desk_url: str) -> None:
        for text in ("open =", "import os", "", "a\0b"):
            result = cli("bisect", desk_url, DESK, "a", text)
            assert (result.code, result.out) == (2, "")
            assert "is no Python expression" in result.err

    def test_a_part_of_the_history_may_be_chosen(self, cli: Run, desk_url: str) -> None:
        (found,) = cli("bisect", desk_url, DESK, "a", "open >= 2", "--after", "2", "--through", "5", "--json").objects
        assert found["version"] == 5

    def test_where_events_were_removed_it_begins_at_the_snapshot(self, cli: Run, url: str) -> None:
        (found,) = cli("bisect", url, ACCOUNT, "carol", "amount < 150", "--json").objects
        assert (found["version"], found["tried"]) == (5, [4, 5])

    def test_a_snapshot_that_the_state_does_not_take_is_passed_over(self, own_url: str) -> None:
        cls = actor_class(ACCOUNT)

        async def damaged() -> list[int]:
            async with EventStore.open(own_url) as store:
                alice = await Fold.earliest(store, cls, "alice")
                end = alice.stream_version
                data = b'{"amount":"no number"}'
                for version in range(1, end):
                    snapshot = new_snapshot(alice.stream_id, version, cls.state_type.fingerprint, data)
                    await store.save_snapshot(snapshot, keep=1000)
                found = await bisect(store, cls, "alice", lambda state, version: version < end)
                return [found.version, end]

        version, end = asyncio.run(damaged())
        assert version == end

    def test_where_events_were_removed_it_begins_at_the_first_snapshot_that_the_state_takes(self, own_url: str) -> None:
        cls = actor_class(ACCOUNT)

        async def begun() -> int:
            async with EventStore.open(own_url) as store:
                good = await Fold.earliest(store, cls, "carol")
                first, fingerprint = good.version, cls.state_type.fingerprint
                await good.through(first + 1)
                for version, data in ((first, b'{"amount":"no number"}'), (first + 1, good.dump())):
                    await store.save_snapshot(new_snapshot(good.stream_id, version, fingerprint, data), keep=1000)
                return (await Fold.earliest(store, cls, "carol")).version - first

        assert asyncio.run(begun()) == 1

    def test_a_replicated_actor_is_looked_through_too(self, cli: Run, shop_url: str) -> None:
        (found,) = cli("bisect", shop_url, "cli_shop:Shop", "x", "'b' not in items", "--json").objects
        assert found["version"] == 4


class TestFork:
    def test_the_events_are_those_of_the_original(self, cli: Run, desk_url: str, tmp_path: Path) -> None:
        scratch = tmp_path / "scratch.db"
        result = cli("fork", desk_url, DESK, "a", str(scratch), "--at", "4")
        assert (result.code, result.lines) == (0, [f"Desk-a: version 4 in sqlite:///{scratch}, 4 events copied"])
        there, here = (
            cli("events", url, "Desk-a", "--through", "4", "--json").objects
            for url in (f"sqlite:///{scratch}", desk_url)
        )
        for one, other in zip(there, here, strict=True):
            for name in ("version", "type", "schema_version", "payload", "metadata", "event_id", "batch_id"):
                assert one[name] == other[name]
        assert cli("verify", f"sqlite:///{scratch}").code == 0
        states = [
            cli("show", url, DESK, "a", "--at", "4", "--json").objects[0]["state"]
            for url in (f"sqlite:///{scratch}", desk_url)
        ]
        assert states[0]["tickets"] == states[1]["tickets"]

    def test_one_that_was_begun_is_gone_on_with(self, cli: Run, desk_url: str, tmp_path: Path) -> None:
        scratch = str(tmp_path / "scratch.db")
        counts = [
            cli("fork", desk_url, DESK, "a", scratch, "--at", at, "--json").objects[0]["events"]
            for at in ("2", "5", "5")
        ]
        assert counts == [2, 3, 0]

    def test_another_history_is_left_alone(self, cli: Run, desk_url: str, tmp_path: Path) -> None:
        scratch = tmp_path / "scratch.db"
        cli("fork", desk_url, DESK, "a", str(scratch), "--at", "2")

        async def go_on() -> None:
            from cli_desk import Closed

            async with EventStore.open(f"sqlite:///{scratch}") as store:
                await store.append("Desk-a", [Closed(ticket="t0")])

        asyncio.run(go_on())
        before = asyncio.run(contents(f"sqlite:///{scratch}"))
        for at in ("2", "3", "6"):
            result = cli("fork", desk_url, DESK, "a", str(scratch), "--at", at)
            assert (result.code, result.out) == (1, "")
            assert "has a stream 'Desk-a' already, at version 3" in result.err
        assert asyncio.run(contents(f"sqlite:///{scratch}")) == before

    def test_a_long_stream_is_copied_page_by_page(self, cli: Run, own_url: str, change: Change, tmp_path: Path) -> None:
        async def fill(store: EventStore) -> None:
            from cli_ledger import Deposited

            await store.append("Account-long", [Deposited(amount=1) for _ in range(1234)])

        change(fill)
        scratch = str(tmp_path / "scratch.db")
        (forked,) = cli("fork", own_url, ACCOUNT, "long", scratch, "--at", "1200", "--json").objects
        assert (forked["version"], forked["events"]) == (1200, 1200)
        (shown,) = cli("show", f"sqlite:///{scratch}", ACCOUNT, "long", "--json").objects
        assert (shown["version"], shown["state"]["amount"]) == (1200, 1200)

    def test_what_replicas_have_noted_comes_along(self, cli: Run, shop_url: str, tmp_path: Path) -> None:
        scratch = str(tmp_path / "scratch.db")
        assert cli("fork", shop_url, "cli_shop:Shop", "x", scratch).code == 0
        url = f"sqlite:///{scratch}"
        (state,) = cli("show", url, "cli_shop:Shop", "x", "--json").objects
        assert state["state"] == {"items": ["a", "b", "c", "d"]}
        assert cli("conflicts", "list", url).lines == cli("conflicts", "list", shop_url).lines

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            ((ACCOUNT, "carol", "{}/s.db"), 1, "the events of 'Account-carol' up to version 3 were removed"),
            ((ACCOUNT, "nobody", "{}/s.db"), 1, "it has no events"),
            ((ACCOUNT, "alice", "{}/s.db", "--at", "9"), 1, "there is no version 9 yet"),
            ((ACCOUNT, "alice", "redis://localhost/0"), 2, "redis:// is no SQLite file"),
        ],
    )
    def test_what_cannot_be_forked_leaves_no_file(
        self, cli: Run, url: str, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
    ) -> None:
        result = cli("fork", url, *(each.format(tmp_path) for each in arguments))
        assert (result.code, result.out) == (code, "")
        assert message in result.err
        assert list(tmp_path.iterdir()) == []

    def test_the_original_is_no_place_for_a_fork_by_whatever_name(self, cli: Run, url: str, tmp_path: Path) -> None:
        path = Path(url.removeprefix("sqlite:///"))
        (tmp_path / "linked").symlink_to(path.parent)
        for name in (url, str(path), f"sqlite:///{path.parent}/./{path.name}", str(tmp_path / "linked" / path.name)):
            result = cli("fork", url, ACCOUNT, "alice", name)
            assert (result.code, "name another file" in result.err) == (1, True)


@pytest.fixture(params=DATABASES)
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = on_every_database(request, tmp_path)
    asyncio.run(build(url))
    return url


def test_every_database_tells_the_same_and_is_left_as_it_is(cli: Run, any_url: str, tmp_path: Path) -> None:
    before = asyncio.run(contents(any_url))
    assert len(cli("diff", any_url, DESK, "a", "1", "4").lines) == 5
    assert json.loads(cli("blame", any_url, DESK, "a", "/open", "--json").out)["version"] == 6
    assert len(cli("blame", any_url, DESK, "a", "--all").lines) == 16
    assert cli("bisect", any_url, DESK, "a", "open == len(tickets)", "--json").objects[0]["version"] == 5
    (forked,) = cli("fork", any_url, DESK, "a", str(tmp_path / "scratch.db"), "--json").objects
    assert forked["events"] == 6
    assert asyncio.run(contents(any_url)) == before


def test_a_hole_in_the_journal_is_an_error_and_not_a_shorter_history(cli: Run, own_url: str, change: Change) -> None:
    async def spoil(store: EventStore) -> None:
        from cli_ledger import Stray

        await store.append("Account-alice", [Stray()])

    change(spoil)
    for arguments in (("diff", "1"), ("blame",), ("bisect", "amount < 100")):
        name, *rest = arguments
        result = cli(name, own_url, ACCOUNT, "alice", *rest)
        assert (result.code, result.out) == (3, "")
        assert "has no @event_handler for Stray" in result.err


@pytest.mark.parametrize("expression", ["exit()", "__import__('sys').exit(0)", "quit(1)"])
def test_an_expression_does_not_end_the_program(cli: Run, url: str, expression: str) -> None:
    result = cli("bisect", url, "cli_ledger:Account", "alice", expression)
    assert (result.code, result.out) == (2, "")
    assert (
        result.err.splitlines()[-1] == f"error: the expression {expression!r} ends the program: write what should hold"
    )


def test_what_an_expression_prints_is_no_output(cli: Run, url: str) -> None:
    result = cli("bisect", url, "cli_ledger:Account", "alice", "print('seen') or amount < 60", "--json")
    assert (result.code, [each["version"] for each in result.objects]) == (0, [3])
    assert "seen" in result.err
