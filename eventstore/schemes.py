"""Which backend a URL's scheme names. The store itself knows no database."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, cast

from eventstore.backend import Backend
from eventstore.errors import InvalidStoreUrl
from eventstore.url import StoreUrl

# Named by import string, because the store knows no database. Other schemes come from the entry points
# of the group `eventstore.backends`.
_BACKENDS = {
    "sqlite": "backends.sqlite:SQLiteBackend",
    "postgresql": "backends.postgres:PostgresBackend",
    "postgres": "backends.postgres:PostgresBackend",
    "memory": "backends.memory:MemoryBackend",
    "redis": "backends.redis:RedisBackend",
    "rediss": "backends.redis:RedisBackend",
    "unix": "backends.redis:RedisBackend",
}
_ENTRY_POINTS = "eventstore.backends"


def backend_factory(scheme: str) -> Callable[[StoreUrl], Backend]:
    """What makes the backend of such URLs. Raises `InvalidStoreUrl` for a scheme that nobody installed."""
    if scheme in _BACKENDS:
        return cast("Callable[[StoreUrl], Backend]", imported(_BACKENDS[scheme]))
    known = {point.name: point for point in entry_points(group=_ENTRY_POINTS)}
    if scheme in known:
        return cast("Callable[[StoreUrl], Backend]", known[scheme].load())
    schemes = ", ".join(sorted({*_BACKENDS, *known}))
    raise InvalidStoreUrl(f"no backend is installed for {scheme}:// URLs; known schemes: {schemes}")


def imported(name: str) -> Any:
    """The object of an import string, `module:attribute`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
