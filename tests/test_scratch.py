"""The tests of a run write in memory only where there is room, and nobody has said otherwise."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.scratch import ROOM, scratch


@pytest.fixture(autouse=True)
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "usual"))
    return tmp_path / "usual"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file system with just the room that is needed."""
    fields = list(os.statvfs(tmp_path))
    fields[1], fields[4], fields[8] = 1, ROOM, fields[8] & ~os.ST_NOEXEC
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    return tmp_path


def test_memory_is_used_where_it_has_the_room(memory: Path) -> None:
    assert scratch(in_memory=memory, available=ROOM) == memory


def test_too_little_memory_or_none_is_left_alone(memory: Path, usual: Path) -> None:
    assert scratch(in_memory=memory, available=ROOM - 1) == usual
    assert scratch(in_memory=memory / "none", available=ROOM) == usual


@pytest.mark.parametrize(("field", "value"), [(4, ROOM - 1), (8, os.ST_NOEXEC)])
def test_a_file_system_without_room_or_programs_is_left_alone(
    memory: Path, usual: Path, monkeypatch: pytest.MonkeyPatch, field: int, value: int
) -> None:
    fields = list(os.statvfs(memory))
    fields[field] = value
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    assert scratch(in_memory=memory, available=ROOM) == usual


def test_who_names_a_folder_gets_it(memory: Path, usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(usual))
    assert scratch(in_memory=memory, available=ROOM) == usual
