"""Files that cannot be a journal: each has its error, and none is written to."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventstore import schema
from eventstore.errors import BackendUnavailable, InvalidStoreUrl, JournalCorrupt, SchemaError, StorageFull
from eventstore.url import StoreUrl, parse_store_url

NOBODY = 65534
DISK_KIB = 256


@pytest.mark.parametrize("size", [1, 15, 16, 99, 100, 512, 4096, 100_000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(url: StoreUrl, path: Path, size: int) -> None:
    garbage = (b"not a database, but somebody's notes. " * (size // 38 + 1))[:size]
    path.write_bytes(garbage)
    for function in (schema.upgrade, schema.check):
        with pytest.raises(SchemaError, match="is not a SQLite database"):
            function(url)
    assert path.read_bytes() == garbage
    assert list(path.parent.iterdir()) == [path]


def test_an_empty_file_is_a_database_without_tables(url: StoreUrl, path: Path) -> None:
    path.touch()
    schema.upgrade(url)
    assert schema.check(url).is_current


def test_a_damaged_database_is_refused(url: StoreUrl, path: Path) -> None:
    schema.upgrade(url)
    content = bytearray(path.read_bytes())
    content[100:] = bytes(len(content) - 100)
    path.write_bytes(content)
    with pytest.raises(JournalCorrupt, match="damaged"):
        schema.upgrade(url)
    assert path.read_bytes() == content


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidStoreUrl, match="is a directory"):
        schema.upgrade(parse_store_url(f"sqlite:///{tmp_path}"))


def test_a_missing_directory_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidStoreUrl, match=f"the directory {tmp_path}/no/such does not exist"):
        schema.upgrade(parse_store_url(f"sqlite:///{tmp_path}/no/such/journal.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidStoreUrl):
        schema.upgrade(parse_store_url(f"sqlite:///{tmp_path}/file/journal.db"))


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidStoreUrl):
        schema.upgrade(parse_store_url(f"sqlite:///{tmp_path}/{'a' * 300}.db"))


def test_a_pipe_is_refused(url: StoreUrl, path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(InvalidStoreUrl, match="not a regular file"):
        schema.upgrade(url)


def test_a_file_that_cannot_be_read_is_refused(open_folder: Path, unprivileged: None) -> None:
    path = open_folder / "journal.db"
    path.touch()
    path.chmod(0o000)
    with pytest.raises(BackendUnavailable):
        schema.upgrade(url_of(path))
    assert path.stat().st_size == 0


def test_a_file_that_cannot_be_written_is_refused(open_folder: Path, unprivileged: None) -> None:
    path = open_folder / "journal.db"
    path.touch()
    path.chmod(0o400)
    with pytest.raises(BackendUnavailable):
        schema.upgrade(url_of(path))
    assert path.stat().st_size == 0


def test_a_directory_that_cannot_be_written_is_refused(open_folder: Path, unprivileged: None) -> None:
    open_folder.chmod(0o500)
    with pytest.raises(BackendUnavailable):
        schema.upgrade(url_of(open_folder / "journal.db"))
    assert list(open_folder.iterdir()) == []


def test_a_directory_that_cannot_be_entered_is_refused(open_folder: Path, unprivileged: None) -> None:
    open_folder.chmod(0o000)
    with pytest.raises(BackendUnavailable):
        schema.upgrade(url_of(open_folder / "journal.db"))


@pytest.mark.parametrize("free_kib", [0, 4, 16, 40, 64])
def test_a_full_disk_is_refused_and_serves_again_with_room(small_disk: Path, free_kib: int) -> None:
    path, ballast = small_disk / "journal.db", small_disk / "ballast"
    ballast.write_bytes(bytes((DISK_KIB - free_kib) * 1024))
    with pytest.raises(StorageFull):
        schema.upgrade(url_of(path))
    ballast.unlink()
    assert schema.current(url_of(path)) is None
    schema.upgrade(url_of(path))
    assert schema.check(url_of(path)).is_current


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that another user can reach, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o700)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)
        os.chmod(folder, 0o700)


@pytest.fixture
def unprivileged(open_folder: Path) -> Iterator[None]:
    """Permissions do not hold for root: become somebody they do hold for."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a disk of its own can only be mounted by root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def url_of(path: Path) -> StoreUrl:
    return parse_store_url(f"sqlite:///{path}")
