"""Patience: what a test sets up in a store with short timeouts, which on a busy machine run out now and then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TypeVar

from eventstore import BackendUnavailable, EventStore, OutcomeUnknown

PATIENCE_SECONDS = 60.0

T = TypeVar("T")


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """What comes of a call that is made until it is answered."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with suppress(BackendUnavailable, OutcomeUnknown):
                return await call()


@asynccontextmanager
async def opened_patiently(url: str) -> AsyncGenerator[EventStore]:
    async with AsyncExitStack() as stack:
        yield await patiently(lambda: stack.enter_async_context(EventStore.open(url)))
