"""Events as a Parquet file, written group by group."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eventstore.cli.audit_csv import COLUMNS, cells_of
from eventstore.cli.exits import CommandFailed, OutputFailed
from eventstore.cli.files import check_is_new
from eventstore.events import RecordedEvent

_GROUP_ROWS = 10_000
_GROUP_BYTES = 2 * 1024 * 1024


class ParquetFile:
    """A new file, which is there when it is whole: until then its name ends in `.partial`.

    Raises `WrongUsage` for a file that exists, `CommandFailed` where pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._pyarrow = _imported("pyarrow")
        self._parquet = _imported("pyarrow.parquet")
        self._columns: dict[str, list[Any]] = {}
        self._bytes = 0
        self._writer: Any = None

    def __enter__(self) -> Self:
        check_is_new(self._path)
        self._begin_group()
        try:
            # Only this user reads it: events may be personal.
            os.close(os.open(self._partial, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            self._writer = self._parquet.ParquetWriter(self._partial, self._schema(), compression="zstd")
        except OSError as error:
            raise OutputFailed(f"{self._path} cannot be written: {error.strerror}") from error
        except BaseException:
            # Ctrl-C: nobody will leave the block, because nobody has entered it.
            self._partial.unlink(missing_ok=True)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self._partial.unlink(missing_ok=True)
            return
        try:
            self._write_group()
            self._writer.close()
            self._partial.rename(self._path)
        except OSError as error:
            self._partial.unlink(missing_ok=True)
            raise OutputFailed(f"{self._path} cannot be written: {error.strerror}") from error

    def add(self, row: RecordedEvent) -> None:
        for name, cell in cells_of(row).items():
            self._columns[name].append(cell)
        self._bytes += len(row.payload)
        if len(self._columns["position"]) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def flush(self) -> None:
        """Nothing is to be seen before the file is whole."""

    def _begin_group(self) -> None:
        self._columns = {name: [] for name in COLUMNS}
        self._bytes = 0

    def _write_group(self) -> None:
        if self._columns["position"]:
            try:
                self._writer.write_table(self._pyarrow.table(self._columns, schema=self._schema()))
            except OSError as error:
                raise OutputFailed(f"{self._path} cannot be written: {error.strerror}") from error
            self._begin_group()

    def _schema(self) -> Any:
        pyarrow = self._pyarrow
        types = dict.fromkeys(COLUMNS, pyarrow.string())
        types |= dict.fromkeys(("position", "version", "epoch"), pyarrow.int64())
        types |= {
            "schema_version": pyarrow.int32(),
            "recorded_at": pyarrow.timestamp("us", tz="UTC"),
            "tags": pyarrow.list_(pyarrow.string()),
        }
        return pyarrow.schema(list(types.items()))


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CommandFailed(
            "--parquet needs pyarrow, which is not installed: pip install 'eventstore-actors[parquet]'"
        ) from error
