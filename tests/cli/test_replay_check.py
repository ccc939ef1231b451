"""`replay --check` and `--resume`: folds that part, and long ones that are ended in between."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from actors.time_travel.folding import fold
from eventstore import EventStore
from eventstore.snapshots import new_snapshot

from .conftest import Run, start
from .desks import DATABASES, DESK, build, contents, on_every_database
from .test_time_travel import shop_url

__all__ = ["shop_url"]

MOODY = "cli_moody:Moody"
ACCOUNT = "cli_ledger:Account"


PARTED = "come to different states at 'cli-moody.did': /notes/0 is "
MOODS = {
    "clock": ["calls datetime.datetime.now", f"{PARTED}20"],
    "random": ["calls random.random", f"{PARTED}0."],
    "uuid": ["calls uuid.uuid4 -> posix.urandom", PARTED],
    "file": ["calls io.open", "calls io.BufferedReader.read"],
    "hash": [f'{PARTED}"name-'],
    "unseen": [f"{PARTED}1"],
    "elsewhere": ["it can be folded in one process, and not in another: its handler"],
}


@pytest.fixture
def moody_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'moody.db'}"


def fill(url: str, **streams: list[str]) -> None:
    async def append() -> None:
        from cli_moody import Did  # type: ignore[import-not-found]

        async with EventStore.open(url) as store:
            for key, whats in streams.items():
                await store.append(f"Moody-{key}", [Did(what=what) for what in whats])

    asyncio.run(append())


def save(url: str, key: str, version: int) -> None:
    async def saved() -> None:
        from cli_moody import Moody

        async with EventStore.open(url) as store:
            data = Moody.state_type.dump((await fold(store, Moody, key, through=version, use_snapshots=False)).state)
            snapshot = new_snapshot(f"Moody-{key}", version, Moody.state_type.fingerprint, data)
            await store.save_snapshot(snapshot, keep=10)

    asyncio.run(saved())


class TestCheck:
    def test_what_is_folded_alike_passes(self, cli: Run, url: str) -> None:
        result = cli("replay", url, ACCOUNT, "--check")
        assert result.code == 0
        assert result.lines == ["4 Account actors, 8 events folded, 3 snapshots compared: no differences"]

    def test_the_first_event_where_two_folds_part_is_named(self, cli: Run, moody_url: str) -> None:
        streams = {what: ["nothing"] * 300 + [what] + ["nothing"] * 350 + [what] for what in MOODS}
        fill(moody_url, **streams, calm=["nothing"] * 3)
        result = cli("replay", moody_url, MOODY, "--check")
        assert result.code == 1
        *rows, summary = result.lines
        assert summary.startswith(f"{len(MOODS) + 1} Moody actors, {652 * len(MOODS) + 3:,} events folded")
        found = [row.split("\t") for row in rows]
        for what, problems in MOODS.items():
            texts = [text for stream_id, version, text in found if (stream_id, version) == (f"Moody-{what}", "301")]
            assert len(texts) == len(problems), texts
            for text, problem in zip(texts, problems, strict=True):
                assert problem in text
        assert len(rows) == sum(map(len, MOODS.values()))
        # The process at hand, alone, sees nothing of it.
        assert cli("replay", moody_url, MOODY).code == 0

    def test_a_snapshot_that_leaves_something_out_is_named_with_where_it_is_missed(
        self, cli: Run, moody_url: str
    ) -> None:
        fill(moody_url, moody=["hide", "nothing", "nothing"] + ["nothing"] * 600 + ["show"] + ["nothing"] * 5)
        for version in (2, 606):
            save(moody_url, "moody", version)
        plain = cli("replay", moody_url, MOODY)
        assert (plain.code, plain.lines) == (
            0,
            ["1 Moody actor, 609 events folded, 2 snapshots compared: no differences"],
        )
        result = cli("replay", moody_url, MOODY, "--check")
        assert result.code == 1
        assert [row.split("\t")[:2] for row in result.lines[:-1]] == [["Moody-moody", "604"]]
        assert "the snapshot at version 2 with those behind it" in result.lines[0]
        assert "at 'cli-moody.did': /notes/0 is 1 and 0" in result.lines[0]

    def test_a_wrong_snapshot_is_told_of_once(self, cli: Run, moody_url: str) -> None:
        fill(moody_url, moody=["nothing"] * 5)

        async def spoil() -> None:
            from cli_moody import Moody

            async with EventStore.open(moody_url) as store:
                snapshot = new_snapshot("Moody-moody", 3, Moody.state_type.fingerprint, b'{"count":9,"notes":[]}')
                await store.save_snapshot(snapshot)

        asyncio.run(spoil())
        result = cli("replay", moody_url, MOODY, "--check")
        assert [row.split("\t") for row in result.lines[:-1]] == [
            ["Moody-moody", "3", "snapshot differs: /count is 9 in it, 3 when replayed"]
        ]

    def test_replicated_actors_are_checked_too(self, cli: Run, shop_url: str) -> None:
        result = cli("replay", shop_url, "cli_shop:Shop", "--check")
        assert (result.code, result.err) == (0, "")

    @pytest.mark.parametrize("database", DATABASES, indirect=True)
    def test_every_database_is_checked_and_left_as_it_is(self, cli: Run, database: str) -> None:
        asyncio.run(build(database))
        before = asyncio.run(contents(database))
        result = cli("replay", database, DESK, "--check", "--json")
        assert (result.code, result.objects[-1]["summary"]["problems"]) == (0, 0)
        assert asyncio.run(contents(database)) == before

    @pytest.fixture
    def database(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        return on_every_database(request, tmp_path)


class TestResume:
    @pytest.mark.parametrize(("how", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGINT", 130)])
    @pytest.mark.parametrize("jobs", ["1", "3"])
    def test_one_that_was_ended_goes_on_where_it_was(
        self, cli: Run, moody_url: str, tmp_path: Path, how: str, code: int, jobs: str
    ) -> None:
        names = {f"k{number}": ["nothing"] * number for number in range(1, 8)}
        fill(moody_url, **names | {"k6": ["nothing", "die"] + ["nothing"] * 4})
        file = tmp_path / "replay.json"
        arguments = ("replay", moody_url, MOODY, "--resume", str(file), "--jobs", jobs)
        # An actor whose snapshot is wrong is done before that, and told of only then.
        asyncio.run(self._spoil(moody_url))
        process = start(*arguments, MOODY_DIES=how)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == code
        assert b"Moody-k2" in out
        noted = json.loads(file.read_text())
        assert noted["after"] in {"1": ["k5"], "3": ["k3", "k4", "k5"]}[jobs]
        result = cli(*arguments, "--json")
        assert result.code == 1
        (summary,) = result.objects
        assert (summary["summary"]["actors"], summary["summary"]["events"], summary["summary"]["problems"]) == (
            7,
            28,
            1,
        )
        assert not file.exists()

    async def _spoil(self, url: str) -> None:
        from cli_moody import Moody

        async with EventStore.open(url) as store:
            snapshot = new_snapshot("Moody-k2", 1, Moody.state_type.fingerprint, b'{"count":9,"notes":[]}')
            await store.save_snapshot(snapshot)

    def test_a_file_of_something_else_is_refused(self, cli: Run, url: str, tmp_path: Path) -> None:
        file = tmp_path / "replay.json"
        for text in (
            "{",
            "[]",
            '{"work": {"replay": "sqlite:///other.db"}, "after": "x", "so_far": {}}',
        ):
            file.write_text(text)
            result = cli("replay", url, ACCOUNT, "--resume", str(file))
            assert (result.code, result.out) == (2, "")
            assert "replay.json" in result.err
            assert file.read_text() == text
        assert cli("replay", url, ACCOUNT, "alice", "--resume", str(tmp_path / "other")).code == 2

    def test_no_password_gets_into_it(self, cli: Run, tmp_path: Path) -> None:
        file = tmp_path / "replay.json"
        file.write_text('{"work": {}, "after": "x", "so_far": {}}')
        url = "postgresql://ann:hunter2@127.0.0.1:1/shop"
        result = cli("replay", url, ACCOUNT, "--resume", str(file))
        assert result.code == 2
        assert "hunter2" not in result.err

    def test_many_at_a_time_find_the_same_in_the_same_order(self, cli: Run, moody_url: str) -> None:
        fill(moody_url, **{f"k{number:02}": ["nothing"] * (30 - number) for number in range(30)})

        async def spoil() -> None:
            from cli_moody import Moody

            async with EventStore.open(moody_url) as store:
                for number in range(29):
                    stream_id = f"Moody-k{number:02}"
                    snapshot = new_snapshot(stream_id, 1, Moody.state_type.fingerprint, b'{"count":9,"notes":[]}')
                    await store.save_snapshot(snapshot)

        asyncio.run(spoil())
        one, many = (cli("replay", moody_url, MOODY, "--jobs", jobs) for jobs in ("1", "8"))
        assert one == many
        assert len(one.lines) == 30


class TestRebuildProjections:
    def test_several_are_made_anew_and_told_of(self, cli: Run, own_url: str) -> None:
        target = "cli_ledger:Amounts"
        assert cli("projections", "run", own_url, target).code == 0
        (status,) = cli("rebuild", "projections", own_url, target, "--json").objects
        assert (status["name"], status["version"], status["status"]) == ("amounts", 2, "live")
        result = cli("rebuild", "projections", own_url, target, target)
        assert [line.split(":")[0] for line in result.lines] == ["amounts", "amounts"]
        assert cli("projections", "status", own_url, "amounts", "--json").objects[0]["version"] == 4
