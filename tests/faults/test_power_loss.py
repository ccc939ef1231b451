"""F02: when the power fails, what was acknowledged on SQLite is there, and of the rest only the newest is missing."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.faults.losing_disk import LosingDisk, files_with

ROOT = Path(__file__).parents[2]


def run(folder: Path, losses: int, build: str = "honest", *rule: str, seed: int = 1) -> dict[str, Any]:
    arguments = [str(folder), str(losses), str(seed), build, *rule]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.power_loss", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120 + losses,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)
    return counts


def assert_survives(folder: Path, losses: int) -> None:
    counts = run(folder, losses, seed=random.randrange(1_000_000))

    assert counts["violations"] == {}, counts
    assert counts["losses"] == losses
    # The losses came where they hurt: they took writes away, while replies were awaited and after many were given.
    assert counts["took_writes"] > losses // 3
    assert counts["in_flight"] > losses // 2
    assert counts["acks"] > 10 * losses
    assert counts["outcomes"] > 5 * losses
    assert counts["syncs"] > losses


def test_losses_of_power_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    assert_survives(tmp_path, 60)


@pytest.mark.soak
def test_10_000_losses_of_power_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    assert_survives(tmp_path, 10_000)


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        ("not syncing commits", "lost"),
        ("acknowledging early", "lost"),
        ("outcomes apart", "events without outcome"),
        # Only what a killed process left in the log is in danger.
        ("not securing the log", "read and lost"),
    ],
)
def test_a_build_that_breaks_its_promise_is_found_guilty(tmp_path: Path, build: str, rule: str) -> None:
    counts = run(tmp_path, 1500, build, rule)

    assert rule in counts["violations"], counts


def test_the_disk_drops_what_was_not_synced_and_nothing_else(tmp_path: Path) -> None:
    disk = LosingDisk("test-disk", tmp_path / "disk", files_with({"old": b"a" * 4096}), lambda _: None)
    path = str(tmp_path / "disk" / "old")
    opened = disk.xOpen(path, [apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_MAIN_DB, 0])
    opened.xWrite(b"b" * 1024, 0)
    opened.xSync(0)
    opened.xWrite(b"c" * 1024, 512)
    opened.xWrite(b"d", 5000)
    opened.xTruncate(5000)
    written = Path(path).read_bytes()
    found = {disk.after_a_loss(random.Random(seed)).contents["old"] for seed in range(200)}
    durable = b"b" * 1024 + b"a" * 3072

    assert written == b"b" * 512 + b"c" * 1024 + b"a" * 2560 + bytes(904)
    assert {written, durable, b"b" * 512 + b"c" * 512 + b"a" * 3072} <= found
    # A write beyond the end, whose neighbour was dropped, leaves a gap.
    assert durable + bytes(904) + b"d" in found
    assert all(content.startswith(b"b" * 512) for content in found)
    opened.xSync(0)
    assert disk.after_a_loss(random.Random(0)).contents["old"] == written
    opened.xClose()


def test_a_name_is_not_durable_before_its_folder_is_synced(tmp_path: Path) -> None:
    disk = LosingDisk("test-names", tmp_path / "disk", files_with({"old": b"a"}), lambda _: None)
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_WAL
    opened = disk.xOpen(str(tmp_path / "disk" / "old-wal"), [flags, 0])
    opened.xWrite(b"b", 0)
    disk.xDelete(str(tmp_path / "disk" / "old"), False)

    def names() -> set[frozenset[str]]:
        losses = (disk.after_a_loss(random.Random(seed)).contents for seed in range(100))
        return {frozenset(found) - {"vaults.db-shm"} for found in losses}

    assert names() == {frozenset(some) for some in (("old",), ("old", "old-wal"), ("old-wal",), ())}
    opened.xSync(0)
    assert names() == {frozenset({"old-wal"})}
    opened.xClose()
