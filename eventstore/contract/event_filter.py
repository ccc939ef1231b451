"""EventFilter: which events of the whole log are wanted."""

from __future__ import annotations

from typing import NamedTuple


class EventFilter(NamedTuple):
    """Which events of the whole log are wanted: each field that is set must match; within a field, any value.

    `kinds` are the parts of stream ids before the first dash; `types` are stored event names. `tenants` is for the
    store without a tenant, which sees those of all; "" stands for its own. A tenant's store sees its own alone,
    whatever is asked for.
    """

    kinds: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    stream_ids: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
