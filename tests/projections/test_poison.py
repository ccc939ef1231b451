"""An event that cannot be applied is tried again, then parked or waited for, and never lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eventstore import DeadLetterWaits, EventStore, ProjectionError, ProjectionRunner, ProjectionStopped
from eventstore.read_models.projection_control import live_checkpoint, purge_letters, replay_letter, resume, seek

from .ledger import Ledger, PlainLedger, amounts, pay, write_raw


@pytest.fixture(autouse=True)
def nothing_fails() -> Iterator[None]:
    yield
    Ledger.fails_on = PlainLedger.fails_on = None
    PlainLedger.got.clear()


class Pausing(Ledger, name="ledger", kinds=("account",)):
    on_poison = "pause"


async def run(store: EventStore, projection: type[Ledger] | type[PlainLedger] = Ledger) -> None:
    await ProjectionRunner(store, projection).run(follow=False)


@pytest.mark.sql_alone
async def test_it_is_parked_and_the_others_are_applied_in_their_order(store: EventStore):
    Ledger.fails_on = 3
    positions = [await pay(store, amount) for amount in (1, 2, 3, 4, 5, 3, 6)]
    await run(store)
    assert await amounts(store) == [1, 2, 4, 5, 6]
    checkpoint = await live_checkpoint(store, "ledger")
    assert [letter.position for letter in checkpoint.letters] == [positions[2], positions[5]]
    letter = checkpoint.letters[0]
    assert (letter.stream_id, letter.version, letter.type, letter.attempts) == ("account-a", 3, "ledger.paid", 2)
    assert letter.error == "ValueError: this amount cannot be"
    assert (checkpoint.position, checkpoint.events) == (positions[-1], 7)


@pytest.mark.sql_alone
async def test_one_that_can_be_applied_at_the_second_attempt_is(store: EventStore):
    attempts: list[int] = []

    class Shaky(Ledger, name="ledger", kinds=("account",)):
        async def flush(self, connection):  # type: ignore[no-untyped-def]
            await super().flush(connection)
            attempts.append(len(self.rows))
            if len(attempts) < 3:
                raise ValueError("not yet")

    await pay(store, 1, 2)
    await run(store, Shaky)
    assert attempts == [2, 1, 1, 1]
    assert await amounts(store) == [1, 2]
    assert (await live_checkpoint(store, "ledger")).letters == ()


@pytest.mark.sql_alone
async def test_it_is_waited_for_if_the_projection_says_so(store: EventStore):
    Pausing.fails_on = 2
    await pay(store, 1, 2, 3)
    for _ in range(2):
        with pytest.raises(ProjectionStopped, match=r"'ledger\.paid' in 'account-a' version 2, could not be applied"):
            await run(store, Pausing)
    assert await amounts(store) == [1]
    Pausing.fails_on = None
    await resume(store, "ledger")
    await run(store, Pausing)
    assert await amounts(store) == [1, 2, 3]


@pytest.mark.sql_alone
async def test_too_many_dead_letters_pause_the_projection(store: EventStore):
    class Strict(Ledger, name="ledger", kinds=("account",)):
        max_dead_letters = 2
        fails_on = 1

    await pay(store, 1, 1, 1, 2)
    with pytest.raises(ProjectionStopped):
        await run(store, Strict)
    checkpoint = await live_checkpoint(store, "ledger")
    assert (len(checkpoint.letters), checkpoint.events) == (2, 2)


async def test_one_that_cannot_be_decoded_is_parked_too(store: EventStore):
    await write_raw(store, "ledger.paid", b'{"amount":"much"}')
    await pay(store, 1)
    await run(store, PlainLedger)
    assert PlainLedger.got == [("account-a", 1)]
    (letter,) = (await live_checkpoint(store, "plain")).letters
    assert letter.error.startswith("EventDecodeError: event 'ledger.paid' (stream 'account-a', version 1)")


async def test_a_dead_letter_is_applied_once_its_cause_is_mended(store: EventStore):
    PlainLedger.fails_on = 2
    await pay(store, 1, 2, 3)
    await run(store, PlainLedger)
    (letter,) = (await live_checkpoint(store, "plain")).letters
    assert await replay_letter(store, PlainLedger, letter) == "ValueError: this amount cannot be"
    assert (await live_checkpoint(store, "plain")).letters == (letter,)

    PlainLedger.fails_on = None
    PlainLedger.got.clear()
    assert await replay_letter(store, PlainLedger, letter) is None
    assert PlainLedger.got == [("account-a", 2)]
    checkpoint = await live_checkpoint(store, "plain")
    assert (checkpoint.letters, checkpoint.events) == ((), 3)
    with pytest.raises(ProjectionError, match="no dead letter at position"):
        await replay_letter(store, PlainLedger, letter)


async def test_a_dead_letter_that_comes_again_after_a_seek_is_none_any_more(store: EventStore):
    PlainLedger.fails_on = 2
    first, second, _ = [await pay(store, amount) for amount in (1, 2, 3)]
    await run(store, PlainLedger)
    await seek(store, PlainLedger, second)
    (letter,) = (await live_checkpoint(store, "plain")).letters
    await seek(store, PlainLedger, first)
    await run(store, PlainLedger)
    assert len((await live_checkpoint(store, "plain")).letters) == 1, "it failed again"
    PlainLedger.fails_on = None
    await seek(store, PlainLedger, first)
    PlainLedger.got.clear()
    await run(store, PlainLedger)
    with pytest.raises(ProjectionError, match="no dead letter"):
        await replay_letter(store, PlainLedger, letter)
    assert [amount for _, amount in PlainLedger.got] == [2, 3]


async def test_the_event_of_a_dead_letter_is_not_truncated_before_it_was_applied(store: EventStore):
    PlainLedger.fails_on = 2
    await pay(store, 1, 2, 3)
    await run(store, PlainLedger)
    (letter,) = (await live_checkpoint(store, "plain")).letters
    with pytest.raises(DeadLetterWaits, match=r"'account-a' version 2, which waits among its dead letters"):
        await store.truncate("account-a", 3, reason="a test")
    assert [recorded.version async for recorded in store.read("account-a")] == [1, 2, 3]

    PlainLedger.fails_on = None
    assert await replay_letter(store, PlainLedger, letter) is None
    assert await store.truncate("account-a", 3, reason="a test") == 3


async def test_a_dead_letter_that_was_forgotten_and_whose_event_was_removed_cannot_be_applied(store: EventStore):
    PlainLedger.fails_on = 1
    await pay(store, 1, 2)
    await run(store, PlainLedger)
    (letter,) = (await live_checkpoint(store, "plain")).letters
    PlainLedger.fails_on = None
    await purge_letters(store, "plain")
    await store.truncate("account-a", 1, reason="a test")
    assert "was removed from the journal" in (await replay_letter(store, PlainLedger, letter) or "")


async def test_dead_letters_are_purged_by_position_or_all(store: EventStore):
    PlainLedger.fails_on = 1
    await pay(store, 1, 1, 1)
    await run(store, PlainLedger)
    first, second, third = (await live_checkpoint(store, "plain")).letters
    assert await purge_letters(store, "plain", {second.position, 10**6}) == 1
    assert (await live_checkpoint(store, "plain")).letters == (first, third)
    assert await purge_letters(store, "plain") == 2
    assert (await live_checkpoint(store, "plain")).letters == ()
