"""What failed in a system, as its figures show it."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from datetime import UTC, datetime
from threading import Event as ThreadEvent
from threading import Thread

import orjson
import pytest

from actors import ActorSystem, Restart, Resume, Stop, command_handler, supervisor
from actors.supervisor import Supervisor
from tests.actors.notebook import Break, Notebook, Read, Wait, WriteAndBreak, Written, until


class Quick(Notebook):
    supervision = Restart(first_pause_seconds=0.0)


class Stopping(Notebook):
    supervision = Stop()


async def fail(system: ActorSystem, cls: type[Notebook], key: str, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ValueError, match="broken"):
            await system.ref(cls, key).ask(WriteAndBreak(text=key))


async def test_restarts_are_counted_in_total_and_per_actor_the_most_often_restarted_first(system: ActorSystem):
    for key, times in {"a": 2, "b": 5, "c": 1}.items():
        await fail(system, Quick, key, times)
    await fail(system, Stopping, "d")
    stats = system.stats()
    assert stats.restarts == 8
    assert list(stats.restarted.items()) == [("Quick-b", 5), ("Quick-a", 2), ("Quick-c", 1)]


async def test_what_failed_is_told_with_count_and_last_error(system: ActorSystem):
    assert system.stats().failures == {}
    await fail(system, Quick, "a", times=3)
    assert system.stats().failures == {"Quick-a": (3, "ValueError: broken after a")}


async def test_the_last_failure_is_told_with_actor_text_and_time(system: ActorSystem):
    assert system.stats().last_failure is None
    before = datetime.now(UTC)
    await fail(system, Quick, "a")
    await fail(system, Quick, "b")
    last = system.stats().last_failure
    assert last is not None
    assert last[:2] == ("Quick-b", "ValueError: broken after b")
    assert before <= last.at <= datetime.now(UTC)


async def test_stopped_actors_are_named_until_they_are_restarted(system: ActorSystem):
    for key in "ab":
        await fail(system, Stopping, key)
    assert (system.stats().stopped, system.stats().stopped_actors) == (2, ["Stopping-a", "Stopping-b"])
    system.ref(Stopping, "a").restart()
    assert (system.stats().stopped, system.stats().stopped_actors) == (1, ["Stopping-b"])


async def test_failures_that_no_window_holds_any_more_are_not_shown(system: ActorSystem):
    class Forgetful(Notebook):
        supervision = Restart(first_pause_seconds=0.0, window_seconds=0.3)

    for _ in range(2):
        await fail(system, Forgetful, "a")
        stats = system.stats()
        assert (stats.failures, stats.restarted) == (
            {"Forgetful-a": (1, "ValueError: broken after a")},
            {"Forgetful-a": 1},
        )
        await until(lambda: system.stats().failures == {})
        assert system.stats().restarted == {}
    assert system.stats().restarts == 2


async def test_a_system_that_is_not_open_has_nothing_to_tell(url: str):
    system = ActorSystem(url)
    assert system.stats().live == system.stats().dead_letters == 0
    assert system.stats().report()["last_failure"] is None


# Bounds


def test_however_many_actors_fail_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "_RECORDS", 100)
    monkeypatch.setattr(supervisor, "NAMED_ACTORS", 10)
    failing = Supervisor(Restart())
    for number in range(1000):
        failing.decide("always", ValueError("x"), Restart())
        failing.decide(f"actor-{number}", ValueError("x"), Restart(first_pause_seconds=9.0))
    assert list(failing.failures()) == [*(f"actor-{number}" for number in range(991, 999)), "always", "actor-999"]
    assert failing.failures()["always"][0] == 1000
    assert failing.pause_left("actor-901") > 0
    assert failing.pause_left("actor-900") == 0
    assert failing.restarts == 2000


def test_what_no_window_holds_takes_no_room_and_what_was_stopped_does():
    failing = Supervisor(Restart())
    for key, policy in {"over": Restart(window_seconds=0.001), "resumed": Resume(), "stopped": Stop()}.items():
        failing.decide(key, ValueError("x"), policy)
    time.sleep(0.002)
    failing.forget_old()
    assert list(failing._records) == ["resumed", "stopped"]


def test_an_actor_that_fails_for_ever_is_remembered_in_bounded_space():
    failing = Supervisor(Restart())
    policy = Restart(first_pause_seconds=0.5, longest_pause_seconds=8.0)
    pauses = [failing.decide("a", ValueError("x" * 100_000), policy).pause for _ in range(1000)]
    assert pauses[:6] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert pauses[-1] == 8.0
    (record,) = failing._records.values()
    assert (len(record.last), len(record.times[policy])) == (513, 32)


# The report


async def test_the_report_is_json_with_totals_and_what_failed_most(system: ActorSystem):
    for number in range(8):
        await fail(system, Quick, str(number), times=number + 1)
    await fail(system, Stopping, "a")
    await system.ref(Notebook, "a").tell(Break())
    await system.ref(Notebook, "a").ask(Read())
    report = json.loads(json.dumps(system.stats().report()))
    last = system.stats().last_failure
    assert last is not None
    assert report == {
        "live": 9,
        "recovering": 0,
        "stopped": 1,
        "restarts": 36,
        "dead_letters": 1,
        "last_failure": {"actor": "Stopping-a", "error": "ValueError: broken after a", "at": last.at.isoformat()},
        "most_restarted": {"Quick-7": 8, "Quick-6": 7, "Quick-5": 6, "Quick-4": 5, "Quick-3": 4},
    }
    assert len(json.dumps(report)) < 400


async def test_the_report_stays_small_whatever_the_error_says(system: ActorSystem):
    with pytest.raises(ValueError, match="broken"):
        await system.ref(Quick, "a").ask(WriteAndBreak(text="x" * 100_000))
    assert len(json.dumps(system.stats().report())) < 600


async def test_the_report_can_be_written_whatever_the_error_says(system: ActorSystem, caplog: pytest.LogCaptureFixture):
    # The log would show the error as it is, and what gathers the results of tests cannot take that.
    caplog.set_level(logging.CRITICAL)

    class Naming(Quick):
        @command_handler
        def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            raise FileNotFoundError("caf\udce9.txt")

    with pytest.raises(FileNotFoundError):
        await system.ref(Naming, "a").ask(Wait())
    report = orjson.loads(orjson.dumps(system.stats().report()))
    assert report["last_failure"]["error"] == r"FileNotFoundError: caf\udce9.txt"


async def test_figures_can_be_read_in_another_thread_while_actors_come_fail_and_go(url: str):
    is_over = ThreadEvent()
    reads: list[int] = []
    problems: list[Exception] = []

    def look() -> None:
        while not is_over.wait(0.0005):
            try:
                reads.append(len(json.dumps(system.stats().report())))
            except Exception as error:
                problems.append(error)
                return

    interval = sys.getswitchinterval()
    # The threads take turns as often as they can.
    sys.setswitchinterval(1e-6)
    try:
        async with ActorSystem(url, max_live=500) as system:
            thread = Thread(target=look)
            thread.start()
            try:
                for start in range(0, 1000, 50):
                    keys = [str(number) for number in range(start, start + 50)]
                    await asyncio.gather(*(system.ref(Quick, key).ask(Read()) for key in keys))
                    await asyncio.gather(*(fail(system, Quick, key) for key in keys[:5]))
            finally:
                is_over.set()
                thread.join(10)
    finally:
        sys.setswitchinterval(interval)
    assert problems == []
    assert len(reads) > 20
