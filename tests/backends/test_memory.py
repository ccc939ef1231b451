"""MemoryBackend keeps the contract, and what is its own: journals by name."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from backends.conformance import BackendContract
from backends.conformance.events import happened, numbers
from eventstore import Durability, EventStore, InvalidStoreUrl

_NAMES = itertools.count(1)


class TestMemory(BackendContract):
    @pytest.fixture
    def url(self) -> str:
        return f"memory://contract-{next(_NAMES)}"

    @pytest_asyncio.fixture
    async def other(self, store: EventStore) -> AsyncGenerator[EventStore, None]:
        """Nothing outlives the process, but in it a journal with a name may be opened twice."""
        async with EventStore.open(store.url.raw) as other:
            yield other


async def test_every_store_without_a_name_has_a_journal_of_its_own():
    async with EventStore.open("memory://") as one, EventStore.open("memory://") as another:
        await one.append("a", happened(1))
        assert await numbers(another.read("a")) == []


async def test_stores_of_one_name_share_a_journal():
    async with EventStore.open("memory://shared") as one, EventStore.open("memory://shared") as another:
        await one.append("a", happened(1))
        assert await numbers(another.read("a")) == [1]


async def test_a_named_journal_outlives_its_stores():
    async with EventStore.open("memory://kept") as store:
        await store.append("a", happened(1))
    del store
    async with EventStore.open("memory://kept") as store:
        assert await numbers(store.read("a")) == [1]


async def test_a_journal_without_a_name_is_empty_at_first():
    async with EventStore.open("memory://") as store:
        await store.append("a", happened(1))
        assert await numbers(store.read_all()) == [1]


@pytest.mark.parametrize("url", ["memory:///path", "memory://name/path", "memory://?size=1"])
def test_a_url_with_a_path_or_parameters_is_refused(url: str):
    with pytest.raises(InvalidStoreUrl):
        EventStore.open(url)


async def test_it_promises_to_keep_nothing():
    async with EventStore.open("memory://") as store:
        assert store.durability is Durability.NONE
        assert not store.capabilities.survives_restart
        assert store.schema_revision is None
