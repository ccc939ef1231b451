"""What the README shows works as it is printed."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from eventstore import Durability, EventStore, InvalidStoreUrl

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def table_of_databases() -> dict[str, dict[str, str]]:
    """For each database its column of the table: what stands in each row."""
    lines = README.partition("## Databases")[2].partition("\n## ")[0].splitlines()
    heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|")
    names = heading[1:]
    return {name: {row[0]: row[number] for row in rows} for number, name in enumerate(names, start=1)}


def run(program: str, directory: Path) -> str:
    (directory / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_bank_account_runs_exactly_as_printed_and_remembers(tmp_path: Path):
    assert run(BLOCKS[0], tmp_path) == "100\n"
    assert run(BLOCKS[0], tmp_path) == "200\n"


WITHDRAWALS = """
class Withdraw(Command[int]):
    amount: int

class Withdrawn(Event):
    amount: int

class Purse(Account):
    @command_handler
    def withdraw(self, command: Withdraw) -> int:
        self.persist(Withdrawn(amount=command.amount))
        return self.state.amount

    @event_handler
    def withdrawn(self, event: Withdrawn) -> None:
        self.state.amount -= event.amount

async def main() -> None:
    async with ActorSystem("memory://") as system:
        alice, bob = system.ref(Purse, "alice"), system.ref(Purse, "bob")
{block}
        print(tx.replies)

asyncio.run(main())
"""


def test_the_transaction_moves_money(tmp_path: Path):
    bank, _, _ = BLOCKS[0].partition("async def main")
    block = textwrap.indent(BLOCKS[1], " " * 8)
    assert run(bank + WITHDRAWALS.replace("{block}", block), tmp_path) == "(-50, 50)\n"


def test_the_settings_are_accepted(tmp_path: Path):
    imports = "from actors import Restart, SnapshotPolicy\n"
    bank, _, _ = BLOCKS[0].partition("async def main")
    assert run(bank + imports + BLOCKS[2], tmp_path) == ""


def test_the_journal_alone_runs_until_it_waits_for_new_events(tmp_path: Path):
    body = BLOCKS[3].replace("        ...\n", "        break\n")
    assert body != BLOCKS[3]
    program = (
        "import asyncio\nfrom eventstore import Event, EventStore\n"
        "class Placed(Event):\n    item: str\n"
        "async def main() -> None:\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "asyncio.run(main())\n"
    )
    assert "item='book'" in run(program, tmp_path)


@pytest.mark.parametrize("name", table_of_databases())
def test_the_table_of_databases_is_what_the_backends_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    column = table_of_databases()[name]
    urls: list[str] = re.findall(r"`([a-z]+://[^`]*)`", column["URL"])
    stores = [EventStore.open(url) for url in urls if not url.endswith("://") or url == "memory://"]
    assert stores
    for store in stores:
        durable = store.durability is Durability.POWER_LOSS
        assert durable == column["An acknowledged event survives, by default"].startswith("a loss of power")
        assert store.capabilities.creates_schema == (column["A new database"] == "gets its journal by itself")

    (less,) = (text for row, text in column.items() if row.startswith("Less, for more speed"))
    for durability in ("process-crash", "best-effort"):
        if f"`{durability}`" in less:
            assert EventStore.open(f"{urls[0]}?durability={durability}")
        else:
            with pytest.raises(InvalidStoreUrl):
                EventStore.open(f"{urls[0]}?durability={durability}")


def test_every_page_that_is_linked_is_there():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
