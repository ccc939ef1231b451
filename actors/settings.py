"""Settings: what is set for all actors of a system."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Literal

from actors.supervision import Supervision, check_supervision
from eventstore.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class Settings:
    """`ActorSystem` says what each means."""

    ask_timeout: float
    mailbox_size: int
    mailbox_overflow: Literal["reject", "wait"]
    idle_seconds: float
    max_live: int
    recoveries_at_once: int
    recovery_timeout: float
    shutdown_timeout: float
    supervision: Supervision
    ownership: Literal["shared", "exclusive"]
    lease_seconds: float
    catch_up_seconds: float
    transaction_timeout: float
    name: str

    def __post_init__(self) -> None:
        above_zero = (
            "ask_timeout",
            "mailbox_size",
            "idle_seconds",
            "max_live",
            "recoveries_at_once",
            "lease_seconds",
            "catch_up_seconds",
            "transaction_timeout",
        )
        for name in (*above_zero, "recovery_timeout", "shutdown_timeout"):
            if not isinstance(getattr(self, name), int | float) or isnan(getattr(self, name)):
                raise DefinitionError(f"ActorSystem: {name} is a number, not {getattr(self, name)!r}")
        for name in above_zero:
            if getattr(self, name) <= 0:
                raise DefinitionError(f"ActorSystem: {name} must be above zero, not {getattr(self, name)!r}")
        check_supervision(self.supervision, "ActorSystem: supervision")
        if self.ownership not in ("shared", "exclusive"):
            raise DefinitionError(f"ActorSystem: ownership is 'shared' or 'exclusive', not {self.ownership!r}")
        if self.mailbox_overflow not in ("reject", "wait"):
            raise DefinitionError(f"ActorSystem: mailbox_overflow is 'reject' or 'wait', not {self.mailbox_overflow!r}")
