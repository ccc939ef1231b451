"""`audit keys`, `seal`, `verify` and `prove`, as somebody uses them who has to show that a journal is as it was."""

from __future__ import annotations

import json
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import Rewrite, Run, start


class Keys(NamedTuple):
    private: str
    public: str


@pytest.fixture
def keys(cli: Run, tmp_path: Path) -> Keys:
    path = tmp_path / "seal.key"
    made = cli("audit", "keys", "new", str(path))
    assert made.code == 0
    assert "PRIVATE" not in made.out + made.err
    return Keys(str(path), f"{path}.pub")


def test_a_journal_is_sealed_and_verified(cli: Run, own_url: str, keys: Keys, tmp_path: Path) -> None:
    anchor = str(tmp_path / "anchor")
    sealed = cli("audit", "seal", own_url, "--key", keys.private, "--every", "5", "--anchor", anchor)
    assert sealed.code == 0, sealed
    numbers = [line.split("\t")[0] for line in sealed.lines]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert len(numbers) > 1
    again = cli("audit", "seal", own_url, "--key", keys.private, "--anchor", anchor)
    assert (again.code, again.out) == (0, "")
    verified = cli("audit", "verify", own_url, "--public-key", keys.public, "--anchor", anchor)
    assert verified.code == 0, verified
    assert verified.lines[-1].endswith(": as sealed")
    assert verified.lines[-1].startswith(f"{len(numbers)} seals, ")


def test_what_was_changed_is_listed_with_its_place(cli: Run, own_url: str, keys: Keys, rewrite: Rewrite) -> None:
    cli("audit", "seal", own_url, "--key", keys.private)
    rewrite("epoch = 7 WHERE position = 2")
    verified = cli("audit", "verify", own_url, "--public-key", keys.public)
    assert verified.code == 1
    problem, summary = [line for line in verified.lines if not line.startswith("truncated")]
    assert problem.split("\t")[:4] == ["changed", "Account-alice", "2", "2"]
    assert summary.endswith(": 1 problem")
    as_json = cli("audit", "verify", own_url, "--public-key", keys.public, "--json")
    found = next(each for each in as_json.objects if each.get("what") == "changed")
    assert (found["stream_id"], found["version"], found["position"], found["is_problem"]) == (
        "Account-alice",
        2,
        2,
        True,
    )
    assert as_json.objects[-1]["summary"]["problems"] == 1
    proof = cli("audit", "prove", own_url, "2")
    assert proof.code == 1
    assert "is not the one that seal 1 covers" in proof.err


def test_a_proof_is_checked_without_the_store(
    cli: Run, own_url: str, own_journal: Path, keys: Keys, tmp_path: Path
) -> None:
    cli("audit", "seal", own_url, "--key", keys.private)
    path = tmp_path / "event.proof"
    assert cli("audit", "prove", own_url, "3", "--out", str(path)).code == 0
    assert cli("audit", "prove", own_url, "3").out == path.read_text()
    for file in own_journal.parent.glob("own.db*"):
        file.unlink()
    checked = cli("audit", "verify", "--proof", str(path), "--public-key", keys.public)
    assert checked.code == 0, checked
    assert "Account-alice" in checked.out
    proof = json.loads(path.read_text())

    def refused(**changes: object) -> str:
        other = tmp_path / "other.proof"
        other.write_text(json.dumps({**proof, **changes}))
        result = cli("audit", "verify", "--proof", str(other), "--public-key", keys.public)
        assert result.code == 1, result
        assert result.out == ""
        return result.err

    for field, value in {"payload": '{"amount":1000000}', "position": 4, "epoch": 9, "metadata": "{}"}.items():
        assert "was changed" in refused(event={**proof["event"], field: value})
    assert "cannot be read as a proof" in refused(event={**proof["event"], "version": 1.5})
    assert "cannot be read as a proof" in refused(event={**proof["event"], "position": 2**64})
    assert "was changed" in refused(index=proof["index"] + 1)
    assert "cannot be read as a proof" in refused(path=proof["path"][:-1])
    assert "signature does not belong" in refused(statement=proof["statement"].replace('"count":', '"count":1'))
    assert "signature does not belong" in refused(signature="00" * 64)
    assert "cannot be read" in refused(form="eventstore anchor 1")
    other = cli("audit", "keys", "new", str(tmp_path / "other.key"))
    assert other.code == 0
    wrong = cli("audit", "verify", "--proof", str(path), "--public-key", str(tmp_path / "other.key.pub"))
    assert wrong.code == 1
    assert "is signed with key" in wrong.err


def test_nothing_is_proven_that_is_not_sealed(cli: Run, own_url: str, keys: Keys) -> None:
    unsealed = cli("audit", "prove", own_url, "3")
    assert unsealed.code == 1
    assert "is not sealed yet" in unsealed.err
    cli("audit", "seal", own_url, "--key", keys.private)
    missing = cli("audit", "prove", own_url, "99999")
    assert missing.code == 1
    assert "no event at position 99999" in missing.err
    cut = cli("audit", "verify", own_url, "--public-key", keys.public)
    assert cut.code == 0


def test_an_anchor_shows_what_was_cut_and_is_not_overwritten(
    cli: Run, own_url: str, own_journal: Path, keys: Keys, tmp_path: Path
) -> None:
    anchor = tmp_path / "anchor"
    cli("audit", "seal", own_url, "--key", keys.private, "--every", "4", "--anchor", str(anchor))
    kept = anchor.read_bytes()
    with closing(sqlite3.connect(own_journal)) as connection:
        (trigger,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'journal_seals_no_delete'"
        ).fetchone()
        connection.execute("DROP TRIGGER journal_seals_no_delete")
        connection.execute("DELETE FROM journal_seals WHERE number = (SELECT max(number) FROM journal_seals)")
        connection.execute(trigger)
        connection.commit()
    without = cli("audit", "verify", own_url, "--public-key", keys.public)
    assert without.code == 0
    verified = cli("audit", "verify", own_url, "--public-key", keys.public, "--anchor", str(anchor))
    assert verified.code == 1
    assert "the tail of the seals was cut off" in verified.out
    again = cli("audit", "seal", own_url, "--key", keys.private, "--anchor", str(anchor))
    assert again.code == 1
    assert "it is not overwritten, and nothing was sealed" in again.err
    assert anchor.read_bytes() == kept
    anchor.write_text(kept.decode().replace('\\"count\\":', '\\"count\\":1'))
    forged = cli("audit", "verify", own_url, "--public-key", keys.public, "--anchor", str(anchor))
    assert forged.code == 1
    assert "signature does not belong" in forged.err


def test_a_key_is_handed_over(cli: Run, own_url: str, keys: Keys, tmp_path: Path) -> None:
    new = tmp_path / "new.key"
    cli("audit", "keys", "new", str(new))
    cli("audit", "seal", own_url, "--key", keys.private)
    assert cli("audit", "seal", own_url, "--key", keys.private, "--next-key", f"{new}.pub").code == 0
    refused = cli("audit", "seal", own_url, "--key", keys.private)
    assert refused.code == 1
    assert "handed over" in refused.err
    # There is nothing new, but the new key has to vouch for what there is.
    assert len(cli("audit", "seal", own_url, "--key", str(new)).lines) == 1
    assert cli("audit", "seal", own_url, "--key", str(new)).lines == []
    for public in (keys.public, f"{new}.pub"):
        assert cli("audit", "verify", own_url, "--public-key", public).code == 0


def test_wrong_usage_is_said(cli: Run, own_url: str, keys: Keys, tmp_path: Path) -> None:
    for arguments, text in (
        (("verify", own_url), "--public-key"),
        (("verify", "--public-key", keys.public), "name a store or a proof"),
        (("verify", own_url, "--public-key", keys.private), "holds a private key"),
        (("verify", own_url, "--public-key", str(tmp_path / "none")), "cannot be read"),
        (("seal", own_url, "--key", keys.public), "no private key"),
        (("seal", own_url, "--key", keys.private, "--follow", "--next-key", keys.public), "--follow"),
    ):
        if "--key" in arguments and keys.public in arguments[3:4]:
            Path(keys.public).chmod(0o600)
        result = cli("audit", *arguments)
        assert result.code == 2, (arguments, result)
        assert text in result.err, (arguments, result)
    again = cli("audit", "keys", "new", keys.private)
    assert again.code == 2
    assert "exists" in again.err


def test_following_seals_what_comes_until_ctrl_c(own_url: str, keys: Keys, cli: Run) -> None:
    process = start("audit", "seal", own_url, "--key", keys.private, "--follow", "--within", "0.2", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    first = json.loads(process.stdout.readline())
    assert first["number"] == 1
    deposit(own_url)
    second = json.loads(process.stdout.readline())
    assert (second["number"], second["count"]) == (2, 1)
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.returncode == 130
    process.stdout.close()
    process.stderr.close()
    assert cli("audit", "verify", own_url, "--public-key", keys.public).code == 0


def deposit(url: str) -> None:
    import asyncio

    from backends.conformance.events import happened
    from eventstore import EventStore

    async def append() -> None:
        async with EventStore.open(url) as store:
            await store.append("Account-new", happened(1))

    asyncio.run(append())
