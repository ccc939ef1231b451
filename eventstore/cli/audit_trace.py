"""`eventstore audit trace`: what came of one request, as a tree of causes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from eventstore.auditing.audit_trace import MOST_EVENTS, Trace, TraceNode, trace
from eventstore.cli.arguments import Json, Url, whole
from eventstore.cli.escaping import escaped
from eventstore.cli.exits import CommandFailed, Exit
from eventstore.cli.messages import Messages
from eventstore.cli.output import View, drawn, flush, listing, timestamp, write_line
from eventstore.cli.recorded import event_record
from eventstore.store import EventStore

# A deeper tree is not indented further: it would leave the terminal, and take room that grows with its square.
_DEEPEST = 24


def trace_command(
    context: typer.Context,
    url: Url,
    correlation: Annotated[str, typer.Argument(metavar="CORRELATION", help="The request's correlation id.")],
    limit: Annotated[
        int, typer.Option(metavar="COUNT", parser=whole(1, 100_000), help="At most so many events, up to 100,000.")
    ] = MOST_EVENTS,
    json: Json = False,
) -> Exit:
    """Show the commands and the events of one request, in all streams, each below what caused it.

    Where the output is no terminal, each line has: depth, id, what caused it, position, time, stream, version and type;
    a command is an id without the rest.

    \b
    Example:
      eventstore audit trace sqlite:///bank.db request-4711
    """
    return asyncio.run(_trace(context.obj, url, correlation, limit, json=json))


async def _trace(messages: Messages, url: str, correlation: str, limit: int, *, json: bool) -> Exit:
    async with EventStore.open(url, create=False) as store:
        found = await trace(store, correlation, limit=limit)
    if not found.events:
        raise CommandFailed(f"no event has the correlation id {correlation!r}")
    if not json and sys.stdout.isatty():
        _write_tree(found)
    else:
        rows = listing(_NODES, json=json)
        for node in found:
            rows.add(node)
        rows.flush()
    if not found.is_complete:
        messages.note(f"there are more events than the first {limit:,}: --limit")
    return Exit.FINE


def _write_tree(found: Trace) -> None:
    nodes = list(found)
    for node, (stem, branch) in zip(nodes, _branches(nodes), strict=True):
        recorded = node.recorded
        if recorded is None:
            write_line((drawn(stem + branch), "dim"), ("command ", ""), (escaped(node.id), "bold"))
            continue
        place = f"{escaped(recorded.stream_id)} {recorded.version}"
        when = f"  {timestamp(recorded.recorded_at)}  position {recorded.position}"
        write_line((drawn(stem + branch), "dim"), (escaped(recorded.type), "bold"), (f"  {place}", ""), (when, "dim"))
    flush()


def _branches(nodes: list[TraceNode]) -> Iterator[tuple[str, str]]:
    """The lines in front of each node: they go on where another node of the same cause follows."""
    follows = [False] * len(nodes)
    open_at: dict[int, bool] = {}
    for index in range(len(nodes) - 1, -1, -1):
        depth = nodes[index].depth
        follows[index] = open_at.get(depth, False)
        open_at = {level: is_open for level, is_open in open_at.items() if level < depth} | {depth: True}
    stems: list[bool] = []
    for node, goes_on in zip(nodes, follows, strict=True):
        stems[node.depth :] = [goes_on]
        if node.depth == 0:
            yield "", ""
        elif node.depth > _DEEPEST:
            yield "   " * (_DEEPEST - 1), f"… {node.depth} "
        else:
            yield "".join("│  " if line else "   " for line in stems[1 : node.depth]), "├─ " if goes_on else "└─ "


def _cells(node: TraceNode) -> tuple[str, ...]:
    recorded = node.recorded
    own = (str(node.depth), escaped(node.id), escaped(node.parent or ""))
    if recorded is None:
        return (*own, "", "", "", "", "")
    return (
        *own,
        str(recorded.position),
        timestamp(recorded.recorded_at),
        escaped(recorded.stream_id),
        str(recorded.version),
        escaped(recorded.type),
    )


def _record(node: TraceNode) -> Mapping[str, Any]:
    event = None if node.recorded is None else event_record(node.recorded)
    return {"id": node.id, "parent": node.parent, "depth": node.depth, "event": event}


_NODES = View(
    ("DEPTH", "ID", "CAUSE", "POSITION", "TIME", "STREAM", "VERSION", "TYPE"),
    _cells,
    _record,
    7,
    frozenset({"DEPTH", "POSITION", "VERSION"}),
)
