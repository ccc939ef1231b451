"""LosingDisk: files whose writes last only once they are synced, and what a loss of power could leave of them.

It is the file system of one life of a process, under APSW's SQLite. Reads, locks and shared memory are those of real
files; beside them it is known of each file what is durable and what was written since.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import apsw

# A write may stop within, between two of these.
_SECTOR = 512


class _Write(NamedTuple):
    """Bytes at an offset; with None, the file was cut off or extended there."""

    offset: int
    data: bytes | None


@dataclass
class _File:
    """A file, whatever its name is now. `pending` are the writes since it was last synced, in their order."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[_Write] = field(default_factory=list[_Write])

    def copy(self) -> _File:
        return _File(bytearray(self.durable), list(self.pending))


Files = Mapping[str, _File]
"""What a process that is killed leaves behind: all that it wrote, durable or not, by name."""


class Left(NamedTuple):
    """The contents of files after a loss of power, and whether it took anything."""

    contents: dict[str, bytes]
    is_changed: bool


class LosingDisk(apsw.VFS):
    """A VFS of its own name over a folder. `on_change` is called before each write, cut, sync, deletion and creation,
    with all other changes held up meanwhile, and is told whether it is a sync."""

    def __init__(self, name: str, folder: Path, files: Files, on_change: Callable[[bool], None]) -> None:
        super().__init__(name, "unix")
        self.name = name
        self.syncs = 0
        self._folder = folder
        self._on_change = on_change
        self._lock = threading.RLock()
        self._files = {name: file.copy() for name, file in files.items()}
        # What a name stood for when the directory was last synced, and what became of it since.
        self._durable_names = dict(self._files)
        self._pending_names: dict[str, list[_File | None]] = {}
        folder.mkdir()
        for name, file in self._files.items():
            (folder / name).write_bytes(_applied(file.durable, file.pending))

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        assert name is not None, "a temporary file: SQLite was to keep those in memory"
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name)
        with self._lock:
            if not path.exists():
                self._on_change(False)
                file = self._files[path.name] = _File()
                self._pending_names.setdefault(path.name, []).append(file)
            return _OpenFile(self, name, flags, path.name)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        name = Path(filename).name
        with self._lock:
            self._on_change(False)
            super().xDelete(filename, syncdir)
            del self._files[name]
            self._pending_names.setdefault(name, []).append(None)
            if syncdir:
                self._sync_names()

    # What the open files report

    def write(self, name: str, write: Callable[[], None], offset: int, data: bytes | None) -> None:
        with self._lock:
            self._on_change(False)
            write()
            self._files[name].pending.append(_Write(offset, data))

    def sync(self, name: str) -> None:
        with self._lock:
            self._on_change(True)
            file = self._files[name]
            file.durable = _applied(file.durable, file.pending)
            file.pending.clear()
            self.syncs += 1
            # SQLite syncs the directory with the first sync of a log that it has made.
            if self._durable_names.get(name) is not file:
                self._sync_names()

    def _sync_names(self) -> None:
        self._durable_names = dict(self._files)
        self._pending_names.clear()

    # What is left

    def after_a_kill(self) -> Files:
        """All files as the system still has them, though not all of that is durable."""
        with self._lock:
            return {name: file.copy() for name, file in self._files.items()}

    def after_a_loss(self, chance: random.Random) -> Left:
        """What is found when the power is back, if it fails now. Of what was not synced, some is there."""
        with self._lock:
            names: dict[str, _File | None] = dict(self._durable_names)
            for name, changes in self._pending_names.items():
                kept = changes[: chance.randint(0, len(changes))]
                if kept:
                    names[name] = kept[-1]
            contents = {
                name: bytes(_applied(file.durable, _some_of(file.pending, chance)))
                for name, file in names.items()
                if file is not None
            }
            is_changed = contents != {n: bytes(_applied(f.durable, f.pending)) for n, f in self._files.items()}
        if chance.random() < 0.5:
            # The index to the log is never synced: whatever it was, it is no part of what counts.
            contents["vaults.db-shm"] = chance.randbytes(32768)
        return Left(contents, is_changed)


class _OpenFile(apsw.VFSFile):
    def __init__(self, disk: LosingDisk, name: str | apsw.URIFilename, flags: list[int], own_name: str) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk
        self._name = own_name

    def xWrite(self, data: bytes, offset: int) -> None:
        copy = bytes(data)
        self._disk.write(self._name, lambda: super(_OpenFile, self).xWrite(copy, offset), offset, copy)

    def xTruncate(self, newsize: int) -> None:
        self._disk.write(self._name, lambda: super(_OpenFile, self).xTruncate(newsize), newsize, None)

    def xSync(self, flags: int) -> None:
        # The real files need not be synced: nobody pulls a plug.
        self._disk.sync(self._name)


def files_with(contents: Mapping[str, bytes]) -> Files:
    """Files that are durable as they are."""
    return {name: _File(bytearray(data)) for name, data in contents.items()}


def not_durable(files: Files) -> int:
    """How many writes would not outlast a loss of power."""
    return sum(len(file.pending) for file in files.values())


def _applied(content: bytearray, writes: list[_Write]) -> bytearray:
    content = bytearray(content)
    for offset, data in writes:
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        if data is None:
            del content[offset:]
        else:
            content[offset : offset + len(data)] = data
    return content


def _some_of(writes: list[_Write], chance: random.Random) -> list[_Write]:
    """None of them, all, those up to one, or any at all; of a write, any of its sectors."""
    match chance.randrange(5):
        case 0:
            return []
        case 1:
            return writes
        case 2:
            return writes[: chance.randint(0, len(writes))]
        case _:
            kept: list[_Write] = []
            for offset, data in writes:
                if data is None:
                    if chance.random() < 0.5:
                        kept.append(_Write(offset, None))
                    continue
                whole = chance.random() < 0.7
                is_kept = chance.random() < 0.5
                for start, end in _sectors(offset, len(data)):
                    if is_kept if whole else chance.random() < 0.5:
                        kept.append(_Write(offset + start, data[start:end]))
            return kept


def _sectors(offset: int, size: int) -> list[tuple[int, int]]:
    bounds = [0, *range(_SECTOR - offset % _SECTOR, size, _SECTOR), size]
    return list(pairwise(bounds))
