"""What the reference says of the objects that `--json` prints is what they are; see `cli` in conftest.py, too, which
looks at those of every test."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from eventstore import EventStore, Metadata, NewEvent
from eventstore.backend import Claim, Owner
from eventstore.cli.reference import described
from eventstore.cli.shape import Shape, in_words
from eventstore.cli.shapes import SHAPES

from .conftest import PROJECT, Rewrite, Run
from .test_conflicts import build

ACCOUNT = "cli_ledger:Account"

# In this order: some need what others made. {dir} is a folder, {eu} and {us} are two replicas.
LINES = """
streams {url}
events {url} Account-alice
tail {url}
show {url} {account} alice
diff {url} {account} alice 1 3
blame {url} {account} alice
blame {url} {account} alice --all
bisect {url} {account} alice amount<60
fork {url} {account} alice {dir}/fork.db
replay {url} {account}
whatif {url} {account} alice --old . --new {dir}/new
verify {url}
owners {url}
owners {url} --streams
copy {url} sqlite:///{dir}/copy.db --verify
copy {eu} sqlite:///{dir}/moved.db --cutover
export {url}
migrate sqlite:///{dir}/new.db --sql
migrate sqlite:///{dir}/new.db --check
migrate sqlite:///{dir}/new.db
import sqlite:///{dir}/new.db
doctor {url}
doctor {eu}
doctor sqlite:///{dir}/none.db
rebuild snapshots {url} {account} alice
snapshot {url} {account} alice
projections run {url} cli_ledger:Amounts
dead-letters list {url}
dead-letters show {url} amounts 4
rebuild projections {url} cli_ledger:Amounts
projections list {url}
projections status {url} amounts
projections check {url} cli_ledger:Amounts
projections rebuild {url} cli_ledger:Amounts
rebuild projections {url} cli_parts:Parts
projections rebuild {url} cli_parts:Parts
projections status {url} amounts
audit query {url}
audit trace {url} request-1
audit stats {url}
audit keys new {dir}/seal.key
audit seal {url} --key {dir}/seal.key
audit prove {url} 1 --out {dir}/proof.json
audit verify --proof {dir}/proof.json --public-key {dir}/seal.key.pub
audit verify {url} --public-key {dir}/seal.key.pub
replication status {eu} --peer us={us}
conflicts list {eu}
conflicts show {eu} Shop-x 3 --resolver cli_shop:Shop
schema export cli_orders_v1 -o {dir}/schema.json
schema diff {dir}/schema.json cli_orders
retention plan {url} --keep-versions 1 --kind Account --no-snapshots
retention apply {url} --keep-versions 1 --kind Account --no-snapshots
damage
verify {url}
replay {url} {account}
audit verify {url} --public-key {dir}/seal.key.pub
schema check {url} cli_ledger --all
"""


@pytest.fixture
def printed(
    cli: Run, program: Run, own_url: str, rewrite: Rewrite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[object]]:
    """What every command prints with `--json`."""
    urls = {name: f"sqlite:///{tmp_path}/{name}.db" for name in ("eu", "us")}
    asyncio.run(prepare(own_url, urls))
    new = Path(shutil.copytree(PROJECT, tmp_path / "new")) / "cli_ledger.py"
    new.write_text(
        new.read_text("utf-8").replace("state.amount += event.amount", "state.amount -= event.amount"), "utf-8"
    )
    monkeypatch.setattr("cli_ledger.Amounts.fails_on", 40)
    found: dict[str, list[object]] = {}
    for line in LINES.split("\n")[1:-1]:
        if line == "damage":
            rewrite('payload = \'{"amount":"none"}\' WHERE position = 5')
            continue
        words = line.format(url=own_url, account=ACCOUNT, dir=tmp_path, **urls).split()
        name = next(name for name in names(words) if name in COMMANDS)
        form = ["--json"] if name in SHAPES else []
        # A test has no stdin that could be read, and these two modules define events of the same names.
        is_alone = name == "import" or "orders" in line
        result = (program if is_alone else cli)(*words, *form)
        assert result.code in (0, 1) or "none.db" in line, (line, result.err)
        if form:
            found.setdefault(name, []).extend(result.objects)
        if name == "projections run":
            monkeypatch.setattr("cli_ledger.Amounts.fails_on", None)
    return found


COMMANDS = {each.name.removeprefix("eventstore "): each.command for each in described() if not each.is_group}


def names(words: list[str]) -> Iterator[str]:
    """What the name of a command may be, the longest first."""
    return (" ".join(words[:count]) for count in (3, 2, 1))


async def prepare(url: str, replicas: dict[str, str]) -> None:
    await build(replicas)
    from cli_ledger import Deposited  # type: ignore[import-not-found]

    owner = Owner(uuid4().bytes, "web", 600)
    async with EventStore.open(url) as store:
        asked = NewEvent(Deposited(amount=1), metadata=Metadata(correlation_id="request-1"))
        await store.append("Note-2", [asked])
        await store.lease(owner).renew(b"{}")
        await store.claim_as(Claim("Account-alice", owner.id))


def test_every_command_with_json_has_shapes_and_no_other() -> None:
    with_json = {name for name, command in COMMANDS.items() if any("--json" in each.opts for each in command.params)}
    assert with_json == SHAPES.keys()


def test_every_object_that_is_printed_has_a_shape_and_every_shape_is_printed(printed: dict[str, list[object]]) -> None:
    without = [(name, found) for name, all_ in printed.items() for found in all_ if not _fits(SHAPES[name], found)]
    assert without == []
    unseen = [
        (name, shape.of)
        for name, shapes in SHAPES.items()
        for shape in shapes
        if not any(shape.fits(found) for found in printed.get(name, ()))
    ]
    assert unseen == []


def _fits(shapes: object, found: object) -> bool:
    assert isinstance(shapes, tuple)
    return any(shape.fits(found) for shape in shapes)


def test_a_shape_fits_what_it_says_alone() -> None:
    shape = Shape("each", {"a": "", "b?": "", "c": {"d": ""}, "e": [{"f": ""}]})
    assert shape.fits({"a": 1, "c": {"d": 2}, "e": []})
    assert shape.fits({"a": 1, "b": 1, "c": None, "e": [{"f": 1}]})
    for wrong in (
        {"c": None, "e": None},
        {"a": 1, "c": None, "e": None, "x": 1},
        {"a": 1, "c": {}, "e": None},
        {"a": 1, "c": None, "e": [{}]},
        {"a": 1, "c": None, "e": {"f": 1}},
        [],
    ):
        assert not shape.fits(wrong)
    assert in_words(shape.fields) == "`a`, `b` (not always there), `c` (`d`), `e` (a list, in each: `f`)"
