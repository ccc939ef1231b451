"""A backend of one's own takes what `docs/backends.md` says: its example passes the contract, a wrong one does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backends.conformance import BackendContract
from eventstore.backend import Backend

from .own_backend import PAGE, OwnBackend

PROGRAM = """
import asyncio
from eventstore import Event, EventStore

class Placed(Event):
    item: str

async def main() -> None:
    async with EventStore.open("jsonl:///shop.jsonl") as store:
        await store.append("order-1", [Placed(item="book")])
    async with EventStore.open("jsonl:///shop.jsonl") as store:
        print([store.decode(recorded) async for recorded in store.read_all()])

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def own_backend(tmp_path_factory: pytest.TempPathFactory) -> OwnBackend:
    package = OwnBackend(tmp_path_factory.mktemp("own_backend"))
    package.install()
    return package


def test_the_example_passes_the_whole_contract(own_backend: OwnBackend) -> None:
    done = own_backend.pytest("-rs", "test_jsonl_journal.py")

    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    ((passed, skipped),) = re.findall(r"^(\d+) passed, (\d+) skipped in", done.stdout, re.MULTILINE)
    # All of it, but for what a backend may say that it cannot do.
    assert int(passed) + int(skipped) >= sum(name.startswith("test_") for name in dir(BackendContract))
    reasons = re.findall(r"^SKIPPED .*?: (.*)$", done.stdout, re.MULTILINE)
    assert reasons
    assert [reason for reason in reasons if "(capabilities." not in reason] == []
    assert int(skipped) < int(passed) / 5


@pytest.mark.parametrize(
    ("right", "wrong", "red"),
    [
        ("if refused is not None:", "if refused is not None and not write.epoch:", "test_an_earlier_owner_is_fenced"),
        ("return self._original(batch) or self", "return self", "test_the_identical_batch_is_not_stored_again"),
        ("sorted(versions, reverse=True)", "versions", "test_the_newest_is_that_of_the_highest_version"),
        ("decode_metadata(metadata)", "None", "test_a_tag_finds_the_events_that_carry_it"),
        ("in self.commands or key", "is None or key", "test_a_remembered_id_refuses_the_whole_batch"),
        ("min(issued_at, at // 1000)", "issued_at", "test_an_id_from_the_future_counts_as_issued_when"),
        ("holder.renewals != lapsed", "lapsed is None", "test_a_lease_that_was_renewed_since_has_not_lapsed"),
        ("lease is None or lease.remaining <= 0", "lease is None", "test_a_lease_that_ran_out_claims_nothing"),
    ],
    ids=["fencing", "repeats", "snapshots", "metadata", "commands", "times", "renewals", "leases"],
)
def test_an_example_that_is_wrong_does_not(
    own_backend: OwnBackend, tmp_path: Path, right: str, wrong: str, red: str
) -> None:
    # What is installed is found by its entry point. The module beside the tests comes before the installed one.
    package = OwnBackend(tmp_path, site=own_backend.site)
    module = (tmp_path / "jsonl_journal.py").read_text()
    assert module.count(right) == 1
    package.write("jsonl_journal.py", module.replace(right, wrong))
    done = package.pytest("test_jsonl_journal.py", "-k", red)

    assert done.returncode == 1, done.stdout[-5000:] + done.stderr


def test_its_urls_are_known_wherever_urls_are(own_backend: OwnBackend) -> None:
    done = own_backend.python("-c", PROGRAM)
    assert (done.stdout, done.stderr) == ("[Placed(item='book')]\n", "")

    doctor = own_backend.python("-m", "eventstore.cli", "doctor", "jsonl:///shop.jsonl")
    assert doctor.returncode == 0, doctor.stderr
    assert "JSON lines" in doctor.stdout

    missing = own_backend.python("-m", "eventstore.cli", "doctor", "jsonl:///typo.jsonl")
    assert missing.returncode != 0
    assert not (own_backend.folder / "typo.jsonl").exists()


def test_the_page_names_every_method_of_a_backend() -> None:
    table = PAGE.read_text("utf-8").partition("## The methods")[2].partition("## The example")[0]
    names = [name for name in vars(Backend) if not name.startswith("_")]
    in_one_row = {"read_snapshots", "delete_snapshots"}
    assert [name for name in names if name not in in_one_row and f"`{name}`" not in table] == []


def test_a_tenants_store_is_not_opened_where_a_backend_would_mix_tenants_up(own_backend: OwnBackend) -> None:
    program = PROGRAM.replace('jsonl"', 'jsonl", tenant="acme"').replace("shop.jsonl", "acme.jsonl")
    done = own_backend.python("-c", program)

    assert done.returncode == 1
    assert "CapabilityError: jsonl:// knows no tenants: nothing was opened" in done.stderr
