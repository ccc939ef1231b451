"""Supervision: the policies that decide what becomes of an actor that failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from eventstore.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on at once with the state of the journal: what the failed command changed in memory is gone.

    It is no restart: there is no pause, no count, and no hook is called.
    """


@dataclass(frozen=True, slots=True)
class Restart:
    """Rebuild the actor from the journal, after a pause that doubles with every failure.

    Its mailbox is kept; commands wait for the restart as long as their askers do. More than `max_restarts` failures
    within `window_seconds` stop it; failures older than the window are forgotten. None: it is never given up.
    """

    first_pause_seconds: float = 0.05
    longest_pause_seconds: float = 30.0
    max_restarts: int | None = None
    window_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.first_pause_seconds <= self.longest_pause_seconds or not self.window_seconds > 0:
            raise DefinitionError("Restart: 0 <= first_pause_seconds <= longest_pause_seconds and window_seconds > 0")
        if self.max_restarts is not None and self.max_restarts < 0:
            raise DefinitionError("Restart: max_restarts is None, or 0 or more")


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the actor: it answers every command with `ActorStopped` until `ActorRef.restart` is called."""


@dataclass(frozen=True, slots=True)
class Escalate:
    """Do what the system's own policy says: `ActorSystem(supervision=…)`. There it means `Stop`."""


Policy = Resume | Restart | Stop | Escalate


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Match:
    """A policy for each type of exception: `Match({TimeoutError: Resume(), LookupError: Stop()}, otherwise=Restart())`.

    The most specific class that is named decides, in whatever order they stand, as method resolution has it.
    What none of them fits is `otherwise`.
    """

    policies: Mapping[type[BaseException], Policy]
    otherwise: Policy

    def __init__(
        self,
        policies: Mapping[type[BaseException], Policy],
        *,
        otherwise: Policy = Escalate(),
    ) -> None:
        for key, policy in policies.items():
            _check_key(key)
            _check_policy(policy, f"the policy for {key.__qualname__}")
        _check_policy(otherwise, "otherwise")
        # A copy: what the caller does to its dictionary later changes nothing.
        object.__setattr__(self, "policies", MappingProxyType(dict(policies)))
        object.__setattr__(self, "otherwise", otherwise)


Supervision = Policy | Match
"""Set it on the class: `supervision = Restart(max_restarts=5)`."""


def check_supervision(policy: Any, place: str) -> None:
    """Raise `DefinitionError` for what is no policy."""
    if not isinstance(policy, Supervision):
        hint = f"; write {policy.__name__}(…)" if isinstance(policy, type) and issubclass(policy, Supervision) else ""
        raise DefinitionError(
            f"{place}: it is one of Resume(), Restart(…), Stop(), Escalate() and Match(…), not {policy!r}{hint}"
        )


def policy_for(error: BaseException, policy: Supervision, parent: Supervision) -> Resume | Restart | Stop:
    """What an actor's policy, or the parent's where it escalates, says about an error."""
    chosen = _matched(error, policy)
    if isinstance(chosen, Escalate):
        chosen = _matched(error, parent)
    return Stop() if isinstance(chosen, Escalate) else chosen


def _matched(error: BaseException, policy: Supervision) -> Policy:
    if not isinstance(policy, Match):
        return policy
    named = (policy.policies[cls] for cls in type(error).__mro__ if cls in policy.policies)
    return next(named, policy.otherwise)


def _check_key(key: Any) -> None:
    if not (isinstance(key, type) and issubclass(key, BaseException)):
        raise DefinitionError(f"Match: every key is one class of exceptions, not {key!r}")


def _check_policy(policy: Any, what: str) -> None:
    if isinstance(policy, Match):
        raise DefinitionError(f"Match: {what} is a Match itself; name all classes in one Match, their order is free")
    check_supervision(policy, f"Match: {what}")
