"""F30: SIGTERM under load: what was accepted is finished, others can take over at once; a second one does no harm."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors import ActorSystem, AskTimeout, OwnedElsewhere
from eventstore import EventStore
from tests.faults.stores import KINDS, new_store
from tests.faults.vault import Deposit, Record, Vault
from tests.faults.verdict import Violation, verdict

ROOT = Path(__file__).parents[2]
KEYS = ("a", "b", "c")
# Generous: what is in flight takes some milliseconds.
GRACE_SECONDS = 60.0
LONG_RUNS = 100


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with new_store(request.param, request, tmp_path) as url:
        yield url


class Service:
    def __init__(self, process: subprocess.Popen[str], record_file: Path) -> None:
        self.process = process
        self._record_file = record_file

    def wait_for(self, word: str, times: int) -> None:
        """Wait until its record has so many lines of a sort."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self._record_file.read_text().count(f"\n{word} ") < times:
            assert self.process.poll() is None, "it has ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> tuple[int, str]:
        """Its exit status, and what it said."""
        output, _ = self.process.communicate(timeout=GRACE_SECONDS)
        return self.process.returncode, output

    def record(self) -> Record:
        record = Record()
        record.read(self._record_file.read_text())
        return record


@contextmanager
def service(url: str, folder: Path, build: str = "honest") -> Iterator[Service]:
    record_file = folder / "record"
    record_file.write_text("")
    command = [sys.executable, "-W", "error", "-m", "tests.faults.service", url, str(record_file), build, *KEYS]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            yield Service(process, record_file)
        finally:
            process.kill()


def violations_of_an_end(url: str, record: Record, *, patience: float = 20.0) -> list[Violation]:
    """What must not be left by a process that ended in good order: nor may others wait so long for what it owned."""
    answered = record.acks.keys() | record.refused.keys() | record.unknown
    return [
        *verdict(url, record),
        *(Violation("not answered", id_) for id_ in record.intents.keys() - answered),
        *asyncio.run(_violations_of_ownership(url, patience)),
    ]


async def _violations_of_ownership(url: str, patience: float) -> list[Violation]:
    async with EventStore.open(url) as store:
        found = [Violation("lease left", owner.name) for owner in await store.owners()]
        async with ActorSystem(store, ownership="exclusive", shutdown_timeout=1.0) as system:
            try:
                await system.ref(Vault, KEYS[0]).ask(Deposit(id="next"), timeout=patience)
            except (OwnedElsewhere, AskTimeout) as error:
                found.append(Violation("not taken over", str(error)))
    return found


def assert_ends_well(url: str, folder: Path) -> float:
    with service(url, folder) as running:
        running.wait_for("ack", 20)
        running.terminate()
        signalled_at = time.monotonic()
        status, output = running.ended()
        seconds = time.monotonic() - signalled_at
        record = running.record()
    assert violations_of_an_end(url, record) == []
    assert (status, output) == (0, "stopping\nclosed\n")
    # It came under load: every caller was turned away with his last command, and with nothing else.
    assert len(record.refused) == len(KEYS) * 4
    assert set(record.refused.values()) == {"ActorStopped"}
    assert record.unknown == set()
    return seconds


def test_a_service_that_is_told_to_end_answers_everybody_and_leaves_nothing(url: str, tmp_path: Path) -> None:
    assert_ends_well(url, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_100_services_that_are_told_to_end_leave_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    seconds: list[float] = []
    for _ in range(LONG_RUNS):
        with new_store(kind, request, tmp_path) as url:
            seconds.append(assert_ends_well(url, tmp_path))
    print(f"{len(seconds)} ends, slowest {max(seconds):.2f} s")


def test_a_second_signal_ends_it_at_once_and_does_no_harm(url: str, tmp_path: Path) -> None:
    with service(url, tmp_path, "slow") as running:
        running.wait_for("intent", len(KEYS) * 4 - 1)
        running.terminate()
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == "stopping\n"
        running.terminate()
        signalled_at = time.monotonic()
        status, output = running.ended()
        # In good order it would have taken a minute.
        assert time.monotonic() - signalled_at < 20
        record = running.record()
    assert (status, output) == (-signal.SIGTERM, "")
    assert verdict(url, record) == []
    # It came while it finished what it had accepted.
    assert record.intents.keys() - record.acks.keys() - record.refused.keys()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_service_that_just_ends_is_found_guilty(url: str, tmp_path: Path) -> None:
    with service(url, tmp_path, "leaving") as running:
        running.wait_for("ack", 20)
        running.terminate()
        running.ended()
        found = violations_of_an_end(url, running.record(), patience=1.0)
    assert {violation.rule for violation in found} >= {"not answered", "lease left", "not taken over"}
