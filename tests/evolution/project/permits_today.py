"""The cases of `examples/permits.py` three changes later, with a journal that the example itself has written.

1. `permit.row-taken` was renamed `permit.step-recorded`, and its row's `activity` became `step`.
2. Each was split: `permit.step-done` says what was done, `permit.handled-by` by whom.
3. The time of `permit.step-done` became milliseconds since 1970; it had been a text with an offset.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from actors import Command, PersistentActor, SnapshotPolicy, command_handler, event_handler
from eventstore import Event, upcaster


class StepDone(Event, name="permit.step-done", version=2):
    line: int
    step: str
    at: int


class HandledBy(Event, name="permit.handled-by"):
    resource: str


@upcaster("permit.row-taken", from_version=1, into={"permit.step-recorded": 2})
def renamed(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    row = data.pop("row")
    row["step"] = row.pop("activity")
    return [("permit.step-recorded", {**data, "row": row})]


@upcaster("permit.step-recorded", from_version=2, into={"permit.step-done": 1, "permit.handled-by": 1})
def split(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    row = data["row"]
    return [
        ("permit.step-done", {name: row[name] for name in ("line", "step", "time")}),
        ("permit.handled-by", {"resource": row["resource"]}),
    ]


@upcaster("permit.step-done", from_version=1)
def in_milliseconds(data: dict[str, Any]) -> dict[str, Any]:
    moment = datetime.fromisoformat(data.pop("time"))
    return {**data, "at": round(moment.timestamp() * 1000)}


class Steps(BaseModel):
    """What was done, and by whom: for that the events of a step must come in their order."""

    done: list[tuple[int, str, int]] = []
    handled: list[tuple[int, str]] = []


class GetSteps(Command[Steps]):
    pass


class Do(Command[int]):
    line: int
    step: str
    at: int
    resource: str


class PermitCase(PersistentActor[Steps], kind="permit"):
    snapshot_policy = SnapshotPolicy(every=3, keep=2)

    @command_handler
    def get(self, command: GetSteps) -> Steps:
        return self.state.model_copy(deep=True)

    @command_handler
    def do(self, command: Do) -> int:
        self.persist(
            StepDone(line=command.line, step=command.step, at=command.at), HandledBy(resource=command.resource)
        )
        return self.version

    @event_handler
    def step_done(self, event: StepDone) -> None:
        self.state.done.append((event.line, event.step, event.at))

    @event_handler
    def handled_by(self, event: HandledBy) -> None:
        self.state.handled.append((self.state.done[-1][0] if self.state.done else 0, event.resource))
