"""The migrations as Alembic runs them, configured in memory: for every database that SQLAlchemy has a dialect for."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from eventstore.errors import EventStoreError, SchemaError
from eventstore.schema.state import state_of
from eventstore.url import StoreUrl

VERSION_TABLE: Final = "eventstore_version"


class OfflineOptions(TypedDict):
    """What `migrations/env.py` must know to write SQL. `schema` is None where a database has no schemas."""

    dialect: str
    schema: str | None


# Alembic keeps the running migration in module globals, so two threads must not migrate at once.
_alembic = threading.Lock()


def revisions() -> tuple[str, ...]:
    """All that there are, oldest first: they are one line, without branches."""
    walk = ScriptDirectory.from_config(_config()).walk_revisions()
    return tuple(reversed([script.revision for script in walk]))


def found_in(connection: Connection) -> str | None:
    """The revision that the database says its journal has."""
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return ", ".join(sorted(context.get_current_heads())) or None


def run_on(connection: Connection, revision: str, url: StoreUrl) -> None:
    """Bring the journal to a revision, within the connection's transaction, which holds the migrators' lock."""
    known = revisions()
    state = state_of(found_in(connection), known)
    if state.is_newer:
        # Whoever held the lock before was of a later release.
        raise SchemaError(
            f"{url}: the journal has schema revision {state.found} now, this version expects {state.expected}",
            found=state.found,
            expected=state.expected,
        )
    if revision not in state.pending:
        return
    with _alembic:
        command.upgrade(_config(connection=connection), revision)


def text_for(revision: str, **offline: Unpack[OfflineOptions]) -> str:
    """The SQL of all migrations up to a revision, as one transaction."""
    text = io.StringIO()
    with _alembic:
        command.upgrade(_config(text, **offline), revision, sql=True)
    return text.getvalue()


def _config(output: io.StringIO | None = None, **attributes: Any) -> Config:
    config = Config(output_buffer=output)
    # ConfigParser reads % as the start of an interpolation.
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.attributes.update(attributes)
    return config


def _folder() -> Path:
    package = Path(__file__).parent.parent
    # In a wheel they stand inside the package, in a checkout beside it.
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "versions" / "0001_journal.py").is_file():
            return folder
    raise EventStoreError(f"the migrations are missing from {package}: install eventstore-actors again")
