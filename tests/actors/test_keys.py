"""Keys: any text that names a stream names an actor, byte for byte, and what cannot is refused with a typed error."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from actors import ActorSystem
from eventstore import DefinitionError, InvalidStreamId
from tests.actors.notebook import Notebook, Read, Write, texts

ODD = [
    "a'b",
    'a"b',
    "a`b",
    "a/b",
    "../a",
    "a\\b",
    "a b",
    " a",
    "a ",
    "a\n",
    "a-b",
    "-a",
    "-",
    "%",
    "_",
    "%00",
    "a;DROP TABLE journal_events;--",
    "é",  # one character
    "e\u0301",  # the same to the eye, in two
    "a",
    "A",
    "\u0430",  # Cyrillic
    "\uff41",  # full width
    "ß",
    "ss",
    "İ",
    "i",
    "\u200ba",
    "\ufeffa",
    "\U0001f600",
    "\u202ea",
    "0",
    "00",
    "1e0",
    "null",
    "[1]",
    "{}",
]


async def test_every_odd_key_is_an_actor_of_its_own(url: str):
    async with ActorSystem(url) as system:
        replies = await asyncio.gather(*(system.ref(Notebook, key).ask(Write(text=key)) for key in ODD))
        assert replies == [1] * len(ODD)
    async with ActorSystem(url) as system:
        lines = await asyncio.gather(*(system.ref(Notebook, key).ask(Read()) for key in ODD))
        assert lines == [[key] for key in ODD]


@pytest.mark.parametrize(
    "key",
    ["", "\0", "a\0b", "\ud800", "a\udfffb", "x" * 10_000, "é" * 600],
    ids=["empty", "NUL", "NUL inside", "half a surrogate pair", "the other half", "10,000 characters", "1,200 bytes"],
)
async def test_a_key_that_no_stream_can_have_is_refused(system: ActorSystem, key: str):
    with pytest.raises(InvalidStreamId):
        system.ref(Notebook, key)


async def test_the_longest_key_works(system: ActorSystem):
    key = "x" * (1024 - len("Notebook-"))
    assert await system.ref(Notebook, key).ask(Write(text="1")) == 1
    assert await texts(system.store, key) == ["1"]
    with pytest.raises(InvalidStreamId):
        system.ref(Notebook, key + "x")


async def test_two_references_with_one_key_are_the_same_actor(system: ActorSystem):
    assert await system.ref(Notebook, "a").ask(Write(text="1")) == 1
    assert await system.ref(Notebook, "a").ask(Write(text="2")) == 2
    assert system.stats().live == 1


async def test_a_reference_costs_no_actor(system: ActorSystem):
    for number in range(1000):
        system.ref(Notebook, str(number))
    assert system.stats().live == 0


async def test_a_reference_shows_its_class_and_stream(system: ActorSystem):
    assert repr(system.ref(Notebook, "a'b")) == 'ActorRef(Notebook, "Notebook-a\'b")'


@pytest.mark.parametrize("key", ["", 7, 0, None, b"x", (1, 2)])
async def test_a_key_that_is_no_text_is_refused(system: ActorSystem, key: Any):
    with pytest.raises(InvalidStreamId, match="the key of an actor is a text that is not empty: 'Notebook'"):
        system.ref(Notebook, key)


@pytest.mark.parametrize("actor", [BaseModel, "Notebook", None])
async def test_what_is_no_class_of_actors_is_refused(system: ActorSystem, actor: Any):
    with pytest.raises(DefinitionError, match="a subclass of PersistentActor, not of"):
        system.ref(actor, "a")
