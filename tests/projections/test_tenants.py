"""Tenants: a projection of the store without a tenant gets everybody's events or some tenants', another one its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

import pytest
import pytest_asyncio

from eventstore import (
    DefinitionError,
    EventStore,
    InvalidTenant,
    Projection,
    ProjectionBehind,
    ProjectionRunner,
    RecordedEvent,
    event_handler,
)
from eventstore.read_models.completeness import check_completeness
from eventstore.read_models.projection_control import letter_event, live_checkpoint, replay_letter

from .ledger import Ledger, Paid, amounts, pay


class Everybodys(Projection, name="everybodys", kinds=("account",)):
    got: ClassVar[list[tuple[str, str, int]]] = []
    fails_on: int | None = None
    retries = 0

    @event_handler
    def paid(self, event: Paid, recorded: RecordedEvent) -> None:
        if event.amount == Everybodys.fails_on:
            raise ValueError("this amount cannot be")
        Everybodys.got.append((recorded.tenant, recorded.stream_id, event.amount))


class Some(Everybodys, name="some", kinds=("account",), tenants=("acme", "")):
    pass


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    Everybodys.got.clear()
    Everybodys.fails_on = None


@pytest_asyncio.fixture
async def acme(store: EventStore, url: str) -> AsyncIterator[EventStore]:
    async with EventStore.open(url, tenant="acme") as acme:
        yield acme


@pytest_asyncio.fixture
async def bolt(store: EventStore, url: str) -> AsyncIterator[EventStore]:
    async with EventStore.open(url, tenant="bolt") as bolt:
        yield bolt


async def run(store: EventStore, projection: type[Projection] = Everybodys) -> None:
    await ProjectionRunner(store, projection, lease_seconds=0.3).run(follow=False)


async def test_without_a_tenant_it_gets_everybodys_events(store: EventStore, acme: EventStore, bolt: EventStore):
    for amount, one in enumerate((acme, bolt, store, acme)):
        await pay(one, amount)
    await run(store)
    assert [(tenant, amount) for tenant, _, amount in Everybodys.got] == [
        ("acme", 0),
        ("bolt", 1),
        ("", 2),
        ("acme", 3),
    ]
    assert (await check_completeness(store, Everybodys)).is_complete


async def test_it_may_be_of_some_tenants(store: EventStore, acme: EventStore, bolt: EventStore):
    for amount, one in enumerate((acme, bolt, store, bolt)):
        await pay(one, amount)
    await run(store, Some)
    assert [tenant for tenant, *_ in Everybodys.got] == ["acme", ""]
    checkpoint = await live_checkpoint(store, "some")
    assert (checkpoint.events, checkpoint.tenants) == (2, ("acme", ""))
    assert (await check_completeness(store, Some)).is_complete
    # Each tenant's runs are its own.
    Everybodys.got.clear()
    await run(acme, Some)
    assert Everybodys.got == [("acme", "account-a", 0)]
    assert (await live_checkpoint(acme, "some")).events == 1
    assert await bolt.checkpoints() == []
    with pytest.raises(DefinitionError, match="bolt's"):
        await run(bolt, Some)


@pytest.mark.sql_alone
async def test_a_tables_rows_are_not_left_to_each_tenants_own_runs(store: EventStore, acme: EventStore):
    await pay(acme, 1)
    await pay(store, 2)
    with pytest.raises(DefinitionError, match="which all tenants would share"):
        await run(acme, Ledger)
    await run(store, Ledger)
    assert await amounts(store) == [1, 2]


async def test_a_projection_of_all_tenants_keeps_a_tenant_from_truncating_what_it_has_not_got(
    store: EventStore, acme: EventStore, bolt: EventStore
):
    await run(store, Some)
    for one in (acme, bolt):
        await pay(one, 1, 2)
    with pytest.raises(ProjectionBehind):
        await acme.truncate("account-a", 1, reason="test")
    # It does not want these.
    assert await bolt.truncate("account-a", 1, reason="test") == 1
    await run(store, Some)
    assert await acme.truncate("account-a", 1, reason="test") == 1
    # A tenant's own holds nobody else up.
    await run(bolt)
    for one in (acme, bolt):
        await pay(one, 3)
    with pytest.raises(ProjectionBehind):
        await bolt.truncate("account-a", 3, reason="test")
    await run(store, Some)
    assert await acme.truncate("account-a", 3, reason="test") == 2


async def test_a_dead_letter_is_found_whosever_it_is(store: EventStore, acme: EventStore):
    await pay(store, 1)
    await pay(acme, 7)
    Everybodys.fails_on = 7
    await run(store)
    (letter,) = (await live_checkpoint(store, "everybodys")).letters
    assert (letter.tenant, letter.stream_id, letter.version) == ("acme", "account-a", 1)
    event = await letter_event(store, letter)
    assert event is not None
    assert (event.tenant, event.json()) == ("acme", {"amount": 7})
    Everybodys.fails_on = None
    Everybodys.got.clear()
    assert await replay_letter(store, Everybodys, letter) is None
    assert Everybodys.got == [("acme", "account-a", 7)]
    assert (await live_checkpoint(store, "everybodys")).letters == ()


def test_tenants_are_several_good_names():
    with pytest.raises(DefinitionError, match="several names"):

        class _Text(Projection, tenants="acme"):
            pass

    with pytest.raises(InvalidTenant):

        class _Odd(Projection, tenants=("a/b",)):
            pass
