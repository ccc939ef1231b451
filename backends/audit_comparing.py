"""Comparing a value in a JSON text with another, as far as a database can be trusted with that."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ColumnElement,
)

from eventstore.contract.json_condition import JsonScalar, Operator

_LARGEST = Decimal("1e300")
_SLACK = 1e-9


_Condition = ColumnElement[bool]


def compared(operator: Operator, found: ColumnElement[Any], value: ColumnElement[Any]) -> _Condition:
    match operator:
        case Operator.LESS:
            return found < value
        case Operator.LESS_OR_EQUAL:
            return found <= value
        case Operator.GREATER:
            return found > value
        case Operator.GREATER_OR_EQUAL:
            return found >= value
        case _:
            return found == value


def between(
    operator: Operator, found: ColumnElement[Any], low: ColumnElement[Any], high: ColumnElement[Any]
) -> _Condition:
    match operator:
        case Operator.LESS | Operator.LESS_OR_EQUAL:
            return found <= high
        case Operator.GREATER | Operator.GREATER_OR_EQUAL:
            return found >= low
        case _:
            return found.between(low, high)


def widened(number: JsonScalar) -> tuple[float, float] | None:
    """Two numbers around one, further away than a database may round. None for one that is too large for that."""
    exact = Decimal(number or 0)
    if abs(exact) > _LARGEST:
        return None
    slack = abs(float(exact)) * _SLACK + 1e-300
    return float(exact) - slack, float(exact) + slack
