"""`eventstore copy`, as it is called: what it says, what it refuses, and what others see afterwards."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backends.conformance.archives import dump
from backends.conformance.archives import fill as fill_with_everything
from backends.conformance.events import happened, write
from eventstore import EventStore
from eventstore.backend import CommandOutcome
from eventstore.codec import new_event_id
from eventstore.copies.copying import Copy
from tests.copying.conftest import ROOT, Journals, environment, run
from tests.examples.permit_log import make_rows, write_log


@pytest.mark.parametrize(
    ("old", "new"), [("sqlite", "postgres"), ("postgres", "redis"), ("redis", "sqlite"), ("sqlite", "sqlite")]
)
async def test_a_journal_is_copied_and_compared(old: str, new: str, journals: Journals) -> None:
    source_url, target_url = journals(old), journals(new)
    async with EventStore.open(source_url) as source:
        await fill_with_everything(source)
    done = await asyncio.to_thread(run, "copy", source_url, target_url, "--verify")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"11 events now" in done.stdout
    assert b"11 events, 7 streams, 2 outcomes of commands, 2 snapshots: all the same" in done.stdout
    async with EventStore.open(source_url) as source, EventStore.open(target_url) as target:
        assert (await dump(source))[:2] == (await dump(target))[:2]


async def test_more_outcomes_than_one_reply_holds_are_compared(journals: Journals) -> None:
    # Redis gives 16 MiB of them at once, SQLite so many.
    async with EventStore.open(journals("redis")) as source, EventStore.open(journals("sqlite")) as target:
        for start in range(0, 200, 50):
            commands = [
                CommandOutcome(
                    f"command-{number}", b"f" * 16, new_event_id(), False, b'"%b"' % (b"x" * 100_000), number
                )
                for number in range(start, start + 50)
            ]
            await source._backend.append([[write("s", b"{}", expected=start // 50, commands=commands)]])
        copying = Copy(source, target)
        await copying.begin()
        await copying.catch_up()
        await copying.bring_streams()
        assert (await copying.compare()).commands == 200


async def test_large_outcomes_are_read_and_stored_a_few_at_a_time(
    journals: Journals, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EventStore.open(journals("sqlite")) as source, EventStore.open(journals("redis")) as target:
        commands = [
            CommandOutcome(f"command-{number}", b"f" * 16, new_event_id(), False, b'"%b"' % (b"x" * size), number)
            # The first ones are small, so that more of the others are read at once than should be stored at once.
            for number, size in enumerate([10] * 16 + [300_000] * 60)
        ]
        await source._backend.append([[write("s", b"{}", commands=commands)]])
        copying = Copy(source, target)
        pages: list[int] = []
        scripts: list[int] = []
        read, store = copying._source.commands, copying._target._write  # type: ignore[attr-defined]

        async def noted_read(number: int, *, after: str, limit: int) -> Any:
            pages.append(len(page := await read(number, after=after, limit=limit)))
            return page

        async def noted_store(script: Any, arguments: list[Any]) -> Any:
            scripts.append(sum(len(each) for each in arguments if isinstance(each, bytes)))
            return await store(script, arguments)

        monkeypatch.setattr(copying._source, "commands", noted_read)
        monkeypatch.setattr(copying._target, "_write", noted_store)
        await copying.begin()
        await copying.catch_up()
        await copying.bring_streams()
        assert sum(pages) == 76
        assert max(pages) == 32
        assert max(scripts) < 5 * 1024 * 1024
        assert (await copying.compare()).commands == 76


async def test_another_journal_is_refused(journals: Journals) -> None:
    source_url, target_url = journals("sqlite"), journals("sqlite")
    for url in (source_url, target_url):
        async with EventStore.open(url) as store:
            await store.append("a", happened(1))
    done = await asyncio.to_thread(run, "copy", source_url, target_url, "--json")
    assert (done.returncode, done.stdout) == (3, b"")
    assert json.loads(done.stderr)["error"] == "CopyRefused"


def test_a_source_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    done = run("copy", f"sqlite:///{tmp_path}/typo.db", f"sqlite:///{tmp_path}/new.db")
    assert done.returncode == 3
    assert b"holds no journal" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--follow", "--cutover"], ["--follow", "--verify"]])
def test_what_cannot_be_meant_is_wrong_usage(options: list[str], tmp_path: Path) -> None:
    assert run("copy", f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db", *options).returncode == 2
    assert run("copy", f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/a.db").returncode == 2


async def test_a_journal_is_not_cut_over_to_memory(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    async with EventStore.open(url) as store:
        assert (await store.append("a-1", happened(1))).position == 1
    done = run("copy", url, "memory://", "--cutover")
    assert done.returncode == 2
    assert b"TO is in memory" in done.stderr
    async with EventStore.open(url) as store:
        assert (await store.append("a-1", happened(2))).position == 2


async def test_a_copy_that_was_tampered_with_is_told_from_its_source(journals: Journals) -> None:
    source_url, target_url = journals("sqlite"), journals("sqlite")
    async with EventStore.open(source_url) as source:
        await source.append("a", happened(1, 2, 3))
    assert (await asyncio.to_thread(run, "copy", source_url, target_url)).returncode == 0
    with closing(sqlite3.connect(target_url.removeprefix("sqlite:///"))) as connection:
        name = "journal_events_no_update"
        (trigger,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE journal_events SET recorded_at = recorded_at + 1 WHERE version = 2")
        connection.execute(trigger)
        connection.commit()
    done = await asyncio.to_thread(run, "copy", source_url, target_url, "--verify", "--json")
    assert done.returncode == 1
    assert "position 2" in (difference := json.loads(done.stdout)["difference"])
    assert "recorded_at" in difference


async def test_a_damaged_event_is_not_copied(journals: Journals) -> None:
    source_url, target_url = journals("sqlite"), journals("sqlite")
    async with EventStore.open(source_url) as source:
        await source.append("a", happened(1, 2, 3))
    with closing(sqlite3.connect(source_url.removeprefix("sqlite:///"))) as connection:
        name = "journal_events_no_update"
        (trigger,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        connection.execute(f"DROP TRIGGER {name}")
        connection.execute("""UPDATE journal_events SET payload = '{"number":9}' WHERE version = 2""")
        connection.execute(trigger)
        connection.commit()
    done = await asyncio.to_thread(run, "copy", source_url, target_url, "--json")
    assert (done.returncode, json.loads(done.stderr)["error"]) == (3, "JournalCorrupt")


async def test_a_cutover_is_seen_by_the_doctor_and_done_again_changes_nothing(journals: Journals) -> None:
    source_url, target_url = journals("sqlite"), journals("redis")
    async with EventStore.open(source_url) as source:
        await source.append("a", happened(1))
    reports = []
    for _ in range(2):
        done = await asyncio.to_thread(run, "copy", source_url, target_url, "--cutover", "--verify", "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        reports.append(json.loads(done.stdout))
    assert reports[0]["fence"] == reports[1]["fence"]
    assert (reports[0]["events"], reports[1]["events"]) == (1, 0)
    shown = await asyncio.to_thread(run, "doctor", source_url)
    assert shown.returncode == 0
    assert b"fenced        since" in shown.stdout
    assert b"healthy, and fenced" in shown.stdout
    assert target_url.encode() not in shown.stdout
    record = json.loads((await asyncio.to_thread(run, "doctor", target_url, "--json")).stdout)
    assert (record["fence"], record["copied"], record["healthy"]) == (None, 1, True)


def test_the_permits_of_a_real_log_are_the_same_everywhere(tmp_path: Path, journals: Journals) -> None:
    """Taken in by live actors, copied, and reported from the copy; and taken in once more there, which adds nothing."""
    log = write_log(tmp_path / "log.csv", make_rows(400, cases=40, seed=3))
    urls = [journals("sqlite"), journals("postgres"), journals("redis"), journals("sqlite")]
    first = _report(log, urls[0])
    for old, new in pairwise(urls):
        done = run("copy", old, new, "--cutover", "--verify")
        assert (done.returncode, done.stderr) == (0, b"")
        assert _report(log, new) == first
    # Of cases that are not known: rows that come too late for their case would not get as far as the fence.
    more = [[cell.replace("case-", "new-") for cell in row] for row in make_rows(20, cases=5, seed=4)]
    refused = _permits(write_log(tmp_path / "more.csv", more), urls[0])
    assert refused.returncode != 0
    assert b"fenced" in refused.stderr
    assert _report(log, urls[-1]) == first


def _report(log: Path, url: str) -> dict[str, object]:
    done = _permits(log, url)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


def _permits(log: Path, url: str) -> subprocess.CompletedProcess[bytes]:
    program = [sys.executable, str(ROOT / "examples" / "permits.py"), str(log), "--store", url, "--json"]
    return subprocess.run(program, env=environment(), capture_output=True, timeout=120, check=False)


def by_another_name(url: str, tmp_path: Path) -> str:
    """The same store, by a URL that is another text."""
    scheme, _, rest = url.partition("://")
    match scheme:
        case "sqlite":
            (tmp_path / "link").symlink_to(tmp_path)
            return f"sqlite:///{tmp_path}/link/{Path(rest).name}"
        case "postgresql":
            return f"{url}{'&' if '?' in url else '?'}schema=public&application_name=another"
        case _:
            return url.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
@pytest.mark.parametrize("is_copy", [False, True])
async def test_a_store_is_not_copied_onto_itself_by_another_name(
    kind: str, is_copy: bool, journals: Journals, tmp_path: Path
) -> None:
    url = journals(kind)
    same = by_another_name(url, tmp_path)
    assert same != url
    async with EventStore.open(url) as store:
        if is_copy:
            async with EventStore.open("memory://") as source:
                await source.append("a-1", happened(1, 2))
                copying = Copy(source, store)
                await copying.begin()
                await copying.catch_up()
        before = await store.archive().copied()
        for order in ((url, same), (same, url)):
            done = await asyncio.to_thread(run, "copy", *order, "--cutover")
            assert (done.returncode, done.stdout) == (3, b"")
            assert b"FROM and TO are the same journal" in done.stderr
        assert await store.archive().copied() == before
        assert await store.archive().fenced() is None


def test_one_file_by_two_names_is_one_store(journals: Journals, tmp_path: Path) -> None:
    url = journals("sqlite")
    path = Path(url.removeprefix("sqlite:///"))
    asyncio.run(_made(url))
    done = run("copy", url, f"sqlite:///{tmp_path}/./{path.name}")
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"FROM and TO are the same journal" in done.stderr


async def _made(url: str) -> None:
    async with EventStore.open(url):
        pass
