"""What the README shows works as it is printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def run(program: str, directory: Path) -> str:
    (directory / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_bank_account_runs_exactly_as_printed_and_remembers(tmp_path: Path):
    assert run(BLOCKS[0], tmp_path) == "100\n"
    assert run(BLOCKS[0], tmp_path) == "200\n"


def test_the_settings_are_accepted(tmp_path: Path):
    imports = "from actors import Restart, SnapshotPolicy\n"
    bank, _, _ = BLOCKS[0].partition("async def main")
    assert run(bank + imports + BLOCKS[1], tmp_path) == ""


def test_the_journal_alone_runs_until_it_waits_for_new_events(tmp_path: Path):
    body = BLOCKS[2].replace("        ...\n", "        break\n")
    assert body != BLOCKS[2]
    program = (
        "import asyncio\nfrom eventstore import Event, EventStore\n"
        "class Placed(Event):\n    item: str\n"
        "async def main() -> None:\n" + "".join(f"    {line}\n" for line in body.splitlines()) + "asyncio.run(main())\n"
    )
    assert "item='book'" in run(program, tmp_path)
