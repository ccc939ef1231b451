"""Alembic's entry to the journal's migrations, for two callers.

`eventstore.schema` hands over a connection (or, for SQL text, a URL) in the configuration's attributes. A
developer's `alembic` command hands over neither: the database comes from `-x url=…` or EVENTSTORE_URL.
"""

from __future__ import annotations

import os
from logging.config import fileConfig
from typing import Any

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from backends.tables import VERSION_TABLE, metadata
from eventstore.errors import EventStoreError
from eventstore.schema import dialect_of, transaction
from eventstore.url import StoreUrl, parse_store_url


def run() -> None:
    connection: Connection | None = context.config.attributes.get("connection")
    if connection is not None:
        migrate(connection)
    elif context.is_offline_mode():
        write_sql(dialect_of(context.config.attributes.get("url") or developers_url()))
    else:
        # Only for the command: in an application logging belongs to the application.
        if context.config.config_file_name is not None:
            fileConfig(context.config.config_file_name, disable_existing_loggers=False)
        with transaction(developers_url()) as connection:
            migrate(connection)


def migrate(connection: Connection) -> None:
    # No context.begin_transaction(): the connection is in the one transaction that covers everything, and its
    # owner commits. SQLite's DDL is transactional, whatever Alembic assumes of it.
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=is_ours,
        compare_server_default=True,
        transactional_ddl=True,
    )
    context.run_migrations()


def write_sql(dialect: str) -> None:
    context.configure(
        dialect_name=dialect,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        literal_binds=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def is_ours(name: str | None, type_: str, parent_names: Any) -> bool:
    """Leaves the user's own tables, which may stand in the same database, out of autogenerate."""
    return type_ != "table" or name in metadata.tables


def developers_url() -> StoreUrl:
    url = context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("EVENTSTORE_URL")
    if not isinstance(url, str):
        raise CommandError(
            "say which database: `alembic -x url=sqlite:///dev.db …`, or set the variable EVENTSTORE_URL"
        )
    return parse_store_url(url)


try:
    run()
except EventStoreError as error:
    if context.config.config_file_name is None:
        raise
    # The alembic command shows its own errors as one line.
    raise CommandError(str(error)) from error
