"""`eventstore projections` and `eventstore dead-letters`: read models are run, looked at and mended from outside."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from eventstore import EventStore, EventStoreError

from .conftest import Run, start

ROOT = Path(__file__).parents[2]
TARGET = "cli_ledger:Amounts"


@pytest.fixture(autouse=True)
def nothing_fails() -> object:
    yield
    from cli_ledger import Amounts  # type: ignore[import-not-found]

    Amounts.fails_on = None


def fail_on(amount: int | None) -> None:
    from cli_ledger import Amounts

    Amounts.fails_on = amount


def amounts(path: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT account, amount FROM amounts ORDER BY account").fetchall()


def states(path: Path) -> list[dict[str, object]]:
    """What is kept of each checkpoint."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT position, state FROM journal_checkpoints").fetchall()
    return [{"position": position, **json.loads(state)} for position, state in rows]


@pytest.mark.parametrize("target", [TARGET, "cli_parts:Parts"])
def test_a_runner_that_a_service_manager_ends_leaves_nobody_waiting_for_its_lease(
    own_url: str, own_journal: Path, target: str
) -> None:
    with start("projections", "run", own_url, target, "--follow", "--lease", "600") as process:
        deadline = time.monotonic() + 60
        while not (found := states(own_journal)) or not all(one["position"] and one["runner"] for one in found):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 0
        assert process.stdout is not None
        assert b"at the end of the log, 9 events applied" in process.stdout.read()
    assert {one["runner"] for one in states(own_journal)} == {""}


def test_a_run_that_is_ended_before_the_end_of_the_log_does_not_say_that_all_is_well(
    own_url: str, own_journal: Path
) -> None:
    with start("projections", "run", own_url, "cli_slow:Slow") as process:
        deadline = time.monotonic() + 60
        while not states(own_journal):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 1
        assert process.stderr is not None
        assert b"ended by SIGTERM before the end of the log" in process.stderr.read()
    assert {one["runner"] for one in states(own_journal)} == {""}


def test_a_projection_is_run_listed_and_found_complete(cli: Run, own_url: str, own_journal: Path) -> None:
    listed = cli("projections", "list", own_url)
    assert (listed.code, listed.out) == (0, "")
    assert "no projection was ever run" in listed.err

    done = cli("projections", "run", own_url, TARGET)
    assert (done.code, done.err) == (0, "")
    assert "at the end of the log, 9 events applied" in done.out
    assert [row for row in amounts(own_journal) if row[0] in ("Account-alice", "Account-carol")] == [
        ("Account-alice", 150),
        ("Account-carol", 90),
    ]
    (line,) = cli("projections", "list", own_url).lines
    name, version, _, lag, events, dead, state = line.split("\t")
    assert (name, version, lag, events, dead, state) == ("amounts", "1", "0", "9", "0", "live, not running")
    assert cli("projections", "check", own_url, TARGET).out == "9 events applied, 9 in the journal: complete\n"
    record = json.loads(cli("projections", "status", own_url, "amounts", "--json").out)
    assert (record["status"], record["events"], record["lag"]) == ("live", 9, 0)


def test_a_missing_event_is_named(cli: Run, own_url: str, own_journal: Path) -> None:
    cli("projections", "run", own_url, TARGET)
    # What a reader that has lost an event would have left.
    with closing(sqlite3.connect(own_journal)) as connection:
        query = "SELECT position, event_id FROM journal_events WHERE stream = 1 AND version = 3"
        position, event_id = connection.execute(query).fetchone()
        (checksum,) = connection.execute("SELECT checksum FROM journal_checkpoints").fetchone()
        without = bytes(one ^ other for one, other in zip(checksum, event_id, strict=True))
        connection.execute(
            "UPDATE journal_checkpoints SET checksum = ?, events = events - 1, "
            "state = json_set(state, '$.marks', json('[]'))",
            (without,),
        )
        connection.commit()
    done = cli("projections", "check", own_url, TARGET)
    assert done.code == 1
    assert f"the first that is missing is Account-alice version 3, position {position}" in done.out
    found = json.loads(cli("projections", "check", own_url, TARGET, "--json").out)
    assert found["first_missing"] == {"position": position, "stream_id": "Account-alice", "version": 3, "tenant": ""}


def test_an_event_that_the_journal_has_lost_is_named(cli: Run, own_url: str, own_journal: Path) -> None:
    cli("projections", "run", own_url, TARGET)
    with closing(sqlite3.connect(own_journal)) as connection:
        (guard,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'journal_events_no_delete'"
        ).fetchone()
        connection.execute("DROP TRIGGER journal_events_no_delete")
        connection.execute("DELETE FROM journal_events WHERE stream = 1 AND version = 3")
        connection.execute(guard)
        connection.commit()
    done = cli("projections", "check", own_url, TARGET)
    assert done.code == 1
    assert "9 events applied, 8 in the journal: the journal itself has lost some, the first of which is" in done.out
    assert "Account-alice version 3: eventstore verify" in done.out
    found = json.loads(cli("projections", "check", own_url, TARGET, "--json").out)
    assert found["first_gone"] == {"stream_id": "Account-alice", "version": 3, "tenant": ""}


def test_it_is_paused_resumed_and_set_back(cli: Run, own_url: str, own_journal: Path) -> None:
    cli("projections", "run", own_url, TARGET)
    assert cli("projections", "pause", own_url, "amounts", "--reason", "moving house").code == 0
    stopped = cli("projections", "run", own_url, TARGET)
    assert stopped.code == 1
    assert "'amounts' is stopped: moving house" in stopped.err
    status = cli("projections", "status", own_url, "amounts")
    assert (status.code, "moving house" in status.out) == (1, True)
    assert cli("projections", "resume", own_url, "amounts").code == 0
    assert "0 events applied" in cli("projections", "seek", own_url, TARGET, "0").out
    cli("projections", "run", own_url, TARGET)
    assert dict(amounts(own_journal))["Account-alice"] == 300, "they came again"
    assert cli("rebuild", "projections", own_url, TARGET).code == 0
    assert dict(amounts(own_journal))["Account-alice"] == 150


def test_dead_letters_are_listed_shown_replayed_and_purged(cli: Run, own_url: str, own_journal: Path) -> None:
    fail_on(40)
    done = cli("projections", "run", own_url, TARGET)
    assert "2 events could not be applied" in done.err
    rows = [line.split("\t") for line in cli("dead-letters", "list", own_url).lines]
    assert [(row[0], row[2], row[3], row[6]) for row in rows] == [
        ("amounts", "Account-alice", "4", "ValueError: 40 cannot be"),
        ("amounts", "Account-carol", "4", "ValueError: 40 cannot be"),
    ]
    first, second = rows[0][1], rows[1][1]
    shown = json.loads(cli("dead-letters", "show", own_url, "amounts", first, "--json").out)
    assert (shown["payload"]["amount"], shown["attempts"]) == (40, 1)
    assert cli("dead-letters", "replay", own_url, TARGET, first).code == 1
    fail_on(None)
    done = cli("dead-letters", "replay", own_url, TARGET, first)
    assert (done.code, done.out) == (0, "1 applied, 0 failed again\n")
    assert dict(amounts(own_journal))["Account-alice"] == 150
    assert cli("dead-letters", "purge", own_url, "amounts", first).code == 1, "it is none any more"
    assert cli("dead-letters", "purge", own_url, "amounts", second).out == "1 forgotten\n"
    assert "there are no dead letters" in cli("dead-letters", "list", own_url, "amounts").err
    assert dict(amounts(own_journal))["Account-carol"] == 50


def test_a_dead_letter_whose_event_is_gone_keeps_no_other_from_being_replayed(
    cli: Run, own_url: str, own_journal: Path
) -> None:
    fail_on(40)
    cli("projections", "run", own_url, TARGET)
    fail_on(None)

    async def truncate() -> None:
        async with EventStore.open(own_url) as store:
            (found,) = await store.checkpoints()
            # No truncation takes the event of a dead letter.
            await store.save_checkpoint(replace(found, letters=()))
            await store.truncate("Account-alice", 4, reason="a test")
            await store.save_checkpoint(replace(found, revision=found.revision + 1))

    asyncio.run(truncate())
    done = cli("dead-letters", "replay", own_url, TARGET)
    assert (done.code, done.lines[-1]) == (1, "1 applied, 1 failed again")
    assert "was removed from the journal" in done.lines[0]
    assert "eventstore dead-letters purge" in done.lines[0]
    assert dict(amounts(own_journal))["Account-carol"] == 90


def test_a_name_that_is_not_there_and_a_class_that_is_no_projection_are_told(cli: Run, own_url: str) -> None:
    done = cli("projections", "status", own_url, "nobody")
    assert (done.code, "has never been run on this store; there are: none" in done.err) == (1, True)
    letters = cli("dead-letters", "list", own_url, "nobody")
    assert (letters.code, letters.err) == (1, done.err)
    wrong = cli("projections", "run", own_url, "cli_ledger:Account")
    assert wrong.code == 2
    assert "not a projection's class; its projections: Amounts" in wrong.err


def test_a_store_that_is_not_there_is_not_made(cli: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/none.db"
    for arguments in (("projections", "list", url), ("projections", "run", url, TARGET), ("dead-letters", "list", url)):
        assert cli(*arguments).code == 3
    assert not (tmp_path / "none.db").exists()


def test_truncation_is_refused_while_a_projection_needs_the_events(cli: Run, own_url: str) -> None:
    cli("projections", "run", own_url, TARGET)
    cli("projections", "seek", own_url, TARGET, "0")

    async def truncate() -> str:
        async with EventStore.open(own_url) as store:
            try:
                await store.truncate("Account-alice", 2, reason="test")
            except Exception as error:
                return type(error).__name__
        return ""

    assert asyncio.run(truncate()) == "ProjectionBehind"


def test_a_projection_that_nobody_runs_any_more_is_forgotten(cli: Run, own_url: str) -> None:
    cli("projections", "run", own_url, TARGET)
    cli("projections", "seek", own_url, TARGET, "0")
    refused = truncation(own_url)
    assert "eventstore projections forget URL amounts" in refused
    done = cli("projections", "forget", own_url, "amounts")
    assert (done.code, done.out) == (0, "amounts: forgotten, with 1 checkpoint\n")
    assert truncation(own_url) == ""
    unknown = cli("projections", "forget", own_url, "amounts")
    assert (unknown.code, "has never been run on this store; there are: none" in unknown.err) == (1, True)


def test_a_damaged_checkpoint_says_how_it_goes_and_then_all_is_made_anew(
    cli: Run, own_url: str, own_journal: Path
) -> None:
    cli("projections", "run", own_url, TARGET)
    before = amounts(own_journal)
    with closing(sqlite3.connect(own_journal)) as connection:
        connection.execute("UPDATE journal_checkpoints SET state = '[]'")
        connection.commit()
    advice = "is damaged: forget it with `eventstore projections forget URL amounts`, and rebuild the projection"
    assert advice in truncation(own_url)
    listed = cli("projections", "list", own_url)
    assert (listed.code, advice in listed.err) == (3, True)
    assert cli("projections", "forget", own_url, "amounts").code == 0
    assert cli("rebuild", "projections", own_url, TARGET).code == 0
    assert amounts(own_journal) == before
    assert truncation(own_url) == ""


def test_a_projection_is_not_forgotten_while_it_is_run(cli: Run, own_url: str, own_journal: Path) -> None:
    cli("projections", "run", own_url, PARTS)
    with closing(sqlite3.connect(own_journal)) as connection:
        connection.execute(
            "UPDATE journal_checkpoints SET state = json_set(state, '$.runner', 'r', '$.runner_name', 'web-1') "
            "WHERE position = (SELECT max(position) FROM journal_checkpoints)"
        )
        connection.commit()
    done = cli("projections", "forget", own_url, "amounts")
    assert (done.code, "'amounts' is run by web-1: end that first" in done.err) == (1, True)
    assert len(states(own_journal)) == 2
    with closing(sqlite3.connect(own_journal)) as connection:
        connection.execute(
            "UPDATE journal_checkpoints SET state = json_set(state, '$.updated_at', '2020-01-01T00:00Z')"
        )
        connection.commit()
    assert cli("projections", "forget", own_url, "amounts").out == "amounts: forgotten, with 2 checkpoints\n"


def truncation(url: str) -> str:
    """What is said against removing events."""

    async def truncate() -> str:
        async with EventStore.open(url) as store:
            try:
                await store.truncate("Account-alice", 2, reason="test")
            except EventStoreError as error:
                return str(error)
        return ""

    return asyncio.run(truncate())


PARTS = "cli_parts:Parts"


def test_partitions_are_made_by_a_rebuild_and_each_is_shown(cli: Run, own_url: str, own_journal: Path) -> None:
    cli("projections", "run", own_url, TARGET)
    before = amounts(own_journal)
    refused = cli("projections", "run", own_url, PARTS)
    assert refused.code == 1
    assert "has partitions=1 in the store, and partitions=2 in its class: nothing was done" in refused.err
    assert "9 events applied" in cli("rebuild", "projections", own_url, PARTS).out
    assert amounts(own_journal) == before
    rows = [line.split("\t") for line in cli("projections", "list", own_url).lines]
    assert [row[0] for row in rows] == ["amounts 0 of 2", "amounts 1 of 2"]
    assert sum(int(row[4]) for row in rows) == 9
    assert cli("projections", "check", own_url, PARTS).out == "9 events applied, 9 in the journal: complete\n"
    assert "9 events applied" in cli("projections", "run", own_url, PARTS).out
    status = cli("projections", "status", own_url, "amounts")
    assert (status.code, status.out.count("partition ")) == (0, 2)
    record = json.loads(cli("projections", "status", own_url, "amounts", "--json").out)
    assert (record["events"], record["lag"]) == (9, 0)
    assert [(part["partition"], part["partitions"]) for part in record["partitions"]] == [(0, 2), (1, 2)]
    cli("projections", "pause", own_url, "amounts")
    paused = cli("projections", "status", own_url, "amounts")
    assert (paused.code, paused.out.count("paused")) == (1, 3)
    assert cli("projections", "resume", own_url, "amounts").code == 0
    assert cli("projections", "status", own_url, "amounts").code == 0


def test_a_rebuild_is_found_among_the_projections_commands_too(cli: Run, own_url: str) -> None:
    cli("projections", "run", own_url, TARGET)
    record = json.loads(cli("projections", "rebuild", own_url, TARGET, "--json").out)
    assert (record["version"], record["status"], record["events"]) == (2, "live", 9)


@pytest.mark.parametrize("command", ["projections run", "rebuild projections"])
def test_on_a_terminal_a_bar_shows_rate_and_lag(own_url: str, command: str) -> None:
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "eventstore.cli", *command.split(), own_url, TARGET],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=end,
    ) as process:
        os.close(end)
        shown = read_all(terminal)
        assert process.stdout is not None
        assert b"9 events applied" in process.stdout.read()
    assert process.returncode == 0
    assert "9/" in shown
    assert "lag 0" in shown


def read_all(terminal: int) -> str:
    shown = b""
    # A terminal that nobody writes to any more ends with an error.
    with suppress(OSError):
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    return shown.decode(errors="replace")
