"""Fingerprint: that of the code that a version of a read model is made by."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from hashlib import sha256
from types import CodeType
from typing import cast

from eventstore.event_handlers import made_of
from eventstore.projections import Projection

# How it is run, and what is called when it is made already.
_CHANGES_NOTHING = {*vars(Projection), *Projection.__annotations__} - {"flush", "prepare", "table"}


def fingerprint(projection: type[Projection]) -> str:
    """The same for the same class in the same version of Python. What its methods call is not in it, but every plain
    value among its attributes is: who changes the one can say so by the other."""
    return sha256(repr(list(_parts(projection))).encode()).hexdigest()[:32]


def _parts(projection: type[Projection]) -> Iterator[object]:
    yield projection.where()
    for table in projection.tables:
        yield table.fullname, [(column.name, type(column.type).__name__, column.nullable) for column in table.columns]
    for cls in projection.__mro__[: projection.__mro__.index(Projection)]:
        for name, value in sorted(vars(cls).items()):
            if name in _CHANGES_NOTHING:
                continue
            if isinstance(value, str | int | float | None) and not name.startswith("__"):
                yield name, value
            elif (code := _code_of(value)) is not None:
                yield name, code


def _code_of(value: object) -> object:
    """What a method does; None for what is none."""
    function = made_of(value)
    # A decorator may have been given an object that can be called.
    function = inspect.unwrap(function) if inspect.isfunction(function) else function
    return _told(function.__code__) if inspect.isfunction(function) else None


def _told(code: CodeType) -> object:
    # A set has another order in each process.
    constants = [
        _told(one)
        if isinstance(one, CodeType)
        else sorted(map(repr, cast("frozenset[object]", one)))
        if isinstance(one, frozenset)
        else repr(one)
        for one in code.co_consts
    ]
    return code.co_code, code.co_names, code.co_varnames, constants
