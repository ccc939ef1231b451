"""The arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import typer

from eventstore.contract.pages import MAX_POSITION
from eventstore.errors import InvalidTenant
from eventstore.store import EventStore
from eventstore.tenant import checked_tenant

MOST = MAX_POSITION
"""The greatest version, position or count that a database holds."""

_YEAR = 366 * 86_400

Url = Annotated[str, typer.Argument(metavar="URL", help="The store, such as sqlite:///bank.db", show_default=False)]
Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:CLASS",
        help="The actor's class, such as bank:Account; modules are looked for in the current directory too.",
        show_default=False,
    ),
]


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Reads a whole number that lies between two, both included. What is none is answered in our words: Typer's are
    others in each of its releases."""
    to = "on" if most == MOST else f"to {most:,}"

    def read(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no whole number: give one from {least} {to}") from None
        if found < least:
            raise typer.BadParameter(f"{found} is too small: give a whole number from {least} {to}")
        if found > most:
            raise typer.BadParameter(f"{found} is too great: give a whole number from {least} to {most:,}")
        return found

    return read


def seconds(least: float) -> Callable[[str], float]:
    """The same of a duration, which lasts no longer than a year."""

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no number: give seconds, {least} or more") from None
        if not least <= found <= _YEAR:
            raise typer.BadParameter(
                f"{text!r} is too short, too long, or no time: give seconds, from {least} to {_YEAR:,} (a year)"
            )
        return found

    return read


def checked_name(tenant: str | None) -> str | None:
    """A tenant's name as it is, if it is one: what cannot be one is wrong usage."""
    try:
        return None if tenant is None else checked_tenant(tenant)
    except InvalidTenant as error:
        raise typer.BadParameter(str(error)) from error


Tenant = Annotated[
    str | None,
    typer.Option(
        "--tenant",
        metavar="NAME",
        callback=checked_name,
        help="Whose streams; without it those of no tenant, and the whole log is everybody's.",
        show_default=False,
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Rebuild from the first event, and use no snapshot.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors are JSON objects on stderr then.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The actor's key, such as alice.", show_default=False)]
# A text, for what is no number to be answered in our words.
At = Annotated[
    str | None,
    typer.Option(metavar="VERSION", help="The state after this event, by its number; 0 is before the first."),
]
AtTime = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="The state at this time: ISO 8601 with an offset, 2026-01-31T12:00:00Z"),
]


class Address(NamedTuple):
    """Where a command looks: which store, and as whom."""

    url: str
    tenant: str | None

    def store(self) -> EventStore:
        """The store, to be entered. A journal that is not there is not made."""
        return EventStore.open(self.url, create=False, tenant=self.tenant)
