"""SchemaTool: what a kind of database gives so that its journals can be migrated, and how it is found by a URL."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Protocol, TypeGuard, cast

from eventstore.errors import CapabilityError
from eventstore.url import StoreUrl

# Named by import string, as the store names its backends. Other schemes come from the entry points of the group
# `eventstore.schemas`: the name is the scheme, the value a factory that takes a `StoreUrl`.
_FACTORIES = {
    "sqlite": "eventstore.schema.sqlite:SQLiteSchema",
    "postgresql": "eventstore.schema.postgres:PostgresSchema",
    "postgres": "eventstore.schema.postgres:PostgresSchema",
    "redis": "backends.redis_schema:RedisSchema",
    "rediss": "backends.redis_schema:RedisSchema",
    "unix": "backends.redis_schema:RedisSchema",
}
_ENTRY_POINTS = "eventstore.schemas"


class SchemaTool(Protocol):
    """The journal under one URL, as migrations see it. Instances are made by a factory that takes a `StoreUrl`, raises
    `InvalidStoreUrl`, and opens nothing.

    The methods are called in threads of any kind, and block; their errors are those of `eventstore.errors`. An upgrade
    that dies anywhere leaves what was there before, or the whole; the recorded revision is never ahead of the tables.
    """

    @property
    def revisions(self) -> Sequence[str]:
        """The revisions this version knows, oldest first. The last one is what it makes and expects."""
        ...

    def check(self) -> str | None:
        """The revision of the journal there; None where there is none. Changes and creates nothing."""
        ...

    def upgrade(self, revision: str) -> None:
        """Bring the journal to one of `revisions`. One that is there already, or further, is left alone.

        Of two that do this at once one waits, at most for a while (`StoreBusy`), and then looks again. Raises
        `SchemaError` where the journal's revision is none of `revisions`.
        """
        ...


class WritesSQL(SchemaTool, Protocol):
    """A `SchemaTool` whose upgrade is SQL that somebody else can run as well."""

    def sql(self, revision: str) -> str:
        """What `upgrade` would run on an empty database, as text for the database's own program. Opens nothing."""
        ...


def tool_for(url: StoreUrl) -> SchemaTool:
    """Raises `CapabilityError` for a store that keeps no journal that could be migrated."""
    if url.scheme in _FACTORIES:
        module, _, name = _FACTORIES[url.scheme].partition(":")
        factory = getattr(importlib.import_module(module), name)
        return cast("Callable[[StoreUrl], SchemaTool]", factory)(url)
    for point in entry_points(group=_ENTRY_POINTS):
        if point.name == url.scheme:
            return cast("Callable[[StoreUrl], SchemaTool]", point.load())(url)
    raise CapabilityError(f"{url.scheme}:// stores have no schema: there is nothing to migrate")


def writes_sql(tool: SchemaTool) -> TypeGuard[WritesSQL]:
    return hasattr(tool, "sql")
