"""The store under test. A backend's class gives its `url`; everything else follows from it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest
import pytest_asyncio

from backends.conformance.leases import Leases
from eventstore.backend import Backend
from eventstore.store import EventStore


class StoreFixtures:
    """`store` is open and empty; `backend` is the one behind it, for what the store does not pass on as it is."""

    # So that the tests run under both modes of pytest-asyncio.
    pytestmark: ClassVar = pytest.mark.asyncio

    @pytest.fixture
    def url(self) -> str:
        """An empty journal, a new one for every test."""
        raise NotImplementedError("a class that runs the contract has a fixture `url` of its own")

    @pytest_asyncio.fixture
    async def store(self, url: str) -> AsyncGenerator[EventStore, None]:
        async with EventStore.open(url) as store:
            yield store

    @pytest.fixture
    def backend(self, store: EventStore) -> Backend:
        return backend_of(store)

    @pytest_asyncio.fixture
    async def other(self, store: EventStore, url: str) -> AsyncGenerator[EventStore, None]:
        """A second store open on the same journal, as another process would have it."""
        if not store.capabilities.survives_restart:
            pytest.skip("two stores cannot have one journal on this backend (capabilities.survives_restart)")
        async with EventStore.open(url) as other:
            yield other

    @pytest_asyncio.fixture
    async def leases(self, store: EventStore) -> AsyncGenerator[Leases, None]:
        leases = Leases()
        try:
            yield leases
        finally:
            await leases.close()


def backend_of(store: EventStore) -> Backend:
    # The one place that looks behind the public door: the contract is about what stands there.
    return store._backend  # pyright: ignore[reportPrivateUsage]


@asynccontextmanager
async def reopened(store: EventStore) -> AsyncGenerator[EventStore, None]:
    """The journal closed and opened again: by a new store, or by the same one where nothing outlives it."""
    await store.close()
    raw = store.url.raw
    async with EventStore.open(raw) if store.capabilities.survives_restart else store as again:
        yield again
