"""The transfers keep their sum through kills, on every store, and the check fails when something is wrong."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from .conftest import Run

SHORT = "transfers.KILLS, transfers.SHORTEST_ROUND_SECONDS, transfers.LONGEST_ROUND_SECONDS = 2, 0.3, 0.6"
NOTHING_WRONG = {
    "acknowledged transfers missing": "0",
    "refused transfers stored": "0",
    "transfers with one side": "0",
    "transfers done twice": "0",
}


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    """A store with an empty journal; the file is in the test's own folder."""
    if request.param == "sqlite":
        return "sqlite:///bank.db"
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


def test_money_is_neither_lost_nor_made_by_kills(run_code: Run, url: str) -> None:
    # Twice, because what is there from before is not this run's.
    for _ in range(2):
        done = run_code(f"import sys, transfers; {SHORT}; sys.exit(transfers.run_on({url!r}))")

        assert (done.returncode, done.stderr) == (0, "")
        lives = re.findall(r"Life \d: (killed|ended) after [\d.]+ s, ([\d,]+) acknowledged(; \d+ sent)?", done.stdout)
        assert [ending for ending, _, _ in lives] == ["killed", "killed", "ended"]
        assert lives[-1][2], "nothing had to be sent again"
        found = table(done.stdout)
        assert found.items() >= NOTHING_WRONG.items()
        assert found["sum of all balances now"] == found["sum of all balances when the accounts were opened"]
        acknowledged = sum(int(number.replace(",", "")) for _, number, _ in lives)
        # Everything has its reply in the end: so what is stored is what was acknowledged, and nothing else.
        assert int(found["transfers stored, both sides"].replace(",", "")) == acknowledged > 0


def test_the_audit_shows_both_sides_under_one_correlation_id(run_code: Run) -> None:
    done = run_code(f"import transfers; {SHORT}; transfers.run_on('sqlite:///bank.db')")
    rows = re.findall(r"│ (account-\S+) +│ +\d+ │ account\.(\w+) │ +([+-])([\d,.]+) │ (\S+) +│", done.stdout)

    (giver, *withdrawn, about), (taker, *deposited, same) = rows
    assert giver != taker
    assert about == same
    assert (withdrawn[:2], deposited[:2]) == (["withdrawn", "-"], ["deposited", "+"])
    assert withdrawn[2] == deposited[2]


def test_its_check_finds_what_is_missing_one_sided_or_done_twice(run_code: Run) -> None:
    code = """
        import asyncio, transfers
        from bank import Deposited, Withdrawn
        from eventstore import Append, EventStore, Metadata, NewEvent

        transfers.ACCOUNTS = 2

        async def main():
            async with EventStore.open("memory://") as store:

                async def happened(about, *amounts, together=True):
                    made = [
                        (f"account-r-{number:02}", Deposited(amount=cents, reference=about) if cents > 0
                         else Withdrawn(amount=-cents, reference=about))
                        for number, cents in enumerate(amounts)
                    ]
                    appends = [
                        Append(stream, (NewEvent(event, metadata=Metadata(correlation_id=about)),))
                        for stream, event in made
                    ]
                    for group in [appends] if together else [[each] for each in appends]:
                        await store.append_batch(group)

                ledger = transfers.Ledger()
                await happened("r-opening", 100, 100)
                await happened("r-0", -5, 5)
                ledger.note("done 0")
                sound = await transfers.compare(store, "r", ledger)
                print(sound.is_sound, sound.transfers, sound.opened_with, sound.balances)
                await happened("r-1", -7)
                await happened("r-2", -8, 8, together=False)
                await happened("r-3", -9, 9)
                await happened("r-3", -9, 9)
                await happened("r-4", -1, 2)
                ledger.note("known 5")
                ledger.note("refused 0")
                found = await transfers.compare(store, "r", ledger)
                print(found.is_sound, found.balances)
                print(sorted(found.missing), sorted(found.refused_but_stored))
                print(sorted(found.one_sided), sorted(found.doubled))

        asyncio.run(main())
    """
    done = run_code(textwrap.dedent(code))

    assert done.stdout.splitlines() == [
        "True 1 200 200",
        "False 194",
        "['r-5'] ['r-0']",
        "['r-1', 'r-2', 'r-4'] ['r-3']",
    ], done.stderr


@pytest.mark.parametrize(
    "lie",
    [
        "ledger.note(f'done {max(ledger.sent) + 1}')",  # An acknowledged transfer that nobody stored.
        "ledger.note(f'sent {max(ledger.sent) + 1}')",  # One that no reply came to, to the end.
        "life = life._replace(exit_code=1)",
    ],
)
def test_it_fails_when_something_is_wrong(run_code: Run, lie: str) -> None:
    code = f"""
        import sys, transfers
        real = transfers.live

        def lying(store_url, run, ledger, *, is_killed):
            life = real(store_url, run, ledger, is_killed=is_killed)
            if not is_killed:
                {lie}
            return life

        transfers.live = lying
        {SHORT}
        sys.exit(transfers.run_on("sqlite:///bank.db"))
    """
    done = run_code(textwrap.dedent(code))

    assert done.returncode == 1, done.stderr
    assert "The check has FAILED." in done.stdout


def test_it_fails_when_a_transfer_is_two_commits(run_code: Run, tmp_path: Path) -> None:
    # What the example would be without transactions.
    (tmp_path / "naive.py").write_text(
        textwrap.dedent("""
            import asyncio, json, sys, transfers
            from bank import Account, Deposit, Withdraw

            async def transfer(bank, wish):
                try:
                    await bank.ref(Account, wish.giver).ask(
                        Withdraw(amount=wish.cents, reference=wish.id), command_id=wish.id
                    )
                except transfers.CommandRejected:
                    return "refused"
                await bank.ref(Account, wish.taker).ask(
                    Deposit(amount=wish.cents, reference=wish.id), command_id=wish.id
                )
                return "done"

            transfers.transfer = transfer
            if sys.argv[1:2] == ["--work"]:
                todo = json.load(sys.stdin)
                store = "sqlite:///bank.db"
                asyncio.run(transfers.work(store, sys.argv[2], todo["again"], todo["first_new"]))
        """)
    )
    code = f"""
        import sys, transfers
        transfers.__file__ = "naive.py"
        {SHORT}
        sys.exit(transfers.run_on("sqlite:///bank.db"))
    """
    done = run_code(textwrap.dedent(code))

    assert done.returncode == 1, done.stderr
    assert table(done.stdout)["transfers with one side"] != "0"


def table(text: str) -> dict[str, str]:
    return {name.strip(): value for name, value in re.findall(r"│ (.+?) +│ +([\d,.]+) │\n", text)}
