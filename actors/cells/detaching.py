"""Detaching: a reply is a copy of what the handler returned, where that might be part of the state.

The state goes on changing: a live part of it would tell the asker what was decided afterwards and may never be stored,
and who changes such a reply would change the actor past its events.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from copy import deepcopy
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

from pydantic import BaseModel

from eventstore.errors import ActorError

UNCHANGEABLE = frozenset({type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID})
"""What can be given away as it is: all that most commands are answered with."""

_CONTAINERS = (list, tuple, dict, set, BaseModel)


def detached(reply: Any) -> Any:
    """The reply itself if it is no data that can change, else a copy through and through.

    Other objects than lists, tuples, dictionaries, sets, dataclasses and pydantic models are given as they are: what
    they are is their class's business. Raises `ActorError` for what has to be awaited: whoever asks gets what comes
    of it, and what `persist` returns is nobody's but the handler's.
    """
    if reply.__class__ in UNCHANGEABLE:
        return reply
    if _is_data(reply):
        return deepcopy(reply)
    if isinstance(reply, Awaitable):
        if isinstance(reply, Coroutine):
            reply.close()  # It is not awaited, which is told here.
        raise ActorError(
            f"a handler returned what has to be awaited ({type(cast('object', reply)).__name__}), which is no reply: "
            "await it in an `async def` handler and return what comes of it, or leave the `return` out"
        )
    return reply


def _is_data(reply: object) -> bool:
    return isinstance(reply, _CONTAINERS) or (is_dataclass(reply) and not isinstance(reply, type))
