"""`eventstore schema`: what is stored is read with the code at hand before it is deployed, not after."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Le
from pydantic import BaseModel, TypeAdapter, ValidationError

from eventstore import EventStore
from eventstore.backend import Expected, StreamWrite
from eventstore.cli.compatibility import misfits
from eventstore.codec import encoded_event, new_event_id

from .conftest import PROJECT, Run

LEDGER = "cli_ledger"
MISSING = "is required, and may be missing in what is stored"


def alone(*arguments: object) -> tuple[int, list[Any], str]:
    """The program in a process of its own: both versions of a module cannot be imported in one."""
    done = subprocess.run(
        [sys.executable, "-m", "eventstore.cli", *map(str, arguments)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_the_export_has_every_event_command_and_state_and_is_the_same_each_time(cli: Run) -> None:
    first, second = cli("schema", "export", LEDGER), cli("schema", "export", LEDGER)
    exported = json.loads(first.out)

    assert (first.code, first.out) == (0, second.out)
    assert exported["events"].keys() == {"cli-ledger.deposited", "cli-ledger.stray"}
    assert exported["events"]["cli-ledger.deposited"]["schema"]["properties"].keys() == {"amount", "note"}
    assert exported["commands"].keys() == {"cli_ledger:Deposit"}
    assert exported["commands"]["cli_ledger:Deposit"]["reply"] == {"type": "integer"}
    assert exported["states"].keys() == {"Account"}


def test_an_export_is_written_to_a_file_and_compared_with_the_code(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert cli("schema", "export", LEDGER, "--output", str(path)).out == ""
    assert cli("schema", "diff", str(path), LEDGER) == (0, "", "")


def test_upcasters_that_lead_nowhere_are_a_fault_of_the_code_and_not_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert alone("schema", "export", "cli_orders_v1", "-o", path)[0] == 0
    url = f"sqlite:///{tmp_path}/journal.db"
    assert alone("migrate", url)[0] == 0
    for command in (("check", url), ("diff", path)):
        code, lines, said = alone("schema", *command, "cli_gap")
        assert (code, lines) == (1, [])
        assert "cli-gap.paid" in said


def test_changes_are_classified(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    assert alone("schema", "export", "cli_orders_v1", "-o", path)[0] == 0
    exported = json.loads(path.read_text())
    exported["commands"] = {"cli_orders:Add": exported["commands"]["cli_orders_v1:Add"]}
    path.write_text(json.dumps(exported))
    code, lines, _ = alone("schema", "diff", path, "cli_orders")

    assert code == 1
    assert [line.split("\t") for line in lines] == [
        ["breaking", "event 'cli-orders.gone'", "has no class any more: what is stored under that name cannot be read"],
        [
            "needs an upcaster",
            "event 'cli-orders.ordered'",
            "$.colour is required, and may be missing in what is stored",
        ],
        ["compatible", "event 'cli-orders.paid'", "went from version 1 to 2, and is read through an upcaster"],
        ["compatible", "event 'cli-orders.refunded'", "is new"],
        ["compatible", "state of 'order'", "changed: its snapshots are left aside, and states are replayed"],
    ]


async def write_orders(url: str) -> None:
    payloads = {
        "ordered": [b'{"item":"a","count":1}'] * 3 + [b'{"item":"a","count":1,"colour":"red"}'],
        "paid": [b'{"euros":1}', b'{"pounds":1}'],
        "gone": [b'{"text":"a"}'],
        "refunded": [b'{"cents":1}'],
    }
    async with EventStore.open(url) as store:
        for type_, stored in payloads.items():
            for payload in stored:
                event_id = new_event_id()
                event = encoded_event(event_id, f"cli-orders.{type_}", 1, payload, None, event_id)
                await store._backend.append([[StreamWrite("order-1", Expected.ANY, [event])]])


@pytest.mark.parametrize("how", [["--all"], [], ["--sample", "1"]])
def test_what_cannot_be_read_is_listed_by_type_with_the_first_event_of_each(tmp_path: Path, how: list[str]) -> None:
    url = f"sqlite:///{tmp_path}/orders.db"
    asyncio.run(write_orders(url))
    code, lines, _ = alone("schema", "check", url, "cli_orders", *how)
    rows = [line.split("\t") for line in lines[:-1]]

    assert code == 1
    assert [row[:5] for row in rows if row[0] != "cli-orders.gone"] == [
        ["cli-orders.ordered", "1", "3", "order-1", "1"],
        ["cli-orders.paid", "1", "1", "order-1", "5"],
        ["cli-orders.paid", "1", "1", "order-1", "6"],
    ]
    problems = [row[5] for row in rows]
    assert "colour: Field required" in problems[-3]
    assert problems[-2] == "no actor of kind 'order' has an @event_handler for Paid"
    assert "in_cents from version 1 failed: KeyError" in problems[-1]
    # A sample of one event sees the types that the module knows, and need not see others.
    if how != ["--sample", "1"]:
        assert rows[0][:5] == ["cli-orders.gone", "1", "1", "order-1", "7"]
        assert lines[-1] == "8 of 8 events decoded: not all can be read"


def test_a_sound_journal_is_no_problem(cli: Run, url: str) -> None:
    done = cli("schema", "check", url, LEDGER, "--all", "--json")
    summary = json.loads(done.lines[-1])["summary"]
    assert (done.code, summary["problems"], len(done.lines)) == (0, 0, 1)
    assert summary["events"] == summary["of"] == 10


def test_a_damaged_event_is_told_and_the_others_are_decoded(cli: Run, own_url: str, rewrite: Any) -> None:
    rewrite("payload = '{\"amount\":11}' WHERE position = 1")
    done = cli("schema", "check", own_url, LEDGER, "--all")
    assert done.code == 1
    assert "the event at version 1 is damaged" in done.lines[0]


def test_modules_without_events_are_noted(cli: Run, url: str) -> None:
    assert "no event is defined in json" in cli("schema", "check", url, "json").err


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"{", "is no JSON"), (b"[]", "is no export"), (b"{}", "is no export")],
)
def test_a_file_that_is_no_export_is_wrong_usage(cli: Run, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    done = cli("schema", "diff", str(path), LEDGER)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


class Tree(BaseModel):
    value: int
    below: list[Tree] = []


class TextTree(BaseModel):
    value: str
    below: list[TextTree] = []


class LaterTree(BaseModel):
    value: float
    below: list[LaterTree] = []
    note: str = ""


class One(BaseModel):
    a: int
    b: str = ""


class Fewer(BaseModel):
    a: int


class Stricter(BaseModel):
    a: int
    b: str


FITS = [
    (int, int),
    (int, float),
    (int, int | None),
    (int | None, str | int | None),
    (int, Any),
    (Literal["a"], Literal["a", "b"]),
    (Literal["a"], str),
    (list[int], list[float]),
    (tuple[int, str], tuple[int, str]),
    (tuple[int, int], list[int]),
    (dict[str, int], dict[str, int | None]),
    (One, Fewer),
    (Fewer, One),
    (One, dict[str, int | str]),
    (Tree, LaterTree),
    (Annotated[int, Ge(3), Le(5)], Annotated[int, Ge(2)]),
]
DOES_NOT = [
    (int, str),
    (float, int),
    (int | None, int),
    (str | int, int),
    (Any, int),
    (Literal["a", "b"], Literal["a"]),
    (str, Literal["a"]),
    (list[int], list[str]),
    (tuple[int, str], tuple[int, int]),
    (list[str | int], list[int]),
    (dict[str, int], dict[str, str]),
    (One, Stricter),
    (One, dict[str, int]),
    (dict[str, int], One),
    (Tree, TextTree),
    (Annotated[int, Ge(2)], Annotated[int, Ge(3)]),
    (int, Annotated[int, Le(3)]),
]


def reasons(old: Any, new: Any) -> list[str]:
    return list(misfits(TypeAdapter(old).json_schema(), TypeAdapter(new).json_schema()))


@pytest.mark.parametrize(("old", "new"), FITS, ids=str)
def test_what_still_fits_is_compatible(old: Any, new: Any) -> None:
    assert reasons(old, new) == []


@pytest.mark.parametrize(("old", "new"), DOES_NOT, ids=str)
def test_what_may_not_fit_is_not(old: Any, new: Any) -> None:
    assert reasons(old, new)


VALUES: list[Any] = [0, 2, 4, 9, 1.5, "a", "b", None, [1], ["a"], [1, "a"], {"a": 1}, {"a": 1, "b": "x"}, {"b": 1}, {}]


@pytest.mark.parametrize("old", sorted({str(pair[0]): pair[0] for pair in FITS + DOES_NOT}.items()), ids=lambda o: o[0])
def test_nothing_that_is_called_compatible_fails_to_decode(old: tuple[str, Any]) -> None:
    kept = [json.dumps(value) for value in VALUES if decodes(old[1], json.dumps(value))]
    adapter = TypeAdapter(old[1])
    written = [adapter.dump_json(adapter.validate_json(text)).decode() for text in kept]
    for _, new in FITS + DOES_NOT:
        if not reasons(old[1], new):
            assert [text for text in written if not decodes(new, text)] == [], new


def decodes(annotation: Any, text: str) -> bool:
    try:
        TypeAdapter(annotation).validate_json(text, strict=True)
    except ValidationError:
        return False
    return True
