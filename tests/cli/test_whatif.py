"""`whatif`: two versions of the user's code, each in an interpreter of its own, over one journal."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
import zipfile
from pathlib import Path

import pytest

from eventstore import EventStore
from eventstore.backend import EncodedEvent, StreamWrite
from eventstore.codec import encoded_event, new_event_id

from .conftest import Run, start
from .desks import DATABASES, contents, on_every_database

OLD = """
from pydantic import BaseModel
from actors import PersistentActor, event_handler
from eventstore import Event

class Sold(Event, name="till.sold"):
    cents: int

class Returned(Event, name="till.returned"):
    cents: int

class Sum(BaseModel):
    cents: int = 0
    sales: int = 0

class Till(PersistentActor[Sum]):
    @event_handler
    def sold(self, event: Sold) -> None:
        self.state.cents += event.cents
        self.state.sales += 1

    @event_handler
    def returned(self, event: Returned) -> None:
        self.state.cents -= event.cents
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'till.db'}"
    asyncio.run(fill(url))
    return url


async def fill(url: str) -> None:
    """Three tills: one that only sold, one with a return at version 3, one with a thousand sales and a return."""
    async with EventStore.open(url) as store:
        for key, events in {
            "a": ["sold"] * 3,
            "b": ["sold", "sold", "returned", "sold"],
            "c": ["sold"] * 700 + ["returned"] + ["sold"] * 300,
        }.items():
            await store.append_writes([StreamWrite(f"Till-{key}", 0, [encoded(f"till.{each}") for each in events])])


def encoded(type_: str) -> EncodedEvent:
    event_id = new_event_id()
    return encoded_event(event_id, type_, 1, b'{"cents":5}', None, event_id)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    return _folder(tmp_path / "old", OLD), _folder(tmp_path / "new", OLD)


def _folder(path: Path, code: str) -> str:
    path.mkdir()
    (path / "till.py").write_text(code, "utf-8")
    return str(path)


def change(folder: str, *changes: tuple[str, str]) -> None:
    path = Path(folder) / "till.py"
    code = path.read_text("utf-8")
    for before, after in changes:
        assert before in code
        code = code.replace(before, after)
    path.write_text(code, "utf-8")


class TestWhatif:
    def test_states_that_differ_are_named_with_where_they_part(
        self, cli: Run, url: str, folders: tuple[str, str]
    ) -> None:
        old, new = folders
        change(new, ("self.state.cents -= event.cents", "self.state.cents -= 2 * event.cents"))
        result = cli("whatif", url, "till:Till", "--old", old, "--new", new)
        assert result.code == 1
        assert result.lines == [
            "Till-b\t3\t/cents is 5 instead of 10",
            "Till-c\t701\t/cents is 4990 instead of 4995",
            "3 actors, 1,008 events folded with both: 2 differ",
        ]
        first, _, last = cli("whatif", url, "till:Till", "--old", old, "--new", new, "--json").objects
        assert first == {
            "stream_id": "Till-b",
            "version": 3,
            "changes": [{"pointer": "/cents", "kind": "changed", "before": 10, "after": 5}],
            "changes_left_out": 0,
            "old_error": None,
            "new_error": None,
        }
        assert (last["summary"]["actors"], last["summary"]["differ"]) == (3, 2)

    def test_the_current_folder_s_code_gets_into_neither(
        self, cli: Run, url: str, folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new = folders[1]
        change(new, ("self.state.cents -= event.cents", "self.state.cents -= 2 * event.cents"))
        monkeypatch.chdir(new)
        # A relative URL means the same in the processes that fold.
        shutil.copy(tmp_path / "till.db", new)
        result = cli("whatif", "sqlite:///till.db", "till:Till", "b", "--old", "../old", "--new", ".")
        assert (result.code, result.lines[0]) == (1, "Till-b\t3\t/cents is 5 instead of 10")
        (tmp_path / "empty").mkdir()
        result = cli("whatif", url, "till:Till", "--old", "../old", "--new", "../empty")
        assert (result.code, result.out) == (2, "")
        assert "--new: there is no module 'till' in" in result.err

    def test_a_new_field_is_a_difference_from_the_beginning(self, cli: Run, url: str, folders: tuple[str, str]) -> None:
        old, new = folders
        change(new, ("    sales: int = 0\n", "    sales: int = 0\n    currency: str = 'EUR'\n"))
        result = cli("whatif", url, "till:Till", "a", "--old", old, "--new", new)
        assert (result.code, result.lines[0]) == (1, 'Till-a\t0\t/currency is new: "EUR"')

    def test_events_that_cannot_be_read_any_more_are_named(self, cli: Run, url: str, folders: tuple[str, str]) -> None:
        old, new = folders
        change(
            new,
            ('name="till.returned"', 'name="till.refunded"'),
            ('name="till.sold")', 'name="till.sold", version=2)'),
            (
                "class Till(",
                "from eventstore import upcaster\n@upcaster('till.sold', from_version=1)\n"
                "def same(data):\n    return data\n\nclass Till(",
            ),
        )
        result = cli("whatif", url, "till:Till", "--old", old, "--new", new)
        assert result.code == 1
        assert [line.split("\t")[:2] for line in result.lines[:2]] == [["Till-b", "3"], ["Till-c", "701"]]
        assert "the new code cannot fold it: " in result.lines[0]
        assert result.lines[2:] == [
            "till.returned version 1 cannot be read by the new code (UnknownEventType): 2 actors, first Till-b at "
            "version 3",
            "1 actor, 3 events folded with both: 2 only the old code can fold",
        ]

    def test_code_that_mends_something_makes_a_difference_too(
        self, cli: Run, url: str, folders: tuple[str, str]
    ) -> None:
        old, new = folders
        change(old, ("        self.state.cents -= event.cents", "        raise ValueError('no returns')"))
        result = cli("whatif", url, "till:Till", "--old", old, "--new", new, "--json")
        assert (result.code, result.objects[-1]["summary"]["only_new_can_fold"]) == (1, 2)
        assert result.objects[0]["old_error"]["version"] == 3
        assert "no returns" in result.objects[0]["old_error"]["reason"]

    def test_what_neither_can_fold_was_not_compared(self, cli: Run, url: str, folders: tuple[str, str]) -> None:
        old, new = folders
        for folder in folders:
            change(folder, ("        self.state.cents -= event.cents", "        raise ValueError('no returns')"))
        result = cli("whatif", url, "till:Till", "--old", old, "--new", new)
        reason = "its handler for 'till.returned' raised ValueError at version"
        assert (result.code, result.lines) == (
            1,
            [
                f"Till-b\t3\tnothing was compared: neither code can fold it: {reason} 3: no returns",
                f"Till-c\t701\tnothing was compared: neither code can fold it: {reason} 701: no returns",
                "1 actor, 3 events folded with both: no differences; 2 actors not compared: neither code can fold them",
            ],
        )
        *rows, last = cli("whatif", url, "till:Till", "--old", old, "--new", new, "--json").objects
        summary = last["summary"]
        assert [(row["version"], row["old_error"]) for row in rows] == [
            (3, rows[0]["new_error"]),
            (701, rows[1]["new_error"]),
        ]
        counts = {name: summary[name] for name in ("actors", "compared", "events", "differ", "neither_can_fold")}
        assert counts == {"actors": 3, "compared": 1, "events": 3, "differ": 0, "neither_can_fold": 2}

    def test_what_each_fails_at_in_its_own_way_was_not_compared_either(
        self, cli: Run, url: str, folders: tuple[str, str]
    ) -> None:
        old, new = folders
        change(old, ("        self.state.cents -= event.cents", "        raise ValueError('no returns')"))
        change(new, ("        self.state.cents -= event.cents", "        raise ValueError('no refunds')"))
        result = cli("whatif", url, "till:Till", "a", "b", "--old", old, "--new", new)
        assert (result.code, result.lines[-1]) == (
            1,
            "1 actor, 3 events folded with both: no differences; 1 actor not compared: neither code can fold it",
        )
        assert "the old code cannot fold it: " in result.lines[0]
        assert "the new code cannot fold it: " in result.lines[0]

    def test_an_event_that_neither_can_read_is_not_one_that_only_the_new_code_cannot(
        self, cli: Run, url: str, folders: tuple[str, str]
    ) -> None:
        old, new = folders
        for folder in folders:
            change(folder, ('name="till.returned"', 'name="till.refunded"'))
        result = cli("whatif", url, "till:Till", "b", "--old", old, "--new", new, "--json")
        assert result.objects[-1]["summary"]["undecodable"] == []

    def test_what_handlers_leave_to_the_hashes_is_no_difference(
        self, cli: Run, url: str, folders: tuple[str, str]
    ) -> None:
        for folder in folders:
            change(folder, ("self.state.cents -= event.cents", "self.state.cents = hash('x') % 1000"))
        old, new = folders
        result = cli("whatif", url, "till:Till", "--old", old, "--new", new)
        assert result == (0, "3 actors, 1,008 events folded with both: no differences\n", "")

    @pytest.mark.parametrize(
        ("target", "broken", "code", "message"),
        [
            ("till:Shop", None, 2, "--old: module 'till' has no 'Shop'"),
            ("till:Till", ("import Event", "import Evnet"), 2, "--new: module 'till' failed while it was imported"),
            ("till:Till", ("class Till(PersistentActor[Sum])", "class Till(PersistentActor[Sum], kind='Desk')"), 1, ""),
        ],
    )
    def test_code_that_cannot_be_used_is_an_error(
        self,
        cli: Run,
        url: str,
        folders: tuple[str, str],
        target: str,
        broken: tuple[str, str] | None,
        code: int,
        message: str,
    ) -> None:
        old, new = folders
        if broken is not None:
            change(new, broken)
        result = cli("whatif", url, target, "--old", old, "--new", new)
        assert (result.code, result.out) == (code, "")
        assert (message or "'Till', the new one of 'Desk'") in result.err

    def test_a_folder_that_is_not_there_is_wrong_usage(self, cli: Run, url: str, folders: tuple[str, str]) -> None:
        result = cli("whatif", url, "till:Till", "--old", f"{folders[0]}/nowhere", "--new", folders[1])
        assert (result.code, result.out) == (2, "")
        assert "is no folder, and no package" in result.err

    def test_a_bare_word_is_not_looked_for_in_a_package_index(self, cli: Run, url: str) -> None:
        result = cli("whatif", url, "till:Till", "--old", "deployed")
        assert (result.code, result.out) == (2, "")
        assert "there is no folder deployed; a package is named with its version, as in deployed==1.2" in result.err

    @pytest.mark.parametrize("options", [[], ["--old", ""], ["--new", "."], ["--old", "./.", "--new", "."]])
    def test_one_code_is_not_compared_with_itself(self, cli: Run, url: str, options: list[str]) -> None:
        result = cli("whatif", url, "till:Till", *options)
        assert (result.code, result.out) == (2, "")
        assert "--old and --new are the same code" in result.err

    def test_an_actor_that_is_not_there_is_an_error(self, cli: Run, url: str, folders: tuple[str, str]) -> None:
        result = cli("whatif", url, "till:Till", "z", "--old", folders[0], "--new", folders[1])
        assert (result.code, result.out) == (1, "")
        assert "there is no actor 'Till-z'" in result.err

    def test_code_that_ends_its_process_is_an_error(self, cli: Run, url: str, folders: tuple[str, str]) -> None:
        old, new = folders
        change(
            new,
            (
                "self.state.cents -= event.cents",
                "import os, sys; print('the last words', file=sys.stderr, flush=True); os._exit(7)",
            ),
        )
        result = cli("whatif", url, "till:Till", "--old", old, "--new", new)
        assert (result.code, result.out) == (1, "")
        assert "--new: the process that folds has ended with 7: the last words\n" in result.err

    def test_a_package_is_installed_for_the_time_being(self, cli: Run, url: str, folders: tuple[str, str]) -> None:
        old, new = folders
        wheel = Path(new).parent / "till-1.0-py3-none-any.whl"
        info = "till-1.0.dist-info"
        files = {
            "till.py": OLD.replace("-= event.cents", "-= 3 * event.cents"),
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: till\nVersion: 1.0\nRequires-Dist: pydantic\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
            archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
        result = cli("whatif", url, "till:Till", "b", "--old", old, "--new", str(wheel))
        assert (result.code, result.lines[0]) == (1, "Till-b\t3\t/cents is 0 instead of 10"), result

    def test_ctrl_c_ends_it_and_its_processes(self, url: str, folders: tuple[str, str], tmp_path: Path) -> None:
        old, new = folders
        there = tmp_path / "there"
        stop = f"import os, pathlib, time; pathlib.Path({str(there)!r}).write_text(str(os.getpid())); time.sleep(600)"
        change(new, ("self.state.cents -= event.cents", stop))
        process = start("whatif", url, "till:Till", "--old", old, "--new", new)
        deadline = time.monotonic() + 40
        while not (there.exists() and there.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=40)
        assert (process.returncode, out) == (130, b"")
        assert not Path(f"/proc/{there.read_text()}").exists()

    @pytest.fixture
    def database(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        return on_every_database(request, tmp_path)

    @pytest.mark.parametrize("database", DATABASES, indirect=True)
    def test_every_database_is_asked_and_left_as_it_is(self, cli: Run, database: str, folders: tuple[str, str]) -> None:
        asyncio.run(fill(database))
        before = asyncio.run(contents(database))
        old, new = folders
        change(new, ("self.state.sales += 1", "self.state.sales += 2"))
        result = cli("whatif", database, "till:Till", "--old", old, "--new", new, "--json")
        assert result.code == 1
        assert [each.get("version") for each in map(json.loads, result.lines[:-1])] == [1, 1, 1]
        assert asyncio.run(contents(database)) == before
