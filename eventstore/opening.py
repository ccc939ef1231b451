"""Opening a backend, and making the journal of an embedded database that has none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from eventstore.backend import Backend
from eventstore.errors import SchemaMissing
from eventstore.schemes import imported
from eventstore.url import StoreUrl

# By import string, because the store knows no database.
_CREATE_SCHEMA = "eventstore.schema:upgrade"


async def open_backend(backend: Backend, url: StoreUrl, *, creates: bool) -> None:
    """Open it. A new, empty embedded database gets its journal, if the store `creates` one. Raises as `Backend.open`
    does."""
    try:
        await backend.open()
    except SchemaMissing as error:
        if not backend.capabilities.creates_schema:
            # It says what to do, and nothing is ever created there.
            raise
        if not creates:
            raise SchemaMissing(
                f"{url} holds no journal ({error}): nothing was created; to make one, run: eventstore migrate {url}",
                found=error.found,
                expected=error.expected,
            ) from error
        create_schema = cast("Callable[[StoreUrl], None]", imported(_CREATE_SCHEMA))
        await asyncio.to_thread(create_schema, url)
        await backend.open()
