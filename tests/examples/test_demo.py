"""The demonstration demonstrates: it kills, it compares, and it fails when something is wrong."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import textwrap
import time
from pathlib import Path

from .conftest import Run, command_of


def test_it_kills_the_bank_in_the_middle_and_finds_every_deposit(run_example: Run, tmp_path: Path) -> None:
    done = run_example("demo.py")

    assert (done.returncode, done.stderr) == (0, "")
    rounds = re.findall(r"Round \d: killed after [\d.]+ s, ([\d,]+) deposits acknowledged", done.stdout)
    assert len(rounds) == 5
    acknowledged = sum(int(number.replace(",", "")) for number in rounds)
    assert table(done.stdout)["deposits acknowledged before a kill"] == acknowledged > 0
    assert table(done.stdout)["deposits stored"] >= acknowledged
    assert table(done.stdout)["acknowledged deposits lost"] == 0
    assert table(done.stdout)["deposits stored twice"] == 0
    assert "Every acknowledged deposit is there, and none is there twice." in done.stdout
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_audit_trail_adds_up(run_code: Run) -> None:
    done = run_code("import demo; demo.ROUNDS = 1; demo.main('sqlite:///demo.db')")
    rows = re.findall(
        r"│ \d\d:\d\d:\d\d\.\d{3} │ +(\d+) │ account\.(deposited|withdrawn) │ +([+-][\d,.]+) │ +([\d,.]+) │",
        done.stdout,
    )

    assert len(rows) == 12
    trail = [(int(version), type_, cents(amount), cents(balance)) for version, type_, amount, balance in rows]
    for (version, _, _, balance), (next_version, type_, amount, next_balance) in itertools.pairwise(trail):
        assert next_version == version + 1
        assert next_balance == balance + amount >= 0
        assert (amount > 0) == (type_ == "deposited")


def test_its_check_finds_what_is_lost_and_what_is_doubled(run_code: Run) -> None:
    code = """
        import asyncio, demo
        from bank import Deposited
        from eventstore import EventStore

        async def main():
            async with EventStore.open("memory://") as store:
                for reference in ("a", "b", "b"):
                    await store.append("account-1", [Deposited(amount=1, reference=reference)])
                print(await demo.compare(store, {"a", "b", "c"}))

        asyncio.run(main())
    """
    done = run_code(textwrap.dedent(code))

    assert done.stdout == "Findings(acknowledged=3, stored=3, events=3, lost={'c'}, doubled={'b'})\n", done.stderr


def test_it_fails_when_an_acknowledged_deposit_is_not_stored(run_code: Run) -> None:
    code = """
        import sys, demo
        real = demo.run_and_kill

        def lying(*arguments):
            round_ = real(*arguments)
            round_.acknowledged.append("a deposit that nobody made")
            return round_

        demo.run_and_kill = lying
        demo.ROUNDS = 1
        sys.exit(demo.main("sqlite:///demo.db"))
    """
    done = run_code(textwrap.dedent(code))

    assert done.returncode == 1, done.stderr
    assert table(done.stdout)["acknowledged deposits lost"] == 1
    assert "The check has FAILED." in done.stdout


def test_it_fails_when_the_bank_ends_by_itself(run_code: Run) -> None:
    done = run_code("import sys, demo; demo.ROUNDS = 1; sys.exit(demo.main('sqlite:///nowhere/demo.db'))")

    assert done.returncode != 0
    assert "ended by itself with exit code 1" in done.stdout


def test_interrupted_it_leaves_neither_files_nor_processes(tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(
            command_of("demo.py"),
            env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as demo:
            assert demo.stdout is not None
            while "Round 1" not in demo.stdout.readline():
                pass
            time.sleep(1.0)  # Now the second round has a child at work.
            demo.send_signal(number)
            _, errors = demo.communicate(timeout=120)
        assert (demo.returncode, errors) == (code, "")
        assert list(tmp_path.iterdir()) == []
        # Its folder is in the environment of a child that would still run.
        assert not [environment for environment in environments() if str(tmp_path) in environment]


def table(text: str) -> dict[str, int]:
    return {name.strip(): int(value.replace(",", "")) for name, value in re.findall(r"│ (.+?) +│ +([\d,]+) │\n", text)}


def cents(text: str) -> int:
    return round(float(text.replace(",", "")) * 100)


def environments() -> list[str]:
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            found.append(file.read_text(errors="replace"))
        except OSError:
            continue  # It has ended.
    return found
