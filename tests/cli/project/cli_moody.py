"""A user's module whose event handlers depend on more than their events, in the way that each event says."""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, Field, PrivateAttr

from actors import PersistentActor, SnapshotPolicy, event_handler
from eventstore import Event


class Did(Event, name="cli-moody.did"):
    what: str


class Mood(BaseModel):
    count: int = 0
    notes: list[Any] = []
    _hidden: int = PrivateAttr(default=0)

    def hide(self) -> int:
        self._hidden += 1
        return self._hidden

    def shown(self) -> int:
        return self._hidden


class Stamp(BaseModel):
    # Pydantic calls it from C: no profile function sees that.
    at: float = Field(default_factory=time.time)


NAMES = {f"name-{number}" for number in range(50)}


class Moody(PersistentActor[Mood]):
    snapshot_policy = SnapshotPolicy(keep=10)

    @event_handler
    def did(self, event: Did) -> None:
        state = self.state
        state.count += 1
        match event.what:
            case "clock":
                state.notes.append(datetime.now(UTC).year)
            case "random":
                state.notes.append(random.random())
            case "uuid":
                state.notes.append(str(uuid4()))
            case "file":
                # Which parts pathlib is in depends on Python's version.
                with open(__file__, "rb") as file:
                    state.notes.append(len(file.read()))
            case "hash":
                state.notes.append(next(iter(NAMES)))
            case "unseen":
                state.notes.append(int(Stamp().at) // 10_000_000)
            case "hide":
                state.hide()
            case "show":
                state.notes.append(state.shown())
            case "die" if os.environ.get("MOODY_DIES"):
                os.kill(os.getpid(), getattr(signal, os.environ["MOODY_DIES"]))
            case "elsewhere" if os.environ.get("PYTHONHASHSEED") == "2":
                raise RuntimeError("not here")
            case _:
                pass
