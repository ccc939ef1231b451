"""Owning: processes that want the same vaults for themselves (`owner.py`), and the verdict on what they did."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests.faults.journals import stored_events
from tests.faults.owner import HESITATION_SECONDS
from tests.faults.stores import is_locked
from tests.faults.vault import Record
from tests.faults.verdict import Violation, verdict

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0


class Read(NamedTuple):
    began: float
    version: int


class Took(NamedTuple):
    """Who has taken a vault: some time after he `began` to ask for it, and before he said so."""

    at: float
    began: float
    version: int
    name: str


@dataclass
class OwnerRecord:
    """What one process said, and when."""

    record: Record = field(default_factory=Record)
    acks: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    reads: dict[str, list[Read]] = field(default_factory=lambda: defaultdict(list))
    took: dict[str, list[Took]] = field(default_factory=lambda: defaultdict(list))
    told: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    """By stream: when it was refused anything, and why."""
    begun: dict[str, float] = field(default_factory=dict[str, float])
    """By stream: since when it waits for the reply to a deposit."""

    def add(self, name: str, line: str, clock_offset: float) -> None:
        time_, _, said = line.partition(" ")
        at = float(time_) - clock_offset
        match said.split(" "):
            case ["read", stream_id, began, version]:
                self.reads[stream_id].append(Read(float(began) - clock_offset, int(version)))
            case ["took", stream_id, began, version]:
                self.took[stream_id].append(Took(at, float(began) - clock_offset, int(version), name))
            case ["told", stream_id, error]:
                self.told[stream_id].append((at, error))
            case _:
                self.record.read(said)
        match said.split(" "):
            case ["intent", _, stream_id, *_]:
                self.begun[stream_id] = at
            case ["ack", id_, version, _]:
                self._ended(id_)
                self.acks[self.record.intents[id_].stream_id].append((at, int(version)))
            case ["refused", id_, error]:
                self._ended(id_)
                self.told[self.record.intents[id_].stream_id].append((at, error))
            case ["unknown", id_]:
                self._ended(id_)

    def _ended(self, id_: str) -> None:
        self.begun.pop(self.record.intents[id_].stream_id, None)


class Owning:
    """One process. It begins when it is entered, and is killed with the block unless it was ended before."""

    def __init__(
        self,
        url: str,
        folder: Path,
        name: str,
        keys: Sequence[str],
        *,
        lease: float,
        hold: float = 0.0,
        build: str = "honest",
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        clock_offset: float = 0.0,
    ) -> None:
        """`clock_offset` is what its monotonic clock is ahead of the others'."""
        self.name = name
        self._clock_offset = clock_offset
        self.streams = [f"vault-{key}" for key in keys]
        self._url = url
        self._file = folder / f"{name}.record"
        self._file.touch()
        arguments = [url, str(self._file), name, str(lease), str(hold), build, *keys]
        self._command = [*prefix, sys.executable, "-W", "error", "-m", "tests.faults.owner", *arguments]
        self._environment = environment
        self._read_bytes = 0
        self._said = OwnerRecord()

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self._environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self._say("begin\n")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_SECONDS)

    def said(self) -> OwnerRecord:
        """What it has said so far."""
        with self._file.open("rb") as file:
            file.seek(self._read_bytes)
            # The last line may not be whole yet.
            lines, end, _ = file.read().rpartition(b"\n")
        self._read_bytes += len(lines) + len(end)
        for line in lines.decode().splitlines():
            self._said.add(self.name, line, self._clock_offset)
        return self._said

    def wait(self, until: Callable[[OwnerRecord], bool], seconds: float = PATIENCE_SECONDS) -> OwnerRecord:
        """Wait until what it has said fulfils something."""
        deadline = time.monotonic() + seconds
        while not until(said := self.said()):
            assert self.process.poll() is None, f"{self.name} has ended by itself"
            assert time.monotonic() < deadline, f"{self.name} has not come so far in {seconds} s"
            time.sleep(0.01)
        return said

    def wait_for_deposits(self, streams: Iterable[str], since: float) -> None:
        """Wait until it has deposited into each of the vaults after a time."""
        self.wait(lambda said: all(said.acks[name] and said.acks[name][-1][0] > since for name in streams))

    def stop(self, streams: Sequence[str]) -> float:
        """Stop it, and tell when: with an append to one of the streams about to be sent, and without any to another.

        On SQLite not within a transaction either, because nobody else could write then.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            self.process.send_signal(signal.SIGSTOP)
            at = time.monotonic()
            time.sleep(0.002)
            said = self.said()
            about_to_send = [name for name in streams if said.begun.get(name, 0.0) > at - HESITATION_SECONDS * 0.7]
            if about_to_send and not said.begun.keys() >= set(streams) and not self._is_in_transaction():
                return at
            self.go_on()
            time.sleep(random.uniform(0.005, 0.020))
        raise AssertionError(f"{self.name} was never found with some appends on their way")

    def _is_in_transaction(self) -> bool:
        # The lock may be another's, who lets go of it.
        for _ in range(10):
            if not is_locked(self._url):
                return False
            time.sleep(0.002)
        return True

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        """Let it end in good order, with every caller answered."""
        self._say("end\n")
        self.process.communicate(timeout=PATIENCE_SECONDS)
        assert self.process.returncode == 0

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()


def owner_of(stream_id: str, processes: Iterable[Owning]) -> str | None:
    """The name of the process that took a vault last, and was not told since that it has it no more."""
    took: list[Took] = []
    for process in processes:
        said = process.said()
        if said.took[stream_id] and (
            not said.told[stream_id] or said.told[stream_id][-1][0] < said.took[stream_id][-1].at
        ):
            took.append(said.took[stream_id][-1])
    return max(took).name if took else None


def owners_verdict(url: str, processes: Sequence[Owning], *, killed: Sequence[Owning] = ()) -> list[Violation]:
    """Every violation, of the journal and of who may write and answer, after all processes have ended."""
    record = Record()
    said = [process.said() for process in processes]
    for each in said:
        for name in ("intents", "acks", "refused", "unknown"):
            getattr(record, name).update(getattr(each.record, name))
    answered = record.acks.keys() | record.refused.keys() | record.unknown
    for process in killed:
        answered |= process.said().record.intents.keys()
    return [
        *verdict(url, record),
        *(Violation("not answered", id_) for id_ in record.intents.keys() - answered),
        *_violations_of_owners(url, said),
        *_violations_of_reads(said),
    ]


def _violations_of_owners(url: str, said: Sequence[OwnerRecord]) -> Iterator[Violation]:
    """An event is by the process that had taken the stream last when it was stored."""
    took: dict[str, list[Took]] = defaultdict(list)
    for each in said:
        for stream_id, some in each.took.items():
            took[stream_id] += some
    for stream_id, some in took.items():
        # What was surely later: somebody who was stopped meanwhile says late that he had it.
        if any(later.began > each.at and later.version < each.version for each in some for later in some):
            yield Violation("stale read", f"{stream_id} was taken at an earlier version than before")
    for event in stored_events(url):
        # It saw the stream as it was: what comes behind that version is its own, until the next one sees it.
        before = [each for each in took[event.stream_id] if each.version < event.version]
        own = [each.at for each in before if each.name == event.id.partition("/")[0]]
        if not own or any(each.began > max(own) for each in before if each.name != event.id.partition("/")[0]):
            yield Violation("not the owner's", f"{event.stream_id} {event.version}: {event.id}")


def _violations_of_reads(said: Sequence[OwnerRecord]) -> Iterator[Violation]:
    """Whoever is answered sees at least what had been acknowledged to anybody before he asked."""
    for stream_id in {name for each in said for name in each.reads}:
        acks: list[tuple[float, int]] = []
        for each in said:
            for ack in each.acks[stream_id]:
                insort(acks, ack)
        newest = 0
        newest_at: list[int] = []
        for _, version in acks:
            newest = max(newest, version)
            newest_at.append(newest)
        times = [at for at, _ in acks]
        for each in said:
            for read in each.reads[stream_id]:
                before = bisect_left(times, read.began)
                if before and read.version < newest_at[before - 1]:
                    yield Violation("stale read", f"{stream_id}: {read.version}, not {newest_at[before - 1]}")
