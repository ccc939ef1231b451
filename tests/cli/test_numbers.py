"""Numbers on the command line: what is none, or too small or too great, is answered in one way, before anything is
opened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.models import ParameterInfo

from eventstore import EventStore
from eventstore.cli.app import app

from .conftest import Run

URL = "sqlite:///nowhere.db"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("events", URL, "a", "--limit", "many"), "'--limit': 'many' is no whole number: give one from 0 on"),
        (("events", URL, "a", "--after", "1.5"), "'--after': '1.5' is no whole number: give one from 0 on"),
        (("audit", "stats", URL, "--top", ""), "'--top': '' is no whole number: give one from 0 to 1,000"),
        (
            ("audit", "trace", URL, "x", "--limit", "0"),
            "'--limit': 0 is too small: give a whole number from 1 to 100,000",
        ),
        (
            ("audit", "query", URL, "--epoch", "2", "--epoch", "-1"),
            "'--epoch': -1 is too small: give a whole number from",
        ),
        (("replay", URL, "x:Y", "--jobs", "33"), "'--jobs': 33 is too great: give a whole number from 1 to 32"),
        (("audit", "prove", URL, str(2**63)), "'POSITION': 9223372036854775808 is too great"),
        (("dead-letters", "purge", URL, "x", "9" * 5000), "is no whole number: give one from 1 on"),
        (("audit", "seal", URL, "--key", "k", "--within", "soon"), "'soon' is no number: give seconds, 0.1 or more"),
        (("audit", "seal", URL, "--key", "k", "--within", "inf"), "give seconds, from 0.1 to 31,622,400 (a year)"),
        (("projections", "run", URL, "x:Y", "--lease", "nan"), "give seconds, from 0.5 to 31,622,400 (a year)"),
        (("diff", URL, "cli_ledger:Account", "alice", "1", "9" * 5000), "is greater than any version"),
    ],
    ids=lambda value: value[-1][:9] if isinstance(value, tuple) else None,
)
def test_what_is_no_such_number_is_told_with_what_would_be(cli: Run, arguments: tuple[str, ...], message: str) -> None:
    result = cli(*arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def _parameters(commands: typer.Typer) -> Iterator[tuple[str, Any, ParameterInfo]]:
    for group in commands.registered_groups:
        assert group.typer_instance is not None
        yield from _parameters(group.typer_instance)
    for command in commands.registered_commands:
        callback: Callable[..., Any] | None = command.callback
        for name, hint in get_type_hints(callback, include_extras=True).items():
            for each in get_args(hint):
                if isinstance(each, ParameterInfo):
                    yield f"{getattr(callback, '__name__', '')} {name}", get_args(hint)[0], each


def _kinds(hint: Any) -> set[Any]:
    return {hint, *(kind for inner in get_args(hint) for kind in _kinds(inner))}


def test_every_number_of_every_command_is_read_in_this_way() -> None:
    numbers = {
        name: info
        for name, hint, info in _parameters(app)
        if not _kinds(hint).isdisjoint((int, float)) and hint is not bool
    }
    assert len(numbers) > 20
    assert [name for name, info in numbers.items() if info.parser is None] == []


def test_a_sample_that_is_larger_than_the_log_is_all_of_it(cli: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'journal.db'}"

    async def fill() -> None:
        from cli_ledger import Deposited  # type: ignore[import-not-found]

        async with EventStore.open(url) as store:
            await store.append("Account-a", [Deposited(amount=1) for _ in range(130)])

    asyncio.run(fill())
    result = cli("schema", "check", url, "cli_ledger", "--sample", str(2**63 - 1))
    assert (result.code, result.lines[-1]) == (0, "130 of 130 events decoded: all can be read")
