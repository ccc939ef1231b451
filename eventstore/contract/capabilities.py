"""What a backend can do, and what it promises."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Durability(Enum):
    """What an acknowledged append survives."""

    POWER_LOSS = "power-loss"
    PROCESS_CRASH = "process-crash"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. What it cannot, it refuses with `CapabilityError`; it never pretends.

    `creates_schema`: a new, empty database gets its journal by itself. `survives_restart`: what is stored can be
    opened again. `user_sql`: the user's own SQL statements can be committed together with a batch. `tenants`: an
    instance can be one tenant's; without it, it is asked for none. `archive`: records can be read and stored as they
    are, and the journal can be fenced.
    """

    creates_schema: bool
    survives_restart: bool
    user_sql: bool = False
    tenants: bool = False
    archive: bool = False
