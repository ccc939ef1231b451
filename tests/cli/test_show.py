"""`show`: states by replay, now, at a version, at a time."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from .conftest import Change, Rewrite, Run

ACCOUNT = "cli_ledger:Account"


def recorded(cli: Run, url: str, version: int) -> datetime:
    """When one of Alice's events was recorded."""
    events = cli("events", url, "Account-alice", "--json").objects
    return datetime.fromisoformat(events[version - 1]["recorded_at"])


class TestShow:
    def test_the_state_is_shown_with_where_it_comes_from(self, cli: Run, url: str) -> None:
        result = cli("show", url, ACCOUNT, "alice")
        assert result.code == 0
        head, state = result.out.split("{", 1)
        assert head.splitlines()[0].split() == ["actor", "Account-alice"]
        assert head.splitlines()[1].split() == ["version", "5", "of", "5"]
        assert head.splitlines()[3] == "rebuilt   from the snapshot at version 4"
        assert json.loads("{" + state) == {"amount": 150, "notes": [], "history": [10, 20, 30, 40, 50]}

    def test_json_gives_one_object(self, cli: Run, url: str) -> None:
        (shown,) = cli("show", url, ACCOUNT, "alice", "--at", "3", "--json").objects
        assert shown.pop("recorded_at") == recorded(cli, url, 3).isoformat().replace("+00:00", "Z")
        assert shown == {
            "stream_id": "Account-alice",
            "version": 3,
            "stream_version": 5,
            "snapshot_version": 2,
            "state": {"amount": 60, "notes": [], "history": [10, 20, 30]},
        }

    def test_no_snapshot_is_used_if_told_so(self, cli: Run, url: str) -> None:
        (shown,) = cli("show", url, ACCOUNT, "alice", "--full", "--json").objects
        assert shown["snapshot_version"] == 0
        assert shown["state"]["amount"] == 150

    def test_version_0_is_the_state_before_the_first_event(self, cli: Run, url: str) -> None:
        (shown,) = cli("show", url, ACCOUNT, "alice", "--at", "0", "--json").objects
        assert (shown["version"], shown["recorded_at"], shown["state"]["amount"]) == (0, None, 0)

    def test_integers_of_any_size_are_shown_exactly(self, cli: Run, url: str) -> None:
        assert '"amount": 12345678901234567890123,' in cli("show", url, ACCOUNT, "huge").out
        assert '"amount":12345678901234567890123,' in cli("show", url, ACCOUNT, "huge", "--json").out

    def test_a_later_version_than_the_last_does_not_exist(self, cli: Run, url: str) -> None:
        result = cli("show", url, ACCOUNT, "alice", "--at", "6")
        assert (result.code, result.out) == (1, "")
        assert result.err == "error: 'Account-alice' is at version 5: there is no version 6 yet\n"

    def test_an_actor_without_events_does_not_exist(self, cli: Run, url: str) -> None:
        result = cli("show", url, ACCOUNT, "nobody")
        assert (result.code, result.out) == (1, "")
        assert result.err == "error: there is no actor 'Account-nobody': it has no events\n"

    def test_a_version_whose_events_were_removed_is_shown_if_a_snapshot_holds_it(self, cli: Run, url: str) -> None:
        (shown,) = cli("show", url, ACCOUNT, "carol", "--at", "4", "--json").objects
        assert (shown["snapshot_version"], shown["state"]["amount"]) == (4, 100)
        result = cli("show", url, ACCOUNT, "carol", "--at", "3")
        assert result.code == 3
        assert "up to version 3 were removed" in result.err

    def test_a_snapshot_that_cannot_be_used_is_a_warning(self, cli: Run, own_journal: Path, own_url: str) -> None:
        with closing(sqlite3.connect(own_journal)) as connection:
            connection.execute("UPDATE journal_snapshots SET payload = x'00' WHERE version = 4")
            connection.commit()
        result = cli("show", own_url, ACCOUNT, "alice", "--json")
        assert (result.code, result.objects[0]["snapshot_version"]) == (0, 2)
        assert json.loads(result.err)["warning"].startswith("Account-alice: going to an older snapshot")

    def test_where_everything_was_removed_the_snapshot_is_shown_and_no_time(
        self, cli: Run, own_url: str, change: Change
    ) -> None:
        change(lambda store: store.truncate("Account-alice", 4, reason="test"))
        (shown,) = cli("show", own_url, ACCOUNT, "alice", "--at", "4", "--json").objects
        assert (shown["snapshot_version"], shown["recorded_at"], shown["state"]["amount"]) == (4, None, 100)
        result = cli("show", own_url, ACCOUNT, "alice", "--at", "4")
        assert (result.code, "recorded" in result.out) == (0, False)


class TestAtTime:
    def test_an_event_counts_from_the_very_moment_it_was_recorded(self, cli: Run, url: str) -> None:
        for version in (1, 2, 5):
            moment = recorded(cli, url, version)
            (shown,) = cli("show", url, ACCOUNT, "alice", "--at-time", moment.isoformat(), "--json").objects
            assert shown["version"] == version

    def test_just_before_it_the_version_before_is_shown(self, cli: Run, url: str) -> None:
        moment = recorded(cli, url, 3) - timedelta(microseconds=1)
        (shown,) = cli("show", url, ACCOUNT, "alice", "--at-time", moment.isoformat(), "--json").objects
        assert shown["version"] == 2

    def test_of_events_recorded_at_one_moment_the_last_counts(self, cli: Run, own_url: str, rewrite: Rewrite) -> None:
        rewrite("recorded_at = 1000000 * min(position, 2) WHERE position <= 4")
        (shown,) = cli("show", own_url, ACCOUNT, "alice", "--at-time", "1970-01-01T00:00:02Z", "--json").objects
        assert shown["version"] == 4

    def test_any_offset_will_do(self, cli: Run, url: str) -> None:
        moment = recorded(cli, url, 3).astimezone(timezone(timedelta(hours=-9, minutes=-30)))
        (shown,) = cli("show", url, ACCOUNT, "alice", "--at-time", moment.isoformat(), "--json").objects
        assert shown["version"] == 3

    @pytest.mark.parametrize("moment", ["2999-01-01T00:00Z", "9999-12-31T23:59:59-14:00"])
    def test_in_the_future_the_newest_state_is_shown(self, cli: Run, url: str, moment: str) -> None:
        (shown,) = cli("show", url, ACCOUNT, "alice", "--at-time", moment, "--json").objects
        assert shown["version"] == 5

    @pytest.mark.parametrize("moment", ["1999-01-01T00:00Z", "0001-01-01T00:00:00+14:00"])
    def test_before_the_first_event_there_was_no_actor(self, cli: Run, url: str, moment: str) -> None:
        result = cli("show", url, ACCOUNT, "alice", "--at-time", moment)
        assert result.code == 1
        assert result.err.startswith("error: 'Account-alice' did not exist then: its first event was recorded at 20")

    def test_before_the_first_event_that_is_left_the_state_is_not_known(self, cli: Run, url: str) -> None:
        result = cli("show", url, ACCOUNT, "carol", "--at-time", "1999-01-01T00:00Z")
        assert result.code == 1
        assert "is not known: its events up to version 3 were removed" in result.err

    @pytest.mark.parametrize("moment", ["2026-01-01T00:00:00", "2026-01-01"])
    def test_a_time_without_an_offset_is_refused(self, cli: Run, url: str, moment: str) -> None:
        result = cli("show", url, ACCOUNT, "alice", "--at-time", moment)
        assert result.code == 2
        assert "has no offset: add Z for UTC" in result.err

    def test_what_is_no_time_is_refused(self, cli: Run, url: str) -> None:
        result = cli("show", url, ACCOUNT, "alice", "--at-time", "yesterday")
        assert result.code == 2
        assert "is no ISO 8601 time" in result.err

    @pytest.mark.parametrize("version", ["yesterday", "2026-01-31T12:00:00Z", "1.5", "-1", "\u0663", str(2**63)])
    def test_what_is_no_version_is_refused_with_the_forms_that_are_taken(
        self, cli: Run, url: str, version: str
    ) -> None:
        result = cli("show", url, ACCOUNT, "alice", "--at", version)
        assert result.code == 2
        assert f"--at {version!r} is no version, which is a number from 0 on" in result.err
        assert "--at-time, in ISO 8601 with an offset, such as 2026-01-31T12:00:00Z" in result.err
        assert "Input" not in result.err

    def test_a_version_and_a_time_exclude_each_other(self, cli: Run, url: str) -> None:
        assert cli("show", url, ACCOUNT, "alice", "--at", "1", "--at-time", "2026-01-01T00:00Z").code == 2


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "complaint"),
        [
            ("cli_nothing:Account", "there is no module 'cli_nothing' in "),
            ("cli_ledger.deeper:Account", "there is no module 'cli_ledger.deeper' in "),
            ("cli_ledger", "'cli_ledger' names no class: write MODULE:CLASS"),
            (":Account", "':Account' names no class"),
            ("cli_ledger.py:Account", "'cli_ledger.py' is a file: name the module, such as cli_ledger:Account"),
            ("./sub/bank.py:Account", "is a file: name the module, such as sub.bank:Account"),
            ("cli_ledger:Acount", "module 'cli_ledger' has no 'Acount'; its persistent actors: Account, Later, Unmade"),
            ("cli_ledger:NotAnActor", "cli_ledger:NotAnActor is the class NotAnActor, not a persistent actor's class"),
            ("cli_ledger:sys", "cli_ledger:sys is of type module, not a persistent actor's class"),
            ("cli_ledger:PersistentActor", "is the class PersistentActor, not a persistent actor's class"),
            (
                "cli_broken:Account",
                "module 'cli_broken' failed while it was imported: ValueError: this module is broken",
            ),
            ("cli_lacking:Account", "module 'cli_lacking' cannot be imported: No module named 'surely_not_installed'"),
            ("cli_script:Account", "module 'cli_script' ended the program while it was imported"),
        ],
    )
    def test_what_is_wrong_with_a_target_is_said(self, cli: Run, url: str, target: str, complaint: str) -> None:
        result = cli("show", url, target, "alice")
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("error: ")
        assert complaint in result.err
        assert len(result.err.splitlines()) == 1

    def test_what_a_module_prints_is_not_the_output(self, program: Run, url: str) -> None:
        result = program("show", url, ACCOUNT, "alice", "--json")
        assert result.objects[0]["version"] == 5
        assert result.err == "this module prints while it is imported\n"
