"""One of two processes that append to the same streams at the same moments, each in its own order.

    python -m tests.faults.lockstep URL NAME BUILD STREAM…

It says when it is ready. For every line that it gets it appends one deposit to each stream, all in one batch, in the
order given, and prints what came of it as JSON: the versions, or an error's name, and what the database refused first.
BUILD is `honest`; `unsorted`, which locks the streams in the order given if that is the other way round; or
`unsorted, giving up`, which does not try again after a deadlock or a serialization failure either.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

from backends import postgres_append, postgres_append_sql, postgres_errors
from backends.postgres_driver import sqlstate
from eventstore import EventStore, EventStoreError
from eventstore.store import Append
from tests.faults.vault import Deposit, parts_of

_refused: list[str] = []


def listen() -> None:
    """Have it known what the database refuses."""
    honest = postgres_errors.may_be_decided_again

    def may_be_decided_again(error: BaseException) -> bool:
        _refused.append(sqlstate(error))
        return honest(error)

    vars(postgres_append)["may_be_decided_again"] = may_be_decided_again


def unsort() -> None:
    for part, sorted_ in (("_LOCKED_THEN_MOVED", "ORDER BY s.id"), ("_MOVED_AT_ONCE", "ORDER BY id")):
        honest = getattr(postgres_append_sql, part)
        assert sorted_ in honest
        setattr(postgres_append_sql, part, honest.replace(sorted_, f"{sorted_} DESC"))


def give_up() -> None:
    vars(postgres_errors)["_OTHER_WRITERS"] = ("23505",)


def id_of(name: str, number: int, stream_id: str) -> str:
    return f"{name}/{number}/{stream_id}"


async def main(url: str, name: str, streams: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    async with EventStore.open(url) as store:
        await store.version(streams[0])
        print("ready", flush=True)
        number = 0
        while await loop.run_in_executor(None, sys.stdin.readline):
            _refused.clear()
            batch = [Append(each, parts_of(Deposit(id=id_of(name, number, each)))) for each in streams]
            try:
                said: dict[str, object] = {"versions": (await store.append_batch(batch)).versions}
            except EventStoreError as error:
                said = {"error": type(error).__name__}
            print(json.dumps({**said, "refused": _refused}), flush=True)
            number += 1


if __name__ == "__main__":
    url, name, build, *streams = sys.argv[1:]
    if build != "honest" and streams != sorted(streams):
        unsort()
    if build == "unsorted, giving up":
        give_up()
    listen()
    asyncio.run(main(url, name, streams))
