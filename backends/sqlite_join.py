"""InOrder: a join whose left table SQLite goes through, looking up the right one's rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Join
from sqlalchemy.ext.compiler import compiles


class InOrder(Join):
    """`CROSS JOIN`, which to SQLite's planner means this order. Left to itself it goes through all of a kind's streams,
    and sorts their events, for each page."""

    inherit_cache = True


@compiles(InOrder)
def _compiled(join: InOrder, compiler: Any, **options: Any) -> str:
    options["asfrom"] = True
    left, right = (compiler.process(side, **options) for side in (join.left, join.right))
    return f"{left} CROSS JOIN {right} ON {compiler.process(join.onclause)}"
