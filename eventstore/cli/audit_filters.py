"""The conditions of an audit as options, the same for each of its commands."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import wraps
from typing import Annotated, Any

import typer

from eventstore.backend import EventFilter
from eventstore.cli.arguments import checked_name, whole
from eventstore.cli.exits import Exit, WrongUsage
from eventstore.contract.audit_query import AuditQuery
from eventstore.contract.json_condition import JsonCondition
from eventstore.errors import InvalidQuery

_AGO = re.compile(r"-(?P<count>[0-9]{1,9})(?P<unit>[smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Texts = list[str] | None
_TIME_HELP = "ISO 8601 with an offset, a date (midnight UTC), or back from now: -90s, -15m, -2h, -7d, -4w."


def _checked_tenants(names: Texts) -> Texts:
    # "" stands for the streams of no tenant.
    for name in filter(None, names or ()):
        checked_name(name)
    return names


def _filters(
    kind: Annotated[Texts, typer.Option(metavar="KIND", help="Of streams of this kind.")] = None,
    stream: Annotated[Texts, typer.Option(metavar="STREAM", help="Of the stream with this id.")] = None,
    type: Annotated[Texts, typer.Option(metavar="TYPE", help="With this stored name.")] = None,
    tag: Annotated[Texts, typer.Option(metavar="TAG", help="With this tag.")] = None,
    tenant: Annotated[
        Texts, typer.Option(metavar="NAME", callback=_checked_tenants, help="Of this tenant; '' is none.")
    ] = None,
    user: Annotated[Texts, typer.Option(metavar="USER", help="Of this user.")] = None,
    correlation: Annotated[Texts, typer.Option(metavar="ID", help="With this correlation id.")] = None,
    causation: Annotated[Texts, typer.Option(metavar="ID", help="With this causation id.")] = None,
    command: Annotated[Texts, typer.Option(metavar="ID", help="With this command id.")] = None,
    origin: Annotated[Texts, typer.Option(metavar="REPLICA", help="First recorded by this replica.")] = None,
    epoch: Annotated[
        list[int] | None, typer.Option(metavar="EPOCH", parser=whole(0), help="Written under this writer epoch.")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help=f"Recorded then or later. {_TIME_HELP}")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Recorded before that.")] = None,
    position_from: Annotated[
        int, typer.Option(metavar="POSITION", parser=whole(1), help="At this position or later.")
    ] = 1,
    position_to: Annotated[
        int | None, typer.Option(metavar="POSITION", parser=whole(1), help="At this position or earlier.")
    ] = None,
    where: Annotated[
        Texts,
        typer.Option(
            metavar="CONDITION",
            help="What the payload has at a JSON pointer: '/amount>=50', '/by/name=Ann', '/note*=late', or '/note', "
            "which asks that it is there. Operators: = != < <= > >= and *= (contains).",
        ),
    ] = None,
    meta: Annotated[
        Texts, typer.Option(metavar="CONDITION", help="The same of the metadata's values, such as '/ip=10.0.0.1'.")
    ] = None,
) -> AuditQuery:
    now = datetime.now(UTC)
    recorded_from, recorded_before = _moment(from_, "--from", now), _moment(to, "--to", now)
    if recorded_from is not None and recorded_before is not None and recorded_from > recorded_before:
        raise WrongUsage(f"--from {from_} is later than --to {to}: no event is in between")
    if position_to is not None and position_from > position_to:
        raise WrongUsage(f"--position-from {position_from} lies behind --position-to {position_to}: no event is there")
    try:
        return AuditQuery(
            EventFilter(_all(kind), _all(type), _all(tag), _all(stream), _all(tenant)),
            users=_all(user),
            correlation_ids=_all(correlation),
            causation_ids=_all(causation),
            command_ids=_all(command),
            origins=_all(origin),
            epochs=tuple(epoch or ()),
            recorded_from=recorded_from,
            recorded_before=recorded_before,
            after=position_from - 1,
            through=position_to,
            payload=tuple(JsonCondition.parse(text) for text in _all(where)),
            metadata=tuple(JsonCondition.parse(text) for text in _all(meta)),
        )
    except InvalidQuery as error:
        raise WrongUsage(str(error)) from error


def filtered(command: Callable[..., Exit]) -> Callable[..., Exit]:
    """A command with all the filters as options. It gets them as its `query`."""
    own = inspect.signature(command, eval_str=True)
    filters = inspect.signature(_filters, eval_str=True).parameters
    options = [each for name, each in own.parameters.items() if name != "query" and each.default is not each.empty]
    arguments = [each for name, each in own.parameters.items() if name != "query" and each.default is each.empty]

    @wraps(command)
    def run(**given: Any) -> Exit:
        query = _filters(**{name: given.pop(name) for name in filters})
        return command(query=query, **given)

    parameters = [*arguments, *filters.values(), *options]
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    vars(run)["__signature__"] = own.replace(parameters=keywords)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def _moment(text: str | None, option: str, now: datetime) -> datetime | None:
    """A moment out of what an option says. Raises `WrongUsage`."""
    if text is None:
        return None
    if ago := _AGO.fullmatch(text):
        try:
            return now - timedelta(**{_UNITS[ago["unit"]]: int(ago["count"])})
        except OverflowError as error:
            raise WrongUsage(f"{option} {text!r} is before all times that there are") from error
    try:
        if len(text) == len("2026-01-31"):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, tzinfo=UTC)
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise WrongUsage(f"{option} {text!r} is no time: write 2026-01-31T12:00:00Z, 2026-01-31 or -2h") from error
    if moment.tzinfo is None:
        raise WrongUsage(f"{option} {text!r} has no offset: add Z for UTC, or one such as +01:00")
    return moment


def _all(texts: Texts) -> tuple[str, ...]:
    return tuple(texts or ())
