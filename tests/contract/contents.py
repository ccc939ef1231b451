"""Contents: ids, names, payloads and metadata with everything in them that a database could take in its own way."""

from __future__ import annotations

import json
from random import Random

from backends.conformance.appending import ODD_JSON
from eventstore.events import Metadata

# Ids that a database might fold, trim, normalise, sort in its own way or take for something else.
STREAM_IDS = [
    *(f"{kind}-{number}" for kind in ("order", "orders", "Order", "cart") for number in range(1, 9)),
    *("order", "-", "-order", "order--1", "a", "A", "a ", " a", "Z", "_", "~", "0", "00", "null", "{}", "{a}", "a:b"),
    *("caf\u00e9", "cafe\u0301", "cafe", "\u00e9-1", "\uffff", "\U0001f600", "stra\u00dfe", "strasse"),
    *("a\nb", "\t", "'", '"', "a'); --", "%", "a_b", "\\", "*", "?", "[a]"),
    *("x" * 1023 + "a", "x" * 1023 + "b", "\u00e9" * 512),
]
KINDS = ("order", "orders", "Order", "", "caf\u00e9", "nobody")
# Few enough to come up again.
COMMAND_IDS = [
    *(f"command-{number}" for number in range(1, 13)),
    *(
        "c",
        "C",
        "c ",
        " c",
        "c:d",
        "caf\u00e9",
        "cafe\u0301",
        "'",
        '"',
        "%",
        "\U0001f600",
        "\uffff",
        "x" * 255,
        "\u00e9" * 127,
    ),
]
OWNER_NAMES = ("alice", "bob", "Carol")
REPLICAS = ("eu", "us", "caf\u00e9", "'", '"', "\\", "\U0001f600", "x" * 64)
TYPES = ("placed", "Placed", "order.placed", "ge\u00f6ffnet", "type with spaces", "100%")
TAGS = ("x", "X", "x y", 'say "x"', "back\\slash", "50%", "\u00e9", "e\u0301", "\U0001f600", "[1,2]", "")
TEXTS = (
    *("", "plain", 'with "quotes" and \\', "\u202eשלום", "e\u0301\u00e9", "\U0001f469\u200d\U0001f680"),
    *("\u2028\ufeff", "'; DROP TABLE", "\x7f", "line\nline\r\n", "100 %s $1 :name ?"),
)

# Text to JSON, and to no database.
WITH_NUL = "nul\0"

# Of JSON's numbers those that a database, or a library, rounds or writes in another way.
NUMBERS = (0, -1, 2**53 + 1, 2**70, 0.1, -0.0, 1e-320, 1.7976931348623157e308)


def payload(random: Random) -> bytes:
    match random.randrange(100):
        case 0:
            return json.dumps("\u00e9x" * random.randrange(1, 60_000), ensure_ascii=False).encode()
        case number if number < 25:
            return random.choice(list(ODD_JSON.values()))
        case _:
            indent = random.choice((None, None, 2, "\t"))
            return json.dumps({"value": _value(random, 3)}, ensure_ascii=random.random() < 0.5, indent=indent).encode()


def metadata(random: Random) -> Metadata | None:
    """Absent for every second event."""
    if random.random() < 0.5:
        return None
    tags = tuple(random.sample(TAGS, random.randrange(4)))
    # What stands under `tags` in the application's own values is no tag.
    values = {"tags": ["x"], random.choice(TEXTS): random.random()} if random.random() < 0.3 else {}
    user, correlation_id = (random.choice((None, *TEXTS, WITH_NUL)) for _ in range(2))
    return Metadata(tags=tags, user=user, correlation_id=correlation_id, values=values)


def _value(random: Random, depth: int) -> object:
    if depth and random.random() < 0.5:
        if random.random() < 0.5:
            return [_value(random, depth - 1) for _ in range(random.randrange(4))]
        return {random.choice(TEXTS): _value(random, depth - 1) for _ in range(random.randrange(4))}
    number = random.choice((*NUMBERS, random.uniform(-1e9, 1e9)))
    return random.choice((None, True, False, number, random.choice(TEXTS), WITH_NUL))
