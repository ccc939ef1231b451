"""What a Postgres server must be to keep a journal, checked on the live one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backends.postgres_driver import DRIVER_ERRORS
from backends.postgres_errors import translated
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.tables import SCHEMA_REVISION
from eventstore.errors import BackendUnavailable, DurabilityError, SchemaError, SchemaMissing
from eventstore.postgres_url import PostgresTarget
from eventstore.url import StoreUrl

_OLDEST = 13
_TRIGGERS = {
    "journal_events_no_update",
    "journal_events_no_delete",
    "journal_events_no_truncate",
    "journal_seals_no_change",
    "journal_seals_no_truncate",
}


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """What was found out about the server, and what its sessions need for it."""

    version: str
    revision: str
    is_pooled: bool


async def check_server(
    session: PostgresSession, sql: PostgresSQL, target: PostgresTarget, url: StoreUrl
) -> PostgresServer:
    """Refuse a server that is too old, a standby, less durable than the URL says, or without this version's journal."""
    try:
        (found,) = await session.fetch(sql.server)
        revisions: Sequence[Any] = await session.fetch(sql.revision) if found["has_revision"] else ()
        pid = session.server_pid
    except DRIVER_ERRORS as error:
        raise translated(error, writing=False) from error
    version = int(found["version"]) // 10_000
    if version < _OLDEST:
        raise BackendUnavailable(f"{target}: the server is Postgres {version}, the journal needs at least {_OLDEST}")
    if found["encoding"] != "UTF8":
        raise BackendUnavailable(
            f"{target}: the database's encoding is {found['encoding']}, which cannot hold every text: make one with "
            "ENCODING 'UTF8'"
        )
    if found["is_standby"]:
        raise BackendUnavailable(f"{target}: this server is a standby, which can only be read: name the primary")
    is_pooled = target.pooling == "transaction"
    if target.pooling == "auto":
        # A proxy that may give a client another server session has to tell it a made-up process id.
        is_pooled = pid != found["pid"]
    revision = _revision(found, revisions, sql, target, url)
    if target.durability == "power-loss":
        off = [name for name in ("fsync", "full_page_writes") if found[name] != "on"]
        if off:
            raise DurabilityError(
                f"{target}: the server runs with {' and '.join(f'{name}=off' for name in off)}, so a loss of power may "
                "cost what was confirmed: turn it on, or say durability=process-crash in the URL"
            )
    return PostgresServer(version=found["version_name"], revision=revision, is_pooled=is_pooled)


def _revision(found: Any, revisions: Any, sql: PostgresSQL, target: PostgresTarget, url: StoreUrl) -> str:
    remedy = f"run: eventstore migrate '{url}'"
    revision = str(revisions[0][0]) if revisions else None
    if revision is None:
        raise SchemaMissing(
            f"{target} has no journal in schema {target.schema!r}; {remedy}", found=None, expected=SCHEMA_REVISION
        )
    if revision != SCHEMA_REVISION:
        if revision > SCHEMA_REVISION:
            remedy = "it was made by a newer version of this package: upgrade the package"
        raise SchemaError(
            f"{target} has a journal of schema revision {revision}, this version needs {SCHEMA_REVISION}; {remedy}",
            found=revision,
            expected=SCHEMA_REVISION,
        )
    missing = sorted(_TRIGGERS - set(found["triggers"]))
    if missing or not found["has_events"]:
        raise SchemaError(
            f"{target}: the journal's triggers are not those of this version (missing or disabled: "
            f"{', '.join(missing)}); do not trust this journal before it is known who changed it",
            found=revision,
            expected=SCHEMA_REVISION,
        )
    return revision
