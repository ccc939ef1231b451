"""Output: the same rows as a table on a terminal, as tab-separated lines elsewhere, as JSON lines with --json.

Rows are written as they come, so that a journal of any size takes no more memory than a page of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import orjson

from eventstore.cli.escaping import printable_json
from eventstore.cli.exits import OutputFailed, ReaderGone

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)

# Rows of a terminal's table that are lined up together; a cell wider than this takes its own room.
_CHUNK = 100
_WIDEST_COLUMN = 40

_IN_ASCII = str.maketrans({"│": "|", "├": "|", "└": "`", "─": "-", "█": "#", "…": "~"} | dict.fromkeys("▏▎▍▌▋▊▉", ""))

# JSON escapes these inside of strings, so where they stand as they are they only separate.
_ON_ONE_LINE = bytes.maketrans(b"\r\n\t", b"   ")


@dataclass(frozen=True, slots=True)
class View(Generic[T]):
    """How one kind of row is shown: as cells under columns, already printable, or as an object.

    On a terminal the first `aligned` columns are lined up, those in `numbers` on the right; the others hold long texts,
    which just follow.
    """

    columns: Sequence[str]
    cells: Callable[[T], Sequence[str]]
    record: Callable[[T], Mapping[str, Any]]
    aligned: int
    numbers: frozenset[str] = frozenset()


class Listing(Protocol[T_contra]):
    """Where rows go."""

    def add(self, row: T_contra) -> None: ...

    def flush(self) -> None:
        """Let everything added so far be seen."""
        ...


def listing(view: View[T], *, json: bool) -> Listing[T]:
    """The form of output that was asked for, or that suits where it goes."""
    if json:
        return _JsonLines(view)
    return _TerminalTable(view) if sys.stdout.isatty() else _TabSeparated(view)


def write(text: str) -> None:
    """Write to stdout. A reader that went away is `ReaderGone`, any other failure `OutputFailed`."""
    with _own_errors():
        sys.stdout.write(text)


def write_bytes(data: bytes) -> None:
    """Write bytes to stdout as they are, whatever its encoding is. Raises as `write` does."""
    with _own_errors():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)


def flush() -> None:
    """Let everything written so far be seen. Raises as `write` does."""
    with _own_errors():
        sys.stdout.flush()


@contextmanager
def _own_errors() -> Generator[None]:
    try:
        yield
    except BrokenPipeError as error:
        # Not the error itself: Typer would end the program its own way.
        raise ReaderGone from error
    except OSError as error:
        raise OutputFailed(f"the output cannot be written: {error.strerror}") from error


def write_json(record: Mapping[str, Any]) -> None:
    """Write one object as one line. Values may be `orjson.Fragment`s."""
    write(printable_json(orjson.dumps(record).decode()) + "\n")


def write_fields(fields: Mapping[str, str]) -> None:
    """Write names and values, one pair a line. Values are printable already."""
    width = max(map(len, fields))
    for name, value in fields.items():
        write_line((f"{name:<{width}}  ", "bold"), (value, ""))


def write_line(*parts: tuple[str, str]) -> None:
    """Write one line made of pieces of printable text, each with a style for the terminal."""
    if not sys.stdout.isatty():
        write("".join(text for text, _ in parts) + "\n")
        return
    from rich.text import Text

    # soft_wrap: the terminal breaks long lines, and puts them together again when it is copied from or resized.
    _console().print(Text.assemble(*parts), soft_wrap=True)


@cache
def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def json_fragment(payload: bytes) -> orjson.Fragment:
    """Stored JSON to be embedded as it is, digit for digit, on one line."""
    return orjson.Fragment(payload.translate(_ON_ONE_LINE))


def json_cell(payload: bytes) -> str:
    """Stored JSON for a table: on one line, with everything that is not printable escaped as JSON does it."""
    return printable_json(payload.translate(_ON_ONE_LINE).decode())


def timestamp(moment: datetime) -> str:
    """A UTC time as ISO 8601, to the microsecond."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class _JsonLines(Generic[T]):
    def __init__(self, view: View[T]) -> None:
        self._view = view

    def add(self, row: T) -> None:
        write_json(self._view.record(row))

    def flush(self) -> None:
        flush()


class _TabSeparated(Generic[T]):
    def __init__(self, view: View[T]) -> None:
        self._view = view

    def add(self, row: T) -> None:
        write("\t".join(self._view.cells(row)) + "\n")

    def flush(self) -> None:
        flush()


class _TerminalTable(Generic[T]):
    """Columns are as wide as what has come so far needs."""

    def __init__(self, view: View[T]) -> None:
        self._view = view
        self._rows: list[Sequence[str]] = []
        self._widths = [len(column) for column in view.columns[: view.aligned]]
        self._has_header = False

    def add(self, row: T) -> None:
        self._rows.append(self._view.cells(row))
        if len(self._rows) >= _CHUNK:
            self.flush()

    def flush(self) -> None:
        from rich.cells import cell_len

        rows, self._rows = self._rows, []
        for index, width in enumerate(self._widths):
            needed = max((cell_len(row[index]) for row in rows), default=0)
            self._widths[index] = max(width, min(needed, _WIDEST_COLUMN))
        if rows and not self._has_header:
            self._has_header = True
            self._write(self._view.columns, "bold")
        for row in rows:
            self._write(row, "")
        flush()

    def _write(self, row: Sequence[str], style: str) -> None:
        from rich.cells import cell_len

        parts = list(row)
        for index, width in enumerate(self._widths):
            padding = " " * (width - cell_len(row[index]))
            is_number = self._view.columns[index] in self._view.numbers
            parts[index] = padding + row[index] if is_number else row[index] + padding
        write_line(("  ".join(parts).rstrip(), style))


def drawn(text: str) -> str:
    """Bars and branches, with what else comes near where the terminal's encoding lacks them."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return text.translate(_IN_ASCII)
    return text


def counted(count: int, one: str, many: str | None = None) -> str:
    """So many of something, in words: `1 event`, `2,000 events`. `many` is for what does not only get an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"
