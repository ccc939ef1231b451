"""A page of a stream comes as one text or as packed records: whatever its events are, each comes back as it was."""

from __future__ import annotations

import pytest

from backends.memory import MemoryBackend
from backends.postgres import PostgresBackend
from backends.redis import RedisBackend
from eventstore.backend import Appended, Backend, EncodedEvent, Expected, Load, Loaded, StreamWrite
from eventstore.codec import checksum_of, encoded_event, new_event_id
from eventstore.errors import EventEncodeError, JournalCorrupt
from eventstore.url import parse_store_url

from .postgres_help import execute

FACTORIES = {"memory": MemoryBackend, "postgresql": PostgresBackend, "redis": RedisBackend}


@pytest.fixture(params=["memory", "postgres_url", "redis_url"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Not opened yet."""
    url = parse_store_url("memory://" if request.param == "memory" else request.getfixturevalue(request.param))
    made: Backend = FACTORIES[url.scheme](url)
    return made


def event(
    type_: str = "a",
    schema_version: int = 1,
    payload: bytes = b"{}",
    metadata: bytes | None = None,
    *,
    batch: bytes = b"",
) -> EncodedEvent:
    event_id = new_event_id()
    return encoded_event(event_id, type_, schema_version, payload, metadata, batch or event_id)


async def stored(backend: Backend, *events: EncodedEvent) -> None:
    for one in events:
        [outcome] = await backend.append([[StreamWrite("s", Expected.ANY, [one])]])
        assert isinstance(outcome, Appended), outcome


async def page(backend: Backend, *, after: int = 0, limit: int = 1000) -> list[tuple[int, str, int, bytes]]:
    [loaded] = await backend.load([Load("s", after, limit=limit)])
    assert isinstance(loaded, Loaded), loaded
    return [(version, type_, schema_version, payload) for version, type_, schema_version, payload, _ in loaded.events]


async def test_neighbours_that_differ_in_everything_come_back_as_they_were(backend: Backend) -> None:
    events = [
        event(),
        event(),
        event("b"),
        event("a", 2),
        event("a", 2, b'{"n":1}'),
        event("bb", 2, b'{"n":12}'),
        event("ab", 1, b"[]", b'{"user":"x"}'),
        event("ab", 1, b"[1]", b'{"user":"y"}'),
        event("ba", 1, b"[2]", b'{"user":"z"}'),
        event("ba", 1, b"[3]", batch=new_event_id()),
        event("ba", 1, b"[4]", b'{"user":"w"}', batch=new_event_id()),
        event("été", 3, '"\\u001e é \U0001f600"'.encode()),
        event("été", 3, b'\n{ "white" :\t"space" }\r\n'),
        event(),
    ]
    await backend.open()
    try:
        await stored(backend, *events)
        expected = [(version, one.type, one.schema_version, one.payload) for version, one in enumerate(events, start=1)]
        assert await page(backend) == expected
        for after in range(len(events)):
            assert await page(backend, after=after, limit=1) == expected[after : after + 1]
            assert await page(backend, after=after, limit=3) == expected[after : after + 3]
        assert await page(backend, after=len(events)) == []
    finally:
        await backend.close()


@pytest.mark.parametrize("damaged", [event(payload=b'"\x1e"'), event("a\x1eb")])
async def test_what_no_json_and_no_name_holds_is_refused_by_postgres(postgres_url: str, damaged: EncodedEvent) -> None:
    backend = PostgresBackend(parse_store_url(postgres_url))
    await backend.open()
    try:
        with pytest.raises(EventEncodeError, match="control character"):
            await stored(backend, damaged)
        assert await page(backend) == []
        await stored(backend, event(payload=b"[1]"))
        assert await page(backend) == [(1, "a", 1, b"[1]")]
    finally:
        await backend.close()


async def test_a_hole_in_the_versions_is_seen_on_postgres(postgres_url: str) -> None:
    backend = PostgresBackend(parse_store_url(postgres_url))
    await backend.open()
    try:
        await stored(backend, *(event(payload=b"%d" % number) for number in range(1, 6)))
        await damage(postgres_url, "DELETE FROM journal_events WHERE version = 3")
        assert await page(backend) == [(version, "a", 1, b"%d" % version) for version in (1, 2, 4, 5)]
    finally:
        await backend.close()


async def test_an_event_that_was_damaged_in_postgres_hides_no_other_stream(postgres_url: str) -> None:
    backend = PostgresBackend(parse_store_url(postgres_url))
    await backend.open()
    try:
        await stored(backend, event(), event())
        await backend.append([[StreamWrite("t", Expected.ANY, [event(payload=b"[7]")])]])
        await damage(postgres_url, "UPDATE journal_events SET payload = chr(30) WHERE version = 2")
        [one, other] = await backend.load([Load("s"), Load("t")])
        assert isinstance(one, JournalCorrupt)
        assert one.stream_id == "s"
        assert isinstance(other, Loaded)
        assert list(other.events) == [(1, "a", 1, b"[7]", checksum_of("a", 1, b"[7]", None))]
    finally:
        await backend.close()


@pytest.mark.soak
async def test_pages_that_are_too_large_for_one_answer_of_postgres_come_in_parts(postgres_url: str) -> None:
    # What compresses well is small on the disk, and only there.
    payload = b'"' + b"x" * 4_000_000 + b'"'
    backend = PostgresBackend(parse_store_url(postgres_url))
    await backend.open()
    try:
        for _ in range(30):
            await backend.append([[StreamWrite("s", Expected.ANY, [event(payload=payload) for _ in range(10)])]])
        found = await page(backend)
        assert [version for version, *_ in found] == list(range(1, len(found) + 1))
        assert 0 < len(found) < 300
        assert all(one[3] == payload for one in found)
    finally:
        await backend.close()


async def damage(url: str, statement: str) -> None:
    """What only the owner of the table can do."""
    await execute(
        url,
        f"ALTER TABLE journal_events DISABLE TRIGGER USER; {statement}; ALTER TABLE journal_events ENABLE TRIGGER USER",
    )
