"""Tenants: the same ids of two tenants are two things, in everything that a journal keeps; the log is one."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import pytest
import pytest_asyncio

from backends.conformance.commands import found_command, stored
from backends.conformance.events import (
    Happened,
    Noted,
    closing,
    collect,
    happened,
    identified,
    numbers,
    outcome,
    tagged,
    write,
)
from backends.conformance.fixtures import StoreFixtures, backend_of
from backends.conformance.leases import HeldLease, Leases
from eventstore.backend import (
    Appended,
    Backend,
    CheckpointKey,
    Claim,
    CommandLookup,
    CommandOutcome,
    CommandsFound,
    EventFilter,
    Holding,
    Load,
    Loaded,
    StoredCheckpoint,
    StoredSeal,
    StreamInfo,
    StreamWrite,
)
from eventstore.codec import new_event_id
from eventstore.contract.audit_query import AuditQuery
from eventstore.errors import (
    CapabilityError,
    ConcurrencyError,
    DuplicateEventError,
    InvalidTenant,
    LeaseLost,
)
from eventstore.events import NewEvent
from eventstore.snapshots import new_snapshot, pack
from eventstore.store import EventStore

ID = "Order-1"
CHECKPOINT = StoredCheckpoint("reader", 1, 0, 7, 3, bytes(range(16)), b"{}")

# Who has something, and who asks for it under the same ids. None is the store without a tenant.
PAIRS = [("acme", "bolt"), ("acme", None), (None, "acme")]


class Belongings(NamedTuple):
    """What the owner has, under ids that somebody else knows."""

    backend: Backend
    leases: Leases
    lease: HeldLease
    event_id: UUID
    command: CommandOutcome
    epoch: int


async def belongings(store: EventStore, leases: Leases) -> Belongings:
    """One of everything: events, a snapshot, an outcome, a lease with a claimed stream, a checkpoint."""
    backend = backend_of(store)
    event_id = UUID(bytes=new_event_id())
    await store.append(ID, [identified(1, event_id), *happened(2, 3)])
    await store.save_snapshot(new_snapshot(ID, 2, "fingerprint", b'{"of":"the owner"}'))
    command = outcome("order-it")
    await stored(backend, command, stream_id=ID)
    lease = await leases.begin(backend, "owner")
    epoch = await lease.granted(backend, ID)
    assert await backend.change_checkpoints([CHECKPOINT])
    return Belongings(backend, leases, lease, event_id, command, epoch)


async def picture(backend: Backend) -> dict[str, Any]:
    """Everything that a tenant has."""
    (loaded,) = await backend.load([Load(ID)])
    assert isinstance(loaded, Loaded)
    page = await backend.read_stream(ID, after=0, through=None, limit=100, backwards=False)
    return {
        "stream": page,
        "loaded": (loaded.snapshot, list(loaded.events), loaded.version, loaded.truncated),
        "snapshots": list(await backend.read_snapshots(ID, through=None, limit=10)),
        "command": await found_command(backend, ID, "order-it"),
        "owners": [(info.id, info.name, info.renewals) for info in await backend.owners()],
        "holdings": list(await backend.holdings(after="", limit=10)),
        "checkpoints": list(await backend.checkpoints()),
        "streams": list(await backend.streams(after="", limit=10, kind=None)),
    }


# What somebody else does with the owner's ids, and sees; with the methods of the contract that it is about.

Probe = Callable[[Backend, Belongings], Awaitable[None]]


async def _reads_the_stream(other: Backend, _: Belongings) -> None:
    for backwards in (False, True):
        page = await other.read_stream(ID, after=0, through=None, limit=100, backwards=backwards)
        assert (list(page.events), page.version, page.truncated) == ([], 0, 0)


async def _loads(other: Backend, _: Belongings) -> None:
    (loaded,) = await other.load([Load(ID)])
    assert isinstance(loaded, Loaded)
    assert (loaded.snapshot, list(loaded.events), loaded.version) == (None, [], 0)


async def _appends_from_the_start(other: Backend, _: Belongings) -> None:
    (appended,) = await other.append([[write(ID, b"{}", expected=0)]])
    assert isinstance(appended, Appended)
    assert (appended.versions, appended.is_duplicate) == ((1,), False)


async def _appends_behind_the_owners_version(other: Backend, _: Belongings) -> None:
    (refused,) = await other.append([[write(ID, b"{}", expected=3)]])
    assert isinstance(refused, ConcurrencyError)
    assert refused.actual == 0


async def _appends_the_owners_event(other: Backend, owned: Belongings) -> None:
    # The ids of events are the whole journal's. That of somebody else's is refused, and never taken for a repeat.
    (refused,) = await other.append([[write(ID, b"{}", expected=0, ids=[owned.event_id.bytes])]])
    assert isinstance(refused, DuplicateEventError)
    await _reads_the_stream(other, owned)


async def _executes_the_owners_command(other: Backend, owned: Belongings) -> None:
    (appended,) = await other.append([[StreamWrite(ID, 0, (), commands=[owned.command])]])
    assert isinstance(appended, Appended)
    assert not appended.is_duplicate
    assert await found_command(other, ID, "order-it") is not None


async def _looks_for_the_command(other: Backend, _: Belongings) -> None:
    (answer,) = await other.find_commands([CommandLookup(ID, "order-it", recent=10)])
    assert isinstance(answer, CommandsFound)
    assert (answer.outcome, list(answer.recent), answer.known_above, answer.forgotten) == (None, [], "", 0)


async def _forgets_commands(other: Backend, _: Belongings) -> None:
    assert await other.forget_commands(ID, keep=0, before=None) == 0


async def _claims_for_the_owner(other: Backend, owned: Belongings) -> None:
    with pytest.raises(LeaseLost):
        await other.claim([Claim(ID, owned.lease.id)])


async def _claims_for_nobody(other: Backend, _: Belongings) -> None:
    assert await other.claim([Claim(ID)]) == [1]


async def _claims_for_itself(other: Backend, owned: Belongings) -> None:
    lease = await owned.leases.begin(other, "another")
    assert await lease.granted(other, ID) == 1
    assert list(await other.holdings(after="", limit=10)) == [Holding(ID, 1, lease.id)]
    assert [info.name for info in await other.owners()] == ["another"]


async def _releases(other: Backend, owned: Belongings) -> None:
    await other.release(owned.lease.id, {ID: owned.epoch})


async def _ends_the_lease(other: Backend, owned: Belongings) -> None:
    lease = await owned.leases.make(other, owned.lease.owner)
    await lease.renew()
    assert [(info.id, info.renewals) for info in await other.owners()] == [(owned.lease.id, 1)]
    await lease.end()
    assert list(await other.owners()) == []


async def _lists_owners(other: Backend, _: Belongings) -> None:
    assert list(await other.owners()) == []


async def _lists_holdings(other: Backend, _: Belongings) -> None:
    assert list(await other.holdings(after="", limit=10)) == []


async def _looks_what_moved(other: Backend, owned: Belongings) -> None:
    moved = await other.moved(after=0, limit=1000)
    assert (dict(moved.versions), moved.is_end) == ({}, True)
    (appended,) = await other.append([[write(ID, b"{}")]])
    assert isinstance(appended, Appended)
    assert dict((await other.moved(after=0, limit=1000)).versions) == {ID: 1}
    assert dict((await owned.backend.moved(after=0, limit=1000)).versions) == {ID: 3}


async def _lists_streams(other: Backend, owned: Belongings) -> None:
    assert list(await other.streams(after="", limit=10, kind=None)) == []
    assert list(await other.streams(after="", limit=10, kind="Order")) == []
    if other.tenant:
        assert list(await other.streams(after="", limit=10, kind=None, tenant=owned.backend.tenant)) == []


async def _lists_tenants(other: Backend, _: Belongings) -> None:
    if other.tenant:
        assert list(await other.tenants(after=None, limit=10)) == []
    await other.append([[write("mine", b"{}")]])
    assert other.tenant in await other.tenants(after=None, limit=10)
    if other.tenant:
        assert list(await other.tenants(after=None, limit=10)) == [other.tenant]
        assert list(await other.tenants(after=other.tenant, limit=10)) == []


async def _reads_the_log(other: Backend, owned: Belongings) -> None:
    if not other.tenant:
        return
    for where in (EventFilter(), EventFilter(stream_ids=(ID,)), EventFilter(tenants=(owned.backend.tenant,))):
        page = await other.read_all(after=0, limit=100, where=where)
        assert list(page.events) == []
        assert page.is_end
        assert await other.start_of_last(1, where) == 0


async def _audits(other: Backend, owned: Belongings) -> None:
    if not other.tenant:
        return
    for where in (EventFilter(), EventFilter(stream_ids=(ID,)), EventFilter(tenants=(owned.backend.tenant,))):
        query = AuditQuery(where=where)
        page = await other.audit_page(query, cursor=None, limit=100, backwards=False)
        assert list(page.events) == []
        totals = await other.audit_totals(query, top=5)
        assert totals is None or totals.events == 0


async def _saves_a_snapshot(other: Backend, _: Belongings) -> None:
    mine = pack(new_snapshot(ID, 2, "fingerprint", b'{"of":"another"}'), limit=10_000)
    await other.save_snapshot(mine, keep=1)
    assert [snapshot.payload for snapshot in await other.read_snapshots(ID, through=None, limit=9)] == [mine.payload]


async def _reads_snapshots(other: Backend, _: Belongings) -> None:
    assert list(await other.read_snapshots(ID, through=None, limit=10)) == []


async def _deletes_snapshots(other: Backend, _: Belongings) -> None:
    assert await other.delete_snapshots(ID, through=None) == 0


async def _truncates(other: Backend, _: Belongings) -> None:
    assert await other.truncate(ID, 2, reason="somebody else's") == 0


async def _changes_the_checkpoint(other: Backend, owned: Belongings) -> None:
    assert list(await other.checkpoints()) == []
    shared = [] if owned.backend.tenant else [CHECKPOINT._replace(revision=1)]
    assert list(await other.checkpoints(shared=True)) == shared
    assert not await other.change_checkpoints([CHECKPOINT._replace(revision=1, position=8)])
    assert not await other.change_checkpoints([], [CheckpointKey("reader", 1, 1)])
    assert await other.change_checkpoints([CHECKPOINT._replace(position=9)])
    assert list(await other.checkpoints()) == [CHECKPOINT._replace(revision=1, position=9)]
    assert await other.change_checkpoints([], [CheckpointKey("reader", 1, 1)])


async def _commits_with_sql(other: Backend, _: Belongings) -> None:
    if not other.capabilities.user_sql:
        pytest.skip("the backend has no SQL (capabilities.user_sql)")
    transaction = await other.begin_sql(seconds=20)
    try:
        assert not await transaction.save_checkpoint(CHECKPOINT._replace(revision=1))
        assert not await transaction.delete_checkpoint("reader", 1, 1)
        assert await transaction.save_checkpoint(CHECKPOINT._replace(position=9))
        appended = await transaction.commit([write(ID, b"{}", expected=0)])
    finally:
        await transaction.rollback()
    assert isinstance(appended, Appended)
    assert appended.versions == (1,)
    assert list(await other.checkpoints()) == [CHECKPOINT._replace(revision=1, position=9)]


LOOKS: Sequence[tuple[str, Probe]] = (
    ("read_stream", _reads_the_stream),
    ("load", _loads),
    ("append", _appends_behind_the_owners_version),
    ("append", _appends_the_owners_event),
    ("find_commands", _looks_for_the_command),
    ("forget_commands", _forgets_commands),
    ("claim", _claims_for_the_owner),
    ("release", _releases),
    ("owners", _lists_owners),
    ("holdings", _lists_holdings),
    ("streams", _lists_streams),
    ("read_all", _reads_the_log),
    ("start_of_last", _reads_the_log),
    ("audit_page", _audits),
    ("audit_totals", _audits),
    ("read_snapshots", _reads_snapshots),
    ("delete_snapshots", _deletes_snapshots),
    ("truncate", _truncates),
)
"""Those that leave nothing of their own."""

CHANGES: Mapping[str, tuple[Sequence[str], Probe]] = {
    probe.__name__.removeprefix("_"): (methods, probe)
    for methods, probe in (
        (("append",), _appends_from_the_start),
        (("append",), _executes_the_owners_command),
        (("claim",), _claims_for_nobody),
        (("claim",), _claims_for_itself),
        (("lease",), _ends_the_lease),
        (("moved",), _looks_what_moved),
        (("tenants",), _lists_tenants),
        (("save_snapshot",), _saves_a_snapshot),
        (("checkpoints", "change_checkpoints"), _changes_the_checkpoint),
        (("begin_sql",), _commits_with_sql),
    )
}
"""Those that do."""

ABOUT_NOBODY = {
    "open": "opens",
    "close": "closes",
    "wait": "a hint about the whole log, which tells no more than that there may be something new",
    "statistics": "the whole journal's, for whoever runs it",
    "removals": "the whole journal's; a store with a tenant does not ask for them",
    "seals": "the whole journal's; a store with a tenant does not ask for them",
    "add_seal": "the whole journal's; a store with a tenant adds none",
    "archive": "the whole journal's; a store with a tenant does not ask for it",
    "capabilities": "the same for all",
    "durability": "the same for all",
    "database": "the same for all",
    "schema_revision": "the same for all",
    "tenant": "whose it is",
}
"""The rest of the contract, and why there is nothing of anybody's in it."""


class Tenants(StoreFixtures):
    @pytest_asyncio.fixture
    async def open_as(
        self, store: EventStore, url: str
    ) -> AsyncGenerator[Callable[[str | None], Awaitable[EventStore]], None]:
        """The journal as a tenant sees it."""
        if not store.capabilities.tenants:
            pytest.skip("the backend knows no tenants (capabilities.tenants)")
        opened: list[EventStore] = []

        async def open_as(tenant: str | None) -> EventStore:
            if tenant is None:
                return store
            opened.append(await EventStore.open(url, tenant=tenant).__aenter__())
            return opened[-1]

        try:
            yield open_as
        finally:
            for one in opened:
                await one.close()

    @pytest_asyncio.fixture
    async def acme(self, open_as: Callable[[str | None], Awaitable[EventStore]]) -> EventStore:
        return await open_as("acme")

    @pytest_asyncio.fixture
    async def bolt(self, open_as: Callable[[str | None], Awaitable[EventStore]]) -> EventStore:
        return await open_as("bolt")

    async def test_a_store_without_tenants_is_asked_for_none(self, store: EventStore, url: str) -> None:
        if store.capabilities.tenants:
            pytest.skip("it knows tenants")
        with pytest.raises(CapabilityError):
            EventStore.open(url, tenant="acme")

    @pytest.mark.parametrize("tenant", ["", " ", "-", "a b", "a'", "a\0", "a/b", "a\n", "ä", "x" * 65])
    async def test_an_odd_name_is_no_tenant(self, url: str, tenant: str) -> None:
        with pytest.raises(InvalidTenant):
            EventStore.open(url, tenant=tenant)

    @pytest.mark.parametrize("tenant", ["a", "7", "Acme", "acme.eu:1_x-y@z", "x" * 64])
    async def test_every_good_name_is_a_tenant_of_its_own(
        self, store: EventStore, open_as: Callable[[str | None], Awaitable[EventStore]], tenant: str
    ) -> None:
        one = await open_as(tenant)
        await one.append("a", happened(1))
        await store.append("a", happened(2))
        assert one.tenant == tenant
        assert await numbers(one.read_all()) == [1]
        assert [event.tenant for event in await collect(store.read_all())] == [tenant, ""]

    async def test_the_same_ids_of_two_tenants_are_two_streams(
        self, store: EventStore, acme: EventStore, bolt: EventStore
    ) -> None:
        for number, one in enumerate((acme, bolt, store, acme)):
            await one.append(ID, happened(number))
        assert [await numbers(one.read(ID)) for one in (acme, bolt, store)] == [[0, 3], [1], [2]]
        assert [await one.version(ID) for one in (acme, bolt, store)] == [2, 1, 1]
        assert [event.tenant for event in await collect(bolt.read(ID))] == ["bolt"]

    async def test_the_log_is_one_and_the_store_without_a_tenant_sees_all_of_it(
        self, store: EventStore, acme: EventStore, bolt: EventStore
    ) -> None:
        places = [await one.append(ID, happened(n)) for n, one in enumerate((acme, bolt, store, bolt, acme))]
        found = await collect(store.read_all())
        assert [(event.tenant, event.stream_id, event.version) for event in found] == [
            ("acme", ID, 1),
            ("bolt", ID, 1),
            ("", ID, 1),
            ("bolt", ID, 2),
            ("acme", ID, 2),
        ]
        assert [event.position for event in found] == [place.position for place in places]
        assert await collect(acme.read_all()) == [found[0], found[4]]
        assert await collect(bolt.read_all()) == [found[1], found[3]]
        # Its end is everybody's, also to whom the last event is not shown.
        assert [await one.end() for one in (store, acme, bolt)] == [places[-1].position] * 3

    async def test_the_record_of_truncations_says_whose_the_stream_was(
        self, store: EventStore, acme: EventStore, bolt: EventStore
    ) -> None:
        for one, through in ((acme, 1), (store, 2), (bolt, 3)):
            await one.append(ID, happened(1, 2, 3, 4))
            await one.truncate(ID, through, reason="test")
        found = await collect(store.removals())
        assert [(each.tenant, each.stream_id, each.through) for each in found] == [
            ("acme", ID, 1),
            ("", ID, 2),
            ("bolt", ID, 3),
        ]
        assert [each.number for each in found] == sorted({each.number for each in found})

    async def test_seals_are_of_the_whole_journal(self, store: EventStore, acme: EventStore) -> None:
        seal = StoredSeal(1, b"statement", b"signature", b"leaves of everybody", b"")
        refused: Sequence[Callable[[], Awaitable[object]]] = (
            lambda: acme.add_seal(seal),
            acme.newest_seal,
            lambda: acme.seal_after(0),
            lambda: collect(acme.seals()),
            lambda: collect(acme.removals()),
        )
        for ask in refused:
            with pytest.raises(CapabilityError, match="opened for a tenant"):
                await ask()
        assert await store.newest_seal() is None
        assert await store.add_seal(seal)
        assert await store.newest_seal() == seal

    @pytest.mark.parametrize("page_size", [1, 2, 500])
    async def test_the_log_is_filtered_by_tenants(
        self, store: EventStore, acme: EventStore, bolt: EventStore, page_size: int
    ) -> None:
        for number, one in enumerate((acme, bolt, store, acme, bolt, store)):
            await one.append(f"{'Order' if number < 3 else 'Cart'}-1", [tagged(number, f"t{number % 2}")])

        async def shown(reader: EventStore, **fields: tuple[str, ...]) -> list[int]:
            return await numbers(reader.read_all(where=EventFilter(**fields), page_size=page_size))

        assert await shown(store) == [0, 1, 2, 3, 4, 5]
        assert await shown(store, tenants=("acme",)) == [0, 3]
        assert await shown(store, tenants=("acme", "bolt")) == [0, 1, 3, 4]
        assert await shown(store, tenants=("",)) == [2, 5]
        assert await shown(store, tenants=("", "bolt")) == [1, 2, 4, 5]
        assert await shown(store, tenants=("unknown",)) == []
        assert await shown(store, tenants=("acme",), kinds=("Cart",)) == [3]
        assert await shown(store, stream_ids=("Order-1",)) == [0, 1, 2]
        assert await shown(store, tenants=("bolt",), stream_ids=("Order-1", "Cart-1")) == [1, 4]
        assert await shown(store, tenants=("bolt",), types=(Happened.__event_type__,), tags=("t1",)) == [1]
        assert await shown(store, tenants=("bolt",), types=(Noted.__event_type__,)) == []
        assert await shown(acme, kinds=("Order",)) == [0]
        assert await shown(acme, tags=("t1",)) == [3]
        assert await shown(acme, tenants=("acme", "bolt")) == [0, 3]
        assert await shown(acme, tenants=("bolt", "")) == []
        assert await shown(acme, tenants=("",), stream_ids=("Order-1",)) == []

    async def test_the_last_events_are_counted_within_the_tenants(
        self, store: EventStore, acme: EventStore, bolt: EventStore
    ) -> None:
        for number, one in enumerate((acme, bolt, store, acme, bolt, store, bolt)):
            await one.append(ID, [tagged(number, "t")])
        assert await numbers(acme.read_all(last=1)) == [3]
        assert await numbers(acme.read_all(last=9)) == [0, 3]
        assert await numbers(store.read_all(last=2)) == [5, 6]
        for where in (EventFilter(tenants=("acme",)), EventFilter(tenants=("acme",), tags=("t",))):
            assert await numbers(store.read_all(last=1, where=where)) == [3]
        assert await numbers(store.read_all(last=2, where=EventFilter(tenants=("acme", "")))) == [3, 5]

    async def test_a_subscription_shows_the_tenants_events_alone(
        self, store: EventStore, acme: EventStore, bolt: EventStore
    ) -> None:
        async with (
            closing(acme.subscribe(poll_seconds=0.05)) as own,
            closing(store.subscribe(poll_seconds=0.05)) as everybodys,
            closing(store.subscribe(where=EventFilter(tenants=("bolt",)), poll_seconds=0.05)) as chosen,
        ):
            for number, one in enumerate((bolt, store, acme, bolt)):
                await one.append(ID, happened(number))
            assert (await anext(own)).json()["number"] == 2
            assert [(await anext(everybodys)).json()["number"] for _ in range(4)] == [0, 1, 2, 3]
            assert [(await anext(chosen)).json()["number"] for _ in range(2)] == [0, 3]
            await acme.append(ID, happened(4))
            assert (await anext(own)).json()["number"] == 4

    async def test_streams_are_listed_by_tenant(self, store: EventStore, acme: EventStore, bolt: EventStore) -> None:
        for one in (store, acme):
            for id_ in ("b", "a", "a-1"):
                await one.append(id_, happened(1))
        await bolt.append("z", happened(1, 2))
        assert [info.stream_id for info in await collect(store.streams())] == ["a", "a-1", "b"]
        assert await collect(bolt.streams()) == [StreamInfo("z", 2, 0, "bolt")]
        for page_size in (1, 2, 500):
            found = await collect(store.streams(tenants=("acme", "bolt", ""), page_size=page_size))
            assert [(info.tenant, info.stream_id) for info in found] == [
                *(("acme", id_) for id_ in ("a", "a-1", "b")),
                ("bolt", "z"),
                *(("", id_) for id_ in ("a", "a-1", "b")),
            ]
            kinds = await collect(store.streams(tenants=("acme", "bolt"), kind="a", page_size=page_size))
            assert [info.stream_id for info in kinds] == ["a", "a-1"]
        assert await collect(acme.streams(tenants=("bolt", ""))) == []

    @pytest.mark.parametrize("page_size", [1, 2, 3, 500])
    async def test_tenants_are_listed_in_order(
        self, store: EventStore, open_as: Callable[[str | None], Awaitable[EventStore]], page_size: int
    ) -> None:
        assert await collect(store.tenants()) == []
        names = ["b", "B", "a.b", "a", "a-b", "ab", "a:1", "10", "9"]
        for name in names:
            one = await open_as(name)
            await one.append("x", happened(1))
            await one.append("y", happened(1))
        assert await collect(store.tenants(page_size=page_size)) == sorted(names)
        await store.append("x", happened(1))
        assert await collect(store.tenants(page_size=page_size)) == ["", *sorted(names)]

    async def test_no_method_is_left_out(self) -> None:
        tried = {method for method, _ in LOOKS}.union(*(methods for methods, _ in CHANGES.values()))
        assert {name for name in dir(Backend) if not name.startswith("_")} == tried | ABOUT_NOBODY.keys()

    @pytest.mark.parametrize("pair", [*PAIRS, ("acme", "acme.eu")], ids=str)
    async def test_under_anothers_ids_nothing_is_found(
        self,
        open_as: Callable[[str | None], Awaitable[EventStore]],
        leases: Leases,
        pair: tuple[str | None, str | None],
    ) -> None:
        owned = await belongings(await open_as(pair[0]), leases)
        other = backend_of(await open_as(pair[1]))
        before = await picture(owned.backend)
        assert before["holdings"] == [Holding(ID, owned.epoch, owned.lease.id)]
        for _, looks in LOOKS:
            await looks(other, owned)
            assert await picture(owned.backend) == before, looks

    @pytest.mark.parametrize("pair", PAIRS, ids=str)
    @pytest.mark.parametrize("change", CHANGES)
    async def test_under_anothers_ids_nothing_of_his_is_changed(
        self,
        open_as: Callable[[str | None], Awaitable[EventStore]],
        leases: Leases,
        pair: tuple[str | None, str | None],
        change: str,
    ) -> None:
        owned = await belongings(await open_as(pair[0]), leases)
        before = await picture(owned.backend)
        _, changes = CHANGES[change]
        await changes(backend_of(await open_as(pair[1])), owned)
        assert await picture(owned.backend) == before
        # The owner is who it was: nothing was fenced, and what it knows of its streams still holds.
        (appended,) = await owned.backend.append([[write(ID, b"{}", expected=3, epoch=owned.epoch)]])
        assert isinstance(appended, Appended)

    @pytest.mark.parametrize("seed", [1, 2])
    async def test_any_operations_of_three_tenants_leave_each_what_a_model_says(
        self, open_as: Callable[[str | None], Awaitable[EventStore]], seed: int
    ) -> None:
        chance = random.Random(seed)  # noqa: S311 - not for secrets
        stores = {tenant or "": await open_as(tenant) for tenant in ("acme", "bolt", None)}
        model = {tenant: _Model() for tenant in stores}
        log: list[tuple[str, str, int]] = []
        for number in range(120):
            tenant = chance.choice(sorted(stores))
            one, expected, id_ = stores[tenant], model[tenant], chance.choice(["a", "b", "c-1"])
            stream = expected.streams.setdefault(id_, [])
            truncated = expected.truncated.get(id_, 0)
            match chance.choice(["append", "append", "conflict", "truncate", "snapshot", "delete", "read", "batch"]):
                case "append":
                    await one.append(id_, happened(number), expected_version=len(stream))
                    stream.append(number)
                    log.append((tenant, id_, number))
                case "batch":
                    writes = [write(each, b'{"number":%d}' % number) for each in ("a", "b")]
                    (stored_batch,) = await backend_of(one).append([writes])
                    assert isinstance(stored_batch, Appended)
                    for each in ("a", "b"):
                        expected.streams.setdefault(each, []).append(number)
                        log.append((tenant, each, number))
                case "conflict":
                    with pytest.raises(ConcurrencyError):
                        await one.append(id_, [NewEvent(Happened(number=number))], expected_version=len(stream) + 1)
                case "truncate":
                    through = chance.randint(0, len(stream))
                    assert await one.truncate(id_, through, reason="test") == max(0, through - truncated)
                    expected.truncated[id_] = max(through, truncated)
                    gone = set(stream[truncated:through])
                    log = [each for each in log if each[:2] != (tenant, id_) or each[2] not in gone]
                case "snapshot":
                    await one.save_snapshot(new_snapshot(id_, number + 1, "f", b'"%d"' % number), keep=2)
                    expected.snapshots[id_] = [number + 1, *expected.snapshots.get(id_, [])][:2]
                case "delete":
                    assert await one.delete_snapshots(id_) == len(expected.snapshots.pop(id_, []))
                case _:
                    assert await numbers(one.read(id_)) == stream[truncated:]
                    assert await one.version(id_) == len(stream)
        for tenant, one in stores.items():
            expected = model[tenant]
            for id_ in ("a", "b", "c-1"):
                versions = [found.version for found in await one.snapshots(id_)]
                assert versions == expected.snapshots.get(id_, [])
                assert await numbers(one.read(id_)) == expected.streams.get(id_, [])[expected.truncated.get(id_, 0) :]
            own = EventFilter(tenants=(tenant,))
            shown = [(event.tenant, event.stream_id, event.json()["number"]) async for event in one.read_all(where=own)]
            assert shown == [each for each in log if each[0] == tenant]
        everything = [(event.tenant, event.stream_id, event.json()["number"]) async for event in stores[""].read_all()]
        assert everything == log


class _Model:
    """What one tenant has: of each stream the numbers ever appended, how many were truncated, versions of snapshots."""

    def __init__(self) -> None:
        self.streams: dict[str, list[int]] = {}
        self.truncated: dict[str, int] = {}
        self.snapshots: dict[str, list[int]] = {}
