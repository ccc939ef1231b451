"""Archives: records are read and stored as they are, a copy goes on where it was, and a fence keeps everybody out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from backends.conformance.events import collect, happened, outcome, tagged, write
from backends.conformance.fixtures import StoreFixtures, backend_of, reopened
from backends.conformance.replicas import ODD, REPLICA, replicated
from eventstore.backend import NO_EVENTS, Appended, Backend, CommandLookup, Load, StreamWrite
from eventstore.contract.archive import ArchivedEvent, ArchivePage, StreamRecords
from eventstore.copies.copying import Copy
from eventstore.errors import ConcurrencyError, CopyDiffers, CopyRefused, FencedError, JournalCorrupt, StoreFenced
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore


async def dump(store: EventStore) -> tuple[list[ArchivedEvent], list[Any], int]:
    """All that a journal has, in the order of the streams' names: numbers are each backend's own."""
    archive = store.archive()
    events, position = await everything(store)
    heads = [head async for head in _heads(store)]
    rest: list[Any] = []
    for head in sorted(heads, key=lambda head: head.key):
        commands = await archive.commands(head.number, after="", limit=1000)
        rest.append((head._replace(number=0), list(commands), list(await archive.snapshots(head.number))))
    return events, rest, position


async def everything(store: EventStore) -> tuple[list[ArchivedEvent], int]:
    """Every event, and where the log ends."""
    events: list[ArchivedEvent] = []
    position, is_end = 0, False
    while not is_end:
        page = await store.archive().events(after=position, limit=1000)
        events += page.events
        position, is_end = page.position, page.is_end
    return events, position


async def _heads(store: EventStore) -> AsyncGenerator[Any, None]:
    after = 0
    while heads := await store.archive().streams(after=after, limit=2):
        for head in heads:
            yield head
        after = heads[-1].number


async def fill(store: EventStore) -> None:
    """A bit of everything that a journal can hold."""
    backend = backend_of(store)
    await store.append("a-1", [tagged(1, "x", "y"), *happened(2, 3)])
    await store.append("b-é\U0001f600", happened(1))
    await backend.append([[replicated("r-1", 0, REPLICA, None, *ODD)]])
    told = [outcome("first", issued_at=5), outcome("\x01 second", payload=b'{"a": 1}', is_rejection=True, issued_at=9)]
    epoch = await store.claim("c-1")
    await backend.append([[write("c-1", b'{"number": 1}', expected=0, epoch=epoch, commands=told)]])
    await backend.append([[StreamWrite("c-2", 0, (), None, [outcome("alone")])]])
    await backend.append([[write("a-1", b"{}", expected=3), write("c-1", b"[]", expected=1)]])
    await store.claim("only-claimed")
    await store.save_snapshot(new_snapshot("a-1", 2, "f", b'{"n":2}'))
    await store.save_snapshot(new_snapshot("a-1", 4, "f", b'{"n":"' + b"4" * 5000 + b'"}'))
    # The newest event of the log is removed, others stand behind what is removed, and one stream loses all.
    await store.append("gone", happened(*range(5)))
    await store.truncate("gone", 5, reason="test")
    await store.truncate("a-1", 2, reason="test")
    await store.forget_commands("c-1", keep=1)


class Archives(StoreFixtures):
    @pytest.fixture
    def archive(self, store: EventStore) -> None:
        """For the tests of this class alone: the contract's others are for every backend."""
        if not store.capabilities.archive:
            pytest.skip("records cannot be read and stored as they are (capabilities.archive)")

    @pytest_asyncio.fixture
    async def elsewhere(self, archive: None) -> AsyncGenerator[EventStore, None]:
        """An empty journal of another backend."""
        async with EventStore.open("memory://") as elsewhere:
            yield elsewhere

    async def copied(self, source: EventStore, target: EventStore) -> Copy:
        copy = Copy(source, target)
        await copy.begin()
        await copy.catch_up()
        await copy.bring_streams()
        return copy

    async def test_a_journal_is_told_from_every_other_however_it_was_opened(
        self, store: EventStore, other: EventStore, elsewhere: EventStore
    ) -> None:
        identity = await store.archive().identity()
        assert await other.archive().identity() == identity
        assert await elsewhere.archive().identity() != identity
        await fill(store)
        assert await store.archive().identity() == identity

    async def test_the_last_number_of_a_stream_is_told(self, store: EventStore, archive: None) -> None:
        assert await store.archive().last_stream() == 0
        await fill(store)
        last = await store.archive().last_stream()
        numbers = [each.number for each in await store.archive().streams(after=0, limit=100)]
        assert (len(numbers), numbers[-1]) == (7, last)

    async def test_a_journal_is_not_copied_onto_itself(
        self, store: EventStore, other: EventStore, elsewhere: EventStore
    ) -> None:
        with pytest.raises(CopyRefused, match="the same journal"):
            await Copy(store, other).begin()
        assert await store.archive().copied() is None
        # Nor one that could go on as a copy.
        await self.copied(elsewhere, store)
        with pytest.raises(CopyRefused, match="the same journal"):
            await Copy(store, other).begin()

    async def test_what_is_stored_comes_back_as_it_was_given(self, store: EventStore, elsewhere: EventStore) -> None:
        await fill(elsewhere)
        copy = await self.copied(elsewhere, store)
        assert await dump(store) == await dump(elsewhere)
        compared = await copy.compare()
        assert (compared.events, compared.streams) == (11, 7)
        assert (compared.commands, compared.snapshots) == (2, 2)

    async def test_what_is_read_is_what_was_stored(self, store: EventStore, elsewhere: EventStore) -> None:
        await fill(store)
        copy = await self.copied(store, elsewhere)
        assert await dump(store) == await dump(elsewhere)
        first = await copy.compare()
        async with EventStore.open("memory://") as third:
            again = await self.copied(elsewhere, third)
            assert (await again.compare()).digest == first.digest

    async def test_it_can_be_read_and_written_as_any_other(self, store: EventStore, elsewhere: EventStore) -> None:
        await fill(elsewhere)
        await self.copied(elsewhere, store)
        assert await collect(store.read_all()) == await collect(elsewhere.read_all())
        assert await collect(store.streams()) == await collect(elsewhere.streams())
        for each in await collect(elsewhere.streams()):
            one, other = await store.load(Load(each.stream_id)), await elsewhere.load(Load(each.stream_id))
            assert list(one.events) == list(other.events)
            assert one._replace(events=NO_EVENTS) == other._replace(events=NO_EVENTS)
        for stream_id, command_id in (("c-1", "first"), ("c-1", "\x01 second"), ("c-2", "alone")):
            lookup = CommandLookup(stream_id, command_id, 10)
            assert await store.find_command(lookup) == await elsewhere.find_command(lookup)
        counted, expected = await store.statistics(), await elsewhere.statistics()
        assert counted[:4] == expected[:4]
        # What is appended goes on behind the last position that was ever given, and behind each stream's version.
        for stream_id in ("a-1", "gone", "new"):
            appended = await store.append(stream_id, happened(9))
            assert appended == await elsewhere.append(stream_id, happened(9))
        assert await store.claim("c-1") == 2

    async def test_an_identical_batch_is_known_in_the_copy(self, store: EventStore, elsewhere: EventStore) -> None:
        batch = [write("a", b"1", b"2", expected=0, commands=[outcome()])]
        [first] = await backend_of(elsewhere).append([batch])
        await self.copied(elsewhere, store)
        [again] = await backend_of(store).append([batch])
        assert isinstance(first, Appended)
        assert again == first._replace(is_duplicate=True)

    async def test_a_copy_survives(self, store: EventStore, elsewhere: EventStore) -> None:
        await fill(elsewhere)
        await self.copied(elsewhere, store)
        async with reopened(store) as again:
            assert await dump(again) == await dump(elsewhere)
            assert await again.archive().copied() == (await elsewhere.statistics()).last_position

    async def test_holes_stay_where_they_are(self, store: EventStore, elsewhere: EventStore) -> None:
        await elsewhere.append("a", happened(1, 2))
        page = await elsewhere.archive().events(after=0, limit=10)
        moved = [event._replace(position=position) for event, position in zip(page.events, (5, 7000), strict=True)]
        await store.archive().restore_events(after=0, page=ArchivePage(moved, page.truncated, 7010, is_end=True))
        assert [event.position for event in await collect(store.read_all())] == [5, 7000]
        assert [event.position for event in await collect(store.read_all(after=5))] == [7000]
        assert [event.position for event in await collect(store.read_all(last=1))] == [7000]
        assert dict((await store.moved(after=0, limit=8000)).versions) != {"a": 0}
        assert (await store.append("a", happened(3))).position == 7011
        events, _ = await everything(store)
        assert [event.position for event in events] == [5, 7000, 7011]

    async def test_a_wide_hole_is_no_obstacle(self, store: EventStore, elsewhere: EventStore) -> None:
        await elsewhere.append("a", happened(1, 2))
        page = await elsewhere.archive().events(after=0, limit=10)
        moved = [event._replace(position=position) for event, position in zip(page.events, (9, 200_000), strict=True)]
        await store.archive().restore_events(after=0, page=ArchivePage(moved, page.truncated, 200_001, is_end=True))
        assert [event.position for event in await collect(store.read_all())] == [9, 200_000]
        assert await store.archive().copied() == 200_001

    async def test_pages_follow_each_other(self, store: EventStore, elsewhere: EventStore) -> None:
        await elsewhere.append("a", happened(*range(10)))
        first = await elsewhere.archive().events(after=0, limit=4)
        rest = await elsewhere.archive().events(after=first.position, limit=100)
        await store.archive().restore_events(after=0, page=first)
        for after, page in ((0, first), (3, rest), (5, rest)):
            with pytest.raises(CopyRefused):
                await store.archive().restore_events(after=after, page=page)
        await store.archive().restore_events(after=4, page=rest)
        assert (await dump(store))[0] == (await dump(elsewhere))[0]

    async def test_a_copy_goes_on_with_what_has_come_and_gone(self, store: EventStore, elsewhere: EventStore) -> None:
        await fill(elsewhere)
        await self.copied(elsewhere, store)
        await elsewhere.append("a-1", happened(5, 6))
        await elsewhere.truncate("a-1", 5, reason="test")
        await elsewhere.truncate("c-1", 1, reason="test")
        await backend_of(elsewhere).append([[write("c-1", b"1", commands=[outcome("third")])]])
        await elsewhere.forget_commands("c-1", keep=1)
        await elsewhere.claim("c-1")
        await elsewhere.save_snapshot(new_snapshot("a-1", 6, "f", b"6"), keep=1)
        await elsewhere.save_snapshot(new_snapshot("c-1", 3, "g", b"1"))
        await elsewhere.save_snapshot(new_snapshot("c-1", 3, "g", b"again"))
        copy = await self.copied(elsewhere, store)
        assert await dump(store) == await dump(elsewhere)
        await copy.compare()

    async def test_everybodys_records_are_copied(self, store: EventStore, elsewhere: EventStore, url: str) -> None:
        if not store.capabilities.tenants:
            pytest.skip("the backend knows no tenants (capabilities.tenants)")
        names = ("acme", "bolt")
        async with AsyncExitStack() as stack:
            owned = [await stack.enter_async_context(EventStore.open(url, tenant=name)) for name in names]
            for number, one in enumerate((*owned, store)):
                await one.append("a-1", happened(*range(number + 3)))
                told = [outcome(f"told {number}")]
                await backend_of(one).append([[write("c-1", b"1", epoch=await one.claim("c-1"), commands=told)]])
                await one.save_snapshot(new_snapshot("a-1", 2, "f", b"%d" % number))
            await owned[0].truncate("a-1", 2, reason="test")
            await owned[1].append("a-1", happened(7))
            for one in owned:
                with pytest.raises(CopyRefused, match=one.tenant):
                    Copy(one, elsewhere)
                with pytest.raises(CopyRefused, match=one.tenant):
                    Copy(elsewhere, one)
            copy = await self.copied(store, elsewhere)
            assert await dump(elsewhere) == await dump(store)
            assert {stream.key for stream in await elsewhere.archive().streams(after=0, limit=10)} == {
                (tenant, stream_id) for tenant in ("", *names) for stream_id in ("a-1", "c-1")
            }
            assert await collect(elsewhere.read_all()) == await collect(store.read_all())
            await copy.compare()
            await store.archive().fence("test")
            for one in owned:
                with pytest.raises(StoreFenced):
                    await one.append("a-1", happened(8))

    async def test_everybodys_records_are_stored(self, store: EventStore, elsewhere: EventStore, url: str) -> None:
        if not store.capabilities.tenants:
            pytest.skip("the backend knows no tenants (capabilities.tenants)")
        names = ("acme", "bolt")
        named = f"memory://{uuid4()}"
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(EventStore.open(named))
            owned = [await stack.enter_async_context(EventStore.open(named, tenant=name)) for name in names]
            for number, one in enumerate((*owned, source)):
                await one.append("a-1", happened(*range(number + 3)))
                told = [outcome(f"told {number}")]
                await backend_of(one).append([[write("c-1", b"1", epoch=await one.claim("c-1"), commands=told)]])
                await one.save_snapshot(new_snapshot("a-1", 2, "f", b"%d" % number))
            await owned[0].truncate("a-1", 2, reason="test")
            copy = await self.copied(source, store)
            await copy.compare()
            assert await dump(store) == await dump(source)
            assert [event.tenant for event in await collect(store.read_all())] == [
                event.tenant for event in await collect(source.read_all())
            ]
            for number, one in enumerate(owned):
                mine = await stack.enter_async_context(EventStore.open(url, tenant=one.tenant))
                assert await collect(mine.read("c-1")) == await collect(one.read("c-1"))
                lookup = CommandLookup("c-1", f"told {number}", 10)
                assert await mine.find_command(lookup) == await one.find_command(lookup)
                loaded, expected = await mine.load(Load("a-1")), await one.load(Load("a-1"))
                assert list(loaded.events) == list(expected.events)
                assert loaded._replace(events=NO_EVENTS) == expected._replace(events=NO_EVENTS)
                # It goes on where its tenant's stream was.
                assert await mine.append("a-1", happened(9)) == await one.append("a-1", happened(9))

    async def test_a_journal_of_its_own_is_refused(self, store: EventStore, elsewhere: EventStore) -> None:
        await elsewhere.append("a", happened(1))
        await store.append("b", happened(2))
        with pytest.raises(CopyRefused):
            await Copy(elsewhere, store).begin()
        assert [event.stream_id for event in await collect(store.read_all())] == ["b"]

    async def test_one_that_only_knows_a_claim_is_refused(self, store: EventStore, elsewhere: EventStore) -> None:
        await store.claim("a")
        with pytest.raises(CopyRefused):
            await Copy(elsewhere, store).begin()

    async def test_a_copy_that_was_written_to_is_refused(self, store: EventStore, elsewhere: EventStore) -> None:
        await elsewhere.append("a", happened(1))
        copy = await self.copied(elsewhere, store)
        await store.append("a", happened(2))
        await elsewhere.append("a", happened(2))
        with pytest.raises(CopyRefused):
            await copy.catch_up()

    async def test_a_copy_of_something_else_is_refused(self, store: EventStore, elsewhere: EventStore) -> None:
        await elsewhere.append("a", happened(1))
        await self.copied(elsewhere, store)
        async with EventStore.open("memory://") as third:
            with pytest.raises(CopyRefused):
                await Copy(third, store).begin()
            await third.append("a", happened(1))
            with pytest.raises(CopyRefused):
                await Copy(third, store).begin()

    async def test_versions_that_do_not_follow_are_refused(self, store: EventStore, elsewhere: EventStore) -> None:
        await elsewhere.append("a", happened(1, 2, 3))
        page = await elsewhere.archive().events(after=0, limit=10)
        with pytest.raises(JournalCorrupt):
            await store.archive().restore_events(after=0, page=page._replace(events=page.events[1:]))
        assert await collect(store.read_all()) == []
        assert await store.archive().copied() is None

    async def test_no_outcome_comes_before_its_events(self, store: EventStore, elsewhere: EventStore) -> None:
        backend = backend_of(elsewhere)
        for version, name in enumerate(("first", "second")):
            await backend.append([[write("a", b"1", expected=version, commands=[outcome(name)])]])
        copy = Copy(elsewhere, store)
        await copy.begin()
        page = await elsewhere.archive().events(after=0, limit=1)
        await store.archive().restore_events(after=0, page=page)
        await copy.bring_streams()
        (stream,) = await store.archive().streams(after=0, limit=10)
        assert (stream.version, stream.commands, stream.newest) == (1, 1, "first")

    async def test_a_difference_is_found(self, store: EventStore, elsewhere: EventStore) -> None:
        await fill(elsewhere)
        copy = await self.copied(elsewhere, store)
        head = (await elsewhere.archive().find([("", "c-1")]))["", "c-1"]
        other = StreamRecords("", "c-1", head.truncated, head.epoch, head.forgotten, replaces=True)
        await store.archive().restore_streams([other])
        with pytest.raises(CopyDiffers, match="c-1"):
            await copy.compare()

    @pytest.mark.usefixtures("archive")
    async def test_a_fence_keeps_everybody_out(self, store: EventStore, backend: Backend) -> None:
        await store.append("a", happened(1, 2))
        await store.save_snapshot(new_snapshot("a", 1, "f", b"1"))
        before = await dump(store)
        assert await store.archive().fenced() is None
        fence = await store.archive().fence('it\'s moved: a "test" \\ here')
        assert await store.archive().fenced() == fence
        assert fence.reason == 'it\'s moved: a "test" \\ here'
        with pytest.raises(FencedError, match="it's moved") as refused:
            await store.append("a", happened(3))
        assert isinstance(refused.value, StoreFenced)
        assert (refused.value.stream_id, refused.value.reason) == ("a", fence.reason)
        for attempt in (
            lambda: store.append("a", happened(3), expected_version=2),
            lambda: store.append("new", happened(3)),
            lambda: store.claim("a"),
            lambda: store.claim("new"),
            lambda: store.truncate("a", 1, reason="test"),
            lambda: store.save_snapshot(new_snapshot("a", 2, "f", b"2")),
            lambda: store.delete_snapshots("a"),
        ):
            with pytest.raises(StoreFenced, match="it's moved"):
                await attempt()
        [alone] = await backend.append([[StreamWrite("a", 2, (), None, [outcome()])]])
        assert isinstance(alone, StoreFenced)
        # A refused append may leave a hole behind the log's end, and nothing else.
        assert (await dump(store))[:2] == before[:2]

    @pytest.mark.usefixtures("archive")
    async def test_the_first_fence_stays(self, store: EventStore) -> None:
        first = await store.archive().fence("one")
        assert await store.archive().fence("another") == first
        async with reopened(store) as again:
            assert await again.archive().fenced() == first
            with pytest.raises(StoreFenced, match="one"):
                await again.append("a", happened(1))

    @pytest.mark.usefixtures("archive")
    async def test_another_store_is_kept_out_too(self, store: EventStore, other: EventStore) -> None:
        # Both know the stream, and decide on what they remember.
        await store.append("a", happened(1))
        await other.append("a", happened(2), expected_version=1)
        await store.archive().fence("test")
        with pytest.raises(StoreFenced):
            await other.append("a", happened(3), expected_version=2)
        with pytest.raises((StoreFenced, ConcurrencyError)):
            await other.append("a", happened(3), expected_version=1)
        assert [event.version for event in await collect(other.read("a"))] == [1, 2]

    @pytest.mark.usefixtures("archive")
    async def test_what_is_stored_is_answered_behind_a_fence(self, store: EventStore, backend: Backend) -> None:
        batch = [write("a", b"1", b"2", expected=0, commands=[outcome()])]
        alone = [StreamWrite("b", 0, (), None, [outcome()])]
        first, second = await backend.append([batch, alone])
        await store.archive().fence("test")
        outcomes = await backend.append([batch, [write("a", b"3")], alone])
        assert isinstance(first, Appended)
        assert isinstance(second, Appended)
        assert outcomes[0] == first._replace(is_duplicate=True)
        assert isinstance(outcomes[1], StoreFenced)
        assert outcomes[2] == second._replace(is_duplicate=True)

    @pytest.mark.usefixtures("archive")
    async def test_owners_may_let_go_behind_a_fence(self, store: EventStore) -> None:
        await store.claim("a")
        await store.archive().fence("test")
        await store.release(b"1" * 16, {"a": 1})
