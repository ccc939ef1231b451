"""What other code has stored of a replicated actor: what cannot be used is left aside, what cannot be read is an error
that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, field_validator

from actors import (
    ActorSystem,
    CommandRejected,
    Conflict,
    Fold,
    PersistentActor,
    RecoveryError,
    ReplicatedActor,
    command_handler,
    event_handler,
    fold,
)
from actors.replicas.conflict import Resolution
from eventstore import ReplicationChanged, UnknownEventType
from eventstore.backend import EncodedEvent, StreamWrite
from eventstore.codec import checksum_of, encode_event
from eventstore.stamp import Stamp
from eventstore.vector_clock import VectorClock
from tests.replication.ledger import KeptLedger, Ledger, Lines, Note, Noted, OverdraftFound, Read
from tests.replication.replicas import Replicas


def _stricter(raised: Callable[[str], Exception]) -> type[ReplicatedActor[Any]]:
    """The same actor with a state that does not take what snapshots hold, although its schema is the same."""

    class Lines(BaseModel):
        lines: list[str] = []

        @field_validator("lines")
        @classmethod
        def _short(cls, lines: list[str]) -> list[str]:
            if lines:
                raise raised("these are lines of old")
            return lines

    class Stricter(ReplicatedActor[Lines], kind="KeptLedger"):
        @event_handler
        def noted(self, event: Noted) -> None:
            self.state.lines.append(event.text)

    assert Stricter.state_type.fingerprint == KeptLedger.state_type.fingerprint
    return Stricter


@pytest.mark.parametrize("raised", [ValueError, KeyError])
async def test_a_snapshot_that_the_state_does_not_take_is_passed_over(
    replicas: Replicas, raised: Callable[[str], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    (eu,) = await replicas.start("eu", actors=[KeptLedger])
    for text in "abcdefg":
        await eu.ref(KeptLedger, "x").ask(Note(text=text))
    await eu.close()
    store = replicas.stores["eu"]
    assert (await fold(store, KeptLedger, "x")).snapshot_version > 0
    state, version, snapshot_version = await fold(store, _stricter(raised), "x")
    assert (state.lines, version, snapshot_version) == (list("abcdefg"), 7, 0)
    assert "going to an older snapshot or to the first event" in caplog.text


def _stamped(sequence: int) -> EncodedEvent:
    stamp = Stamp("eu", sequence, VectorClock({"eu": sequence}), 2**62)
    return encode_event(Noted(text="later"), replica=stamp.fields(concurrent=False))


def _unknown(version: int) -> EncodedEvent:
    encoded = _stamped(version)
    checksum = checksum_of("test.unknown", encoded.schema_version, encoded.payload, encoded.metadata)
    return encoded._replace(type="test.unknown", checksum=checksum)


async def _with_an_unknown_event(replicas: Replicas) -> ActorSystem:
    (eu,) = await replicas.start("eu", actors=[Ledger])
    await eu.ref(Ledger, "x").ask(Note(text="a"))
    await eu.close()
    await replicas.stores["eu"].append_writes([StreamWrite("Ledger-x", 1, [_unknown(2)])])
    (eu,) = await replicas.start("eu", actors=[Ledger])
    return eu


async def test_an_event_that_cannot_be_read_stops_recovery_with_its_version(replicas: Replicas) -> None:
    eu = await _with_an_unknown_event(replicas)
    with pytest.raises(RecoveryError, match=r"no event class is known for 'test\.unknown'") as raised:
        await eu.ref(Ledger, "x").ask(Read())
    assert raised.value.version == 2
    assert isinstance(raised.value.__cause__, UnknownEventType)


async def test_an_event_that_cannot_be_read_stops_a_fold_with_its_version(replicas: Replicas) -> None:
    await _with_an_unknown_event(replicas)
    folding = await Fold.earliest(replicas.stores["eu"], Ledger, "x")
    await folding.through(1)
    with pytest.raises(RecoveryError, match=r"no event class is known for 'test\.unknown'") as raised:
        await folding.through(2)
    assert (raised.value.version, folding.version) == (2, 1)


async def test_an_event_that_cannot_be_read_stops_a_live_actor_that_catches_up(replicas: Replicas) -> None:
    (eu,) = await replicas.start("eu", actors=[Ledger])
    await eu.ref(Ledger, "x").ask(Note(text="a"))
    await eu.store.append_writes([StreamWrite("Ledger-x", 1, [_unknown(2)])])
    with pytest.raises(RecoveryError, match=r"no event class is known for 'test\.unknown'"):
        await eu.ref(Ledger, "x").ask(Read(), fresh=True)


async def test_an_event_that_no_replica_wrote_stops_a_fold_with_its_version(replicas: Replicas) -> None:
    (eu,) = await replicas.start("eu", actors=[Ledger])
    await eu.ref(Ledger, "x").ask(Note(text="a"))
    await eu.store.append("Ledger-x", [Noted(text="by hand")], expected_version=1)
    for through in (None, 2):
        with pytest.raises(ReplicationChanged, match="was not written by a replicated actor") as raised:
            await fold(eu.store, Ledger, "x", through=through)
        assert raised.value.version == 2


class PlainLedger(PersistentActor[Lines], kind="Ledger"):
    """What `Ledger` is once its class is not replicated any more."""

    @command_handler
    def note(self, command: Note) -> int:
        self.persist(Noted(text=command.text))
        return len(self.state.lines)

    @command_handler
    def read(self, command: Read) -> list[str]:
        return list(self.state.lines)

    @event_handler
    def noted(self, event: Noted) -> None:
        self.state.lines.append(event.text)


class PlainKeptLedger(PlainLedger, kind="KeptLedger"):
    """The same of `KeptLedger`."""


@pytest.mark.parametrize(("was", "now"), [(Ledger, PlainLedger), (KeptLedger, PlainKeptLedger)], ids=["", "snapshots"])
async def test_an_actor_that_is_replicated_no_more_stores_nothing_among_stamped_events(
    replicas: Replicas, was: type[Ledger], now: type[PlainLedger]
) -> None:
    (eu,) = await replicas.start("eu", actors=[was])
    for text in "abcdefg":
        await eu.ref(was, "x").ask(Note(text=text))
    await eu.close()
    store = replicas.stores["eu"]
    async with ActorSystem(store) as system:
        with pytest.raises(ReplicationChanged, match=r"was written by a replicated actor.*another kind") as raised:
            await system.ref(now, "x").ask(Note(text="h"))
    assert (raised.value.stream_id, raised.value.version) == (f"{was.kind}-x", 1)
    assert await store.version(f"{was.kind}-x") == 7
    with pytest.raises(ReplicationChanged):
        await fold(store, now, "x")


@pytest.mark.parametrize("is_replicated_first", [True, False])
async def test_of_old_code_and_new_beside_it_the_first_to_store_something_decides(
    replicas: Replicas, is_replicated_first: bool
) -> None:
    (eu,) = await replicas.start("eu", actors=[Ledger])
    async with ActorSystem(replicas.stores["eu"]) as other:
        refs = [eu.ref(Ledger, "x"), other.ref(PlainLedger, "x")]
        # Both have found a stream without events.
        assert [await ref.ask(Read()) for ref in refs] == [[], []]
        first, second = refs if is_replicated_first else refs[::-1]
        await first.ask(Note(text="a"))
        with pytest.raises(ReplicationChanged) as raised:
            await second.ask(Note(text="b"))
        assert raised.value.version == 1
        assert await first.ask(Note(text="c")) == 2
    assert await eu.store.version("Ledger-x") == 2


async def test_an_actor_that_has_become_replicated_stores_nothing_among_events_without_a_stamp(
    replicas: Replicas,
) -> None:
    store = await replicas.store("eu")
    async with ActorSystem(store) as system:
        await system.ref(PlainLedger, "x").ask(Note(text="a"))
    (eu,) = await replicas.start("eu", actors=[Ledger])
    with pytest.raises(ReplicationChanged, match=r"was not written by a replicated actor.*another kind") as raised:
        await eu.ref(Ledger, "x").ask(Note(text="b"))
    assert (raised.value.stream_id, raised.value.version) == ("Ledger-x", 1)
    assert await store.version("Ledger-x") == 1


class Failing(Ledger, kind="Ledger"):
    """What `Ledger` is once its handler does not take a text any more."""

    @event_handler
    def noted(self, event: Noted) -> None:
        if event.text == "c":
            raise self.error("no c")
        self.state.lines.append(event.text)

    error: ClassVar[type[Exception]] = ValueError


class Rejecting(Failing, kind="Ledger"):
    error = CommandRejected


class Refusing(Ledger, kind="Ledger"):
    """The same of a rule."""

    def resolve(self, conflict: Conflict) -> Resolution:
        raise ValueError("no c")


class Wrong(Ledger, kind="Ledger"):
    """A rule that returns what nobody handles."""

    def resolve(self, conflict: Conflict) -> Resolution:
        return OverdraftFound(amount=1)


async def test_a_rule_that_returns_what_nobody_handles_stops_recovery_with_the_version_of_the_event(
    replicas: Replicas,
) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await us.ref(Ledger, "x").ask(Note(text="a"))
    await eu.ref(Ledger, "x").ask(Note(text="b"))
    await replicas.sync(("us", "eu"))
    with pytest.raises(RecoveryError, match="Wrong.resolve returned OverdraftFound") as raised:
        await fold(replicas.stores["us"], Wrong, "x")
    assert raised.value.version == 2


@pytest.mark.parametrize("actor", [Failing, Rejecting, Refusing])
async def test_a_handler_or_a_rule_that_raises_stops_recovery_with_the_version_of_the_event(
    replicas: Replicas, actor: type[Ledger]
) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await us.ref(Ledger, "x").ask(Note(text="c"))
    for text in "ab":
        await eu.ref(Ledger, "x").ask(Note(text=text))
    await replicas.sync(("eu", "us"))
    await eu.close()
    store = replicas.stores["eu"]
    (eu,) = await replicas.start("eu", actors=[actor])
    where = r"at version {}, event {} of '{}', .*no c"
    version, sequence, origin = (1, 1, "eu") if actor is Refusing else (3, 1, "us")
    with pytest.raises(RecoveryError, match=where.format(version, sequence, origin)) as raised:
        await eu.ref(actor, "x").ask(Read())
    assert raised.value.version == version
    with pytest.raises(RecoveryError, match="no c") as raised:
        await fold(store, actor, "x")
    assert raised.value.version == version
