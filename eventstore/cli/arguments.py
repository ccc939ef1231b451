"""The arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[str, typer.Argument(metavar="URL", help="The store, such as sqlite:///bank.db", show_default=False)]
Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:CLASS",
        help="The actor's class, such as bank:Account; modules are looked for in the current directory too.",
        show_default=False,
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Rebuild from the first event, and use no snapshot.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors are JSON objects on stderr then.")]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The actor's key, such as alice.", show_default=False)]
At = Annotated[int | None, typer.Option(metavar="VERSION", min=0, help="The state after this event.")]
AtTime = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="The state at this time: ISO 8601 with an offset, 2026-01-31T12:00:00Z"),
]
