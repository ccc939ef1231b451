"""Checking that actors are folded alike: in two processes, with two clocks, and from each of their snapshots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from actors.replaying.determinism import Breach
from actors.time_travel.folding import snapshot_places
from actors.time_travel.state_changes import state_changes
from eventstore.cli.arguments import Address
from eventstore.cli.changes import short
from eventstore.cli.fold_process import FoldAnswer, FoldProcess, fold_process
from eventstore.cli.folding import Problem, Replayed
from eventstore.store import EventStore

_STRIDE = 256

# More than a year, and not a whole number of days, hours or minutes.
_AHEAD_SECONDS = 400 * 86_400 + 5 * 3_600 + 7 * 60 + 11


class FoldChecker(NamedTuple):
    """Two processes with the same code. The second has other hashes, another time zone, and a clock that is ahead."""

    store: EventStore
    one: FoldProcess
    other: FoldProcess

    async def check(self, key: str, replayed: Replayed) -> None:
        """Fold an actor that was replayed in both, and once from each of its snapshots, and add what is wrong to its
        problems: what its event handlers call, and the first event after which two folds differ."""
        stream_id = replayed.stream_id
        head = await self.store.head(stream_id)
        if head.version == 0:
            return
        places = await snapshot_places(self.store, stream_id)
        wrong = {problem.version for problem in replayed.problems}
        versions = [
            place.version
            for place in places
            if place.fingerprint == self.one.fingerprint
            and place.version <= head.version
            and place.version not in wrong
        ]
        whole, again = await asyncio.gather(
            self.one.fold(key, head.version, stride=_STRIDE, also=versions, watch=True),
            self.other.fold(key, head.version, stride=_STRIDE, also=versions),
        )
        for breach in whole.breaches:
            replayed.problems.append(Problem(stream_id, breach[2], str(Breach(*breach))))
        if await self._parts(key, whole, again, replayed):
            return
        for version in sorted(versions):
            if version in whole.digests and version < head.version:
                await self._check_tail(key, version, versions, head.version, whole, replayed)

    async def _parts(self, key: str, whole: FoldAnswer, again: FoldAnswer, replayed: Replayed) -> bool:
        if _difference(whole, again) is None:
            if (whole.error is None) != (again.error is None):
                error = whole.error or again.error
                assert error is not None  # noqa: S101
                replayed.complain(error.version, f"it can be folded in one process, and not in another: {error.reason}")
                return True
            return False
        before, version = _between(whole, again)
        one, other = await asyncio.gather(
            self.one.fold(key, version, after=before, stride=1),
            self.other.fold(key, version, after=before, stride=1),
        )
        version = _difference(one, other) or version
        one, other = await asyncio.gather(
            self.one.fold(key, version, state=True), self.other.fold(key, version, state=True)
        )
        how = "two processes, with other hashes and another clock, come to different states"
        replayed.complain(version, await self._described(replayed.stream_id, version, how, one, other))
        return True

    async def _check_tail(
        self, key: str, start: int, versions: Sequence[int], end: int, whole: FoldAnswer, replayed: Replayed
    ) -> None:
        tail = await self.one.fold(key, end, start=start, stride=_STRIDE, also=versions)
        if _difference(whole, tail) is None:
            return
        before, version = _between(whole, tail)
        if version > start:
            one = await self.one.fold(key, version, after=before, stride=1)
            other = await self.one.fold(key, version, start=start, after=before, stride=1)
            version = _difference(one, other) or version
        one = await self.one.fold(key, version, state=True)
        other = await self.one.fold(key, version, start=start, state=True)
        how = f"all events, and the snapshot at version {start} with those behind it, come to different states"
        replayed.complain(version, await self._described(replayed.stream_id, version, how, one, other))

    async def _described(self, stream_id: str, version: int, how: str, one: FoldAnswer, other: FoldAnswer) -> str:
        kind = ""
        async for recorded in self.store.read(stream_id, after=version - 1, limit=1):
            kind = f" at {recorded.type!r}"
        difference = next(state_changes(one.state, other.state), None)
        if difference is None:
            return f"{how}{kind}"
        place = difference.pointer or "the state"
        match difference.kind:
            case "changed":
                return f"{how}{kind}: {place} is {short(difference.before)} and {short(difference.after)}"
            case "added" | "removed":
                return f"{how}{kind}: {place} is only in one of them"


def _difference(one: FoldAnswer, other: FoldAnswer) -> int | None:
    """The first version that both stopped at and had different states."""
    common = sorted(one.digests.keys() & other.digests.keys())
    return next((version for version in common if one.digests[version] != other.digests[version]), None)


def _between(one: FoldAnswer, other: FoldAnswer) -> tuple[int, int]:
    """The last version at which they agree before they differ, and that at which they do."""
    version = _difference(one, other) or 0
    return max((each for each in one.digests.keys() & other.digests.keys() if each < version), default=0), version


@asynccontextmanager
async def fold_checker(
    store: EventStore, address: Address, target: str, folder: str
) -> AsyncGenerator[FoldChecker, None]:
    """Start both processes, and end them behind the block. Raises `ChildFailed`."""
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(
                fold_process(
                    address,
                    target,
                    name="replay --check",
                    folder=folder,
                    shift_seconds=shift,
                    environment={"PYTHONHASHSEED": seed, "TZ": zone},
                )
            )
            for seed, zone, shift in (("1", "UTC0", 0), ("2", "XXX-13", _AHEAD_SECONDS))
        ]
        yield FoldChecker(store, one, other)
