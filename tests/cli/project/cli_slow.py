"""A projection that never comes to an end."""

from __future__ import annotations

import asyncio

import cli_ledger  # type: ignore[import-not-found]

from eventstore import Projection, event_handler


class Slow(Projection, name="slow", kinds=("Account",)):
    @event_handler
    async def deposited(self, _: cli_ledger.Deposited) -> None:
        await asyncio.sleep(3600)
