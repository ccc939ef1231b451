"""A failed append: stored, certainly not stored, or unknown; and nobody is ever told something that is not so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import pytest

from actors import ActorSystem, CommandRejected, PersistentActor, Restart, command_handler, event_handler
from backends.conformance.cases import case
from eventstore import (
    BackendUnavailable,
    ConcurrencyError,
    EventStore,
    EventStoreError,
    JournalCorrupt,
    OutcomeUnknown,
    StorageFull,
    StoreClosed,
)
from eventstore.backend import AppendOutcome, Claim, Load, StreamWrite
from eventstore.codec import encode_batch
from eventstore.store import Append
from tests.actors.faults import Fault, Faults, answer_lost, refused, request_lost
from tests.actors.notebook import Notebook, Page, Read, Wait, Write, WriteSlowly, Written, served, texts


class Quick(Notebook, kind="Notebook"):
    """Restarts at once, so that the tests need not wait."""

    supervision = Restart(first_pause_seconds=0.0)


# Certainly not stored


@case("C160")
async def test_a_failed_append_reaches_the_asker_and_changes_nothing(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Write(text="1"))
    faults.next.append(refused(StorageFull("full")))
    with pytest.raises(StorageFull):
        await notebook.ask(Write(text="lost"))
    assert await notebook.ask(Read()) == ["1"]
    assert await texts(faulty.store) == ["1"]


@case("C160")
async def test_a_failed_append_is_no_failure_of_the_actor_and_it_serves_again(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    faults.next.append(refused(BackendUnavailable("gone")))
    with pytest.raises(BackendUnavailable):
        await notebook.ask(Write(text="lost"))
    assert faulty.stats().failures == {}
    assert await notebook.ask(Write(text="1")) == 1


async def test_a_failed_append_fails_every_reply_that_waited_on_it(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [asyncio.create_task(notebook.ask(Write(text="1")))]
    await faults.held()
    # These are decided on the first one's event: a write, a read of it, and one that joins the next commit.
    asks += [asyncio.create_task(notebook.ask(command)) for command in (Read(), Write(text="2"), Read())]
    await asyncio.sleep(0)
    faults.next.append(refused(BackendUnavailable("gone")))
    faults.release()
    replies = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(reply) for reply in replies] == [BackendUnavailable] * 4
    assert await notebook.ask(Read()) == []
    assert await texts(faulty.store) == []


async def test_what_was_behind_a_failed_append_is_withdrawn(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    faults.hold()
    first = asyncio.create_task(notebook.ask(Write(text="1")))
    await faults.held()
    second = asyncio.create_task(notebook.ask(Write(text="2")))
    await asyncio.sleep(0)
    faults.next.append(refused(BackendUnavailable("gone")))
    faults.release()
    await asyncio.gather(first, second, return_exceptions=True)
    await notebook.ask(Write(text="3"))
    assert [write.events[0].payload for batches in faults.appends for [write] in batches] == [
        b'{"text":"1"}',
        b'{"text":"3"}',
    ]


@case("C160", "C167")
async def test_commands_in_the_mailbox_of_an_actor_that_failed_are_kept_and_served_in_order(
    faults: Faults, faulty: ActorSystem
):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [asyncio.create_task(notebook.ask(Write(text="lost")))]
    await faults.held()
    # An async one waits in the mailbox until what is before it is durable, and holds up the others.
    asks += [asyncio.create_task(notebook.ask(command)) for command in (WriteSlowly(text="1"), Write(text="2"))]
    await asyncio.sleep(0)
    faults.next.append(refused(BackendUnavailable("gone")))
    faults.release()
    replies = await asyncio.gather(*asks, return_exceptions=True)
    assert isinstance(replies[0], BackendUnavailable)
    assert replies[1:] == [1, 2]
    assert await texts(faulty.store) == ["1", "2"]


async def test_a_failed_append_fails_the_await_of_persist(faults: Faults, faulty: ActorSystem):
    caught: list[BaseException] = []

    class Awaiting(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

        @command_handler
        async def wait(self, command: Wait) -> int:
            try:
                await self.persist(Written(text="lost"))
            except BackendUnavailable as error:
                caught.append(error)
            return len(self.state.lines)

    notebook = faulty.ref(Awaiting, "a")
    faults.next.append(refused(BackendUnavailable("gone")))
    with pytest.raises(BackendUnavailable):
        await notebook.ask(Wait())
    assert len(caught) == 1
    assert await notebook.ask(Read()) == []


async def test_a_handler_that_goes_on_after_a_failed_append_can_persist_nothing_more(
    faults: Faults, faulty: ActorSystem
):
    caught: list[BaseException] = []

    class Stubborn(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

        @command_handler
        async def wait(self, command: Wait) -> int:
            for _ in range(3):
                try:
                    await self.persist(Written(text="lost"))
                except EventStoreError as error:
                    caught.append(error)
            return 0

    faults.next.append(refused(BackendUnavailable("gone")))
    with pytest.raises(BackendUnavailable):
        await faulty.ref(Stubborn, "a").ask(Wait())
    assert [type(error) for error in caught] == [BackendUnavailable] * 3
    assert len(faults.appends) == 1


async def test_an_append_that_failed_leaves_other_actors_alone(faults: Faults, faulty: ActorSystem):
    failing, other = faulty.ref(Quick, "a"), faulty.ref(Quick, "b")
    await other.ask(Write(text="1"))
    faults.next.append(refused(BackendUnavailable("gone")))
    with pytest.raises(BackendUnavailable):
        await failing.ask(Write(text="lost"))
    assert await other.ask(Write(text="2")) == 2
    assert faulty.stats().failures == {}


async def test_an_actor_recovers_when_the_database_is_back(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Write(text="1"))
    faults.always = refused(BackendUnavailable("gone"))
    for _ in range(5):
        with pytest.raises(BackendUnavailable):
            await notebook.ask(Write(text="lost"))
    faults.always = None
    assert await notebook.ask(Write(text="2")) == 2
    assert await texts(faulty.store) == ["1", "2"]


async def test_a_read_is_still_answered_when_only_appends_fail(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Write(text="1"))
    faults.always = refused(StorageFull("full"))
    with pytest.raises(StorageFull):
        await notebook.ask(Write(text="lost"))
    assert await notebook.ask(Read()) == ["1"]


# Unknown


async def test_an_append_whose_answer_was_lost_is_sent_again_and_stored_once(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    faults.next.append(answer_lost)
    assert await notebook.ask(Write(text="1")) == 1
    assert await texts(faulty.store) == ["1"]
    assert faulty.stats().failures == {}


async def test_an_append_that_was_lost_on_the_way_is_sent_again_and_stored_once(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    faults.next.append(request_lost)
    assert await notebook.ask(Write(text="1")) == 1
    assert await texts(faulty.store) == ["1"]


async def test_what_is_sent_again_is_the_identical_batch(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    faults.next.extend([answer_lost, request_lost])
    faults.hold()
    first = asyncio.create_task(notebook.ask(Write(text="1")))
    await faults.held()
    second = asyncio.create_task(notebook.ask(Write(text="2")))
    await asyncio.sleep(0)
    faults.release()
    await asyncio.gather(first, second)
    assert faults.appends[0] == faults.appends[1] == faults.appends[2] != faults.appends[3]


async def test_while_the_outcome_is_unknown_no_reply_leaves(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    faults.next.append(answer_lost)
    faults.hold()
    asks = [asyncio.create_task(notebook.ask(Write(text="1"))), asyncio.create_task(notebook.ask(Read()))]
    await faults.held()
    faults.release()
    await asyncio.sleep(0)
    faults.hold()
    await faults.held(2)
    assert not any(ask.done() for ask in asks)
    faults.release()
    assert await asyncio.gather(*asks) == [1, ["1"]]


async def test_an_outcome_that_nobody_learns_in_time_is_unknown_to_every_asker(
    faults: Faults, faulty: ActorSystem, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(faulty.store.commits, "_resolve_within", 0.1)
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    faults.always = request_lost
    replies = await asyncio.gather(notebook.ask(Write(text="1")), notebook.ask(Read()), return_exceptions=True)
    assert [type(reply) for reply in replies] == [OutcomeUnknown, OutcomeUnknown]


@pytest.mark.parametrize("was_stored", [True, False])
async def test_after_an_unknown_outcome_the_actor_recovers_before_it_serves_again(
    faults: Faults, faulty: ActorSystem, monkeypatch: pytest.MonkeyPatch, was_stored: bool
):
    monkeypatch.setattr(faulty.store.commits, "_resolve_within", 0.1)
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Write(text="1"))
    faults.always = answer_lost if was_stored else request_lost
    with pytest.raises(OutcomeUnknown):
        await notebook.ask(Write(text="2"))
    faults.always = None
    assert await notebook.ask(Read()) == (["1", "2"] if was_stored else ["1"])


async def test_an_unknown_outcome_stays_unknown_when_the_database_then_goes_away(
    faults: Faults, faulty: ActorSystem, monkeypatch: pytest.MonkeyPatch
):
    # BackendUnavailable would say that nothing was stored; the first try may have been.
    monkeypatch.setattr(faulty.store.commits, "_resolve_within", 0.1)
    notebook = faulty.ref(Quick, "a")
    faults.next.append(answer_lost)
    faults.always = refused(BackendUnavailable("gone"))
    with pytest.raises(OutcomeUnknown):
        await notebook.ask(Write(text="1"))
    faults.always = None
    assert await served(notebook.ask, Read()) == ["1"]


@pytest.mark.parametrize("error", [JournalCorrupt("damaged"), StoreClosed("closed")], ids=lambda e: type(e).__name__)
async def test_an_unknown_outcome_stays_unknown_whatever_the_next_try_fails_with(
    faults: Faults, faulty: ActorSystem, error: EventStoreError
):
    notebook = faulty.ref(Quick, "a")
    faults.next.extend([answer_lost, refused(error)])
    with pytest.raises(OutcomeUnknown):
        await notebook.ask(Write(text="1"))
    assert await notebook.ask(Read()) == ["1"]


async def test_an_error_of_a_backend_that_is_none_of_ours_is_an_unknown_outcome(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Quick, "a")
    faults.next.append(refused(RuntimeError("a bug in the backend")))
    with pytest.raises(OutcomeUnknown):
        await notebook.ask(Write(text="1"))
    assert await notebook.ask(Read()) == []


async def test_a_batch_that_lost_after_an_unknown_outcome_is_a_conflict_and_decided_again(
    faults: Faults, faulty: ActorSystem
):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())

    async def overtaken(_: object) -> None:
        await faults.direct.append("Notebook-a", [Written(text="other")])
        raise OutcomeUnknown("the request was lost, and another writer came")

    faults.next.append(overtaken)  # type: ignore[arg-type]
    assert await notebook.ask(Write(text="1")) == 2
    assert await texts(faulty.store) == ["other", "1"]


def lost_and_removed(faults: Faults, **through: int) -> Fault:
    """All is stored, nobody is told, and before it is sent again events up to a version of each stream are removed."""

    async def fault(store: Callable[[], Awaitable[Sequence[AppendOutcome]]]) -> Sequence[AppendOutcome]:
        await store()
        for stream_id, version in through.items():
            await faults.journal.truncate(stream_id, version, reason="a test")
        raise OutcomeUnknown("the answer was lost")

    return fault


@pytest.mark.parametrize("removed", [{"a": 2, "b": 1}, {"a": 2}, {"a": 1}, {"b": 1}], ids=str)
async def test_what_was_removed_before_it_is_sent_again_is_not_called_refused(
    faults: Faults, faulty: ActorSystem, removed: dict[str, int]
):
    faults.next.append(lost_and_removed(faults, **removed))
    batch = [Append("a", (Written(text="1"), Written(text="2")), 0), Append("b", (Written(text="3"),), 0)]
    with pytest.raises(OutcomeUnknown, match="may have been removed"):
        await faulty.store.append_batch(batch)


async def test_what_was_removed_before_its_owner_is_overtaken_is_not_called_refused(
    faults: Faults, faulty: ActorSystem
):
    [epoch] = await faults.journal.claim([Claim("a")])
    stored = lost_and_removed(faults, a=1)

    async def overtaken(store: Callable[[], Awaitable[Sequence[AppendOutcome]]]) -> Sequence[AppendOutcome]:
        try:
            return await stored(store)
        finally:
            await faults.journal.claim([Claim("a")])

    faults.next.append(overtaken)
    events = encode_batch([Written(text="1")], limit=1000)
    with pytest.raises(OutcomeUnknown, match="may have been removed"):
        await faulty.store.append_writes([StreamWrite("a", 0, events, epoch)])


async def test_what_is_refused_when_it_is_sent_again_and_cannot_have_been_removed_is_refused(
    faults: Faults, faulty: ActorSystem
):
    await faults.direct.append("a", [Written(text="1"), Written(text="2")])
    await faults.journal.truncate("a", 2, reason="a test")

    async def overtaken(_: Callable[[], Awaitable[Sequence[AppendOutcome]]]) -> Sequence[AppendOutcome]:
        await faults.direct.append("a", [Written(text="3")])
        raise OutcomeUnknown("the request was lost")

    faults.next.append(overtaken)
    with pytest.raises(ConcurrencyError):
        await faulty.store.append("a", [Written(text="mine")], expected_version=2)


async def test_what_is_refused_when_it_is_sent_again_is_unknown_if_nobody_can_say_whether_it_was_removed(
    faults: Faults, faulty: ActorSystem
):
    async def gone(_: Load) -> None:
        raise BackendUnavailable("gone")

    faults.before_load = gone
    faults.next.append(lost_and_removed(faults, a=1))
    with pytest.raises(OutcomeUnknown, match="may have been removed"):
        await faulty.store.append("a", [Written(text="1")], expected_version=0)


async def test_a_backend_that_stores_at_another_version_than_it_should_is_found_out(
    faults: Faults, faulty: ActorSystem
):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())

    async def misplaced(store):
        [outcome] = await store()
        return [outcome._replace(versions=(7,))]

    faults.next.append(misplaced)
    with pytest.raises(JournalCorrupt):
        await notebook.ask(Write(text="1"))


async def test_a_handler_cannot_pass_over_that_its_events_were_refused(faulty: ActorSystem):
    breaker = faulty.store.commits.breaker

    class Careless(Notebook, kind="Notebook"):
        @command_handler
        def wait(self, command: Wait) -> int:
            breaker.give_up(OutcomeUnknown("no answer"))
            try:
                self.persist(Written(text=command.text))
            except BackendUnavailable:
                breaker.answered()
            return 7

    notebook = faulty.ref(Careless, "a")
    for _ in range(2):  # By its mailbox, and then without one.
        with pytest.raises(BackendUnavailable):
            await notebook.ask(Wait(text="x"))
    assert await notebook.ask(Read()) == []


async def test_a_database_that_is_away_is_remembered_as_no_rejection(faulty: ActorSystem):
    breaker = faulty.store.commits.breaker

    class Polite(Notebook, kind="Notebook"):
        is_away = True

        @command_handler
        async def wait(self, command: Wait) -> int:
            if type(self).is_away:
                breaker.give_up(OutcomeUnknown("no answer"))
            try:
                self.persist(Written(text=command.text))
            except BackendUnavailable:
                breaker.answered()  # It serves again, before the handler has made up its mind.
                raise CommandRejected("not now") from None
            return len(self.state.lines)

    notebook = faulty.ref(Polite, "a")
    for command_id in (None, "1"):
        with pytest.raises(BackendUnavailable):
            await notebook.ask(Wait(text="x"), command_id=command_id)
    Polite.is_away = False
    assert await notebook.ask(Wait(text="x"), command_id="1") == 1


# The store is gone


async def test_an_actor_whose_store_was_closed_says_so_and_hangs_nobody(url: str):
    async with EventStore.open(url) as store, ActorSystem(store, shutdown_timeout=1.0) as system:
        notebook = system.ref(Quick, "a")
        await notebook.ask(Write(text="1"))
        await store.close()
        async with asyncio.timeout(20):
            for command in (Write(text="2"), Read(), WriteSlowly(text="3")):
                with pytest.raises(EventStoreError):
                    await notebook.ask(command)


async def test_a_system_over_a_store_that_was_closed_first_closes_at_once(url: str):
    async with EventStore.open(url) as store, ActorSystem(store) as system:
        notebook = system.ref(Quick, "a")
        await notebook.ask(Write(text="1"))
        await store.close()
        with pytest.raises(EventStoreError):
            await notebook.ask(Write(text="2"))
        async with asyncio.timeout(20):
            await system.close()


# Logging


async def test_a_damaged_journal_is_logged_with_the_actor_and_its_cause(
    faults: Faults, faulty: ActorSystem, caplog: pytest.LogCaptureFixture
):
    faults.next.append(refused(JournalCorrupt("torn", stream_id="Notebook-a")))
    with caplog.at_level(logging.ERROR), pytest.raises(JournalCorrupt):
        await faulty.ref(Quick, "a").ask(Write(text="1"))
    assert "actor 'Notebook-a' failed: JournalCorrupt: stream 'Notebook-a': torn" in caplog.text


async def test_a_conflict_is_not_logged_as_a_failure(
    faults: Faults, faulty: ActorSystem, caplog: pytest.LogCaptureFixture
):
    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    await faults.direct.append("Notebook-a", [Written(text="other")])
    await notebook.ask(Write(text="1"))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_an_event_handler_that_fails_at_replay_only_is_an_error_of_recovery_not_of_the_append(
    faults: Faults, faulty: ActorSystem
):
    class Forgetful(PersistentActor[Page]):
        supervision = Restart(first_pause_seconds=0.0)
        is_replay_broken = False

        @command_handler
        def write(self, command: Write) -> int:
            self.persist(Written(text=command.text))
            return len(self.state.lines)

        @event_handler
        def written(self, event: Written) -> None:
            if type(self).is_replay_broken:
                raise ValueError("cannot be replayed")
            self.state.lines.append(event.text)

    notebook = faulty.ref(Forgetful, "a")
    assert await notebook.ask(Write(text="1")) == 1
    Forgetful.is_replay_broken = True
    with pytest.raises(ValueError, match="cannot be replayed"):
        await notebook.ask(Write(text="2"))
    assert await texts(faulty.store, kind="Forgetful") == ["1"]
