"""Alembic's entry to the journal's migrations, for two callers.

`eventstore.schema` hands over a connection, or what it takes to write SQL, in the configuration's attributes. A
developer's `alembic` command hands over neither: the database comes from `-x url=…` or EVENTSTORE_URL.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from logging.config import fileConfig
from typing import Any, Protocol, cast

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SAWarning
from sqlalchemy.schema import CreateSchema

from backends.tables import METADATA, VERSION_TABLE
from eventstore.errors import EventStoreError
from eventstore.schema.scripts import OfflineOptions
from eventstore.schema.tools import tool_for
from eventstore.url import StoreUrl, parse_store_url


class SQLTool(Protocol):
    """What `SQLiteSchema` and `PostgresSchema` have beyond a `SchemaTool`."""

    def in_transaction(self, work: Callable[[Connection], None]) -> None: ...

    def offline_options(self) -> OfflineOptions: ...


def run() -> None:
    attributes = context.config.attributes
    if "connection" in attributes:
        migrate(attributes["connection"])
    elif "dialect" in attributes:
        write_sql(attributes["dialect"], attributes["schema"])
    else:
        tool = sql_tool(developers_url())
        if context.is_offline_mode():
            write_sql(**tool.offline_options())
            return
        # Only for the command: in an application logging belongs to the application.
        if context.config.config_file_name is not None:
            fileConfig(context.config.config_file_name, disable_existing_loggers=False)
        tool.in_transaction(migrate)


def migrate(connection: Connection) -> None:
    ours = METADATA[connection.dialect.name]

    def is_ours(name: str | None, type_: str, parent_names: Any) -> bool:
        """Leaves the user's own tables, which may stand in the same database, out of autogenerate."""
        return type_ != "table" or name in ours.tables

    # No context.begin_transaction(): the connection is in the one transaction that covers everything, and its
    # owner commits. SQLite's DDL is transactional, whatever Alembic assumes of it.
    context.configure(
        connection=connection,
        target_metadata=ours,
        version_table=VERSION_TABLE,
        include_name=is_ours,
        compare_server_default=True,
        transactional_ddl=True,
    )
    with warnings.catch_warnings():
        # The journal has some on SQLite: Alembic passes over them, and a test compares them.
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based index", SAWarning)
        warnings.filterwarnings("ignore", "autogenerate skipping metadata-specified expression-based index")
        context.run_migrations()


def write_sql(dialect: str, schema: str | None) -> None:
    context.configure(
        dialect_name=dialect,
        # The usual one of Postgres stands for a driver that reads % as the start of a parameter, and doubles it. In
        # SQL that nothing but the server reads, the trigger that lets events go asked for a schema named %I.
        dialect_opts={"paramstyle": "named"},
        target_metadata=METADATA[dialect],
        version_table=VERSION_TABLE,
        literal_binds=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if schema is not None:
            # `public` is there already, and whoever runs this may lack the right to create schemas.
            if schema != "public":
                context.execute(CreateSchema(schema, if_not_exists=True))
            # A name checked by `postgres_target`: it needs no quotes beyond these.
            context.execute(f'SET LOCAL search_path TO "{schema}"')
        context.run_migrations()


def sql_tool(url: StoreUrl) -> SQLTool:
    tool = tool_for(url)
    if not hasattr(tool, "in_transaction"):
        raise CommandError(f"{url.scheme}:// stores are not migrated by Alembic: run `eventstore migrate`")
    return cast("SQLTool", tool)


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
