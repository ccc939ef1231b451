"""`eventstore audit`: questions to the whole journal, in every form of answer."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eventstore import Event, EventFilter, EventStore, Metadata, NewEvent
from eventstore.auditing.audit_totals import Frequent, totals
from eventstore.cli.escaping import escaped
from eventstore.contract.audit_query import AuditQuery
from eventstore.contract.json_condition import JsonCondition
from eventstore.errors import InvalidQuery

from .conftest import EVIL_ID, Run, start
from .test_program import CONTROL, in_a_terminal

# What spreadsheets have run as formulas.
FORMULAS = ["=1+1", "+1", "-1+2", "@SUM(1)", "\t=1", "\r=1", '=HYPERLINK("http://x","y")']
HUGE_BATCH, HUGE_BATCHES = 100, 40


class Thing(Event, name="audit.thing"):
    value: Any = None


@pytest.fixture
def made(tmp_path: Path) -> str:
    """A request that goes through three streams, two other events, and names that are formulas."""
    url = f"sqlite:///{tmp_path}/made.db"

    def noted(value: Any, **fields: Any) -> NewEvent:
        return NewEvent(Thing(value=value), metadata=Metadata(**fields))

    async def make() -> None:
        async with EventStore.open(url) as store:
            await store.append("order-1", [noted(1, correlation_id="r", command_id="place", user="ann")])
            await store.append("other-1", [noted(2, user="bob", tags=("t",))])
            pay = {"correlation_id": "r", "causation_id": "place", "command_id": "pay"}
            await store.append("pay-1", [noted(3, **pay), noted(4, **pay)])
            await store.append("mail-1", [noted(5, correlation_id="r", causation_id="pay")])
            await store.append("stock-1", [noted(6, correlation_id="r", causation_id="place", command_id="take")])
            for number, formula in enumerate(FORMULAS):
                await store.append(f"{formula}-{number}", [noted(formula, user=formula, values={formula: formula})])

    asyncio.run(make())
    return url


def found_by(cli: Run, url: str, *options: str) -> list[int]:
    """The positions, as JSON tells them."""
    done = cli("audit", "query", url, *options, "--json")
    assert done.code == 0, done.err
    return [found["position"] for found in done.objects]


class TestQuery:
    def test_options_choose(self, cli: Run, made: str) -> None:
        assert found_by(cli, made, "--user", "ann", "--user", "bob") == [1, 2]
        assert found_by(cli, made, "--kind", "order", "--kind", "pay", "--where", "/value>1") == [3, 4]
        assert found_by(cli, made, "--correlation", "r", "--causation", "place") == [3, 4, 6]
        assert found_by(cli, made, "--command", "pay", "--newest") == [4, 3]
        assert found_by(cli, made, "--stream", "mail-1") == [5]
        assert found_by(cli, made, "--tag", "t", "--type", "audit.thing", "--epoch", "0") == [2]
        assert found_by(cli, made, "--origin", "eu") == []
        assert found_by(cli, made, "--position-from", "4", "--position-to", "6") == [4, 5, 6]
        assert found_by(cli, made, "--meta", "/@SUM(1)=@SUM(1)") == [10]
        assert found_by(cli, made, "--meta", "#/%3D1+1==1+1") == [7]
        assert found_by(cli, made, "--limit", "0") == []

    def test_times_are_absolute_days_or_back_from_now(self, cli: Run, made: str) -> None:
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
        assert len(found_by(cli, made, "--from", "-2h", "--to", tomorrow)) == 6 + len(FORMULAS)
        assert found_by(cli, made, "--to", "-2h") == []
        assert found_by(cli, made, "--from", tomorrow) == []
        assert found_by(cli, made, "--to", "2020-01-31T12:00:00+01:00") == []

    @pytest.mark.parametrize(
        "options",
        [
            ("--from", "yesterday"),
            ("--from", "2026-01-31T12:00:00"),
            ("--to", "-2y"),
            ("--to", "-999999999w"),
            ("--where", "amount=1"),
            ("--where", "/a~2=1"),
            ("--where", ""),
            ("--where", "/a>null"),
            ("--where", '/a={"b":1}'),
            ("--meta", "=1"),
            ("--position-from", "0"),
            ("--limit", "-1"),
            ("--epoch", "x"),
            ("--csv", "--json"),
            ("--csv", "--parquet", "x.parquet"),
        ],
    )
    def test_what_cannot_be_meant_is_wrong_usage(self, cli: Run, made: str, options: Sequence[str]) -> None:
        done = cli("audit", "query", made, *options)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(("error: ", '{"error"'))

    @pytest.mark.parametrize(
        "option",
        ["--kind", "--stream", "--type", "--tag", "--user", "--correlation", "--causation", "--command", "--origin"],
    )
    def test_a_value_is_never_part_of_a_statement(self, cli: Run, made: str, option: str) -> None:
        for value in ("' OR '1'='1", "x'; DROP TABLE journal_events; --", "%", "_", '"', "\\", "{schema}", ":x", "$1"):
            assert found_by(cli, made, option, value) == []
            assert cli("audit", "stats", made, option, value, "--json").objects[0]["events"] == 0
        assert len(found_by(cli, made)) == 6 + len(FORMULAS)

    def test_an_answer_that_was_limited_tells_how_to_go_on(self, cli: Run, made: str) -> None:
        first = cli("audit", "query", made, "--newest", "--limit", "2", "--position-to", "6", "--json")
        assert [found["position"] for found in first.objects] == [6, 5]
        assert "--after 5" in first.err
        assert found_by(cli, made, "--newest", "--limit", "9", "--position-to", "6", "--after", "5") == [4, 3, 2, 1]

    def test_cells_of_csv_are_no_formulas(self, cli: Run, made: str) -> None:
        done = cli("audit", "query", made, "--csv")
        rows = list(csv.DictReader(io.StringIO(done.out, newline="")))
        assert len(rows) == 6 + len(FORMULAS)
        for row in rows:
            assert not [cell for cell in row.values() if cell.startswith(tuple("=+-@\t\r\n"))]
        assert [row["user"] for row in rows[6:]] == [f"'{formula}" for formula in FORMULAS]
        assert [json.loads(row["payload"])["value"] for row in rows[6:]] == FORMULAS
        assert [json.loads(row["values"]) for row in rows[6:]] == [{formula: formula} for formula in FORMULAS]

    def test_an_empty_answer_in_csv_has_a_header(self, cli: Run, made: str) -> None:
        assert cli("audit", "query", made, "--csv", "--user", "nobody").out.startswith("position,recorded_at,")

    def test_hostile_texts_come_through_every_form(self, cli: Run, url: str, tmp_path: Path) -> None:
        path = tmp_path / "evil.parquet"
        for form in ((), ("--csv",), ("--json",)):
            done = cli("audit", "query", url, "--tag", "odd", *form)
            assert done.code == 0
            assert ("\x1b" in done.out) is (form == ("--csv",)), "a terminal shows no CSV, and a file keeps it as it is"
        assert cli("audit", "query", url, "--stream", EVIL_ID, "--parquet", str(path)).code == 0
        import pyarrow.parquet

        (row,) = pyarrow.parquet.read_table(path).to_pylist()
        assert (row["stream_id"], row["version"]) == (EVIL_ID, 1)

    def test_csv_on_a_terminal_commands_it_nothing(self, cli: Run, url: str) -> None:
        shown = in_a_terminal("audit", "query", url, "--tag", "odd", "--csv")
        assert (shown.code, CONTROL.findall(shown.out)) == (0, [])
        names, *rows = list(csv.reader(shown.out.splitlines()))
        assert (len(rows), set(map(len, rows))) == (2, {len(names)})
        assert dict(zip(names, rows[0], strict=True))["stream_id"] == escaped(EVIL_ID)
        in_file = csv.DictReader(io.StringIO(cli("audit", "query", url, "--tag", "odd", "--csv").out, newline=""))
        for row, stored in zip(rows, in_file, strict=True):
            for name in ("payload", "values"):
                seen = dict(zip(names, row, strict=True))[name]
                assert seen == stored[name] == "" or json.loads(seen) == json.loads(stored[name])

    def test_a_parquet_file_has_every_event_with_its_types(self, cli: Run, made: str, tmp_path: Path) -> None:
        import pyarrow.parquet

        path = tmp_path / "all.parquet"
        assert cli("audit", "query", made, "--parquet", str(path)).out == ""
        rows = pyarrow.parquet.read_table(path).to_pylist()
        objects = cli("audit", "query", made, "--json").objects
        assert [row["position"] for row in rows] == [each["position"] for each in objects]
        assert [json.loads(row["payload"]) for row in rows] == [each["payload"] for each in objects]
        assert [row["recorded_at"] for row in rows] == [datetime.fromisoformat(each["recorded_at"]) for each in objects]
        assert rows[1]["tags"] == ["t"]
        assert path.stat().st_mode & 0o777 == 0o600
        assert [each.name for each in tmp_path.glob("*.parquet*")] == [path.name]

    def test_a_parquet_file_that_is_there_is_kept(self, cli: Run, made: str, tmp_path: Path) -> None:
        path = tmp_path / "kept.parquet"
        path.write_text("mine")
        assert cli("audit", "query", made, "--parquet", str(path)).code == 2
        assert path.read_text() == "mine"

    def test_without_pyarrow_it_is_said_what_to_install(
        self, cli: Run, made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        done = cli("audit", "query", made, "--parquet", str(tmp_path / "x.parquet"))
        assert done.code == 1
        assert "pip install 'eventstore-actors[parquet]'" in done.err
        assert not list(tmp_path.glob("x.parquet*"))

    def test_decode_shows_events_as_a_module_reads_them(self, cli: Run, own_url: str) -> None:
        stored = cli("audit", "query", own_url, "--stream", "Account-alice", "--json").objects
        decoded = cli(
            "audit", "query", own_url, "--stream", "Account-alice", "--decode", "cli_ledger", "--json"
        ).objects
        assert [each["payload"] for each in stored] == [{"amount": n, "note": ""} for n in (10, 20, 30, 40, 50)]
        assert [each["payload"] for each in decoded] == [each["payload"] for each in stored]
        failed = cli("audit", "query", own_url, "--decode", "no_such_module")
        assert (failed.code, failed.out) == (2, "")

    def test_a_store_that_is_not_there_is_not_made(self, cli: Run, tmp_path: Path) -> None:
        for command in (("query",), ("stats",), ("trace", "r")):
            done = cli("audit", command[0], f"sqlite:///{tmp_path}/none.db", *command[1:])
            assert done.code == 3
        assert not list(tmp_path.glob("none*"))


def test_bars_and_branches_are_ascii_where_the_terminal_has_no_more(made: str) -> None:
    plain = {"PYTHONIOENCODING": "ascii"}
    stats = in_a_terminal("audit", "stats", made, **plain).out
    assert "###" in stats
    trace = in_a_terminal("audit", "trace", made, "r", **plain).out
    assert "|- " in trace
    assert "`- " in trace
    assert "\\u25" not in stats + trace
    assert "█" in in_a_terminal("audit", "stats", made).out
    assert "├─ " in in_a_terminal("audit", "trace", made, "r").out


class TestTrace:
    def test_a_trace_goes_from_cause_to_effect(self, cli: Run, made: str) -> None:
        done = cli("audit", "trace", made, "r")
        rows = [line.split("\t") for line in done.lines]
        shown = [(int(row[0]), row[5] or row[1]) for row in rows]
        assert shown == [
            (0, "place"),
            (1, "order-1"),
            (1, "pay"),
            (2, "pay-1"),
            (2, "pay-1"),
            (2, "mail-1"),
            (1, "take"),
            (2, "stock-1"),
        ]
        nodes = cli("audit", "trace", made, "r", "--json").objects
        assert [(node["depth"], node["parent"]) for node in nodes][:4] == [
            (0, None),
            (1, "place"),
            (1, "place"),
            (2, "pay"),
        ]

    def test_on_a_terminal_it_is_a_tree(self, made: str) -> None:
        done = in_a_terminal("audit", "trace", made, "r")
        assert "├─ command pay" in done.out.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[2m", "")
        assert "└─ " in done.out

    def test_a_command_whose_followers_name_it_is_part_of_the_trace(self, cli: Run, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/first.db"

        async def make() -> None:
            async with EventStore.open(url) as store:
                await store.append("a", [NewEvent(Thing(), metadata=Metadata(command_id="c"))])
                follows = Metadata(correlation_id="c", causation_id="c", command_id="d")
                await store.append("b", [NewEvent(Thing(), metadata=follows)])

        asyncio.run(make())
        rows = [line.split("\t") for line in cli("audit", "trace", url, "c").lines]
        assert [(row[0], row[5] or row[1]) for row in rows] == [("0", "c"), ("1", "a"), ("1", "d"), ("2", "b")]

    def test_circles_and_long_chains_end(self, cli: Run, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/odd.db"
        count = 1500

        async def make() -> None:
            async with EventStore.open(url) as store:
                pairs = [("c0", f"c{count}")] + [(f"c{number}", f"c{number - 1}") for number in range(1, count)]
                events = [
                    NewEvent(Thing(), metadata=Metadata(correlation_id="r", command_id=own, causation_id=cause))
                    for own, cause in pairs
                ]
                await store.append("chain", events)
                circle = [("x", "y"), ("y", "x")]
                for own, cause in circle:
                    notes = Metadata(correlation_id="o", command_id=own, causation_id=cause)
                    await store.append("circle", [NewEvent(Thing(), metadata=notes)])

        asyncio.run(make())
        depths = [int(line.split("\t")[0]) for line in cli("audit", "trace", url, "r").lines]
        assert (len(depths), max(depths)) == (2 * count + 1, count + 1)
        circle = [line.split("\t")[1] for line in cli("audit", "trace", url, "o").lines]
        assert len(circle) == len(set(circle)) == 4
        cut = cli("audit", "trace", url, "r", "--limit", "3")
        assert "there are more" in cut.err

    def test_a_request_that_nobody_made_is_nothing_by_that_name(self, cli: Run, made: str) -> None:
        done = cli("audit", "trace", made, "' OR 1=1")
        assert (done.code, done.out) == (1, "")


class TestStats:
    def test_stats_count(self, cli: Run, made: str) -> None:
        (found,) = cli("audit", "stats", made, "--json", "--top", "2").objects
        count = 6 + len(FORMULAS)
        assert found["events"] == count
        assert found["types"] == [{"name": "audit.thing", "events": count}]
        assert found["streams"][0] == {"name": "pay-1", "events": 2}
        assert len(found["streams"]) == len(found["users"]) == 2
        assert sum(found["days"].values()) == sum(found["hours"].values()) == count
        lines = [line.split("\t") for line in cli("audit", "stats", made, "--user", "ann").lines]
        assert ["events", "all", "1"] in lines
        assert ["user", "ann", "1"] in lines

    def test_on_a_terminal_there_are_bars(self, made: str) -> None:
        done = in_a_terminal("audit", "stats", made)
        assert "█" in done.out
        assert "audit.thing" in done.out

    def test_a_journal_without_events_has_stats(self, cli: Run, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/empty.db"
        assert cli("migrate", url).code == 0
        (found,) = cli("audit", "stats", url, "--json").objects
        assert (found["events"], found["first"], found["events_per_day"]) == (0, None, 0.0)
        assert in_a_terminal("audit", "stats", url).code == 0

    def test_with_very_many_names_the_frequent_ones_stay_and_memory_is_bounded(self) -> None:
        frequent = Frequent(most=100)
        for number in range(20_000):
            frequent.add(f"rare-{number}")
            if number % 10 == 0:
                frequent.add("often")
        assert not frequent.is_exact
        name, events = frequent.top(1)[0]
        assert name == "often"
        assert 2000 <= events <= 2000 + 20_000 // 50


def test_what_no_event_can_match_is_refused() -> None:
    for make in (
        lambda: AuditQuery(recorded_from=datetime(2026, 1, 1)),
        lambda: AuditQuery(after=-1),
        lambda: AuditQuery(users=("\ud800",)),
        lambda: AuditQuery(EventFilter(kinds=("\udfff",))),
        lambda: JsonCondition(("a",) * 65),
        lambda: JsonCondition.parse("/a>=true"),
        lambda: JsonCondition.parse("/a=>5"),
        lambda: JsonCondition.parse("/a == 5"),
        lambda: JsonCondition.parse('/a=="x"'),
    ):
        with pytest.raises(InvalidQuery):
            make()
    assert [JsonCondition.parse(text).value for text in ('/a=">5"', "/a==cmd()")] == [">5", "=cmd()"]


@pytest.fixture(scope="module")
def long_journal(tmp_path_factory: pytest.TempPathFactory) -> str:
    """4,000 events, of which the middle ones are large: more than 200 MB."""
    url = f"sqlite:///{tmp_path_factory.mktemp('long')}/long.db"

    async def make() -> None:
        async with EventStore.open(url) as store:
            for number in range(HUGE_BATCHES):
                large = "x" * (1_000_000 if 20 <= number < 24 else 100)
                things = [Thing(value=large if index % 2 == 0 else index) for index in range(HUGE_BATCH)]
                await store.append(f"thing-{number}", things)

    asyncio.run(make())
    return url


class TestLongAnswers:
    def test_a_reader_that_goes_away_ends_it_quietly(self, long_journal: str) -> None:
        for form in ("--json", "--csv"):
            process = start("audit", "query", long_journal, form)
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.wait(60) == 141
            assert process.stderr is not None
            assert process.stderr.read() == b""

    @pytest.mark.parametrize("form", ["--json", "--csv", "--parquet"])
    def test_an_answer_of_any_size_takes_no_more_memory(self, long_journal: str, tmp_path: Path, form: str) -> None:
        options = [form, str(tmp_path / "all.parquet")] if form == "--parquet" else [form]
        code = (
            # What `getrusage` calls the most is at least what the process had that began this one.
            "import re, sys; from eventstore.cli.app import main; code = main(sys.argv[1:]); "
            "sys.stderr.write(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "audit", "query", long_journal, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"MALLOC_ARENA_MAX": "2"},
            timeout=120,
            check=True,
        )
        assert int(done.stderr) < 200 * 1024

    async def test_totals_of_it_are_right(self, long_journal: str) -> None:
        async with EventStore.open(long_journal) as store:
            by_sql = await totals(store, AuditQuery(), top=3)
            by_reading = await totals(store, AuditQuery(payload=(JsonCondition(()),)), top=3)
        assert by_sql == by_reading
        assert by_sql.events == HUGE_BATCH * HUGE_BATCHES
