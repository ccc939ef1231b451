"""A store that a child process has of its parent: it is refused, in words that say so, and the parent goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backends.conformance.events import happened
from eventstore import EventStore, StoreClosed
from eventstore.backend import Load

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

BACKENDS = ["sqlite", "postgres", "redis"]

# What every program below begins with. A child has an event loop of its own, as that of `multiprocessing` has, or goes
# on with the one that it has of its parent.
PRELUDE = """
import asyncio, os, sys
from pydantic import BaseModel
from actors import ActorSystem, Command, PersistentActor, command_handler, event_handler
from backends.conformance.events import happened
from eventstore import Event, EventStore, StoreClosed
from eventstore.contract.audit_query import AuditQuery

url, whose_loop = sys.argv[1], sys.argv[2]
runner = asyncio.Runner()

def forked(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            async def limited():
                async with asyncio.timeout(20):
                    return await work()
            if whose_loop == "parent's":
                code = runner.run(limited())
            else:
                asyncio.set_event_loop(None)
                code = asyncio.run(limited())
        finally:
            os._exit(code)
    return child

def ended(child):
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status

async def opened(store):
    return await store.__aenter__()

async def every(events):
    return [event async for event in events]
"""

REFUSED = """
async def refused():
    calls = [
        lambda: store.append("a", happened(2)),
        lambda: every(store.read("a")),
        lambda: every(store.read_all()),
        lambda: anext(store.subscribe()),
        lambda: store.wait(1_000, 5),
        lambda: store.audit_page(AuditQuery()),
        lambda: store.checkpoints(),
        lambda: store.claim("a"),
        lambda: store.snapshots("a"),
        lambda: store.statistics(),
    ]
    for number, call in enumerate(calls):
        try:
            await call()
        except StoreClosed as error:
            assert "fork" in str(error), error
        else:
            raise AssertionError(number)
    return 7

store = runner.run(opened(EventStore.open(url)))
runner.run(store.append("a", happened(1)))
ended(forked(refused))
assert runner.run(store.append("a", happened(3))).versions == (2,)
assert len(runner.run(every(store.read("a")))) == 2
runner.run(store.close())
"""

# On servers the parent's subscriber looks by itself only after ten minutes: what it gets before, it was told on the
# connection that listens. Those of a file find others' events by looking.
CLOSED_BY_THE_CHILD = """
heard = asyncio.Event()

async def follow():
    async for event in store.subscribe(poll_seconds=0.1 if url.startswith("sqlite") else 600):
        if event.stream_id == "of another process":
            heard.set()

async def close():
    await store.close()
    return 7

async def before():
    await store.append("a", happened(1))
    subscriber = asyncio.create_task(follow())
    # The first event may be found by looking. The second one is told of by the listener, so it listens.
    async with asyncio.timeout(50), EventStore.open(url) as other:
        for _ in range(2):
            heard.clear()
            await other.append("of another process", happened(1))
            await heard.wait()
    heard.clear()
    return subscriber

async def after(subscriber):
    async with asyncio.timeout(40):
        await store.append("a", happened(2))
        assert len(await every(store.read("a"))) == 2
        async with EventStore.open(url) as other:
            await other.append("of another process", happened(1))
            await heard.wait()
    subscriber.cancel()

async def within(seconds, work):
    async with asyncio.timeout(seconds):
        await work

store = runner.run(opened(EventStore.open(url)))
subscriber = runner.run(before())
ended(forked(close))
runner.run(after(subscriber))
runner.run(within(20, store.close()))
"""

# As a child does that leaves the coroutine in which it was forked: what is under way there is cancelled.
LOOP_ENDED_BY_THE_CHILD = CLOSED_BY_THE_CHILD.replace(
    "ended(forked(close))",
    """
child = os.fork()
if child == 0:
    try:
        runner.close()
    finally:
        os._exit(7)
ended(child)
""",
)

# The child ends the loop when what the parent waits for is there to be read, at one turn of the loop or another. The
# parent has made all its connections by then: of one that is being made nobody knows yet.
LOOP_ENDED_BESIDE_CALLS = """
import time

async def begun(call, turns):
    calling = asyncio.create_task(call())
    for _ in range(turns):
        await asyncio.sleep(0)
    return calling

async def within(seconds, calling):
    async with asyncio.timeout(seconds):
        return await calling

store = runner.run(opened(EventStore.open(url + ("&" if "?" in url else "?") + "command_timeout=600&pool_size=1")))
runner.run(store.append("a", happened(1)))
assert runner.run(store.version("a")) == 1
for turns in range(1, 13):
    for call in (lambda: store.version("a"), lambda: store.append("a", happened(1), expected_version=turns)):
        calling = runner.run(begun(call, turns))
        child = os.fork()
        if child == 0:
            try:
                time.sleep(0.03)
                runner.close()
            finally:
                os._exit(7)
        ended(child)
        runner.run(within(20, calling))
assert runner.run(store.version("a")) == 13
runner.run(within(20, asyncio.ensure_future(store.close(), loop=runner.get_loop())))
"""

# The child ends the loop when nothing is there to be read, and much is still to be sent.
LOOP_ENDED_WHILE_SENDING = """
import signal

class Large(Event, name="fork.large"):
    text: str

async def begun(version):
    calling = asyncio.create_task(store.append("a", [Large(text="x" * 3_000_000)] * 6, expected_version=version))
    for _ in range(version // 2):
        await asyncio.sleep(0)
    return calling

async def done(calling):
    async with asyncio.timeout(40):
        await calling

store = runner.run(opened(EventStore.open(url + ("&" if "?" in url else "?") + "command_timeout=600")))
for version in range(0, 24, 6):
    calling = runner.run(begun(version))
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            runner.close()
        finally:
            os._exit(7)
    ended(child)
    runner.run(done(calling))
runner.run(store.close())
"""

CLOSED_BESIDE_A_CHILD = """
store = runner.run(opened(EventStore.open(url)))
runner.run(store.append("a", happened(1)))
runner.run(every(store.read_all()))
watched, alive = os.pipe()
child = os.fork()
if child == 0:
    os.close(alive)
    os.read(watched, 1)  # Until the parent lets go of the pipe.
    os._exit(7)
os.close(watched)
runner.run(store.close())
os.close(alive)
ended(child)
"""

ACTORS = """
class Look(Command[int]):
    pass

class Nothing(BaseModel):
    number: int = 0

class Account(PersistentActor[Nothing]):
    @command_handler
    def look(self, command: Look) -> int:
        return 1

async def close():
    if whose_loop == "its own":
        try:
            await system.ref(Account, "ann").ask(Look())
        except StoreClosed as error:
            assert "fork" in str(error), error
        else:
            raise AssertionError("it was answered")
    await system.close()
    return 7

system = runner.run(ActorSystem(url, ownership="exclusive", lease_seconds=60).__aenter__())
assert runner.run(system.ref(Account, "ann").ask(Look())) == 1
ended(forked(close))
assert runner.run(system.ref(Account, "ann").ask(Look())) == 1
assert runner.run(system.ref(Account, "bob").ask(Look())) == 1
runner.run(system.close())
"""

# A child that opens the file has no locks on it, whatever it believes: the process that closes it last removes the log
# that the child goes on to write to.
OPENED_AGAIN = """
async def open_again():
    try:
        async with EventStore.open(f"sqlite:///{os.path.dirname(url)[10:]}/./journal.db") as store:
            await store.append("a", happened(2))
    except StoreClosed as error:
        assert "fork" in str(error) and "spawn" in str(error), error
    else:
        raise AssertionError("it was opened")
    async with EventStore.open(f"{url}-another") as store:
        await store.append("a", happened(1))
    return 7

store = runner.run(opened(EventStore.open(url)))
runner.run(store.append("a", happened(1)))
ended(forked(open_again))
runner.run(store.close())

async def open_it():
    async with EventStore.open(url) as store:
        assert (await store.append("a", happened(2))).versions == (2,)
    return 7

ended(forked(open_it))
"""


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["postgres", "redis"])
def server_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


def run(program: str, url: str, whose_loop: str = "its own") -> None:
    # From 3.12 on Python warns of every fork beside threads. What comes of one here is what the tests are about.
    quiet = "ignore:This process:DeprecationWarning"
    command = [sys.executable, "-W", quiet, "-c", PRELUDE + program, url, whose_loop]
    checkout = Path(__file__).parents[2]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=checkout)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("whose_loop", ["its own", "parent's"])
def test_a_forked_child_is_refused_whatever_it_asks_and_its_parent_goes_on(url: str, whose_loop: str) -> None:
    run(REFUSED, url, whose_loop)


@pytest.mark.parametrize("whose_loop", ["its own", "parent's"])
def test_a_child_that_closes_the_store_does_nothing_to_its_parents_connections(url: str, whose_loop: str) -> None:
    run(CLOSED_BY_THE_CHILD, url, whose_loop)


def test_a_child_that_ends_its_parents_event_loop_says_nothing_on_its_connections(
    server_url: str,
) -> None:
    run(LOOP_ENDED_BY_THE_CHILD, server_url)


def test_a_child_that_ends_its_parents_event_loop_takes_no_answer_from_it(
    server_url: str,
) -> None:
    run(LOOP_ENDED_BESIDE_CALLS, server_url)


def test_a_child_that_ends_its_parents_event_loop_waits_for_no_answer_to_what_its_parent_sends(
    server_url: str,
) -> None:
    run(LOOP_ENDED_WHILE_SENDING, server_url)


def test_a_store_is_closed_while_a_child_of_a_fork_lives(url: str) -> None:
    run(CLOSED_BESIDE_A_CHILD, url)


@pytest.mark.parametrize("whose_loop", ["its own", "parent's"])
def test_a_child_that_closes_an_actor_system_leaves_its_parent_the_lease(url: str, whose_loop: str) -> None:
    run(ACTORS, url, whose_loop)


def test_a_child_is_refused_a_file_that_was_open_when_it_was_forked(tmp_path: Path) -> None:
    run(OPENED_AGAIN, f"sqlite:///{tmp_path}/journal.db")


async def test_an_append_in_another_event_loop_is_refused(tmp_path: Path) -> None:
    async with EventStore.open(f"sqlite:///{tmp_path}/journal.db") as store:

        async def refused() -> None:
            async with asyncio.timeout(10):
                with pytest.raises(StoreClosed, match="another event loop"):
                    await store.append("a", happened(1))

        await asyncio.to_thread(asyncio.run, refused())
        assert (await store.append("a", happened(1))).versions == (1,)


async def test_who_asks_in_another_event_loop_does_not_wait_for_what_is_under_way_in_the_stores(tmp_path: Path) -> None:
    async with EventStore.open(f"sqlite:///{tmp_path}/journal.db") as store:
        under_way = asyncio.create_task(store.load(Load("a")))
        await asyncio.sleep(0)
        raised: list[BaseException] = []

        async def ask() -> None:
            try:
                async with asyncio.timeout(10):
                    await store.load(Load("a"))
            except Exception as error:
                raised.append(error)

        # The store's loop stands still meanwhile.
        thread = threading.Thread(target=asyncio.run, args=[ask()])
        thread.start()
        thread.join()
        assert [type(error) for error in raised] == [StoreClosed]
        await under_way
