"""Opening a journal on Redis: which servers, settings and revisions are accepted, and what the others are told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from backends.conformance.events import collect, happened, numbers, outcome, write
from eventstore import (
    BackendUnavailable,
    Durability,
    DurabilityError,
    EventStore,
    SchemaError,
    SchemaMissing,
    StoreClosed,
    schema,
)
from eventstore.backend import Appended, Claim, CommandLookup, Owner
from eventstore.codec import new_event_id
from eventstore.snapshots import new_snapshot
from eventstore.url import parse_store_url
from tests.backends.redis_help import KEY, admin, backend_of, journal_url, migrated
from tests.servers.redis import Redis

DOCUMENT = Path(__file__).parents[2] / "docs" / "redis.md"

POWER_LOSS, PROCESS_CRASH, NONE = Durability.POWER_LOSS, Durability.PROCESS_CRASH, Durability.NONE


@pytest.fixture
def server() -> Iterator[Redis]:
    with Redis(durable=True) as server:
        yield server


@pytest.fixture(scope="module")
def shared() -> Iterator[Redis]:
    """One server for tests that change nothing on it but their user."""
    with Redis(durable=True) as server:
        migrated(server)
        yield server


# Durability


@pytest.mark.parametrize(
    ("settings", "found", "named"),
    [
        ({}, POWER_LOSS, ""),
        ({"appendfsync": "everysec"}, PROCESS_CRASH, "appendfsync always, which is everysec"),
        ({"appendfsync": "no"}, PROCESS_CRASH, "appendfsync always, which is no"),
        ({"no-appendfsync-on-rewrite": "yes"}, PROCESS_CRASH, "no-appendfsync-on-rewrite no, which is yes"),
        ({"appendonly": "no"}, NONE, "appendonly yes, which is no"),
        ({"maxmemory-policy": "allkeys-lru"}, NONE, "maxmemory-policy noeviction, which is allkeys-lru"),
        ({"maxmemory-policy": "volatile-ttl"}, NONE, "maxmemory-policy noeviction, which is volatile-ttl"),
    ],
)
async def test_a_server_that_gives_less_than_the_url_asks_for_is_refused(
    settings: Mapping[str, str], found: Durability, named: str
):
    with Redis(durable=True, settings=settings) as server:
        migrated(server)
        for asked, is_enough in ((POWER_LOSS, found is POWER_LOSS), (PROCESS_CRASH, found is not NONE)):
            url = journal_url(server, durability=asked.value)
            if is_enough:
                async with EventStore.open(url) as store:
                    assert store.durability is asked
            else:
                with pytest.raises(DurabilityError, match="durability=best-effort") as refused:
                    await EventStore.open(url).__aenter__()
                assert named in str(refused.value)
        async with EventStore.open(journal_url(server, durability="best-effort")) as store:
            assert store.durability is found


async def test_a_server_that_was_started_again_with_other_settings_is_refused(server: Redis):
    async with EventStore.open(migrated(server)) as store:
        await store.append("a", happened(1))
        server.settings["appendfsync"] = "everysec"
        server.restart()
        await asyncio.sleep(0.05)  # The loop learns that the connection has ended.
        with pytest.raises(DurabilityError, match="appendfsync"):
            await store.append("a", happened(2))
        server.settings["appendfsync"] = "always"
        server.restart()
        await asyncio.sleep(0.05)
        await store.append("a", happened(3))
        assert await numbers(store.read("a")) == [1, 3]


# Rights


def recipes() -> dict[str, str]:
    """The document's ACL commands, by the user they are for."""
    blocks = re.findall(r"```redis\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return {block.split()[2]: block.strip() for block in blocks}


def give(server: Redis, recipe: str, *more: str) -> str:
    """Carry out a recipe, and give what stands before the @ of the user's URL."""
    words = recipe.split()
    with admin(server) as client:
        client.execute_command(*words, *more)
    return f"{words[2]}:{next(word for word in words if word.startswith('>'))[1:]}@"


async def test_the_documented_rights_are_enough_for_an_application(server: Redis):
    schema.upgrade(parse_store_url(journal_url(server, user=give(server, recipes()["migrator"]))))
    url = journal_url(server, user=give(server, recipes()["app"]))
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        await store.append("a", happened(1, 2, 3))
        await store.claim("a")
        await uses_commands_and_ownership(store)
        for version in (1, 2, 3):
            await store.save_snapshot(new_snapshot("a", version, "f", b"{}"), keep=2)
        assert len(await store.snapshots("a")) == 2
        await store.delete_snapshots("a")
        assert await numbers(store.read("a", backwards=True)) == [3, 2, 1]
        assert await numbers(store.read_all(last=2)) == [2, 3]
        assert [info.stream_id for info in await collect(store.streams(kind="a"))] == ["a"]
        assert (await store.statistics()).events == 3
        waiting = asyncio.create_task(backend_of(store).wait(3, 3600))
        await heard(server)
        await other.append("b", happened(4))
        async with asyncio.timeout(20):
            await waiting
    with pytest.raises(BackendUnavailable, match="lacks a right"):
        await asyncio.to_thread(
            schema.upgrade, parse_store_url(journal_url(server, user=give(server, recipes()["app"]), prefix="other"))
        )


async def uses_commands_and_ownership(store: EventStore) -> None:
    backend = backend_of(store)
    [stored] = await backend.append([[write("c", commands=[outcome("one"), outcome("two")])]])
    assert stored == Appended(0, (0,))
    [found] = await backend.find_commands([CommandLookup("c", "one", recent=10)])
    assert found.recent == ["two", "one"]
    assert await backend.forget_commands("c", keep=1, before=None) == 1
    owner = Owner(new_event_id(), "alice", 30.0)
    lease = backend.lease(owner)
    await lease.renew(b"{}")
    assert await backend.claim([Claim("c", owner.id)]) == [1]
    assert [each.name for each in await backend.owners()] == ["alice"]
    assert [each.stream_id for each in await backend.holdings(after="", limit=10)] == ["c"]
    await backend.release(owner.id, {"c": 1})
    await lease.end()


async def heard(server: Redis) -> None:
    """Wait until somebody listens for news."""
    with admin(server) as client:
        async with asyncio.timeout(20):
            while not client.pubsub_numsub(f"{KEY}:news")[0][1]:
                await asyncio.sleep(0.01)


async def test_truncation_takes_a_right_of_its_own_and_changes_nothing_without_it(server: Redis):
    migrated(server)
    user = give(server, recipes()["app"])
    async with EventStore.open(journal_url(server, user=user)) as store:
        await store.append("a", happened(1, 2, 3))
        [stored] = await backend_of(store).append([[write("a", commands=[outcome(f"c-{n}") for n in range(3000)])]])
        assert isinstance(stored, Appended)
        with pytest.raises(BackendUnavailable, match="lacks a right"):
            await store.truncate("a", 3, reason="test")
        assert await numbers(store.read("a")) == [1, 2, 3]
        # Neither have any of its outcomes been forgotten.
        assert await backend_of(store).forget_commands("a", keep=0, before=None) == 3000
        give(server, recipes()["app"], "+ltrim")
    async with EventStore.open(journal_url(server, user=user)) as store:
        assert await store.truncate("a", 2, reason="test") == 2


def words_of_rights() -> list[str]:
    """The rights of the recipe, without those that the document says may be left out or are found out otherwise."""
    optional = {"+config|get", "+info", "+ping", "+select", "+publish", "+subscribe"}
    return [word for word in recipes()["app"].split() if word.startswith("+") and word not in optional]


@pytest.mark.parametrize("right", words_of_rights())
async def test_a_right_that_is_missing_is_found_when_the_store_is_opened(shared: Redis, right: str):
    # The server knows the scripts by now.
    async with EventStore.open(journal_url(shared, user=give(shared, recipes()["app"]))):
        pass
    user = give(shared, recipes()["app"], f"-{right[1:]}")
    with pytest.raises(BackendUnavailable) as refused:
        await EventStore.open(journal_url(shared, user=user)).__aenter__()
    assert right[1:] in str(refused.value).lower()


async def test_without_the_right_to_publish_and_to_listen_everything_else_works(server: Redis):
    migrated(server)
    user = give(server, recipes()["app"], "-publish", "-subscribe", "resetchannels")
    url = journal_url(server, user=user)
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        await store.append("a", happened(1))
        async with asyncio.timeout(20):
            await backend_of(store).wait(1, 0.1)
            await other.append("a", happened(2))
        assert await numbers(store.read_all()) == [1, 2]


@pytest.mark.parametrize(
    ("rights", "asked", "given"),
    [
        (("-config|get",), "power-loss", None),
        (("-config|get",), "process-crash", PROCESS_CRASH),
        (("-config|get",), "best-effort", PROCESS_CRASH),
        (("-config|get", "-info"), "process-crash", None),
        (("-config|get", "-info"), "best-effort", NONE),
        (("-info",), "power-loss", POWER_LOSS),
    ],
)
async def test_a_durability_that_cannot_be_seen_is_not_claimed(
    shared: Redis, rights: tuple[str, ...], asked: str, given: Durability | None
):
    store = EventStore.open(journal_url(shared, user=give(shared, recipes()["app"], *rights), durability=asked))
    if given is None:
        with pytest.raises(DurabilityError, match="may not see"):
            await store.__aenter__()
    else:
        async with store:
            assert store.durability is given


@pytest.mark.parametrize("user", ["app:wrong@", ":wrong@", "nobody:x@"])
async def test_a_wrong_password_is_refused_and_not_shown(server: Redis, user: str):
    give(server, recipes()["app"])
    with admin(server) as client:
        client.config_set("requirepass", "right")
    with pytest.raises(BackendUnavailable, match="refuses the user or the password") as refused:
        await EventStore.open(journal_url(server, user=user)).__aenter__()
    assert "wrong" not in str(refused.value)


async def test_a_password_that_the_server_does_not_want_is_told_as_a_wrong_one(shared: Redis):
    with pytest.raises(BackendUnavailable, match=r"refuses the user or the password of the URL; Redis: .*AUTH"):
        await EventStore.open(f"redis://:any@{shared.host}:{shared.port}/0").__aenter__()


async def test_a_database_that_the_server_does_not_have_is_told(shared: Redis):
    with pytest.raises(BackendUnavailable, match="no database of the number in the URL, and as a rule it has 0 to 15"):
        await EventStore.open(shared.dsn(99)).__aenter__()


# The journal


async def test_a_server_without_a_journal_names_the_command_that_makes_one(empty_redis_url: str):
    with pytest.raises(SchemaMissing, match=re.escape(f"eventstore migrate {empty_redis_url}")):
        await EventStore.open(empty_redis_url).__aenter__()


@pytest.mark.parametrize(("revision", "remedy"), [("0000", "eventstore migrate"), ("9999", "upgrade the package")])
async def test_a_journal_of_another_revision_is_refused(redis_url: str, revision: str, remedy: str):
    with _client(redis_url) as (client, key):
        client.hset(key, "revision", revision)
    with pytest.raises(SchemaError, match=remedy) as refused:
        await EventStore.open(redis_url).__aenter__()
    assert (refused.value.found, refused.value.expected) == (revision, "0001")


async def test_a_journal_that_is_migrated_under_an_open_store_is_refused(redis_url: str):
    async with EventStore.open(redis_url) as store:
        await store.append("a", happened(1))
        with _client(redis_url) as (client, key):
            client.hset(key, "revision", "0002")
        with pytest.raises(SchemaError, match="0002"):
            await store.append("a", happened(2))
        with pytest.raises(SchemaError, match="0002"):
            await store.version("a")


async def test_a_key_of_something_else_is_left_alone(empty_redis_url: str):
    with _client(empty_redis_url) as (client, key):
        client.set(key, "mine")
        with pytest.raises(SchemaError, match="something else"):
            await EventStore.open(empty_redis_url).__aenter__()
        for work in (schema.upgrade, schema.check):
            with pytest.raises(SchemaError, match="something else"):
                await asyncio.to_thread(work, parse_store_url(empty_redis_url))
        assert client.get(key) == b"mine"


async def test_no_journal_is_made_over_what_is_left_of_one(redis_url: str):
    async with EventStore.open(redis_url) as store:
        await store.append("a", happened(1))
    with _client(redis_url) as (client, key):
        client.delete(key)
    with pytest.raises(SchemaError, match="left of a journal"):
        await asyncio.to_thread(schema.upgrade, parse_store_url(redis_url))


async def test_two_that_migrate_at_once_make_one_journal(empty_redis_url: str):
    url = parse_store_url(empty_redis_url)
    await asyncio.gather(*(asyncio.to_thread(schema.upgrade, url) for _ in range(8)))
    with _client(empty_redis_url) as (client, key):
        identity = client.hget(key, "identity")
        await asyncio.to_thread(schema.upgrade, url)
        assert client.hget(key, "identity") == identity
    async with EventStore.open(empty_redis_url) as store:
        assert store.schema_revision == "0001"


async def test_journals_of_two_prefixes_know_nothing_of_each_other(redis_url: str):
    prefixed = redis_url + "x"
    schema.upgrade(parse_store_url(prefixed))
    async with EventStore.open(redis_url) as store, EventStore.open(prefixed) as other:
        await store.append("a", happened(1))
        assert await collect(other.read_all()) == []
        await other.append("a", happened(2), expected_version=0)
        assert await numbers(store.read_all()) == [1]


# The server


async def test_a_replica_is_refused_with_the_name_of_its_primary(server: Redis):
    url = migrated(server)
    with admin(server) as client:
        client.replicaof("127.0.0.1", "9")
    with pytest.raises(BackendUnavailable, match=r"replica of 127\.0\.0\.1:9"):
        await EventStore.open(url).__aenter__()


async def test_a_journal_works_on_a_cluster_node_that_serves_its_slot():
    with Redis(durable=True, settings={"cluster-enabled": "yes"}) as server:
        with admin(server) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        await _serves(server)
        async with EventStore.open(migrated(server)) as store:
            await store.append("a", happened(1))
            await store.append("b}", happened(2))
            await store.save_snapshot(new_snapshot("a", 1, "f", b"{}"))
            assert await numbers(store.read_all()) == [1, 2]


async def test_a_cluster_node_that_does_not_serve_the_slot_is_refused_with_the_one_that_does():
    cluster = {"cluster-enabled": "yes"}
    with Redis(durable=True, settings=cluster) as owner, Redis(durable=True, settings=cluster) as other:
        with admin(owner) as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            client.execute_command("CLUSTER MEET", other.host, other.port)
        await _serves(owner)
        await _serves(other)
        migrated(owner)
        with pytest.raises(BackendUnavailable, match=f"another node.*:{owner.port}"):
            await EventStore.open(journal_url(other)).__aenter__()


async def test_a_cluster_without_the_slot_is_unavailable():
    cluster = Redis(durable=True, settings={"cluster-enabled": "yes"})
    with cluster, pytest.raises(BackendUnavailable, match="slot"):
        await EventStore.open(journal_url(cluster)).__aenter__()


async def test_a_unix_socket_reaches_the_same_journal(server: Redis):
    async with EventStore.open(migrated(server)) as store:
        await store.append("a", happened(1))
    async with EventStore.open(f"unix://{server.socket}?db=0") as store:
        assert await numbers(store.read("a")) == [1]


async def test_a_server_that_is_not_there_is_unavailable_by_tcp_and_by_socket(tmp_path: Path):
    for url in ("redis://127.0.0.1:1", f"unix://{tmp_path}/none.sock", "redis://no-such-host.invalid"):
        with pytest.raises(BackendUnavailable, match="cannot be reached"):
            await EventStore.open(url).__aenter__()


# The process


async def test_a_store_carried_over_a_fork_is_refused_in_the_child(redis_url: str):
    async with EventStore.open(redis_url) as store:
        await store.append("a", happened(1))
        backend = backend_of(store)
        backend._pid -= 1  # What the child of a fork would see.
        for use in (lambda: store.append("a", happened(2)), lambda: store.version("a")):
            with pytest.raises(StoreClosed, match="fork"):
                await use()
        backend._pid += 1
        assert await store.version("a") == 1


async def test_a_store_is_refused_in_another_event_loop(redis_url: str):
    async with EventStore.open(redis_url) as store:

        async def use() -> int:
            return await store.version("a")

        with pytest.raises(StoreClosed, match="event loop"):
            await asyncio.to_thread(asyncio.run, use())


async def _serves(server: Redis) -> None:
    with admin(server) as client:
        async with asyncio.timeout(20):
            while client.execute_command("CLUSTER INFO")["cluster_state"] != "ok":
                await asyncio.sleep(0.05)


class _client:
    """A client of the server of a URL, and the key of its journal."""

    def __init__(self, url: str) -> None:
        import redis

        parts = urlsplit(url)
        self._client = redis.Redis.from_url(parts._replace(query="").geturl())
        self._key = parse_key(url)

    def __enter__(self):
        return self._client, self._key

    def __exit__(self, *_: object) -> None:
        self._client.close()


def parse_key(url: str) -> str:
    from backends.redis_url import parse_redis_url

    return parse_redis_url(parse_store_url(url)).key.decode()
