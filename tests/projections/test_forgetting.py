"""A projection that is forgotten keeps no event, and one that is damaged stands in nobody's way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from eventstore import (
    DefinitionError,
    EventStore,
    JournalCorrupt,
    ProjectionBehind,
    ProjectionError,
    ProjectionRunner,
    rebuild,
)
from eventstore.read_models.projection_control import forget

from .ledger import Ledger, PartedLedger, PlainLedger, PlainPartedLedger, amounts, pay


@pytest.fixture(autouse=True)
def nothing_was_got() -> Iterator[None]:
    yield
    PlainLedger.got.clear()


async def run(store: EventStore, projection: type[Ledger] | type[PlainLedger]) -> None:
    await ProjectionRunner(store, projection).run(follow=False)


async def damage(store: EventStore, name: str) -> None:
    for part in await store.checkpoints():
        if part.name == name:
            assert await store._open.change_checkpoints([part.stored()._replace(state=b"[]")])


async def test_all_its_partitions_go_and_no_other_projection(store: EventStore):
    await pay(store, 1, 2)
    await run(store, PlainPartedLedger)
    await run(store, PlainLedger)
    for part in await store.checkpoints():
        await store.save_checkpoint(replace(part, position=0))
    assert await forget(store, "plain-parted") == 2
    with pytest.raises(ProjectionBehind, match="eventstore projections forget URL plain`"):
        await store.truncate("account-a", 2, reason="a test")
    assert await forget(store, "plain") == 1
    assert await store.truncate("account-a", 2, reason="a test") == 2
    with pytest.raises(ProjectionError, match="'plain' has never been run on this store; there are: none"):
        await forget(store, "plain")


async def test_one_that_is_damaged_stops_the_others_until_it_is_forgotten(store: EventStore):
    await pay(store, 1, 2)
    await run(store, PlainPartedLedger)
    await run(store, PlainLedger)
    await damage(store, "plain-parted")
    advice = "is damaged: forget it with `eventstore projections forget URL plain-parted`, and rebuild the projection"
    for refused in (run(store, PlainLedger), store.truncate("account-a", 2, reason="a test")):
        with pytest.raises(JournalCorrupt, match=advice):
            await refused
    assert await forget(store, "plain-parted") == 2
    await run(store, PlainLedger)
    assert await store.truncate("account-a", 2, reason="a test") == 2


@pytest.mark.sql_alone
@pytest.mark.parametrize("projection", [Ledger, PartedLedger])
async def test_a_rebuild_makes_it_anew_from_its_first_event(store: EventStore, projection: type[Ledger]):
    await pay(store, 1, 2)
    await run(store, projection)
    await damage(store, projection.name)
    await forget(store, projection.name)
    await pay(store, 3)
    await rebuild(store, projection)
    assert await amounts(store) == [1, 2, 3]
    await pay(store, 4)
    await run(store, projection)
    assert await amounts(store) == [1, 2, 3, 4]


async def test_it_is_not_forgotten_while_it_is_run(store: EventStore):
    await pay(store, 1)
    await run(store, PlainPartedLedger)
    first, _ = await store.checkpoints()
    await store.save_checkpoint(replace(first, runner="r", runner_name="web-1"))
    with pytest.raises(ProjectionError, match="'plain-parted' is run by web-1: end that first"):
        await forget(store, "plain-parted")
    assert len(await store.checkpoints()) == 2


class Renamed(Ledger, kinds=("account",)):
    pass


@pytest.mark.sql_alone
async def test_one_under_another_name_gets_the_tables_only_when_the_other_is_forgotten(store: EventStore):
    await pay(store, 1, 2)
    await run(store, Ledger)
    for refused in (run(store, Renamed), rebuild(store, Renamed)):
        with pytest.raises(DefinitionError, match=r"'ledger' writes \(ledger_entries\): .* name=\"ledger\""):
            await refused
    assert await amounts(store) == [1, 2]
    await forget(store, "ledger")
    await rebuild(store, Renamed)
    assert await amounts(store) == [1, 2]
    assert [one.name for one in await store.checkpoints()] == ["Renamed"]
