"""Transacting: a transaction that is run again as long as others are faster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from actors.transactions.transaction import Transaction
from eventstore.errors import ConcurrencyError, InvalidArgument, TransactionConflict, TransactionRepeated

T = TypeVar("T")

RETRIES = 20

# Another was faster, or the database has let one of two go on whose statements stood in each other's way.
_OVERTAKEN = (ConcurrencyError, TransactionConflict)

# Who was faster is done within one commit, most of the time.
_FIRST_PAUSE_SECONDS = 0.004
_LONGEST_PAUSE_SECONDS = 0.5


async def transact(begin: Callable[[], Transaction], work: Callable[[Transaction], Awaitable[T]], *, retries: int) -> T:
    """Run `work` in a transaction, and in a new one after a conflict, at most so many times more.

    What it took is known then, so that it is taken beforehand, in an order that is everybody's.

    Nothing is run again in which an `async def` handler took part.
    """
    # Whoever has no type checker gives anything.
    if not isinstance(cast("object", retries), int) or retries < 0:
        raise InvalidArgument(f"retries is 0 or more, not {retries!r}: nothing was done")
    last: Transaction | None = None

    async def run() -> T:
        nonlocal last
        wanted = () if last is None else last.wanted.values()
        async with begin() as last:
            await last.hold(*wanted)
            return await work(last)
        # Only what was stored before leaves the block without a result: its own statements are not run again.
        raise TransactionRepeated(last.command_id or "", last.replies)

    def is_overtaken(error: BaseException | None) -> bool:
        return isinstance(error, _OVERTAKEN) and last is not None and not last.ran_async

    try:
        # Nearly always that is all.
        return await run()
    except _OVERTAKEN as error:
        if retries < 1 or not is_overtaken(error):
            raise
    attempts = AsyncRetrying(
        retry=retry_if_exception(is_overtaken),
        wait=wait_random_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS),
        stop=stop_after_attempt(retries),
        reraise=True,
    )
    result: T = await attempts(run)
    return result
