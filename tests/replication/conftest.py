"""Replicas in one process: each has a store of its own, and reads the others' when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest_asyncio

from tests.replication.replicas import Replicas


@pytest_asyncio.fixture
async def replicas() -> AsyncIterator[Replicas]:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        yield Replicas(stack)
