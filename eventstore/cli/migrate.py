"""`eventstore migrate`: bring a database's journal to this version's schema."""

from __future__ import annotations

from typing import Annotated

import typer

from eventstore.cli.arguments import Json, Url
from eventstore.cli.escaping import printable
from eventstore.cli.exits import Exit, WrongUsage
from eventstore.cli.output import write, write_fields, write_json, write_line
from eventstore.url import parse_store_url


def migrate(
    url: Url,
    to: Annotated[
        str, typer.Option("--to", metavar="REVISION", help="Bring it to this revision instead of the newest.")
    ] = "head",
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL that makes the journal; touch no database.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what would be done; exit 1 if anything.")] = False,
    json: Json = False,
) -> Exit:
    """Create the journal, or bring an older one to this version's schema, in one transaction.

    Other tables in the database are left alone. Make a copy of the database first.

    \b
    Examples:
      eventstore migrate sqlite:///bank.db --check
      eventstore migrate sqlite:///bank.db
    """
    if check and (sql or to != "head"):
        raise WrongUsage("--check goes with neither --sql nor --to")
    if sql:
        return _print_sql(url, to, json=json)
    return _check(url, json=json) if check else _migrate(url, to, json=json)


def _print_sql(url: str, revision: str, *, json: bool) -> Exit:
    from eventstore import schema

    text = schema.sql(parse_store_url(url), revision).rstrip("\n") + "\n"
    if json:
        write_json({"sql": text})
    else:
        write(text)
    return Exit.FINE


def _check(url: str, *, json: bool) -> Exit:
    from eventstore import schema

    parsed = parse_store_url(url)
    state = schema.check(parsed)
    if json:
        write_json({"url": str(parsed), **state._asdict(), "is_current": state.is_current})
    else:
        write_fields(
            {
                "url": printable(str(parsed)),
                "schema": printable(state.found or "none: there is no journal"),
                "expected": state.expected,
                "pending": ", ".join(state.pending) or ("made by a newer version" if state.is_newer else "nothing"),
            }
        )
    return Exit.FINE if state.is_current else Exit.WRONG


def _migrate(url: str, revision: str, *, json: bool) -> Exit:
    from eventstore import schema

    parsed = parse_store_url(url)
    before = schema.current(parsed)
    schema.upgrade(parsed, revision)
    after = schema.current(parsed)
    if json:
        write_json({"url": str(parsed), "before": before, "after": after})
    elif before == after:
        write_line((f"{printable(str(parsed))} is at schema revision {after} already: nothing was changed", ""))
    else:
        was = "there was no journal" if before is None else f"it was at {before}"
        write_line((f"{printable(str(parsed))} is at schema revision {after} now ({was})", ""))
    return Exit.FINE
