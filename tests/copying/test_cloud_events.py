"""`eventstore export` and `import`: lines that anybody's CloudEvents library reads, and that come back as they were."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from backends.conformance.events import collect, happened
from eventstore import (
    EventFilter,
    EventStore,
    ImportRefused,
    InvalidCloudEvent,
    Metadata,
    PayloadTooLarge,
    RecordedEvent,
)
from eventstore.backend import StreamWrite
from eventstore.codec import encode_metadata, encoded_event, new_event_id
from eventstore.copies.cloud_events import from_line, to_line
from eventstore.copies.importing import Import
from tests.copying.conftest import Journals, command, environment, run

LIMIT = 1024 * 1024

PAYLOADS = [
    b'{"number":1}',
    b'{"amount":1.10,"big":123456789012345678901234567890,"again":1e400,"again":-0.0}',
    '{"text":"é\\u00e9 \\ud800 🙂 \\u0000"}'.encode(),
    b'{ "spaces" : [ 1 ,\t2 ] }',
    b'{"lines":\r\n[1,\n2]}',
    b' {"first":"space"}',
    b'"text"',
    b"[]",
    b"null",
    b"-1.50e+10",
]
METADATA = [
    None,
    Metadata(),
    Metadata(user="ann", correlation_id="c", causation_id="d", command_id="e", traceparent="00-a-b-01"),
    Metadata(user="", tags=("x", "y"), values={"n": [1, {"deep": "\x7f\x80\u2028\uffff"}]}),
    Metadata(user="odd \x01 one", correlation_id="é"),
]
STREAMS = ["s-1", "odd \x01\x9f\n stream", "é\U0001f600"]


async def filled(store: EventStore) -> list[RecordedEvent]:
    version = dict.fromkeys(STREAMS, 0)
    number = 0
    for metadata in METADATA:
        for payload in PAYLOADS:
            stream_id = STREAMS[number % len(STREAMS)]
            event_id = new_event_id()
            event = encoded_event(
                event_id, f"typed.{number % 3}", 1 + number % 4, payload, encode_metadata(metadata), event_id
            )
            await store._backend.append([[StreamWrite(stream_id, version[stream_id], [event])]])
            version[stream_id] += 1
            number += 1
    await store.append("s-1", happened(1, 2, 3))
    return await collect(store.read_all())


def what_is_kept(recorded: RecordedEvent) -> tuple[Any, ...]:
    return recorded._replace(position=0, recorded_at=datetime.min.replace(tzinfo=UTC), epoch=0)


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres", "redis"])
async def test_what_was_exported_comes_back_as_it_was(kind: str, journals: Journals) -> None:
    async with EventStore.open("memory://") as source, EventStore.open(journals(kind)) as target:
        events = await filled(source)
        lines = [to_line(event) for event in events]
        assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 for line in lines)
        importing = Import(target)
        await importing.run(each(lines))
        assert (importing.stored, importing.known, importing.lines) == (len(events), 0, len(events))
        back = await collect(target.read_all())
        # Checksums, payloads, metadata and batches among them.
        assert [what_is_kept(event) for event in back] == [what_is_kept(event) for event in events]
        again = Import(target)
        await again.run(each(lines))
        assert (again.stored, again.known) == (0, len(events))
        # In other batches, too.
        await (last := Import(target)).run(each(lines[7:30]))
        assert (last.stored, last.known) == (0, 23)
        assert len(await collect(target.read_all())) == len(events)


async def test_every_line_is_a_cloud_event_to_others_too() -> None:
    async with EventStore.open("memory://") as store:
        for recorded in await filled(store):
            line = to_line(recorded, source="https://bank.example/ledger")
            event = JSONFormat().read(CloudEvent, line)
            assert event.get_specversion() == "1.0"
            assert event.get_id() == str(recorded.event_id)
            assert event.get_source() == "https://bank.example/ledger"
            assert event.get_type() == recorded.type
            assert event.get_time() == recorded.recorded_at
            assert event.get_datacontenttype() == "application/json"
            if recorded.stream_id.isprintable():
                assert event.get_subject() == recorded.stream_id
            data = event.get_data()
            read = json.loads(data) if isinstance(data, bytes) else data
            assert read == json.loads(recorded.payload)
            assert event.get_extension("streamversion") == str(recorded.version)
            attributes = json.loads(line)
            assert all(name.isalnum() and name.islower() for name in attributes if name != "data_base64")


def test_what_their_library_writes_is_taken() -> None:
    event = CloudEvent(
        {
            "id": "A-1",
            "source": "/mine",
            "type": "com.example.placed",
            "subject": "order-7",
            "specversion": "1.0",
            "time": datetime(2026, 1, 2, tzinfo=UTC),
            "traceparent": "00-a-b-01",
            "retries": 3,
        },
        {"item": "book"},
    )
    line = JSONFormat().write(event)
    found = from_line(line, limit=LIMIT)
    assert (found.stream_id, found.version, found.event.type, found.event.schema_version) == (
        "order-7",
        None,
        "com.example.placed",
        1,
    )
    assert json.loads(found.event.payload) == {"item": "book"}
    metadata = json.loads(found.event.metadata or b"")
    assert metadata["traceparent"] == "00-a-b-01"
    kept = metadata["values"]["cloudevents"]
    assert (kept["id"], kept["source"], kept["subject"], kept["retries"]) == ("A-1", "/mine", "order-7", 3)
    assert "2026-01-02" in kept["time"]
    # Another source may use the id for something else; the same one is the same event.
    assert from_line(line, limit=LIMIT).event.event_id == found.event.event_id
    assert from_line(line.replace(b"/mine", b"/else"), limit=LIMIT).event.event_id != found.event.event_id


GOOD: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "subject": "a", "data": {"x": 1}}


def line_of(**changes: Any) -> bytes:
    members = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return json.dumps(members).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "cut off"),
        (b"[]", "'{' is missing"),
        (b'{"specversion":"1.0"', "cut off"),
        (b'{"a":1,}', "name is missing"),
        (b'{"a":1 "b":2}', "',' is missing"),
        (b'{"a":NaN}', "NaN"),
        (b'{"data":{"x":Infinity}}', "NaN"),
        (b"\xff", "no JSON object"),
        (line_of() + b"x", "something follows"),
        (b'{"id":"1",' + line_of()[1:], "twice"),
        (b'{"data":' + b"[" * 100_000 + b"}", "no JSON object"),
        (line_of(specversion="0.3"), "specversion"),
        (line_of(id=""), "id is missing"),
        (line_of(source=...), "source is missing"),
        (line_of(type=7), "type is missing"),
        (line_of(type="a\nb"), "do not print"),
        (line_of(subject=...), "--stream"),
        (line_of(subject=["a"]), "neither text"),
        (line_of(Extra="x"), "no attribute's name"),
        (line_of(extra=1.5), "neither text"),
        (line_of(datacontenttype="text/plain"), "JSON alone"),
        (line_of(data_base64="AA=="), "both"),
        (line_of(data=..., data_base64="AA=="), "no JSON"),
        (line_of(data=..., data_base64="?"), "no JSON"),
        (line_of(streamversion="0", id=new_event_id().hex()), "begin with 1"),
        (line_of(streamversion="x", id=new_event_id().hex()), "should be"),
        (line_of(streamversion="1", id="no-uuid"), "should be"),
        (line_of(streamversion="1", origin="eu", id=new_event_id().hex()), "replicated"),
        (line_of(streamversion="1", tenant="acme", id=new_event_id().hex()), "tenant"),
        (line_of(streamversion="1", metadata="[1]", id=new_event_id().hex()), "should be"),
        (line_of(streamversion="1", metadata='{"odd":1}', id=new_event_id().hex()), "should be"),
    ],
)
def test_what_cannot_be_imported_is_said(line: bytes, reason: str) -> None:
    with pytest.raises(InvalidCloudEvent, match=reason):
        from_line(line, limit=LIMIT)


def test_a_payload_has_a_limit() -> None:
    with pytest.raises(PayloadTooLarge):
        from_line(line_of(data="x" * 100), limit=100)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_nothing_else_is_raised_whatever_a_line_is(line: bytes) -> None:
    with pytest.raises(InvalidCloudEvent):
        from_line(line, limit=LIMIT)


@given(
    st.dictionaries(
        st.sampled_from([*GOOD, "streamversion", "streamid", "batchid", "metadata", "user"]),
        st.none() | st.text(max_size=9) | st.integers(),
    )
)
def test_attributes_of_any_sort_are_taken_or_refused(changes: dict[str, Any]) -> None:
    try:
        from_line(line_of(**changes), limit=LIMIT, stream_id="s")
    except InvalidCloudEvent:
        pass


async def test_a_line_that_is_not_right_is_named_and_the_file_goes_on_when_it_is_mended() -> None:
    async with EventStore.open("memory://") as store:
        lines = [line_of(id=str(number)) for number in range(1200)]
        broken = [*lines[:700], b"{}", *lines[701:]]
        importing = Import(store)
        with pytest.raises(ImportRefused, match="line 701: specversion") as refused:
            await importing.run(each(broken))
        assert (refused.value.line, importing.lines, await store.version("a")) == (701, 500, 500)
        await (again := Import(store)).run(each(lines))
        assert (again.stored, again.known) == (700, 500)
        numbers = [event.metadata.values["cloudevents"]["id"] for event in await collect(store.read("a"))]  # type: ignore[union-attr, index, call-overload]
        assert numbers == [str(number) for number in range(1200)]


async def test_a_history_is_not_mixed_with_another_one() -> None:
    async with EventStore.open("memory://") as source, EventStore.open("memory://") as target:
        await source.append("a", happened(1))
        await source.append("b", happened(1, 2, 3))
        await target.append("b", happened(7))
        lines = [to_line(event) for event in await collect(source.read_all())]
        with pytest.raises(ImportRefused, match="line 2: the event was version 1 of stream 'b'.*version 1 here"):
            await Import(target).run(each(lines))
        assert await target.version("a") == 0
        await Import(target, renumber=True).run(each(lines))
        assert [event.json()["number"] for event in await collect(target.read("b"))] == [7, 1, 2, 3]


async def test_an_id_of_another_stream_is_refused() -> None:
    async with EventStore.open("memory://") as store:
        await Import(store).run(each([line_of()]))
        with pytest.raises(ImportRefused, match="line 2: .*another stream"):
            await Import(store).run(each([line_of(id="2"), line_of(subject="b")]))


async def each(lines: list[bytes]) -> Any:
    for line in lines:
        yield line


# The commands


async def test_the_commands_pass_events_on(journals: Journals) -> None:
    source_url, target_url = journals("sqlite"), journals("redis")
    async with EventStore.open(source_url) as source:
        events = await filled(source)
        wanted = await collect(source.read_all(where=EventFilter(stream_ids=("s-1",))))
    chosen = await asyncio.to_thread(run, "export", source_url, "--stream", "s-1", "--source", "/mine")
    assert chosen.returncode == 0
    assert [json.loads(line)["id"] for line in chosen.stdout.splitlines()] == [str(event.event_id) for event in wanted]
    assert {json.loads(line)["source"] for line in chosen.stdout.splitlines()} == {"/mine"}
    exported = await asyncio.to_thread(run, "export", source_url)
    assert (exported.returncode, exported.stderr) == (0, b"")
    done = await asyncio.to_thread(run, "import", target_url, "--json", given=exported.stdout)
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert (report["stored"], report["known"]) == (len(events), 0)
    done = await asyncio.to_thread(run, "import", target_url, given=exported.stdout)
    assert b"0 events" in done.stdout
    back = await asyncio.to_thread(run, "export", target_url)
    kept = [{**json.loads(line), "position": 0, "time": 0} for line in exported.stdout.splitlines()]
    assert [{**json.loads(line), "position": 0, "time": 0} for line in back.stdout.splitlines()] == kept


def test_a_wrong_line_ends_with_1_and_says_what_is_stored(journals: Journals) -> None:
    url = journals("redis")
    done = run("import", url, given=b"\n" + line_of() + b"\nnonsense\n")
    assert done.returncode == 1
    (error,) = done.stderr.decode().splitlines()
    assert error.startswith("error: line 3: it is no JSON object")
    many = b"".join(line_of(id=f"many {number}") + b"\n" for number in range(3000))
    done = run("import", url, given=many + b"nonsense\n")
    assert done.returncode == 1
    warning, error = done.stderr.decode().splitlines()
    stored = re.fullmatch(r"warning: up to line (\d+) all is stored; what is behind it is not", warning)
    assert stored is not None
    assert 0 < int(stored[1]) <= 3000
    assert error.startswith("error: line 3001: it is no JSON object")
    done = run("import", url, "--json", given=b"x" * (17 * 1024 * 1024))
    assert done.returncode == 1
    assert json.loads(done.stderr.splitlines()[-1])["error"] == "ImportRefused"


def test_a_file_is_read_as_well_as_a_pipe(journals: Journals, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(line_of(id=str(number)) + b"\n" for number in range(3))[:-1])
    with path.open("rb") as file:
        done = subprocess.run(
            command("import", journals("redis")),
            env=environment(),
            stdin=file,
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"3 events" in done.stdout


async def test_a_wait_for_lines_is_interrupted(journals: Journals) -> None:
    url = journals("redis")
    process = subprocess.Popen(
        command("import", url), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"".join(line_of(id=str(number)) + b"\n" for number in range(500)))
    process.stdin.flush()
    async with EventStore.open(url) as store:
        deadline = time.monotonic() + 60
        while await store.version("a") < 500:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b""
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        stream.close()


def test_a_payload_in_base64_is_what_it_was() -> None:
    payload = b'{"a":\n1}'
    found = from_line(line_of(data=..., data_base64=base64.b64encode(payload).decode()), limit=LIMIT)
    assert found.event.payload == payload
