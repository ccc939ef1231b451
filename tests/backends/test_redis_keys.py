"""What stands on the server: keys that no id can reach, records, and what changed by hand is noticed."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import redis_records
from backends.conformance.events import collect, happened, numbers, tagged, write
from eventstore import EventStore, JournalCorrupt
from eventstore.backend import StreamWrite
from eventstore.codec import encoded_event, new_event_id
from eventstore.errors import PayloadTooLarge
from eventstore.snapshots import new_snapshot
from tests.backends.redis_help import KEY, backend_of, migrated
from tests.servers.redis import Redis


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with Redis(durable=False) as server:
        yield server


@pytest.fixture
def url(server: Redis, client: redis.Redis) -> str:
    return migrated(server, durability="process-crash")


# Ids as somebody would choose them who knows how the keys are built.
HOSTILE = (
    "{journal}",
    "{journal}:log:0",
    "}:log:0",
    "1",
    "1\r\nFLUSHALL\r\n",
    "*",
    "a*",
    "[a]",
    "(a",
    "-",
    "+",
    "a:1",
    "heads",
    "')..redis.call('FLUSHALL')..('",
    "\x01",
    "\x7f\u0080",
)
ids = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.one_of(ids, st.sampled_from(HOSTILE)), min_size=1, max_size=60, unique=True))
async def test_streams_never_meet_whatever_their_ids_hold(url: str, client: redis.Redis, names: list[str]):
    client.flushall()
    client.set("somebody-else's", "1")
    from eventstore import schema
    from eventstore.url import parse_store_url

    schema.upgrade(parse_store_url(url))
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        await backend.append([[write(name, str(n).encode(), expected=0)] for n, name in enumerate(names)])
        for n, name in enumerate(names):
            await store.save_snapshot(new_snapshot(name, 1, "f", str(n).encode()))
        for n, name in enumerate(names):
            assert [record.payload for record in await collect(store.read(name))] == [str(n).encode()]
            assert [snapshot.data for snapshot in await store.snapshots(name)] == [str(n).encode()]
        assert [record.stream_id for record in await collect(store.read_all())] == names
        listed = [info.stream_id for info in await collect(store.streams(page_size=7))]
        assert listed == sorted(names, key=str.encode)
    keys = {key.decode() for key in client.scan_iter(count=1000)}
    lists = {f"{KEY}:{part}:{n}" for part in ("events", "snapshots") for n in range(1, len(names) + 1)}
    fixed = {KEY, *(f"{KEY}:{name}" for name in ("heads", "numbers", "names", "ids", "log:0"))}
    assert keys == {"somebody-else's"} | lists | fixed


async def test_a_tag_of_the_cluster_keeps_all_keys_of_a_journal_in_one_slot(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        await store.append("{other}", happened(*range(5000)))
        await store.save_snapshot(new_snapshot("}{", 1, "f", b"{}"))
        await store.truncate("{other}", 10, reason="test")
    slots = {redis.cluster.key_slot(key) for key in client.scan_iter(count=1000)}
    assert len(slots) == 1


async def test_truncation_is_recorded_with_its_reason(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        await store.append("ä/'\"", happened(*range(4500)))
        assert await store.truncate("ä/'\"", 4400, reason='the "user" asked') == 4400
    removals = [json.loads(entry) for entry in client.lrange(f"{KEY}:removals", 0, -1)]
    assert [(r["stream"], r["through"], r["removed"], r["reason"]) for r in removals] == [
        ("ä/'\"", 2000, 2000, 'the "user" asked'),
        ("ä/'\"", 4000, 2000, 'the "user" asked'),
        ("ä/'\"", 4400, 400, 'the "user" asked'),
    ]


async def test_what_is_gone_gives_its_bytes_back_in_the_statistics(url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(*range(10)))
        await store.save_snapshot(new_snapshot("a", 5, "f", b'"some state"'))
        assert (await store.statistics()).size_bytes > 500
        await store.truncate("a", 10, reason="test")
        await store.delete_snapshots("a")
        assert (await store.statistics()).size_bytes == 0


async def test_times_never_fall_when_the_servers_clock_is_set_back(url: str, client: redis.Redis):
    ahead = datetime.now(UTC).replace(microsecond=123_456) + timedelta(days=1)
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        # As the server leaves it when its clock is a day ahead.
        client.hset(KEY, "clock", int(ahead.timestamp()) * 1_000_000 + ahead.microsecond)
        await store.append("a", happened(2))
        await store.append("b", happened(3))
        times = [record.recorded_at for record in await collect(store.read_all())]
        assert times[1:] == [ahead, ahead]


async def test_positions_beyond_what_32_bits_hold_are_exact(url: str, client: redis.Redis):
    start = 2**46
    chunk, offset = divmod(start, 4096)
    assert offset == 0
    client.hset(KEY, "position", start)
    async with EventStore.open(url) as store:
        acks = [await store.append("a", happened(n)) for n in range(3)]
        assert [ack.position for ack in acks] == [start + 1, start + 2, start + 3]
        assert await numbers(store.read_all(after=start)) == [0, 1, 2]
        assert await numbers(store.read_all(after=start + 2)) == [2]
        again = await store.append("b", happened(9))
        assert again.position == start + 4
    assert client.strlen(f"{KEY}:log:{chunk}") == 4 * 16


async def test_pages_of_the_log_go_over_the_ends_of_its_chunks(url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(*range(4090)))
        await store.append("b", happened(*range(4090, 8300)))
        assert await numbers(store.read_all()) == list(range(8300))
        assert await numbers(store.read_all(after=4094, limit=4)) == [4094, 4095, 4096, 4097]
        assert await numbers(store.read_all(last=8200)) == list(range(100, 8300))


async def test_ten_thousand_events_in_one_batch_are_stored_whole(url: str):
    async with EventStore.open(url) as store:
        events = [tagged(n, "x") for n in range(10_000)]
        ack = await store.append("a", events)
        assert (ack.position, ack.versions) == (10_000, (10_000,))
        assert await numbers(store.read("a")) == list(range(10_000))
        assert await store.truncate("a", 10_000, reason="test") == 10_000


async def test_a_batch_over_ten_thousand_streams_is_stored_whole(url: str):
    async with EventStore.open(url) as store:
        [outcome] = await backend_of(store).append([[write(f"s-{n}", b"1") for n in range(10_000)]])
        assert outcome.position == 10_000
        assert len(await collect(store.streams(page_size=9000))) == 10_000


async def test_more_than_one_command_can_carry_is_refused_before_it_is_sent(url: str):
    large = b'"' + b"x" * (4 * 1024 * 1024 - 2) + b'"'
    async with EventStore.open(url) as store:
        with pytest.raises(PayloadTooLarge):
            await backend_of(store).append([[write("a", *[large] * 65)]])
        assert await store.version("a") == 0


async def test_what_is_too_large_to_be_sent_is_let_go_of_without_the_garbage_collector(
    url: str, monkeypatch: pytest.MonkeyPatch
):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        monkeypatch.setattr(redis_records, "MAX_GROUP_BYTES", 1)
        gc.collect()
        gc.disable()
        try:
            with pytest.raises(PayloadTooLarge) as refused:
                await store.append("a", happened(2))
            refusal = weakref.ref(refused.value)
            del refused
            await asyncio.sleep(0)
            assert refusal() is None
        finally:
            gc.enable()


async def test_payloads_types_and_metadata_are_kept_byte_for_byte(url: str):
    first, second = new_event_id(), new_event_id()
    every_byte = bytes(range(256)) * 3
    events = [
        encoded_event(first, "t", 1, every_byte, None, first),
        encoded_event(second, "tüpe " * 40, 2**31, b"", b'{"tags":["x"]}', first),
    ]
    async with EventStore.open(url) as store:
        await backend_of(store).append([[StreamWrite("a", 0, events)]])
        one, two = await collect(store.read("a"))
        assert (one.payload, one.type, one.metadata) == (every_byte, "t", None)
        assert (two.payload, two.type, two.schema_version) == (b"", "tüpe " * 40, 2**31)
        assert two.metadata is not None
        assert two.metadata.tags == ("x",)
        assert one.batch_id == two.batch_id == one.event_id != two.event_id


# Changed by hand


@pytest.mark.parametrize(
    "change",
    [
        lambda client: client.lpop(f"{KEY}:events:1"),
        lambda client: client.rpop(f"{KEY}:events:1"),
        lambda client: client.delete(f"{KEY}:events:1"),
        lambda client: client.lset(f"{KEY}:events:1", 1, "x"),
        lambda client: client.lset(f"{KEY}:events:1", 1, client.lindex(f"{KEY}:events:1", 0)),
        lambda client: client.lset(f"{KEY}:events:1", 1, client.lindex(f"{KEY}:events:1", 1)[:45]),
    ],
    ids=["first gone", "last gone", "all gone", "no record", "another record", "cut off"],
)
async def test_a_list_that_was_changed_by_hand_is_noticed_and_others_are_not_concerned(
    url: str, client: redis.Redis, change
):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1, 2, 3))
        await store.append("b", happened(4))
        change(client)
        with pytest.raises(JournalCorrupt, match="'a'|position"):
            await collect(store.read("a"))
        with pytest.raises(JournalCorrupt):
            await collect(store.read_all())
        assert await numbers(store.read("b")) == [4]


async def test_a_list_that_something_was_added_to_by_hand_is_noticed(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1, 2, 3))
        client.rpush(f"{KEY}:events:1", "x")
        with pytest.raises(JournalCorrupt, match="'a'"):
            await collect(store.read("a"))
        await store.append("a", happened(4))
        with pytest.raises(JournalCorrupt, match="'a'"):
            await collect(store.read_all())


@pytest.mark.parametrize("key", ["log:0", "numbers"])
async def test_an_index_that_was_removed_by_hand_is_noticed(url: str, client: redis.Redis, key: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1, 2, 3))
    client.delete(f"{KEY}:{key}")
    async with EventStore.open(url) as store:
        with pytest.raises(JournalCorrupt):
            await collect(store.read_all())
