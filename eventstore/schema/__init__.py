"""The journal's schema in a database: its revision, and bringing it to this version's. All of it blocks.

Each kind of database has a module that knows how (`SchemaTool`); this is what stands before them all.
"""

from __future__ import annotations

from eventstore.schema.changes import check, current, head, sql, upgrade
from eventstore.schema.state import SchemaState
from eventstore.schema.tools import SchemaTool

__all__ = ["SchemaState", "SchemaTool", "check", "current", "head", "sql", "upgrade"]
