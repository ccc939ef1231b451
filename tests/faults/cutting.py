"""CuttingProxy: ends a connection at a chosen step of one exchange."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

from tests.servers.proxy import FaultProxy

# What was passed on arrives within this time: nothing but the loopback is in between.
_ARRIVAL_SECONDS = 0.02


class Step(Enum):
    """Where the connection ends."""

    BEFORE_THE_REQUEST = "nothing of the request arrives"
    IN_THE_REQUEST = "half of the request arrives"
    AFTER_THE_REQUEST = "the request arrives, and nobody waits for the reply"
    BEFORE_THE_REPLY = "the server has replied, and nothing of it arrives"
    IN_THE_REPLY = "half of the reply arrives"


class CuttingProxy(FaultProxy):
    """A proxy that cuts once, and counts it (`cuts`)."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.cuts = 0
        self._step: Step | None = None
        self._marker = b""
        self._replying: dict[Any, Step] = {}

    def cut(self, step: Step, *, at: bytes) -> None:
        """Cut the connection of the next request that holds the bytes `at`."""
        self._step = step
        self._marker = at

    async def _pass_up(self, reader: asyncio.StreamReader, link: Any) -> None:
        while piece := await reader.read(65_536):
            await self._delay()
            step = self._step
            if step is None or self._marker not in piece:
                await self._write(link.server, piece)
                continue
            self._step = None
            match step:
                case Step.BEFORE_THE_REQUEST:
                    return self._strike(link)
                case Step.IN_THE_REQUEST:
                    await self._write(link.server, piece[: len(piece) // 2])
                    await asyncio.sleep(_ARRIVAL_SECONDS)
                    return self._strike(link)
                case Step.AFTER_THE_REQUEST:
                    await self._write(link.server, piece)
                    # Not asyncio's way to close, which would drop what is not sent yet.
                    return self._strike(link)
                case Step.BEFORE_THE_REPLY | Step.IN_THE_REPLY:
                    self._replying[link] = step
                    await self._write(link.server, piece)
        link.server.write_eof()
        return None

    async def _pass_down(self, link: Any) -> None:
        while piece := await link.replies.read(65_536):
            self.bytes_from_server += len(piece)
            step = self._replying.pop(link, None)
            await self._delay()
            if step is Step.IN_THE_REPLY:
                await self._write(link.client, piece[: len(piece) // 2])
                await asyncio.sleep(_ARRIVAL_SECONDS)
            if step is not None:
                return self._strike(link)
            await self._write(link.client, piece)
        raise ConnectionResetError

    def _strike(self, link: Any) -> None:
        self.cuts += 1
        self._reset(link)
