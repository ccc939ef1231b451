"""The bank account does what its comments say."""

from __future__ import annotations

import textwrap
from pathlib import Path

from .conftest import Run


def test_it_runs_without_arguments_and_leaves_nothing_behind(run_example: Run, tmp_path: Path) -> None:
    done = run_example("bank.py")

    assert (done.returncode, done.stderr) == (0, "")
    assert "In the end    alice   7500   bob   2500" in done.stdout
    assert "Refused       bob has 2500, which is less than 1000000" in done.stdout
    assert list((tmp_path / "tmp").iterdir()) == []


def test_in_a_file_of_ones_own_the_money_is_still_there_the_next_time(run_example: Run, tmp_path: Path) -> None:
    first = run_example("bank.py", "bank.db")
    second = run_example("bank.py", tmp_path / "bank.db")

    assert (first.returncode, second.returncode) == (0, 0)
    assert "At first      alice   7500   bob   2500" in second.stdout
    assert "In the end    alice  15000   bob   5000" in second.stdout
    assert "account-alice version 4: Withdrawn(amount=2500, reference='rent to bob')" in second.stdout


def test_a_withdrawal_that_would_overdraw_is_rejected_and_leaves_no_event(run_code: Run) -> None:
    code = """
        import asyncio
        from bank import Account, Deposit, GetBalance, Withdraw
        from actors import ActorSystem, CommandRejected

        async def main():
            async with ActorSystem("memory://") as system:
                account = system.ref(Account, "a")
                await account.ask(Deposit(amount=10))
                try:
                    await account.ask(Withdraw(amount=11))
                except CommandRejected as reason:
                    print(reason)
                print(await account.ask(GetBalance()), await account.ask(Withdraw(amount=10)))
                print([recorded.type async for recorded in system.store.read("account-a")])

        asyncio.run(main())
    """
    done = run_code(textwrap.dedent(code))

    assert done.stdout.splitlines() == [
        "a has 10, which is less than 11",
        "10 0",
        "['account.deposited', 'account.withdrawn']",
    ], done.stderr
