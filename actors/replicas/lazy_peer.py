"""LazyPeer: a peer by URL, which is opened when it can be."""

from __future__ import annotations

from contextlib import AsyncExitStack

from actors.replicas.peer import Pull, Pulled, ReplicaNamed, StorePeer
from eventstore.store import EventStore


class LazyPeer:
    """It may be away when this replica starts. What is opened is closed with the `stack`."""

    def __init__(self, name: str, url: str, tenant: str, stack: AsyncExitStack) -> None:
        self._name = name
        self._url = url
        self._tenant = tenant or None
        self._stack = stack
        self._peer: StorePeer | None = None

    async def journal(self) -> ReplicaNamed | None:
        return await (await self._opened()).journal()

    async def pull(self, wish: Pull) -> Pulled:
        return await (await self._opened()).pull(wish)

    async def wait(self, after: int, timeout: float) -> None:
        await (await self._opened()).wait(after, timeout)

    async def _opened(self) -> StorePeer:
        if self._peer is None:
            store = EventStore.open(self._url, create=False, tenant=self._tenant)
            await self._stack.enter_async_context(store)
            self._peer = StorePeer(self._name, store)
        return self._peer
