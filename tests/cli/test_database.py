"""`migrate` and `doctor`; and what is never done to a database."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from eventstore import EventStore, SchemaMissing

from .conftest import Rewrite, Run

ACCOUNT = "cli_ledger:Account"
LOOKING = [
    ["streams"],
    ["events", "Account-alice"],
    ["events", "Account-nobody"],
    ["tail"],
    ["show", ACCOUNT, "alice"],
    ["show", ACCOUNT, "nobody"],
    ["replay", ACCOUNT],
    ["replay", ACCOUNT, "nobody"],
    ["replay", ACCOUNT, "--check"],
    ["diff", ACCOUNT, "alice", "1", "4"],
    ["blame", ACCOUNT, "alice", "--all"],
    ["bisect", ACCOUNT, "alice", "amount < 100"],
    ["whatif", ACCOUNT, "--old", ".", "--new", ".."],
    ["owners"],
    ["owners", "--streams"],
    ["doctor"],
]


def with_url(arguments: list[str], url: str) -> list[str]:
    name = 2 if arguments[0] == "rebuild" else 1
    return [*arguments[:name], url, *arguments[name:]]


class TestMigrate:
    def test_a_journal_is_created_readable_by_its_owner_alone(self, program: Run, tmp_path: Path) -> None:
        path = tmp_path / "new.db"
        result = program("migrate", f"sqlite:///{path}")
        assert result == (0, f"sqlite:///{path} is at schema revision 0001 now (there was no journal)\n", "")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_current_journal_is_left_alone(self, cli: Run, own_url: str) -> None:
        result = cli("migrate", own_url, "--json")
        assert result.code == 0
        assert result.objects == [{"url": own_url, "before": "0001", "after": "0001"}]
        assert cli("migrate", own_url).out.endswith("already: nothing was changed\n")

    def test_check_says_what_would_be_done_and_creates_nothing(self, cli: Run, tmp_path: Path) -> None:
        result = cli("migrate", f"sqlite:///{tmp_path}/new.db", "--check")
        assert result.code == 1
        assert "pending   0001" in result.lines
        (state,) = cli("migrate", f"sqlite:///{tmp_path}/new.db", "--check", "--json").objects
        assert (state["found"], state["pending"], state["is_current"]) == (None, ["0001"], False)
        assert list(tmp_path.iterdir()) == []

    def test_check_is_content_with_a_current_journal(self, cli: Run, url: str) -> None:
        assert cli("migrate", url, "--check").code == 0

    def test_the_sql_makes_the_journal(self, cli: Run, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/new.db"
        text = cli("migrate", url, "--sql").out
        assert list(tmp_path.iterdir()) == []
        assert cli("migrate", url, "--sql", "--json").objects == [{"sql": text}]
        with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
            connection.executescript(text)
        assert cli("migrate", url, "--check").code == 0

    def test_a_store_without_tables_has_nothing_to_migrate(self, cli: Run) -> None:
        result = cli("migrate", "memory://")
        assert (result.code, result.out) == (3, "")
        assert "nothing to migrate" in result.err

    def test_a_revision_that_is_not_known_is_an_error(self, cli: Run, tmp_path: Path) -> None:
        for option in ("--to", "9999"), ("--sql", "--to", "9999"):
            result = cli("migrate", f"sqlite:///{tmp_path}/new.db", *option)
            assert (result.code, result.out) == (3, "")
            assert "there is no schema revision '9999'; those of this version are 0001" in result.err
        assert list(tmp_path.iterdir()) == []

    def test_check_goes_with_neither_sql_nor_a_revision(self, cli: Run, url: str) -> None:
        assert cli("migrate", url, "--check", "--sql").code == 2
        assert cli("migrate", url, "--check", "--to", "0001").code == 2


class TestDoctor:
    def test_a_healthy_store_is_described(self, cli: Run, url: str) -> None:
        result = cli("doctor", url)
        assert result.code == 0
        fields = dict(line.split("  ", 1) for line in result.lines[:-1])
        assert fields["url"].strip() == url
        assert fields["backend"].strip() == "sqlite"
        assert fields["database"].strip() == f"SQLite {sqlite3.sqlite_version}"
        assert fields["schema"].strip() == "0001"
        assert fields["durability"].strip().startswith("power-loss: what was acknowledged survives")
        assert fields["streams"].strip() == "5"
        assert fields["events"].strip() == "10, the last at position 13"
        assert fields["capabilities"].strip() == "creates_schema, survives_restart, user_sql, tenants, archive"
        assert fields["lag"].strip() == "none"
        assert fields["processes"].strip() == "none with a lease"
        assert result.lines[-1] == "healthy"

    def test_json_gives_one_object(self, cli: Run, url: str) -> None:
        (report,) = cli("doctor", url, "--json").objects
        assert report["healthy"] is True
        assert report["problems"] == []
        assert report["schema"] == {"found": "0001", "expected": "0001"}
        assert report["statistics"]["events"] == 10
        assert report["capabilities"]["creates_schema"] is True
        assert (report["durability"]["asked"], report["lag"]) == (None, 0)

    def test_less_durability_is_told_in_words(self, cli: Run, url: str) -> None:
        (report,) = cli("doctor", f"{url}?durability=process-crash", "--json").objects
        assert (report["durability"]["level"], report["durability"]["asked"]) == ("process-crash", "process-crash")
        assert "a loss of power can take the last commits" in report["durability"]["meaning"]

    def test_a_store_in_memory_has_neither_schema_nor_durability(self, cli: Run) -> None:
        (report,) = cli("doctor", "memory://", "--json").objects
        assert (report["schema"]["found"], report["durability"]["level"], report["database"]) == (
            None,
            "none",
            "memory",
        )

    def test_a_missing_journal_is_reported_with_what_to_do(self, cli: Run, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/nothing.db"
        result = cli("doctor", url)
        assert (result.code, result.err) == (1, "")
        assert "schema   none; this version expects 0001" in result.lines
        assert result.lines[-1].startswith("problem: SchemaMissing: ")
        assert f"run: eventstore migrate {url}" in result.lines[-1]

    def test_a_journal_of_a_newer_version_is_reported(self, cli: Run, own_journal: Path, own_url: str) -> None:
        with closing(sqlite3.connect(own_journal)) as connection:
            connection.execute("UPDATE eventstore_version SET version_num = '9999'")
            connection.commit()
        (report,) = cli("doctor", own_url, "--json").objects
        assert report["schema"] == {"found": "9999", "expected": "0001"}
        assert [problem["error"] for problem in report["problems"]] == ["SchemaError"]
        assert cli("doctor", own_url).code == 1
        assert cli("streams", own_url).code == 3

    def test_a_file_that_is_no_database_is_reported(self, cli: Run, tmp_path: Path) -> None:
        path = tmp_path / "letter.txt"
        path.write_text("Dear Sir or Madam, " * 99)
        assert cli("doctor", f"sqlite:///{path}", "--json").objects[0]["healthy"] is False

    def test_damage_to_the_newest_event_is_found(self, cli: Run, own_url: str, rewrite: Rewrite) -> None:
        rewrite("payload = '{' WHERE position = 13")
        result = cli("doctor", own_url)
        assert result.code == 1
        assert "problem: JournalCorrupt: stream 'Note-1'" in result.out

    def test_what_is_no_url_is_an_error(self, cli: Run) -> None:
        result = cli("doctor", "bank.db")
        assert (result.code, result.out) == (3, "")


class TestNothingIsCreated:
    @pytest.mark.parametrize("arguments", [*LOOKING, ["rebuild", "snapshots", ACCOUNT, "alice"]], ids=" ".join)
    def test_a_missing_journal_stays_missing(self, cli: Run, tmp_path: Path, arguments: list[str]) -> None:
        result = cli(*with_url(arguments, f"sqlite:///{tmp_path}/nothing.db"))
        assert result.code == (1 if arguments == ["doctor"] else 3)
        assert "eventstore migrate sqlite:///" in result.err + result.out
        assert list(tmp_path.iterdir()) == []

    async def test_a_store_opened_without_creating_raises_and_names_the_remedy(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/nothing.db"
        with pytest.raises(SchemaMissing, match=f"run: eventstore migrate {url}") as caught:
            await EventStore.open(url, create=False).__aenter__()
        assert (caught.value.found, caught.value.expected) == (None, "0001")
        assert list(tmp_path.iterdir()) == []

    async def test_a_store_opened_without_creating_serves_what_is_there(self, own_url: str) -> None:
        async with EventStore.open(own_url, create=False) as store:
            assert await store.version("Account-alice") == 5

    async def test_an_empty_file_gets_no_journal_without_creating(self, tmp_path: Path) -> None:
        path = tmp_path / "empty.db"
        path.touch()
        with pytest.raises(SchemaMissing):
            await EventStore.open(f"sqlite:///{path}", create=False).__aenter__()
        async with EventStore.open(f"sqlite:///{path}") as store:
            assert store.schema_revision == "0001"

    async def test_a_store_in_memory_needs_no_creating(self) -> None:
        async with EventStore.open("memory://", create=False) as store:
            assert await store.version("a") == 0


class TestNothingIsWritten:
    @pytest.mark.parametrize("arguments", LOOKING, ids=" ".join)
    def test_looking_leaves_the_file_as_it_is(
        self, cli: Run, journal: Path, tmp_path: Path, arguments: list[str]
    ) -> None:
        copy = Path(shutil.copy(journal, tmp_path / "copy.db"))
        cli(*with_url(arguments, f"sqlite:///{copy}"))
        assert copy.read_bytes() == journal.read_bytes()
        assert {path.name for path in tmp_path.iterdir()} <= {"copy.db", "copy.db-lock"}
