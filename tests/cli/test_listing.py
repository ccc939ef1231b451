"""`streams`, `events` and `tail`: what is in the journal, as tab-separated lines and as JSON."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from eventstore.codec import checksum_of

from .conftest import EVIL_ID, EVIL_NOTE, Rewrite, Run


class TestStreams:
    def test_every_stream_is_listed_with_its_version_and_truncation(self, cli: Run, url: str) -> None:
        result = cli("streams", url)
        assert result.code == 0
        assert "Account-alice\t5\t0" in result.lines
        assert "Account-carol\t5\t3" in result.lines
        assert len(result.lines) == 5

    def test_json_gives_one_object_a_line(self, cli: Run, url: str) -> None:
        objects = cli("streams", url, "--json").objects
        assert {"stream_id": "Account-carol", "version": 5, "truncated": 3, "tenant": ""} in objects
        assert len(objects) == 5

    def test_a_kind_is_chosen(self, cli: Run, url: str) -> None:
        assert cli("streams", url, "--kind", "Note").lines == ["Note-1\t1\t0"]


class TestEvents:
    def test_events_come_in_the_order_of_their_versions(self, cli: Run, url: str) -> None:
        result = cli("events", url, "Account-alice")
        assert result.code == 0
        assert result.err == ""
        version, position, time, type_, payload, metadata = result.lines[0].split("\t")
        assert (version, position, type_, metadata) == ("1", "1", "cli-ledger.deposited", "")
        assert time.endswith("Z")
        assert json.loads(payload) == {"amount": 10, "note": ""}
        assert [line.split("\t")[0] for line in result.lines] == ["1", "2", "3", "4", "5"]

    def test_json_holds_the_payload_and_the_metadata_as_stored(self, cli: Run, url: str) -> None:
        (event,) = cli("events", url, EVIL_ID, "--json").objects
        assert event["stream_id"] == EVIL_ID
        assert event["payload"] == {"amount": 1, "note": EVIL_NOTE}
        assert event["metadata"] == {"user": f"ann {EVIL_NOTE}", "tags": ["odd"], "values": {EVIL_NOTE: 1}}
        assert event["event_id"] == event["batch_id"]
        assert event["schema_version"] == 1

    def test_json_keeps_integers_of_any_size(self, cli: Run, url: str) -> None:
        (event,) = cli("events", url, "Account-huge", "--json").objects
        assert event["payload"]["amount"] == 12345678901234567890123
        assert event["metadata"] is None

    def test_a_payload_written_over_several_lines_stays_one_line(
        self, cli: Run, own_journal: Path, own_url: str, rewrite: Rewrite
    ) -> None:
        payload = '{\n\t"amount":\r\n7}'
        with closing(sqlite3.connect(own_journal)) as connection:
            found = connection.execute("SELECT type, schema_version, metadata FROM journal_events WHERE position = 13")
            type_, schema_version, metadata = found.fetchone()
        checksum = checksum_of(type_, schema_version, payload.encode(), metadata and metadata.encode())
        rewrite(f"payload = '{payload}', checksum = {checksum} WHERE position = 13")
        (event,) = cli("events", own_url, "Note-1", "--json").objects
        assert event["payload"] == {"amount": 7}
        (line,) = cli("events", own_url, "Note-1").lines
        assert line.split("\t")[4] == '{  "amount":  7}'

    def test_a_payload_that_is_no_json_is_an_error_with_json(self, cli: Run, own_url: str, rewrite: Rewrite) -> None:
        rewrite("payload = '{' WHERE position = 13")
        result = cli("events", own_url, "Note-1", "--json")
        assert (result.code, result.out) == (3, "")
        assert json.loads(result.err)["error"] == "JournalCorrupt"

    def test_a_range_of_versions_is_chosen(self, cli: Run, url: str) -> None:
        def versions(*options: str) -> list[int]:
            return [event["version"] for event in cli("events", url, "Account-alice", "--json", *options).objects]

        assert versions("--after", "3") == [4, 5]
        assert versions("--after", "1", "--through", "3") == [2, 3]
        assert versions("--reverse", "--limit", "2") == [5, 4]
        assert versions("--limit", "0") == []
        assert versions("--after", "5") == []

    def test_removed_events_are_mentioned_where_they_are_missed(self, cli: Run, url: str) -> None:
        result = cli("events", url, "Account-carol")
        assert [line.split("\t")[0] for line in result.lines] == ["4", "5"]
        assert result.err == "note: the events of 'Account-carol' up to version 3 were removed\n"
        assert cli("events", url, "Account-carol", "--after", "3").err == ""

    def test_a_note_is_an_object_with_json(self, cli: Run, url: str) -> None:
        assert "up to version 3" in json.loads(cli("events", url, "Account-carol", "--json").err)["note"]

    def test_a_stream_without_events_is_an_error(self, cli: Run, url: str) -> None:
        result = cli("events", url, "Account-nobody")
        assert result.code == 1
        assert result.out == ""
        assert result.err.startswith("error: stream 'Account-nobody' has no events")

    def test_a_stream_that_begins_with_a_dash_goes_behind_two(self, cli: Run, url: str) -> None:
        assert cli("events", url, "--", "-odd").err.startswith("error: stream '-odd' has no events")


class TestTail:
    def test_the_last_events_of_the_whole_log_are_shown_in_order(self, cli: Run, url: str) -> None:
        result = cli("tail", url, "-n", "2")
        assert result.code == 0
        first, second = (line.split("\t") for line in result.lines)
        assert (first[2], second[2]) == ("Account-huge", "Note-1")
        assert int(first[0]) < int(second[0])
        assert second[6] == '{"tags":["odd","small"]}'

    def test_ten_are_shown_unless_told_otherwise(self, cli: Run, url: str) -> None:
        assert len(cli("tail", url).lines) == 10
        assert cli("tail", url, "-n", "0").lines == []
        assert len(cli("tail", url, "-n", "1000").lines) == 10

    def test_kinds_types_and_tags_choose(self, cli: Run, url: str) -> None:
        def streams(*options: str) -> list[str]:
            return [event["stream_id"] for event in cli("tail", url, "--json", *options).objects]

        assert streams("--tag", "odd") == [EVIL_ID, "Note-1"]
        assert streams("--tag", "odd", "--kind", "Note") == ["Note-1"]
        assert streams("--tag", "small", "--tag", "odd", "-n", "1") == ["Note-1"]
        assert streams("--type", "cli-ledger.stray") == []
