"""PostgresDatabase: one database of the tests' Postgres, as any program could look at it and change it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import asyncpg

from eventstore.url import StoreUrl, parse_store_url
from tests.servers.databases import asyncio_run

# Everything a migration can make in a schema, in words that do not name the schema. They are texts: a `name` among them
# would cut off at 63 bytes what stands in its column.
_SHAPE = """
SELECT 'column', c.relname::text, a.attname::text,
       format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' ' || a.attidentity::text,
       replace(coalesce(pg_get_expr(d.adbin, d.adrelid), ''), n.nspname || '.', '')
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE n.nspname = $1 AND c.relkind IN ('r', 'v') AND a.attnum > 0
UNION ALL
SELECT 'relation', c.relname, c.relkind::text,
       replace(coalesce(pg_get_viewdef(CASE c.relkind WHEN 'v' THEN c.oid END), ''), n.nspname || '.', ''),
       coalesce(array_to_string(c.reloptions, ' '), '')
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1
UNION ALL
SELECT 'index', c.relname, replace(pg_get_indexdef(c.oid), n.nspname || '.', ''), '', ''
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'i'
UNION ALL
SELECT 'constraint', o.conname, replace(pg_get_constraintdef(o.oid), n.nspname || '.', ''), '', ''
  FROM pg_constraint o JOIN pg_namespace n ON n.oid = o.connamespace WHERE n.nspname = $1
UNION ALL
SELECT 'trigger', t.tgname, replace(pg_get_triggerdef(t.oid), n.nspname || '.', ''), t.tgenabled::text, ''
  FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND NOT t.tgisinternal
UNION ALL
SELECT 'function', p.proname, replace(pg_get_functiondef(p.oid), n.nspname || '.', ''), '', ''
  FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = $1
ORDER BY 1, 2, 3
"""


class PostgresDatabase:
    def __init__(self, raw_url: str) -> None:
        self.url = parse_store_url(raw_url)

    def with_parameters(self, **parameters: str) -> StoreUrl:
        """The database's URL with more parameters."""
        joined = "&".join(f"{name}={value}" for name, value in parameters.items())
        return parse_store_url(self.url.raw + ("&" if "?" in self.url.raw else "?") + joined)

    @property
    def dsn(self) -> str:
        return urlsplit(self.url.raw)._replace(query="").geturl()

    def fetch(self, query: str, *arguments: object) -> list[tuple[Any, ...]]:
        async def fetch() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.dsn, timeout=10, command_timeout=30)
            try:
                return [tuple(row) for row in await connection.fetch(query, *arguments)]
            finally:
                await connection.close()

        return asyncio_run(fetch())

    def execute(self, script: str) -> None:
        """Run several statements as one text, as psql does with a file."""

        async def execute() -> None:
            connection = await asyncpg.connect(self.dsn, timeout=10, command_timeout=30)
            try:
                await connection.execute(script)
            finally:
                await connection.close()

        asyncio_run(execute())

    def relations(self, schema: str = "public") -> list[str]:
        query = (
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = $1 ORDER BY 1"
        )
        return [row[0] for row in self.fetch(query, schema)]

    def shape(self, schema: str = "public") -> list[tuple[Any, ...]]:
        """Everything in a schema, described so that two schemas can be compared."""
        return self.fetch(_SHAPE, schema)
