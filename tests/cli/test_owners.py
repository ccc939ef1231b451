"""`owners`, and what `doctor` says of processes: who holds what, for how long, and how they are."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from uuid import uuid4

import pytest

from actors import ActorSystem
from eventstore import EventStore
from eventstore.backend import Claim, Holder, Holding, Owner
from eventstore.cli.owners import PAGE
from eventstore.errors import LeaseLost
from tests.actors.notebook import Notebook, Read, Write, WriteAndBreak, until

from .conftest import EVIL_ID, EVIL_NOTE, Result, Run
from .test_program import CONTROL


class Owned(Notebook):
    ownership = "exclusive"


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal on each database."""
    if request.param == "sqlite":
        return new_journal(tmp_path)
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    return new_journal(tmp_path)


def new_journal(directory: Path) -> str:
    from eventstore import schema
    from eventstore.url import parse_store_url

    url = f"sqlite:///{directory}/owned.db"
    schema.upgrade(parse_store_url(url))
    return url


@asynccontextmanager
async def process(
    url: str, name: str, streams: Sequence[str] = (), *, seconds: float = 60, report: bytes = b"{}"
) -> AsyncGenerator[Owner]:
    """A process that holds streams under a lease that it began and does not renew."""
    owner = Owner(uuid4().bytes, name, seconds)
    async with EventStore.open(url) as store:
        lease = store.lease(owner)
        await lease.renew(report)
        try:
            while True:
                try:
                    answers = await asyncio.gather(*(store.claim_as(Claim(stream, owner.id)) for stream in streams))
                    break
                except LeaseLost:
                    # On a busy machine a short one may be over before.
                    await lease.renew(report)
            assert not any(isinstance(answer, Holder) for answer in answers)
            yield owner
        finally:
            await lease.end()


class TestOwners:
    async def test_who_holds_a_lease_is_listed_with_how_many_streams(self, cli: Run, any_url: str) -> None:
        async with process(any_url, "web-2", ["A-1", "B-1", "B-2"]) as two, process(any_url, "web-1") as one:
            result = await asyncio.to_thread(cli, "owners", any_url)
            objects = (await asyncio.to_thread(cli, "owners", any_url, "--json")).objects
        assert (result.code, result.err) == (0, "")
        cells = [line.split("\t") for line in result.lines]
        assert [(cell[0], *cell[2:]) for cell in cells] == [("web-1", "0", one.id.hex()), ("web-2", "3", two.id.hex())]
        assert all(re.fullmatch(r"runs for (5\d|60)\.\d s", cell[1]) for cell in cells)
        assert [(each["name"], each["id"], each["streams"], each["renewals"]) for each in objects] == [
            ("web-1", one.id.hex(), 0, 1),
            ("web-2", two.id.hex(), 3, 1),
        ]
        assert all(each["is_running"] and 50 < each["remaining"] <= 60 for each in objects)

    async def test_streams_are_listed_with_their_epochs_and_owners(self, cli: Run, any_url: str) -> None:
        async with EventStore.open(any_url) as store:
            await store.claim("A-1")
        async with process(any_url, "web-1", ["A-1", "B-2"]) as one, process(any_url, "web-2", ["B-1"]):
            result = await asyncio.to_thread(cli, "owners", any_url, "--streams")
            objects = (await asyncio.to_thread(cli, "owners", any_url, "--streams", "--json")).objects
        cells = [line.split("\t") for line in result.lines]
        assert [cell[:3] for cell in cells] == [["A-1", "2", "web-1"], ["B-1", "1", "web-2"], ["B-2", "1", "web-1"]]
        assert all(cell[3].startswith("held: the lease runs for ") for cell in cells)
        assert objects[0].pop("remaining") > 50
        assert objects[0] == {
            "stream_id": "A-1",
            "epoch": 2,
            "owner_id": one.id.hex(),
            "owner": "web-1",
            "is_free": False,
        }

    async def test_a_lease_that_ran_out_leaves_its_streams_free_to_take(self, cli: Run, any_url: str) -> None:
        async with process(any_url, "web-1", ["A-1"], seconds=0.2):
            await asyncio.sleep(0.3)
            owners = await asyncio.to_thread(cli, "owners", any_url)
            (info,) = (await asyncio.to_thread(cli, "owners", any_url, "--json")).objects
            streams = await asyncio.to_thread(cli, "owners", any_url, "--streams")
            (held,) = (await asyncio.to_thread(cli, "owners", any_url, "--streams", "--json")).objects
        name, lease, count, _ = owners.lines[0].split("\t")
        assert (name, count) == ("web-1", "1")
        assert lease.startswith("ran out ")
        assert lease.endswith(" s ago")
        assert (info["is_running"], info["streams"]) == (False, 1)
        assert info["remaining"] < 0
        assert streams.lines[0].startswith("A-1\t1\tweb-1\tfree to take: the lease ran out ")
        assert held["is_free"] is True
        assert held["remaining"] < 0

    async def test_streams_of_an_owner_that_is_no_longer_known_are_free_to_take(self, cli: Run, empty_url: str) -> None:
        async with process(empty_url, "web-1", ["A-1"]), process(empty_url, "web-2", ["A-2"]):
            forget_leases(empty_url)
            owners = await asyncio.to_thread(cli, "owners", empty_url)
            (info,) = (await asyncio.to_thread(cli, "owners", empty_url, "--json")).objects
            streams = await asyncio.to_thread(cli, "owners", empty_url, "--streams")
            held = (await asyncio.to_thread(cli, "owners", empty_url, "--streams", "--json")).objects
        assert owners.lines == ["(gone)\tnone\t2\t"]
        assert info == {
            "id": None,
            "name": None,
            "is_running": False,
            "remaining": None,
            "renewals": None,
            "streams": 2,
        }
        assert streams.lines[0] == "A-1\t1\t(gone)\tfree to take: its owner has no lease any more"
        assert [(each["owner"], each["is_free"], each["remaining"]) for each in held] == [(None, True, None)] * 2

    async def test_after_a_clean_end_nothing_is_held(self, cli: Run, any_url: str) -> None:
        async with process(any_url, "web-1", ["A-1"]):
            pass
        owners = (await asyncio.to_thread(cli, "owners", any_url, "--json")).objects
        streams = (await asyncio.to_thread(cli, "owners", any_url, "--streams", "--json")).objects
        # A backend may leave it to the next owner to take away the last one's name.
        assert [each["name"] for each in owners] in ([], [None])
        assert all(each["is_free"] for each in streams)

    async def test_where_nobody_owns_anything_a_note_says_so(self, cli: Run, empty_url: str) -> None:
        for options in [], ["--streams"], ["--streams", "--kind", "A"], ["--json"]:
            result = await asyncio.to_thread(cli, "owners", empty_url, *options)
            assert (result.code, result.out) == (0, "")
            assert "note" in result.err

    async def test_a_kind_is_chosen(self, cli: Run, any_url: str) -> None:
        async with process(any_url, "web-1", ["A-1", "AB-1", "B-1", "A"]):
            owners = (await asyncio.to_thread(cli, "owners", any_url, "--kind", "A", "--json")).objects
            streams = (await asyncio.to_thread(cli, "owners", any_url, "--kind", "A", "--streams", "--json")).objects
        assert [each["streams"] for each in owners] == [2]
        assert sorted(each["stream_id"] for each in streams) == ["A", "A-1"]

    async def test_more_streams_than_one_page_are_all_listed(self, cli: Run, empty_url: str) -> None:
        names = [f"A-{number:04}" for number in range(2 * PAGE + 1)]
        async with process(empty_url, "web-1", names):
            streams = (await asyncio.to_thread(cli, "owners", empty_url, "--streams", "--json")).objects
        assert [each["stream_id"] for each in streams] == names
        assert {each["owner"] for each in streams} == {"web-1"}

    @pytest.mark.parametrize("options", [[], ["--streams"]], ids=["owners", "streams"])
    async def test_a_process_that_begins_meanwhile_does_not_seem_to_be_gone(
        self, cli: Run, empty_url: str, options: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = asyncio.get_running_loop()
        holdings = EventStore.holdings

        async with AsyncExitStack() as processes:

            async def holdings_a_moment_later(store: EventStore) -> AsyncGenerator[Holding, None]:
                beginning = processes.enter_async_context(process(empty_url, "web-1", ["A-1"]))
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(beginning, loop))
                async for holding in holdings(store):
                    yield holding

            monkeypatch.setattr(EventStore, "holdings", holdings_a_moment_later)
            result = await asyncio.to_thread(cli, "owners", empty_url, *options)
        assert len(result.lines) == 1
        assert "web-1\t" in result.lines[0]
        assert "(gone)" not in result.out

    @pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
    async def test_no_control_character_is_printed(self, cli: Run, empty_url: str, form: list[str]) -> None:
        report = b'{"last_failure": {"actor": "A-\\u001b[31m", "error": "\\u202e\\n", "at": "\\u0007"}}'
        async with process(empty_url, EVIL_NOTE, [EVIL_ID], report=report):
            results = [
                await asyncio.to_thread(cli, *arguments, *form)
                for arguments in (["owners", empty_url], ["owners", empty_url, "--streams"], ["doctor", empty_url])
            ]
        for result in results:
            assert result.code == 0
            assert not CONTROL.search(result.out + result.err)
            assert form or len(result.lines[0].split("\t")) in (1, 4)

    async def test_looking_changes_neither_leases_nor_claims(self, cli: Run, any_url: str) -> None:
        async with process(any_url, "web-1", ["A-1"], seconds=0.2), EventStore.open(any_url) as store:
            await asyncio.sleep(0.3)
            before = await state_of(store)
            for options in [], ["--streams"]:
                await asyncio.to_thread(cli, "owners", any_url, *options)
            assert await state_of(store) == before


class TestDoctor:
    async def test_a_process_is_shown_with_what_it_reports(self, cli: Run, any_url: str) -> None:
        async with ActorSystem(any_url, name="web-1", lease_seconds=2.4) as system:
            await system.ref(Owned, "a").ask(Write(text="1"))
            await system.ref(Owned, "b").ask(Read())
            with pytest.raises(ValueError, match="broken"):
                await system.ref(Owned, "c").ask(WriteAndBreak(text="1"))
            # It is in the report with the next renewal.
            store = system.store
            await until(lambda: system.stats().restarts == 1)
            renewals = (await store.owners())[0].renewals
            while (await store.owners())[0].renewals < renewals + 2:
                await asyncio.sleep(0.05)
            text = await asyncio.to_thread(cli, "doctor", any_url)
            (report,) = (await asyncio.to_thread(cli, "doctor", any_url, "--json")).objects
        assert text.code == 0
        assert fields(text)["processes"] == "1 with a lease"
        assert "process web-1" in text.lines
        shown = fields(text)
        assert re.match(r"runs for [012]\.\d s", shown["  lease"])
        assert shown["  actors"] == "3 in memory, 0 recovering, 0 stopped"
        assert (shown["  restarts"], shown["  dead letters"]) == ("1", "0")
        assert shown["  most restarted"] == "Owned-c (1)"
        at, _, what = shown["  last failure"].partition("  ")
        assert at.endswith("Z")
        assert what == "Owned-c: ValueError: broken after 1"
        assert text.lines[-1] == "healthy"
        (found,) = report["processes"]
        assert (found["name"], found["is_running"]) == ("web-1", True)
        assert found["report"]["most_restarted"] == {"Owned-c": 1}

    async def test_a_process_that_died_is_counted_apart_and_the_store_is_healthy(
        self, cli: Run, empty_url: str
    ) -> None:
        async with process(empty_url, "web-1", seconds=0.1), process(empty_url, "web-2"):
            await asyncio.sleep(0.2)
            result = await asyncio.to_thread(cli, "doctor", empty_url)
        assert fields(result)["processes"] == "1 with a lease, 1 whose lease ran out"
        assert (result.code, result.lines[-1]) == (0, "healthy")
        died, lives = result.lines.index("process web-1"), result.lines.index("process web-2")
        assert result.lines[died + 1].startswith("  lease  ran out ")
        assert result.lines[lives + 1].startswith("  lease  runs for ")

    async def test_without_leases_there_is_nothing_to_report(self, cli: Run, empty_url: str) -> None:
        assert fields(await asyncio.to_thread(cli, "doctor", empty_url))["processes"] == "none with a lease"
        (report,) = (await asyncio.to_thread(cli, "doctor", empty_url, "--json")).objects
        assert report["processes"] == []

    @pytest.mark.parametrize(
        ("report", "shown"),
        [
            (b"", []),
            (b"{", []),
            (b"[1, 2]", []),
            (b"null", []),
            (b'"text"', []),
            (b"[" * 5000, []),
            (b'{"live": "many", "restarts": -1, "dead_letters": true, "stopped": null}', []),
            (b'{"last_failure": "yesterday", "most_restarted": ["A-1"]}', []),
            (b'{"last_failure": {"actor": 7, "at": []}, "most_restarted": {"A-1": "often", "A-2": 1.5}}', []),
            (b'{"live": 7, "asleep": 9}', ["  actors  7 in memory"]),
            (b'{"last_failure": {"at": "soon", "error": "x"}}', ["  last failure  soon  x"]),
            (b'{"last_failure": {"at": "2026-01-31T12:00:00"}}', ["  last failure  2026-01-31T12:00:00.000000"]),
            (b'{"last_failure": {"error": "a\\tb \\ud83d\\ude42"}}', ["  last failure  a b \U0001f642"]),
            (b'{"most_restarted": {"A-\\n": 2, "A-2": 1e99}}', ["  most restarted  A-\\n (2)"]),
        ],
    )
    async def test_a_report_of_another_version_is_shown_as_far_as_it_is_understood(
        self, cli: Run, empty_url: str, report: bytes, shown: list[str]
    ) -> None:
        async with process(empty_url, "web-1", report=report):
            text = await asyncio.to_thread(cli, "doctor", empty_url)
            (found,) = (await asyncio.to_thread(cli, "doctor", empty_url, "--json")).objects
        lines = text.lines[text.lines.index("process web-1") + 1 : -1]
        assert (text.code, text.lines[-1]) == (0, "healthy")
        assert lines[0].startswith("  lease  ")
        assert [" ".join(line.split()) for line in lines[1:]] == [" ".join(line.split()) for line in shown]
        assert (found["processes"][0]["report"] is None) == (not report.startswith(b"{") or report == b"{")


def fields(result: Result) -> dict[str, str]:
    """The lines of a report as names, with their indentation, and values."""
    pairs = (re.fullmatch(r"( *\S.*?)  +(\S.*)", line) for line in result.lines)
    return {pair[1]: pair[2] for pair in pairs if pair is not None}


def forget_leases(url: str) -> None:
    """As it is when they ran out long ago."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute("DELETE FROM journal_owners")
        connection.commit()


async def state_of(store: EventStore) -> tuple[list[tuple[bytes, str, int]], list[Holding]]:
    """Which leases there are, and what is claimed."""
    return [info[:3] for info in await store.owners()], [holding async for holding in store.holdings()]
