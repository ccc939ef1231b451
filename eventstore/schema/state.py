"""SchemaState: what a database's journal is, against what this version makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SchemaState(NamedTuple):
    """`found` is the journal's revision, None where there is no journal; `expected` this version's; `pending` what
    `upgrade` would run, in order."""

    found: str | None
    expected: str
    pending: tuple[str, ...]

    @property
    def is_current(self) -> bool:
        return self.found == self.expected

    @property
    def is_newer(self) -> bool:
        """The revision is not one this version knows: a later release has migrated the database."""
        return self.found is not None and not self.is_current and not self.pending


def state_of(found: str | None, revisions: Sequence[str]) -> SchemaState:
    """The state of a journal that is at a revision, for a version that knows these, oldest first."""
    if found is None:
        pending = tuple(revisions)
    elif found in revisions:
        pending = tuple(revisions[revisions.index(found) + 1 :])
    else:
        pending = ()
    return SchemaState(found, revisions[-1], pending)
