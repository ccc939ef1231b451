"""Looking at a journal's revision and changing it, whatever database it is in."""

from __future__ import annotations

from eventstore.errors import CapabilityError, SchemaError
from eventstore.schema.state import SchemaState, state_of
from eventstore.schema.tools import SchemaTool, tool_for, writes_sql
from eventstore.url import StoreUrl, parse_store_url

HEAD = "head"
_EMBEDDED = "sqlite:///journal.db"


def upgrade(url: StoreUrl, revision: str = HEAD) -> None:
    """Bring the database's journal to a revision, in one transaction: a crash leaves what was, or the whole.

    Other tables in the database are left alone. A journal that is at the revision, or beyond it, is left alone too.
    Another process that is upgrading is waited for. A SQLite file that does not exist is created, readable by its
    owner alone, in a directory that must exist; a Postgres database must exist, its schema is created.

    Raises `SchemaError` for an unknown revision, a newer journal, a file that is no database, tables that bear the
    journal's names without being it, and a role without the rights; `CapabilityError` for a store without a schema;
    `InvalidStoreUrl`, `BackendUnavailable` (`StoreBusy`, `StorageFull`) or `JournalCorrupt` where the database cannot
    be used. The journal is then what it was, or whole: running this again is safe.
    """
    tool = tool_for(url)
    target = _target(tool, revision, url)
    state = _checked(_state(tool), url)
    if state.is_current or target not in state.pending:
        return
    tool.upgrade(target)


def check(url: StoreUrl) -> SchemaState:
    """The state of the database's journal. Changes nothing, and creates no file.

    Raises `SchemaError` for a file that is no database, and as `upgrade` does where it cannot be read.
    """
    return _state(tool_for(url))


def current(url: StoreUrl) -> str | None:
    """The revision of the database's journal; None where there is none. Raises as `check` does."""
    return tool_for(url).check()


def head(url: StoreUrl | None = None) -> str:
    """The revision this version expects in the database of a URL; without one, in the SQL databases."""
    return tool_for(url or parse_store_url(_EMBEDDED)).revisions[-1]


def sql(url: StoreUrl, revision: str = HEAD) -> str:
    """The SQL that makes the journal in an empty database, for someone else to run. No database is opened.

    Raises `SchemaError` for an unknown revision, `CapabilityError` for a database without SQL.
    """
    tool = tool_for(url)
    if not writes_sql(tool):
        raise CapabilityError(f"{url.scheme}:// stores are not made by SQL: run `eventstore migrate` on them")
    return tool.sql(_target(tool, revision, url))


def _state(tool: SchemaTool) -> SchemaState:
    return state_of(tool.check(), tool.revisions)


def _target(tool: SchemaTool, revision: str, url: StoreUrl) -> str:
    revisions = tool.revisions
    if revision == HEAD:
        return revisions[-1]
    if revision not in revisions:
        raise SchemaError(
            f"{url}: there is no schema revision {revision!r}; those of this version are {', '.join(revisions)}: "
            "nothing was changed",
            found=None,
            expected=revisions[-1],
        )
    return revision


def _checked(state: SchemaState, url: StoreUrl) -> SchemaState:
    if state.is_newer:
        raise SchemaError(
            f"{url}: the journal has schema revision {state.found}, this version expects {state.expected}: "
            "install the eventstore-actors release that made it; a journal is never downgraded",
            found=state.found,
            expected=state.expected,
        )
    return state
