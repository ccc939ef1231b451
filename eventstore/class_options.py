"""Class options: what stands behind the bases in the first line of a class, such as `name="…"`."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from eventstore.errors import DefinitionError


@contextmanager
def refusing_unknown_options(cls: type, options: Mapping[str, object], *, known: str) -> Generator[None]:
    """Around the call that hands `options` on to other bases: those that none of them takes are a `DefinitionError`,
    where Python says no more than that there are some."""
    try:
        yield
    except TypeError as error:
        if not options:
            raise
        raise DefinitionError(
            f"{cls.__qualname__}: {', '.join(f'{name}=…' for name in options)} is no option of such a class; there "
            f"are: {known}"
        ) from error
