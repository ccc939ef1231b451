"""An actor that cannot have its events merged holds up nobody else, and loses none of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import ClassVar

import pytest

from actors import ActorSystem, event_handler
from actors.replicas.peer import Peer, Pull, Pulled, StorePeer
from actors.replicas.source import Source
from eventstore import RecoveryError, StorageFull
from eventstore.backend import AppendOutcome, Backend, Batch
from tests.replication.ledger import KeptLedger, Ledger, Note, Noted, Read
from tests.replication.replicas import Replicas, journaled


class Stubborn(Ledger, kind="Ledger"):
    refuses: ClassVar[tuple[str, ...]] = ()

    @event_handler
    def noted(self, event: Noted) -> None:
        if event.text in type(self).refuses:
            raise LookupError(f"{event.text} cannot be")
        self.state.lines.append(event.text)


class Careless(StorePeer):
    """Gives everything of a kind, whichever streams were asked for."""

    async def pull(self, wish: Pull) -> Pulled:
        return (await super().pull(wish._replace(stream_ids=())))._replace(wish=wish)


@pytest.fixture(autouse=True)
def nothing_is_refused() -> Iterator[None]:
    yield
    Stubborn.refuses = ()


async def note(system: ActorSystem, key: str, *texts: str) -> None:
    for text in texts:
        await system.ref(Ledger, key).ask(Note(text=text))


async def lines(system: ActorSystem, key: str) -> list[str]:
    return await system.ref(Stubborn, key).ask(Read())


async def read_on(system: ActorSystem, *, limit: int = 2) -> int:
    """Read as much as there is, in small parts. Returns how often it was told that an actor could not."""
    failures = 0
    for _ in range(20):
        try:
            if not await system.replication.pull_from("us", limit=limit):
                break
        except RecoveryError:
            failures += 1
    return failures


@pytest.mark.parametrize("is_careless", [False, True])
async def test_the_others_go_on_and_it_gets_all_in_its_order_when_it_can(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch, is_careless: bool
) -> None:
    # What it has missed is more than one page.
    monkeypatch.setattr("actors.replication._PAGE", 2)
    (us,) = await replicas.start("us", actors=[Ledger])
    peer = Careless("us", us.store) if is_careless else StorePeer("us", us.store)
    peers: dict[str, dict[str, Peer]] = {"eu": {"us": peer}}
    (eu,) = await replicas.start("eu", actors=[Stubborn], peers=peers)
    Stubborn.refuses = ("b",)
    await note(us, "x", "a", "b")
    await note(us, "y", "1")
    await note(us, "x", "c")
    await note(us, "y", "2", "3")
    assert await read_on(eu)
    assert (await lines(eu, "y"), await lines(eu, "x")) == (["1", "2", "3"], ["a"])
    (status,) = eu.replication.status()
    assert list(status.held_back) == ["Ledger-x"]
    assert "b cannot be" in status.held_back["Ledger-x"]

    # Nor does it matter where it is when the process ends.
    await eu.close()
    (eu,) = await replicas.start("eu", actors=[Stubborn], peers=peers)
    await note(us, "x", "d")
    await note(us, "y", "4")
    assert await read_on(eu)
    assert (await lines(eu, "y"), await lines(eu, "x")) == (["1", "2", "3", "4"], ["a"])

    Stubborn.refuses = ()
    await note(us, "x", "e")
    assert await read_on(eu) == 0
    assert await lines(eu, "x") == ["a", "b", "c", "d", "e"]
    assert [(origin, number) for origin, number, *_ in await journaled(eu.store, "Ledger-x")] == [
        ("us", number) for number in range(1, 6)
    ]
    assert eu.replication.status()[0].held_back == {}
    await note(us, "x", "f")
    assert await read_on(eu) == 0
    assert (await lines(eu, "x"))[-1] == "f"


async def test_it_is_tried_again_by_itself(replicas: Replicas) -> None:
    (us,) = await replicas.start("us", actors=[Ledger])
    peers = {"eu": {"us": us.store}}
    Stubborn.refuses = ("a",)
    (eu,) = await replicas.start("eu", actors=[Stubborn], peers=peers, replication_seconds=0.01)  # type: ignore[arg-type]
    await note(us, "x", "a", "b")
    while "Ledger-x" not in eu.replication.status()[0].held_back:
        await asyncio.sleep(0.001)
    await note(us, "y", "1")
    while await lines(eu, "y") != ["1"]:
        await asyncio.sleep(0.001)
    await note(us, "x", "c")
    Stubborn.refuses = ()
    while await lines(eu, "x") != ["a", "b", "c"]:
        await asyncio.sleep(0.001)


async def test_it_is_tried_later_each_time(replicas: Replicas) -> None:
    source = Source("us", StorePeer("us", await replicas.store("us")))
    assert source.is_due("Ledger-x", 100.0), "after a restart nothing is known of it"
    for failures in range(1, 20):
        source.hold_back("Ledger-x", LookupError("no"), now=100.0, seconds=0.5)
        longest = min(10.0, 0.5 * 2**failures)
        assert not source.is_due("Ledger-x", 100.0 + longest * 0.4)
        assert source.is_due("Ledger-x", 100.0 + longest)
        assert source.is_due("Ledger-y", 100.0)


async def test_of_too_many_it_is_not_taken_for_the_actors_fault(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.replication._MOST_HELD_BACK", 2)
    (us,) = await replicas.start("us", actors=[Ledger])
    (eu,) = await replicas.start("eu", actors=[Stubborn], peers={"eu": {"us": StorePeer("us", us.store)}})
    Stubborn.refuses = ("no",)
    for key in "abcdef":
        await note(us, key, "no")
    await note(us, "y", "1")
    assert await read_on(eu, limit=1) == 20
    assert await lines(eu, "y") == []
    assert 0 < len(eu.replication.status()[0].held_back) <= 2
    Stubborn.refuses = ()
    with suppress(RecoveryError):
        await read_on(eu)
    assert [await lines(eu, key) for key in "abcdefy"] == [*[["no"]] * 6, ["1"]]


async def test_too_many_of_one_kind_hold_up_no_other_kind(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    # Such as where newer code writes events of one kind that the code here cannot read yet.
    monkeypatch.setattr("actors.replication._MOST_HELD_BACK", 2)
    (us,) = await replicas.start("us", actors=[Ledger, KeptLedger])
    peers: dict[str, dict[str, Peer]] = {"eu": {"us": StorePeer("us", us.store)}}
    (eu,) = await replicas.start("eu", actors=[Stubborn, KeptLedger], peers=peers)
    Stubborn.refuses = ("no",)
    for key in "abcdef":
        await note(us, key, "no")
    for text in "1234":
        await us.ref(KeptLedger, "z").ask(Note(text=text))
    assert await read_on(eu, limit=1) == 20
    assert await eu.ref(KeptLedger, "z").ask(Read()) == ["1", "2", "3", "4"]


async def test_too_many_of_one_kind_have_the_others_wait_for_no_next_try(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.replication._MOST_HELD_BACK", 2)
    monkeypatch.setattr("actors.replication._PAGE", 3)
    monkeypatch.setattr("actors.replication.pause_after", lambda *_: 3600.0)
    (us,) = await replicas.start("us", actors=[Ledger, KeptLedger])
    Stubborn.refuses = ("no",)
    for key in "abcdef":
        await note(us, key, "no")
    for number in range(20):
        await us.ref(KeptLedger, "z").ask(Note(text=str(number)))
    peers: dict[str, dict[str, Peer]] = {"eu": {"us": StorePeer("us", us.store)}}
    (eu,) = await replicas.start("eu", actors=[Stubborn, KeptLedger], peers=peers, replication_seconds=3600)
    async with asyncio.timeout(60):
        while len(await eu.ref(KeptLedger, "z").ask(Read())) < 20:
            await asyncio.sleep(0.001)
        while "no cannot be" not in (eu.replication.status()[0].trouble or ""):
            await asyncio.sleep(0.001)


async def test_those_that_are_held_back_are_tried_again_beside_too_many(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.replication._MOST_HELD_BACK", 1)
    (us,) = await replicas.start("us", actors=[Ledger])
    (eu,) = await replicas.start("eu", actors=[Stubborn], peers={"eu": {"us": StorePeer("us", us.store)}})
    Stubborn.refuses = ("one", "another")
    await note(us, "a", "one")
    await note(us, "c", "another")
    await note(us, "y", "1")
    assert await read_on(eu, limit=1) == 20
    assert list(eu.replication.status()[0].held_back) == ["Ledger-a"]
    # Only c is in trouble then.
    Stubborn.refuses = ("another",)
    await read_on(eu)
    assert [await lines(eu, key) for key in "acy"] == [["one"], [], ["1"]]
    assert list(eu.replication.status()[0].held_back) == ["Ledger-c"]


async def test_what_is_no_actors_fault_holds_none_of_them_back(replicas: Replicas) -> None:
    (us,) = await replicas.start("us", actors=[Ledger])
    (eu,) = await replicas.start("eu", actors=[Stubborn], peers={"eu": {"us": StorePeer("us", us.store)}})
    await note(us, "x", "a")
    is_full = True

    async def append(backend: Backend, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        if is_full and any(write.stream_id == "Ledger-x" for batch in batches for write in batch):
            raise StorageFull("no room")
        return await backend.append(batches)

    eu.store.append_through(append)
    with pytest.raises(StorageFull):
        await eu.replication.pull_from("us")
    assert eu.replication.status()[0].held_back == {}
    is_full = False
    assert await read_on(eu) == 0
    assert await lines(eu, "x") == ["a"]
