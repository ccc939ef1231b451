"""A module whose upcasters lead from version 1 to 2, and from there nowhere."""

from __future__ import annotations

from typing import Any

from eventstore import Event, upcaster


class Paid(Event, name="cli-gap.paid", version=3):
    cents: int


@upcaster("cli-gap.paid", from_version=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"cents": data["euros"] * 100}
