"""Leaves: every field counts, no two events have one encoding, and every database gives the same leaf."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.conformance.fixtures import backend_of
from eventstore import EventStore
from eventstore.events import RecordedEvent
from eventstore.evidence.leaves import Leaf, content_digest, leaf_of, pack_leaves, unpack_leaves

from .sealed_journal import STREAMS, full_write

EVENT = RecordedEvent(
    7,
    "Account-a",
    3,
    "deposited",
    2,
    b'{"amount":1}',
    None,
    UUID(int=1),
    UUID(int=2),
    4,
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    5,
    "tenant",
    "eu",
    6,
    b'{"clock":{"eu":6},"time":1}',
    True,
    b'{"user":"a"}',
)
CHANGED = EVENT._replace(
    position=8,
    stream_id="Account-b",
    version=4,
    type="deposite",
    schema_version=3,
    payload=b'{"amount": 1}',
    event_id=UUID(int=3),
    batch_id=UUID(int=4),
    epoch=5,
    recorded_at=EVENT.recorded_at + timedelta(microseconds=1),
    checksum=6,
    tenant="",
    origin=None,
    origin_sequence=None,
    clock=None,
    concurrent=False,
    metadata_bytes=None,
)
# It is another form of what `metadata_bytes` holds.
FIELDS = [field for field in RecordedEvent._fields if field != "metadata"]


def test_the_encoding_is_the_one_that_is_documented() -> None:
    """A change of it makes every seal that was ever made worthless."""
    assert content_digest(EVENT).hex() == DIGEST
    assert leaf_of(EVENT).hash.hex() == HASH


DIGEST = "67730602215b52b9ec2afb35c7c7244a51afe7b090f47840569a068b7476b95b"
HASH = "58e1145c08e30b58f96d67237c2f080056169ad9cad230d74bf25e274e80fda2"


@pytest.mark.parametrize("field", FIELDS)
def test_another_value_of_any_field_is_another_leaf(field: str) -> None:
    other = EVENT._replace(**{field: getattr(CHANGED, field)})
    assert leaf_of(other).hash != leaf_of(EVENT).hash
    assert (content_digest(other) == content_digest(EVENT)) == (field in {"position", "stream_id", "version", "tenant"})


def test_what_moves_from_one_field_to_the_next_is_another_leaf() -> None:
    assert content_digest(EVENT._replace(payload=b"ab", metadata_bytes=b"c")) != content_digest(
        EVENT._replace(payload=b"a", metadata_bytes=b"bc")
    )
    assert content_digest(EVENT._replace(metadata_bytes=b"")) != content_digest(EVENT._replace(metadata_bytes=None))
    assert (
        leaf_of(EVENT._replace(tenant="a", stream_id="b")).hash
        != leaf_of(EVENT._replace(tenant="", stream_id="ab")).hash
    )


def test_what_no_journal_has_written_has_no_leaf() -> None:
    for damaged in (EVENT._replace(epoch=2**63), EVENT._replace(schema_version="x")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no journal has written"):
            leaf_of(damaged)


PLACES = st.lists(
    st.tuples(
        st.integers(1, 2**40),
        st.sampled_from(["", "t"]),
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=9),
        st.integers(1, 2**62),
        st.binary(min_size=32, max_size=32),
    ),
    unique_by=lambda place: place[0],
    max_size=30,
)


@given(PLACES)
def test_a_list_of_leaves_is_read_as_it_was_packed(places: list[tuple[int, str, str, int, bytes]]) -> None:
    leaves = [Leaf(*place) for place in sorted(places)]
    assert list(unpack_leaves(pack_leaves(leaves))) == leaves


@given(PLACES.filter(bool), st.data())
def test_a_list_that_was_cut_off_is_refused_or_shorter(
    places: list[tuple[int, str, str, int, bytes]], data: st.DataObject
) -> None:
    leaves = [Leaf(*place) for place in sorted(places)]
    packed = pack_leaves(leaves)
    part = packed[: data.draw(st.integers(0, len(packed) - 1))]
    try:
        found = list(unpack_leaves(part))
    except ValueError:
        return
    assert found != leaves


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_or_a_list(data: bytes) -> None:
    try:
        unpack_leaves(data)
    except ValueError:
        return


async def test_every_database_gives_the_same_leaf(postgres_url: str, redis_url: str, tmp_path: Path) -> None:
    """Of one event, wherever it is read from: so a copy can be compared with the seals of what it was copied from."""
    batches = [[full_write(STREAMS[number % len(STREAMS)], number)] for number in range(20)]
    found: list[list[bytes]] = []
    for url in (f"sqlite:///{tmp_path}/own.db", postgres_url, redis_url, f"memory://{uuid4()}"):
        async with EventStore.open(url) as store:
            await backend_of(store).append(batches)
            records = [recorded async for recorded in store.read_all()]
            # Each database has its own clock and its own holes.
            same = [each._replace(position=at, recorded_at=EVENT.recorded_at) for at, each in enumerate(records)]
            found.append([leaf_of(recorded).hash for recorded in same])
    assert len(set(found[0])) == len(found[0]) > 30
    assert all(leaves == found[0] for leaves in found)
