"""`replay` and `rebuild snapshots`: folding again, what it finds, and what is done about it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from backends.sqlite import SQLiteBackend
from eventstore import EventStore, Snapshot, StoreClosed
from eventstore.backend import StoredSnapshot
from eventstore.cli.folding import replay_actor
from eventstore.snapshots import new_snapshot

from .conftest import Change, Run

ACCOUNT = "cli_ledger:Account"


def fingerprint() -> str:
    from cli_ledger import Account  # type: ignore[import-not-found]

    return str(Account.state_type.fingerprint)


def snapshot(key: str, version: int, data: bytes) -> Snapshot:
    return new_snapshot(f"Account-{key}", version, fingerprint(), data)


def snapshots(url: str, stream_id: str) -> list[Snapshot]:
    async def read() -> list[Snapshot]:
        async with EventStore.open(url) as store:
            return [found for found in await store.snapshots(stream_id) if isinstance(found, Snapshot)]

    return asyncio.run(read())


class TestReplay:
    def test_every_actor_of_the_kind_is_folded_and_compared(self, cli: Run, url: str) -> None:
        result = cli("replay", url, ACCOUNT)
        assert result.code == 0
        assert result.lines == ["4 Account actors, 8 events folded, 3 snapshots compared: no differences"]

    def test_json_ends_with_a_summary(self, cli: Run, url: str) -> None:
        (line,) = cli("replay", url, ACCOUNT, "--json").objects
        assert line == {
            "summary": {
                "actors": 4,
                "events": 8,
                "snapshots_compared": 3,
                "snapshots_of_other_schema": 0,
                "truncated_actors": 1,
                "problems": 0,
            }
        }

    def test_an_actor_whose_events_were_removed_starts_from_its_snapshot_and_that_is_said(
        self, cli: Run, url: str
    ) -> None:
        result = cli("replay", url, ACCOUNT, "carol")
        assert result.lines == ["1 Account actor, 1 event folded, 0 snapshots compared: no differences"]
        assert result.err.startswith(
            "note: 'Account-carol': the events up to version 3 were removed; it was folded from"
        )

    def test_only_the_keys_given_are_folded(self, cli: Run, url: str) -> None:
        (line,) = cli("replay", url, ACCOUNT, "alice", "huge", "--json").objects
        assert (line["summary"]["actors"], line["summary"]["events"]) == (2, 6)

    def test_a_snapshot_that_differs_is_named_with_where_it_does(self, cli: Run, own_url: str, change: Change) -> None:
        wrong = b'{"amount":61,"notes":[],"history":[10,20,30]}'
        change(lambda store: store.save_snapshot(snapshot("alice", 3, wrong), keep=5))
        result = cli("replay", own_url, ACCOUNT)
        assert result.code == 1
        assert result.lines == [
            "Account-alice\t3\tsnapshot differs: /amount is 61 in it, 60 when replayed",
            "4 Account actors, 8 events folded, 4 snapshots compared: 1 problem",
        ]
        problem, summary = cli("replay", own_url, ACCOUNT, "--json").objects
        assert (problem["stream_id"], problem["version"]) == ("Account-alice", 3)
        assert summary["summary"]["problems"] == 1

    def test_every_one_of_many_snapshots_is_compared(self, cli: Run, own_url: str, change: Change) -> None:
        async def save(store: EventStore) -> None:
            for version in (1, 2, 3, 4, 5):
                await store.save_snapshot(snapshot("alice", version, b'{"amount":-1}'), keep=50)

        change(save)
        objects = cli("replay", own_url, ACCOUNT, "alice", "--json").objects
        assert [line["version"] for line in objects[:-1]] == [1, 2, 3, 4, 5]
        assert objects[-1]["summary"]["snapshots_compared"] == 5

    def test_members_of_a_set_may_come_in_any_order_items_of_a_list_may_not(
        self, cli: Run, own_url: str, change: Change
    ) -> None:
        async def save(store: EventStore) -> None:
            from cli_ledger import Deposited

            notes = ["a", "b", "c", "d", "e"]
            await store.append("Account-sets", [Deposited(amount=index, note=note) for index, note in enumerate(notes)])
            for version, order in ((3, b'"c","a","b"'), (4, b'"b","d","a","c"')):
                history = b"0,1,2" if version == 3 else b"1,0,2,3"
                amount = b"3" if version == 3 else b"6"
                data = b'{"amount":%b,"notes":[%b],"history":[%b]}' % (amount, order, history)
                await store.save_snapshot(snapshot("sets", version, data), keep=5)

        change(save)
        problem, _ = cli("replay", own_url, ACCOUNT, "sets", "--json").objects
        assert problem["version"] == 4

    def test_a_snapshot_of_another_schema_is_left_aside(self, cli: Run, url: str) -> None:
        result = cli("replay", url, "cli_ledger:Later", "alice")
        assert result.code == 0
        assert "0 snapshots compared (2 of another schema left aside): no differences" in result.out

    def test_a_damaged_snapshot_is_a_problem_and_the_others_are_compared(
        self, cli: Run, own_journal: Path, own_url: str
    ) -> None:
        with closing(sqlite3.connect(own_journal)) as connection:
            connection.execute("UPDATE journal_snapshots SET payload = x'00' WHERE version = 2")
            connection.commit()
        result = cli("replay", own_url, ACCOUNT, "alice")
        assert result.code == 1
        assert (
            "the snapshot of 'Account-alice' at version 2 cannot be used: it does not match its checksum"
            in result.lines[0]
        )
        assert result.lines[1] == "1 Account actor, 5 events folded, 1 snapshot compared: 1 problem"

    def test_a_snapshot_ahead_of_the_journal_is_a_problem(self, cli: Run, own_url: str, change: Change) -> None:
        change(lambda store: store.save_snapshot(snapshot("alice", 9, b"{}"), keep=5))
        result = cli("replay", own_url, ACCOUNT, "alice")
        assert result.code == 1
        assert result.lines[0] == "Account-alice\t9\tsnapshot is ahead of the journal, which ends at version 5"

    def test_actors_that_cannot_be_folded_are_reported_and_the_others_go_on(
        self, cli: Run, own_url: str, change: Change
    ) -> None:
        async def spoil(store: EventStore) -> None:
            from cli_ledger import Deposited, Stray

            await store.append("Account-ann", [Deposited(amount=1), Stray()])
            await store.append("Account-ben", [Deposited(amount=1), Deposited(amount=1, note="poison")])

        change(spoil)
        result = cli("replay", own_url, ACCOUNT)
        assert result.code == 1
        assert [line.split("\t")[0] for line in result.lines[:-1]] == ["Account-ann", "Account-ben"]
        assert "has no @event_handler for Stray" in result.lines[0]
        assert "raised ValueError at version 2: this event cannot be handled" in result.lines[1]
        assert result.lines[-1].startswith("6 Account actors")

    def test_removed_events_without_a_snapshot_are_a_problem(self, cli: Run, own_url: str, change: Change) -> None:
        change(lambda store: store.delete_snapshots("Account-carol"))
        result = cli("replay", own_url, ACCOUNT, "carol", "alice")
        assert result.code == 1
        assert "up to version 3 were removed, and no snapshot from there on can be used" in result.lines[0]

    async def test_trouble_with_the_store_is_no_problem_of_the_actor(self, url: str) -> None:
        from cli_ledger import Account

        store = EventStore.open(url)
        async with store:
            pass
        with pytest.raises(StoreClosed):
            await replay_actor(store, Account, "alice", on_events=lambda _: None)

    def test_a_snapshot_of_the_last_event_removed_serves(self, cli: Run, own_url: str, change: Change) -> None:
        change(lambda store: store.truncate("Account-alice", 4, reason="test"))
        result = cli("replay", own_url, ACCOUNT, "alice")
        assert result.lines == ["1 Account actor, 1 event folded, 0 snapshots compared: no differences"]

    def test_a_stream_named_by_the_kind_alone_is_no_actor(self, cli: Run, own_url: str, change: Change) -> None:
        async def append(store: EventStore) -> None:
            from cli_ledger import Stray

            await store.append("Account", [Stray()])

        change(append)
        assert cli("replay", own_url, ACCOUNT).lines[0].startswith("4 Account actors")

    def test_a_class_that_fails_is_reported_for_each_actor(self, cli: Run, url: str) -> None:
        result = cli("replay", url, "cli_ledger:Unmade", "alice", "huge")
        assert result.code == 1
        assert result.lines[0] == "Account-alice\t\tcannot be folded: no initial state today"

    def test_an_actor_without_events_is_reported(self, cli: Run, url: str) -> None:
        result = cli("replay", url, ACCOUNT, "nobody")
        assert result.code == 1
        assert result.lines[0] == "Account-nobody\t\thas no events"

    def test_a_history_of_many_pages_is_folded_once(self, cli: Run, own_url: str, change: Change) -> None:
        async def fill(store: EventStore) -> None:
            from cli_ledger import Deposited

            for _ in range(5):
                await store.append("Account-long", [Deposited(amount=1) for _ in range(500)])
            for version in versions:
                await store.save_snapshot(
                    snapshot("long", version, b'{"amount":%d,"notes":[],"history":[%b]}' % (version, ones(version))),
                    keep=99,
                )

        versions = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 199, 200, 201, 1234, 2500)

        def ones(count: int) -> bytes:
            return b",".join([b"1"] * count)

        change(fill)
        result = cli("replay", own_url, ACCOUNT, "long")
        assert result.lines == ["1 Account actor, 2,500 events folded, 15 snapshots compared: no differences"]


class TestRebuildSnapshots:
    def test_the_state_as_it_is_now_is_saved(self, cli: Run, own_url: str) -> None:
        result = cli("rebuild", "snapshots", own_url, ACCOUNT, "alice")
        assert (result.code, result.lines) == (0, ["Account-alice\t5\tsaved"])
        newest = snapshots(own_url, "Account-alice")[0]
        assert (newest.version, newest.fingerprint) == (5, fingerprint())
        assert newest.data == b'{"amount":150,"notes":[],"history":[10,20,30,40,50]}'
        assert cli("replay", own_url, ACCOUNT).code == 0

    def test_one_that_is_there_is_not_saved_again(self, cli: Run, own_url: str) -> None:
        cli("rebuild", "snapshots", own_url, ACCOUNT, "alice")
        (outcome,) = cli("rebuild", "snapshots", own_url, ACCOUNT, "alice", "--json").objects
        assert outcome == {"stream_id": "Account-alice", "version": 5, "saved": False, "problem": None}

    def test_all_actors_of_the_class_get_one(self, cli: Run, own_url: str) -> None:
        objects = cli("rebuild", "snapshots", own_url, ACCOUNT, "--all", "--json").objects
        assert [one["saved"] for one in objects] == [True, True, True, False]
        assert "Note-1" not in [one["stream_id"] for one in objects]

    def test_what_was_saved_is_not_read_again(self, cli: Run, own_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[str] = []
        read_snapshots = SQLiteBackend.read_snapshots

        async def noted(
            backend: SQLiteBackend, stream_id: str, *, through: int | None, limit: int
        ) -> Sequence[StoredSnapshot]:
            read.append(stream_id)
            return await read_snapshots(backend, stream_id, through=through, limit=limit)

        monkeypatch.setattr(SQLiteBackend, "read_snapshots", noted)
        assert cli("rebuild", "snapshots", own_url, ACCOUNT, "alice").lines == ["Account-alice\t5\tsaved"]
        assert read == []

    def test_no_more_are_kept_than_the_class_says(self, cli: Run, own_url: str, change: Change) -> None:
        change(lambda store: store.save_snapshot(snapshot("alice", 3, b"{}"), keep=9))
        cli("rebuild", "snapshots", own_url, ACCOUNT, "alice")
        assert [found.version for found in snapshots(own_url, "Account-alice")] == [5, 4, 3]

    def test_a_wrong_snapshot_is_built_upon_unless_told_otherwise(self, cli: Run, own_url: str, change: Change) -> None:
        wrong = b'{"amount":61,"notes":[],"history":[]}'
        change(lambda store: store.save_snapshot(snapshot("alice", 5, wrong), keep=1))
        assert cli("rebuild", "snapshots", own_url, ACCOUNT, "alice").lines == ["Account-alice\t5\tis there already"]
        assert cli("rebuild", "snapshots", own_url, ACCOUNT, "alice", "--full").lines == ["Account-alice\t5\tsaved"]
        assert cli("replay", own_url, ACCOUNT, "alice").code == 0

    def test_what_fails_is_reported_and_the_others_go_on(self, cli: Run, own_url: str) -> None:
        result = cli("rebuild", "snapshots", own_url, ACCOUNT, "nobody", "alice")
        assert result.code == 1
        assert result.lines == ["Account-nobody\t\tfailed: it has no events", "Account-alice\t5\tsaved"]
        assert "Account-nobody" not in cli("streams", own_url).out

    def test_without_snapshots_what_has_lost_its_events_says_that_it_needs_one(self, cli: Run, own_url: str) -> None:
        result = cli("rebuild", "snapshots", own_url, ACCOUNT, "carol", "--full")
        assert result.code == 1
        assert "it can only be rebuilt from a snapshot, and none was to be used: do without --full" in result.lines[0]

    def test_one_that_stands_for_removed_events_and_other_code_is_not_said_to_be_replaced(
        self, cli: Run, own_url: str
    ) -> None:
        async def prepare() -> int:
            async with EventStore.open(own_url) as store:
                version = await store.version("Account-carol")
                await store.save_snapshot(new_snapshot("Account-carol", version, "another", b"{}"), keep=100)
                return version

        version = asyncio.run(prepare())
        result = cli("rebuild", "snapshots", own_url, ACCOUNT, "carol")
        assert result.code == 1
        assert result.lines == [
            f"Account-carol\t\tfailed: at version {version} stands a snapshot of another schema, which other code "
            "needs: it can be taken when the actor has another event"
        ]

    def test_actors_are_named_or_all(self, cli: Run, own_url: str) -> None:
        assert cli("rebuild", "snapshots", own_url, ACCOUNT).code == 2
        assert cli("rebuild", "snapshots", own_url, ACCOUNT, "alice", "--all").code == 2
