"""Postgres's and asyncpg's errors as this package's, in one place."""

from __future__ import annotations

from backends.postgres_driver import ClientError, InternalClientError, ServerError, sqlstate
from backends.tables import SCHEMA_REVISION
from eventstore.errors import (
    BackendUnavailable,
    CapabilityError,
    EventEncodeError,
    EventStoreError,
    InvalidStoreUrl,
    JournalCorrupt,
    OutcomeUnknown,
    SchemaError,
    StorageFull,
    StoreBusy,
    StoreFenced,
)

# The session ends with these, and may have committed before it did: a shutdown, a crash of another session, an
# idle transaction that was cut off.
_SESSION_ENDED = ("57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04")

# A row that another append was faster with, a serialization failure, a deadlock.
_OTHER_WRITERS = ("23505", "40001", "40P01")

_AGAIN = "nothing was stored by this call: try again"
ROLLED_BACK = "the transaction was rolled back, nothing of it was stored: run it again"


def translated(error: BaseException, *, writing: bool) -> EventStoreError:
    """The error of a statement or a connection. While `writing`, a session that ended leaves the outcome unknown."""
    if isinstance(error, ServerError):
        return _refused(error, writing=writing)
    return _lost(f"{type(error).__name__}: {first_line(error)}", writing=writing)


def is_lost(error: BaseException) -> bool:
    """Whether the connection is gone: it failed, not the statement."""
    state = sqlstate(error)
    if state:
        return state.startswith("08") or state in _SESSION_ENDED
    return isinstance(error, (OSError, ClientError, InternalClientError))


def fence_of(error: BaseException) -> str | None:
    """Why the journal is fenced, if that is what has refused a statement (`postgres_archive`)."""
    return first_line(error) if sqlstate(error) == "ES001" else None


def may_be_decided_again(error: BaseException) -> bool:
    """Whether the statement stored nothing because of somebody else's append: the next try sees what it stored."""
    return sqlstate(error) in _OTHER_WRITERS


def was_outdated(error: BaseException) -> bool:
    """Whether a statement that moves streams on at once has failed because one is not as it was remembered."""
    return sqlstate(error) == "22P02"


def _refused(error: BaseException, *, writing: bool) -> EventStoreError:
    reason = f"Postgres: {first_line(error)} (SQLSTATE {sqlstate(error)})"
    match sqlstate(error):
        case state if is_lost(error) and state != "57P03":
            return _lost(reason, writing=writing)
        case "ES001":
            return StoreFenced("", first_line(error))
        case "53100" | "53400":
            return StorageFull(f"the server's disk is full: free some space; {reason}")
        case "53300":
            return BackendUnavailable(
                f"the server has no connection left: raise max_connections, or lower pool_size in the URL; {reason}"
            )
        case "55P03" | "40001" | "40P01" | "23505":
            return StoreBusy(f"other writers were in the way; {_AGAIN}; {reason}")
        case "57014":
            return BackendUnavailable(f"the statement ran into its time limit (command_timeout); {_AGAIN}; {reason}")
        case "25006":
            return BackendUnavailable(
                "this server can only be read, as a standby can: name the primary, or, if it is the role that can only "
                f"read, turn its default_transaction_read_only off; {reason}"
            )
        case "42501":
            return CapabilityError(
                f"the database role may not do this: grant it the right (docs/postgres.md has the list); {reason}"
            )
        case "42P01" | "42703" | "42883" | "3F000":
            return SchemaError(
                f"the journal's tables are not there as this version needs them; {reason}",
                found=None,
                expected=SCHEMA_REVISION,
            )
        case "3D000":
            return InvalidStoreUrl(f"the database does not exist: create it first (CREATE DATABASE); {reason}")
        case "28P01" | "28000":
            return BackendUnavailable(f"the server refuses this user, password or way of connecting; {reason}")
        case "22021" | "22P05":
            return EventEncodeError(f"an event holds bytes that are no UTF-8 text, nothing was stored; {reason}")
        case "XX001" | "XX002":
            return JournalCorrupt(f"the database is damaged: restore it from a copy; {reason}")
        case _:
            return BackendUnavailable(reason)


def _lost(reason: str, *, writing: bool) -> EventStoreError:
    if writing:
        return OutcomeUnknown(f"the connection was lost before the answer came: it may be stored or not; {reason}")
    return BackendUnavailable(f"the database cannot be reached; {reason}")


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that can quote a row's values."""
    return (str(error).splitlines() or [type(error).__name__])[0]
