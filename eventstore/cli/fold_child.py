"""The program that folds actors for another one, in an interpreter of its own: with other code, another clock, other
hashes. It reads requests as lines of JSON, answers each with one, and ends with its input."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any, TextIO, cast

from actors.actor import PersistentActor
from actors.canonical import digest_of
from actors.replaying.determinism import breaches_noted
from actors.time_travel.folding import Fold
from eventstore.cli.arguments import Address
from eventstore.cli.exits import STORE_TROUBLE, CommandFailed, Exit
from eventstore.cli.targets import actor_class
from eventstore.errors import EventStoreError, RecoveryError
from eventstore.store import EventStore

Record = dict[str, Any]


def main() -> int:
    """Serve until the input ends."""
    # What the user's code prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    setup: Record = json.loads(sys.stdin.readline())
    try:
        if setup["shift_seconds"]:
            shift_clock(setup["shift_seconds"])
        cls = actor_class(setup["target"], folder=setup["folder"])
    except CommandFailed as error:
        _answer(answers, _refusal(error, error.code))
        return error.code
    return asyncio.run(_serve(Address(setup["url"], setup["tenant"]), cls, answers))


async def _serve(address: Address, cls: type[PersistentActor[Any]], answers: TextIO) -> int:
    try:
        async with address.store() as store:
            _answer(answers, {"kind": cls.kind, "fingerprint": cls.state_type.fingerprint})
            # Who asks waits for the answer.
            requests: asyncio.Queue[Record] = asyncio.Queue(1)
            _read_in_a_thread(asyncio.get_running_loop(), requests)
            while True:
                request = await requests.get()
                _answer(answers, await _answered(store, cls, request))
    except (EventStoreError, TimeoutError) as error:
        _answer(answers, _refusal(error, Exit.STORE))
        return Exit.STORE


def _read_in_a_thread(loop: asyncio.AbstractEventLoop, requests: asyncio.Queue[Record]) -> None:
    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(requests.put_nowait, json.loads(line))
        # Whoever asked is gone, and nobody wants what is being folded.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()


async def _answered(store: EventStore, cls: type[PersistentActor[Any]], request: Record) -> Record:
    answer: Record = {"digests": [], "version": 0, "breaches": [], "error": None}
    try:
        with ExitStack() as stack:
            breaches = stack.enter_context(breaches_noted(cls)) if request["watch"] else []
            try:
                await _fold(store, cls, request, answer)
            finally:
                answer["breaches"] = [list(breach) for breach in breaches]
    except STORE_TROUBLE:
        raise
    except RecoveryError as error:
        answer["error"] = {"version": error.version, "reason": error.reason, "name": _cause_of(error)}
    except Exception as error:
        # Whatever the user's code does, it is told of, and the next actor is folded.
        reason = f"{type(error).__name__}: {error}"
        answer["error"] = {"version": getattr(error, "version", None), "reason": reason, "name": type(error).__name__}
    return answer


async def _fold(store: EventStore, cls: type[PersistentActor[Any]], request: Record, answer: Record) -> None:
    """Fold through the version that is asked for, and note digests at the stops: each `stride` versions behind `after`,
    at those in `also`, and at the end."""
    through, after, stride = request["through"], request["after"], request["stride"]
    folding = await Fold.earliest(store, cls, request["key"])
    if request["start"]:
        await folding.start_from(request["start"])
    begin = max(after, folding.version)
    stops = {*range((begin // stride + 1) * stride, through, stride), *request["also"], through}
    if folding.version >= after:
        stops.add(folding.version)
    for stop in sorted(stop for stop in stops if begin <= stop <= through):
        await folding.through(stop)
        answer["version"] = folding.version
        answer["digests"].append([stop, digest_of(folding.canonical())])
    if request["state"]:
        answer["state"] = folding.canonical()


def _cause_of(error: BaseException) -> str:
    return type(error.__cause__ or error).__name__


def _refusal(error: Exception, code: int) -> Record:
    return {"refused": str(error), "name": type(error).__name__, "code": int(code)}


def _answer(answers: TextIO, record: Record) -> None:
    answers.write(json.dumps(record) + "\n")
    answers.flush()


def shift_clock(seconds: float) -> None:
    """Let this interpreter's wall clock go ahead, for good: `time.time`, and with it `date.today`, and `datetime.now`.

    Modules that have been imported keep what they took by name from `time`.
    """
    shift = timedelta(seconds=seconds)
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + seconds
    time.time_ns = lambda: real_time_ns() + int(seconds) * 1_000_000_000
    # A builtin class takes no new attributes but through its own dictionary. A subclass in its place would not do: the
    # values that pydantic makes are none of it.
    members = cast("dict[str, Any]", gc.get_referents(vars(datetime))[0])
    for name in ("now", "utcnow"):
        members[name] = classmethod(_shifted(members[name], shift))
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime))


def _shifted(real: Any, shift: timedelta) -> Callable[..., datetime]:
    def shifted(cls: type[datetime], *arguments: Any, **named: Any) -> datetime:
        return cast("datetime", real.__get__(None, cls)(*arguments, **named) + shift)

    return shifted
