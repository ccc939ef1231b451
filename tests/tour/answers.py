"""What each command of the tour has to answer, computed without the library."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet  # type: ignore[import-untyped]
import pytest

from . import hash_tree
from .permit_facts import JournalFile, PermitLog, fields, moment, option, shown_uuid, table, user_of


@dataclass
class Asked:
    """A command of the tour, where it was run, and what it answered."""

    words: list[str]
    answer: str
    folder: Path
    log: PermitLog

    @property
    def journal(self) -> JournalFile:
        """The file that the command names first. The programs of the page write to permits.db."""
        return self.file(next((word for word in self.words if "://" in word), "permits.db"))

    def file(self, url: str) -> JournalFile:
        return JournalFile(self.folder / url.removeprefix("sqlite:///"))

    def read(self, name: str) -> str:
        return (self.folder / name).read_text("utf-8")

    @property
    def case(self) -> str:
        """The case that is asked about."""
        return self.words[self.words.index("desk:Permit") + 1]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What the file has of the case."""
        return self.journal.stream(f"permit-{self.case}")


Check = Callable[[Asked], None]

CHECKS: dict[tuple[str, ...], Check] = {}


def answers(*words: str) -> Callable[[Check], Check]:
    """How commands that begin so are checked."""

    def known(check: Check) -> Check:
        CHECKS[words] = check
        return check

    return known


def check(asked: Asked) -> tuple[str, ...]:
    """Compare an answer with what it has to be. Gives which rule it was."""
    words = tuple(asked.words)
    rule = max((known for known in CHECKS if words[: len(known)] == known), key=len)
    CHECKS[rule](asked)
    return rule


# The log, and states.


@answers("python", "permits.py")
def _taken_in(asked: Asked) -> None:
    log = asked.log
    assert asked.answer == f"{len(log.rows):,} rows taken in, 0 known already, 0 left out\n"
    assert asked.read("report.txt").startswith(
        f"{len(log.cases):,} cases, {len(log.rows):,} events, {log.handovers():,} hand-overs\n"
    )
    stored: dict[str, list[tuple[str, str, str]]] = {}
    for event in asked.journal.events():
        row = json.loads(event["payload"])["row"]
        stored.setdefault(event["stream_id"], []).append((row["activity"], row["time"], row["resource"]))
    assert stored == {
        f"permit-{case}": [(row["concept:name"], row["time:timestamp"], row["org:resource"]) for row in rows]
        for case, rows in log.cases.items()
    }


@answers("eventstore", "doctor")
def _doctor(asked: Asked) -> None:
    said = fields(asked.answer)
    assert said["streams"] == f"{len(asked.log.cases):,}"
    assert said["events"] == f"{len(asked.log.rows):,}, the last at position {len(asked.log.rows):,}"
    assert said["snapshots"] == f"{asked.journal.value('SELECT count(*) FROM journal_snapshots'):,}"
    assert asked.answer.endswith("healthy\n")


@answers("eventstore", "events")
def _events(asked: Asked) -> None:
    found = asked.journal.stream(asked.words[3])[: int(option(asked.words, "--limit"))]
    assert table(asked.answer) == [
        [
            str(event["version"]),
            str(event["position"]),
            moment(event["recorded_at"]),
            event["type"],
            event["payload"],
            event["metadata"],
        ]
        for event in found
    ]


@answers("eventstore", "show")
def _show(asked: Asked) -> None:
    steps = asked.journal.value(
        "SELECT max(version) FROM journal_events e JOIN journal_streams s ON s.id = e.stream WHERE s.stream_id = ?",
        f"permit-{asked.case}",
    )
    if "--json" in asked.words:
        said = json.loads(asked.answer)
        assert (said["version"], said["state"]) == (steps, asked.log.progress(asked.case, steps))
        return
    at = int(option(asked.words, "--at")) if "--at" in asked.words else steps
    head, _, state = asked.answer.partition("{")
    assert json.loads("{" + state) == asked.log.progress(asked.case, at)
    assert fields(head)["version"] == f"{at} of {steps}"
    (recorded,) = [event["recorded_at"] for event in asked.events if event["version"] == at]
    assert fields(head)["recorded"] == moment(recorded)


@answers("eventstore", "diff")
def _diff(asked: Asked) -> None:
    before = asked.log.progress(asked.case, int(asked.words[5]))
    after = asked.log.progress(asked.case)
    assert table(asked.answer) == [
        [
            "changed",
            f"/{name}",
            json.dumps(before[name], ensure_ascii=False),
            json.dumps(after[name], ensure_ascii=False),
        ]
        for name in before
        if before[name] != after[name]
    ]


# Who and when.


def _changes(asked: Asked, name: str) -> list[int]:
    """The versions at which a field of the state changed."""
    values = [asked.log.progress(asked.case, steps)[name] for steps in range(len(asked.log.cases[asked.case]) + 1)]
    return [version for version in range(1, len(values)) if values[version] != values[version - 1]]


def _who(event: dict[str, Any]) -> list[str]:
    return [moment(event["recorded_at"]), event["type"], shown_uuid(event["event_id"]), "", user_of(event)]


@answers("eventstore", "blame")
def _blame(asked: Asked) -> None:
    events = {event["version"]: event for event in asked.events}
    expected: list[list[str]] = []
    if "--all" in asked.words:
        pointer = asked.words[5]
        for version in _changes(asked, pointer[1:]):
            value = json.dumps(asked.log.progress(asked.case, version)[pointer[1:]], ensure_ascii=False)
            expected.append([str(version), "changed", pointer, value, *_who(events[version])])
    else:
        for name, value in asked.log.progress(asked.case).items():
            version = max(_changes(asked, name), default=0)
            who = _who(events[version]) if version else [""] * 5
            expected.append([f"/{name}", json.dumps(value, ensure_ascii=False), str(version), *who])
    assert table(asked.answer) == expected


@answers("eventstore", "bisect")
def _bisect(asked: Asked) -> None:
    assert asked.words[5] == "adjusted == 0"
    first = next(
        steps for steps in range(len(asked.events) + 1) if asked.log.progress(asked.case, steps)["adjusted"] != 0
    )
    said, event = fields(asked.answer), asked.events[first - 1]
    assert said["holds"] == f"adjusted == 0 at version {first - 1}, and not at version {first}"
    assert said["event"] == f"{event['type']} {shown_uuid(event['event_id'])}"
    assert (said["payload"], said["recorded"]) == (event["payload"], moment(event["recorded_at"]))
    assert said.get("user", "") == user_of(event)


@answers("eventstore", "fork")
def _fork(asked: Asked) -> None:
    through, to = int(option(asked.words, "--at")), asked.words[5]
    names = ("stream_id", "version", "type", "schema_version", "payload", "metadata", "event_id", "batch_id")
    copied = [[event[name] for name in names] for event in asked.file(to).events()]
    assert copied == [[event[name] for name in names] for event in asked.events[:through]]
    assert asked.answer == (f"permit-{asked.case}: version {through} in sqlite:///{to}, {through} events copied\n")


# Again, and with other code.


@answers("eventstore", "rebuild", "snapshots")
def _snapshots(asked: Asked) -> None:
    expected = sorted([f"permit-{case}", str(len(rows)), "saved"] for case, rows in asked.log.cases.items())
    assert table(asked.read("snapshots.txt")) == expected
    stored = asked.journal.rows(
        "SELECT s.stream_id, n.version FROM journal_snapshots n JOIN journal_streams s ON s.id = n.stream"
    )
    assert sorted([stream_id, str(version), "saved"] for stream_id, version in stored) == expected


@answers("eventstore", "replay")
def _replay(asked: Asked) -> None:
    cases = [word for word in asked.words[4:] if word in asked.log.cases] or list(asked.log.cases)
    if asked.answer.startswith("^C"):
        noted = json.loads(asked.read("replay.json"))
        done = [case for case in asked.log.cases if case.encode() <= noted["after"].encode()]
        assert noted["so_far"]["actors"] == len(done) < len(cases)
        assert noted["so_far"]["events"] == sum(len(asked.log.cases[case]) for case in done)
        assert asked.answer == "^C\n"
        return
    events = sum(len(asked.log.cases[case]) for case in cases)
    assert asked.answer == (
        f"{len(cases):,} permit actors, {events:,} events folded, {len(cases):,} snapshots compared: no differences\n"
    )
    assert not (asked.folder / "replay.json").exists()


def _read_models(asked: Asked) -> None:
    """The two tables are what the log says."""
    log, journal = asked.log, asked.journal
    counted = dict(journal.rows("SELECT case_id, events FROM permit_cases"))
    assert counted == {case: len(rows) for case, rows in log.cases.items()}
    pairs = Counter(
        (one["org:resource"], other["org:resource"])
        for rows in log.cases.values()
        for one, other in pairwise(rows)
        if one["org:resource"] != other["org:resource"]
    )
    found = journal.rows("SELECT from_resource, to_resource, n FROM handovers")
    assert {(one, other): n for one, other, n in found} == pairs


@answers("python", "permit_reports.py")
def _reports(asked: Asked) -> None:
    _read_models(asked)
    assert asked.answer == (
        f"permit_cases: {len(asked.log.cases):,} cases, {len(asked.log.rows):,} events; "
        f"handovers: {asked.log.handovers():,}\n"
    )


@answers("eventstore", "rebuild", "projections")
def _rebuilt(asked: Asked) -> None:
    _read_models(asked)
    end = asked.journal.value("SELECT max(position) FROM journal_events")
    assert asked.answer.splitlines() == [
        f"{name}: position {end:,}, at the end of the log, {len(asked.log.rows):,} events applied"
        for name in ("permit_cases", "handovers")
    ]


@answers("eventstore", "projections", "check")
def _checked(asked: Asked) -> None:
    rows = f"{len(asked.log.rows):,}"
    assert asked.answer == f"{rows} events applied, {rows} in the journal: complete\n"


@answers("eventstore", "projections", "list")
def _projections(asked: Asked) -> None:
    rows, end = str(len(asked.log.rows)), str(asked.journal.value("SELECT max(position) FROM journal_events"))
    assert table(asked.answer) == [
        [name, "2", end, "0", rows, "0", "live, not running"] for name in ("handovers", "permit_cases")
    ]


@answers("eventstore", "whatif")
def _whatif(asked: Asked) -> None:
    *differences, summary = asked.answer.splitlines()
    expected: list[list[str]] = []
    for case, rows in sorted(asked.log.cases.items(), key=lambda item: item[0].encode()):
        new = [asked.log.progress(case, steps, adjusting=("T03", "T13"))["adjusted"] for steps in range(len(rows) + 1)]
        old = [asked.log.progress(case, steps)["adjusted"] for steps in range(len(rows) + 1)]
        if old != new:
            version = next(steps for steps in range(len(rows) + 1) if old[steps] != new[steps])
            expected.append([f"permit-{case}", str(version), f"/adjusted is {new[-1]} instead of {old[-1]}"])
    assert [line.split("\t") for line in differences] == expected != []
    assert summary == (
        f"{len(asked.log.cases):,} actors, {len(asked.log.rows):,} events folded with both: {len(expected)} differ"
    )


# Audits.


@answers("eventstore", "audit", "query", "sqlite:///permits.db", "--where")
def _query_where(asked: Asked) -> None:
    with (asked.folder / "t13.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert Counter((row["stream_id"], row["payload"]) for row in found) == Counter(
        (event["stream_id"], event["payload"])
        for event in asked.journal.events("json_extract(e.payload, '$.row.activity') LIKE '%T13%'")
    )
    assert Counter(row["stream_id"].removeprefix("permit-") for row in found) == Counter(
        row["case:concept:name"] for row in asked.log.rows if "T13" in row["concept:name"]
    )
    assert found


@answers("eventstore", "audit", "query", "sqlite:///permits.db", "--user", "Resource01")
def _query_parquet(asked: Asked) -> None:
    found = pyarrow.parquet.read_table(asked.folder / option(asked.words, "--parquet")).to_pylist()
    rows = [row for row in asked.log.rows if row["org:resource"] == "Resource01"]
    assert Counter(row["stream_id"].removeprefix("permit-") for row in found) == Counter(
        row["case:concept:name"] for row in rows
    )
    assert [row["position"] for row in found] == [
        position
        for (position,) in asked.journal.rows(
            "SELECT position FROM journal_events WHERE json_extract(metadata, '$.user') = 'Resource01' ORDER BY 1"
        )
    ]


@answers("eventstore", "audit", "query", "sqlite:///permits.db", "--user", "ann")
def _query_user(asked: Asked) -> None:
    assert table(asked.answer) == [
        [
            str(event["position"]),
            moment(event["recorded_at"]),
            event["stream_id"],
            str(event["version"]),
            event["type"],
            event["payload"],
            event["metadata"],
        ]
        for event in asked.journal.events("json_extract(e.metadata, '$.user') = 'ann'")
    ]
    assert asked.answer


@answers("eventstore", "audit", "stats")
def _stats(asked: Asked) -> None:
    top = int(option(asked.words, "--top"))
    said: dict[str, list[list[str]]] = {}
    for what, *rest in table(asked.answer):
        said.setdefault(what, []).append(rest)
    (sizes,) = asked.journal.rows(
        """SELECT sum(length(CAST(payload AS BLOB))), sum(length(CAST(metadata AS BLOB))) FROM journal_events e
        JOIN journal_streams s ON s.id = e.stream WHERE kind = 'permit'"""
    )
    rows = asked.log.rows
    assert said["events"] == said_of({"all": len(rows)})
    assert [said["payload bytes"], said["metadata bytes"]] == [said_of({"all": size}) for size in sizes]
    assert said["stream"] == said_of(_most(f"permit-{row['case:concept:name']}" for row in rows), top)
    assert said["user"] == said_of(_most(row["org:resource"] for row in rows), top)
    assert said["type"] == said_of({"permit.row-taken": len(rows)})
    days = asked.journal.rows(
        """SELECT date(recorded_at / 1000000, 'unixepoch'), count(*) FROM journal_events e
        JOIN journal_streams s ON s.id = e.stream WHERE kind = 'permit' GROUP BY 1 ORDER BY 1"""
    )
    assert said["day"] == said_of(dict(days))


def said_of(numbers: dict[str, int], top: int = 10) -> list[list[str]]:
    return [[name, str(number)] for name, number in list(numbers.items())[:top]]


def _most(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


@answers("python", "review.py")
def _reviewed(asked: Asked) -> None:
    assert asked.answer == ""
    assert [event["type"] for event in asked.journal.events("s.kind != 'permit'")] == [
        "review.opened",
        "inspector.assigned",
    ]


@answers("eventstore", "audit", "trace")
def _trace(asked: Asked) -> None:
    found = asked.journal.rows(
        """WITH RECURSIVE
        said AS (
            SELECT e.*, s.stream_id, metadata ->> 'command_id' AS command, metadata ->> 'causation_id' AS cause
            FROM journal_events e JOIN journal_streams s ON s.id = e.stream WHERE metadata ->> 'correlation_id' = ?
        ),
        tree AS (
            SELECT 0 AS depth, command, cause FROM said WHERE cause IS NULL
            UNION SELECT depth + 1, said.command, said.cause FROM tree JOIN said ON said.cause = tree.command
        )
        SELECT depth, command, said.cause, event_id, position, recorded_at, stream_id, version, type
        FROM tree JOIN said USING (command) ORDER BY position""",
        asked.words[4],
    )
    expected: list[list[str]] = []
    for depth, command, cause, event_id, position, recorded_at, *place in found:
        expected.append([str(depth), command, cause or "", *[""] * 5])
        expected.append(
            [str(depth + 1), shown_uuid(event_id), command, str(position), moment(recorded_at), *map(str, place)]
        )
    assert table(asked.answer) == expected != []


# Seals.


@answers("eventstore", "audit", "keys", "new")
def _key(asked: Asked) -> None:
    said, private = fields(asked.answer), asked.folder / asked.words[4]
    assert (said["private key"], said["public key"]) == (private.name, f"{private.name}.pub")
    assert private.stat().st_mode & 0o077 == 0
    assert said["key"] == hash_tree.key_in((asked.folder / f"{private.name}.pub").read_bytes())


@answers("eventstore", "audit", "seal")
def _seal(asked: Asked) -> None:
    every = int(option(asked.words, "--every"))
    leaves = [hash_tree.leaf(event) for event in asked.journal.events()]
    expected: list[list[str]] = []
    for number, start in enumerate(range(0, len(leaves), every), start=1):
        part = leaves[start : start + every]
        row = (number, start + 1, start + len(part), len(part), hash_tree.root(part).hex())
        expected.append([str(each) for each in row])
    assert table(asked.answer) == expected
    for statement, signature, (*_, root) in zip(
        *zip(*asked.journal.rows("SELECT statement, signature FROM journal_seals ORDER BY number"), strict=True),
        expected,
        strict=True,
    ):
        said = json.loads(statement)
        assert said["root"] == root
        hash_tree.check_signature(statement, signature, said["key"])


@answers("eventstore", "audit", "verify", "sqlite:///permits.db")
def _verify_seals(asked: Asked) -> None:
    *found, summary = asked.answer.splitlines()
    events = asked.journal.events()
    seals, end = asked.journal.rows("SELECT count(*), (SELECT max(position) FROM journal_events) FROM journal_seals")[0]
    removed = asked.journal.rows(
        """SELECT s.stream_id, r.through, r.removed FROM journal_removals r JOIN journal_streams s ON s.id = r.stream
        ORDER BY r.id"""
    )
    gone = f", {sum(count for *_, count in removed)} events removed by recorded truncations" if removed else ""
    assert summary == (
        f"{seals} seals, {len(events):,} events through position {end} of {end}{gone}: as sealed"
    ).replace("1 seals", "1 seal")
    assert sorted(line.split("\t")[:3] for line in found) == sorted(
        ["truncated", stream_id, str(through)] for stream_id, through, _ in removed
    )


@answers("python", "tamper.py")
def _tampered(asked: Asked) -> None:
    assert len(_differences(asked)) == 1


def _differences(asked: Asked) -> list[dict[str, Any]]:
    """The events of the other file that are not as they are in the journal."""
    events, others = asked.file("permits.db").events(), asked.file("tampered.db").events()
    return [other for event, other in zip(events, others, strict=True) if event != other]


@answers("eventstore", "verify")
def _verify(asked: Asked) -> None:
    streams, events, snapshots = asked.journal.rows(
        """SELECT count(*), (SELECT count(*) FROM journal_events), (SELECT count(*) FROM journal_snapshots)
        FROM journal_streams"""
    )[0]
    assert asked.answer == f"{streams:,} streams, {events:,} events, {snapshots:,} snapshots read: no damage\n"


@answers("eventstore", "audit", "verify", "sqlite:///tampered.db")
def _verify_tampered(asked: Asked) -> None:
    *found, summary = asked.answer.splitlines()
    assert [line.split("\t")[:4] for line in found] == [
        ["changed", event["stream_id"], str(event["version"]), str(event["position"])] for event in _differences(asked)
    ]
    assert summary.endswith(": 1 problem")


@answers("eventstore", "audit", "prove")
def _prove(asked: Asked) -> None:
    assert asked.answer == ""
    proof = json.loads(asked.read(option(asked.words, "--out")))
    (event,) = asked.journal.events("e.position = ?", int(asked.words[4]))
    assert proof["event"]["payload"] == event["payload"]
    statement = json.loads(proof["statement"])
    path = [bytes.fromhex(each) for each in proof["path"]]
    root = hash_tree.root_above(hash_tree.leaf(event), proof["index"], statement["count"], path)
    assert root.hex() == statement["root"]
    hash_tree.check_signature(proof["statement"].encode(), bytes.fromhex(proof["signature"]), statement["key"])


@answers("eventstore", "audit", "verify", "--proof")
def _verify_proof(asked: Asked) -> None:
    proof = json.loads(asked.read(option(asked.words, "--proof")))
    (event,) = asked.file("permits.db").events(
        "e.event_id = ?", bytes.fromhex(proof["event"]["event_id"].replace("-", ""))
    )
    said = fields(asked.answer)
    assert (said["stream id"], said["version"], said["position"], said["type"], said["recorded at"]) == (
        event["stream_id"],
        str(event["version"]),
        str(event["position"]),
        event["type"],
        moment(event["recorded_at"]),
    )


# Letting go, and taking elsewhere.


@answers("eventstore", "retention")
def _retention(asked: Asked) -> None:
    keep, is_done = int(option(asked.words, "--keep-versions")), asked.words[2] == "apply"
    # What has gone can be seen in the copy that was tampered with.
    before = asked.file("tampered.db")
    lines: list[list[str]] = []
    events, size = 0, 0
    for case, rows in sorted(asked.log.cases.items(), key=lambda item: item[0].encode()):
        through = len(rows) - keep
        if through <= 0:
            continue
        sizes = before.value(
            """SELECT sum(length(CAST(payload AS BLOB)) + length(CAST(coalesce(metadata, '') AS BLOB)))
            FROM journal_events e JOIN journal_streams s ON s.id = e.stream WHERE s.stream_id = ? AND version <= ?""",
            f"permit-{case}",
            through,
        )
        verdict = "removed" if is_done else "goes"
        lines.append([f"permit-{case}", str(len(rows)), str(through), str(through), str(sizes), "0", verdict])
        events, size = events + through, size + sizes
        versions = [event["version"] for event in asked.journal.stream(f"permit-{case}")]
        assert versions == list(range(through + 1 if is_done else 1, len(rows) + 1))
    *found, summary = asked.answer.splitlines()
    assert (
        [line.split("\t")[:4] + line.split("\t")[5:] for line in found] == [line[:4] + line[5:] for line in lines] != []
    )
    verb = "were removed" if is_done else "may go"
    assert summary == (
        f"{events:,} events of {len(lines)} streams, {size:,} bytes, {verb}; recovering these streams replays 0 events"
    )


@answers("eventstore", "export")
def _export(asked: Asked) -> None:
    lines = [json.loads(line) for line in asked.read(asked.words[-1]).splitlines()]
    assert [
        (line["subject"], line["streamversion"], line["type"], line["id"], line["time"], line["data"]) for line in lines
    ] == [
        (
            event["stream_id"],
            str(event["version"]),
            event["type"],
            shown_uuid(event["event_id"]),
            moment(event["recorded_at"]),
            json.loads(event["payload"]),
        )
        for event in asked.journal.events("s.kind IN ('review', 'inspector')")
    ]
    assert lines


@answers("eventstore", "migrate")
def _migrate(asked: Asked) -> None:
    assert asked.journal.value("SELECT count(*) FROM journal_events") == 0


@answers("eventstore", "import")
def _import(asked: Asked) -> None:
    lines = asked.read("reviews.jsonl").count("\n")
    names = ("stream_id", "version", "type", "payload", "metadata", "event_id")
    stored = [[event[name] for name in names] for event in asked.journal.events()]
    assert stored == [
        [event[name] for name in names] for event in asked.file("permits.db").events("s.kind != 'permit'")
    ]
    said = fields(asked.answer)
    assert {said["stored"].split()[0], said["known"].split()[0]} == {str(lines), "0"}


@answers("eventstore", "copy")
def _copy(asked: Asked) -> None:
    source, target = asked.journal, asked.file(asked.words[3])
    ignored = {"id", "stream"}
    counts: list[int] = []
    copied, original = (
        [{name: value for name, value in event.items() if name not in ignored} for event in file.events()]
        for file in (target, source)
    )
    assert copied == original
    counts.append(len(copied))
    if asked.answer.startswith("^C"):
        assert asked.answer == "^C\n"
        return
    for sql in (
        "SELECT tenant, stream_id, kind, epoch, truncated, forgotten FROM journal_streams ORDER BY 1, 2",
        "SELECT s.stream_id, command_id, fingerprint, outcome_id, is_rejection, payload FROM journal_commands c"
        " JOIN journal_streams s ON s.id = c.stream ORDER BY 1, 2",
        "SELECT s.stream_id, version, fingerprint, encoding, payload, checksum FROM journal_snapshots n"
        " JOIN journal_streams s ON s.id = n.stream ORDER BY 1, 2",
    ):
        rows = target.rows(sql)
        assert rows == source.rows(sql), sql
        counts.append(len(rows))
    said = fields(asked.answer)
    end = source.value("SELECT max(position) FROM journal_events")
    assert said["copied"] == f"0 events now; TO is a copy up to position {end:,}"
    if "--verify" in asked.words:
        kinds = ("events", "streams", "outcomes of commands", "snapshots")
        counted = ", ".join(f"{count:,} {kind}" for count, kind in zip(counts, kinds, strict=True))
        assert said["verified"] == f"{counted}: all the same"
    if "--cutover" in asked.words:
        with closing(sqlite3.connect(source.path)) as connection, pytest.raises(sqlite3.DatabaseError, match="fence"):
            # A row that is there already, but for its place: nothing else stands against it than the fence.
            names = "stream, version + 1000, type, schema_version, payload, randomblob(16), checksum, recorded_at"
            columns = "stream, version, type, schema_version, payload, event_id, checksum, recorded_at"
            connection.execute(f"INSERT INTO journal_events ({columns}) SELECT {names} FROM journal_events LIMIT 1")


@answers("eventstore", "tail")
def _tail(asked: Asked) -> None:
    event = asked.journal.events()[-1]
    assert [line[:5] for line in table(asked.answer)] == [
        [
            str(event["position"]),
            moment(event["recorded_at"]),
            event["stream_id"],
            str(event["version"]),
            event["type"],
        ]
    ]
