"""No command takes more memory of a long journal than of a short one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from . import wide_journal
from .conftest import PROJECT

LARGEST_KIB = 200 * 1024
GROWTH_KIB = 24 * 1024
"""What buffers and caches may have more of where there is more to fill them with."""


@pytest.mark.soak
def test_the_memory_of_every_command_has_a_bound(tmp_path: Path) -> None:
    """The same commands, one after another, on a journal of 20,000 events and on one of a million."""
    peaks: dict[str, list[int]] = {}
    for count in (20_000, 1_000_000):
        directory = tmp_path / str(count)
        directory.mkdir()
        # Another version of the code, for what compares two.
        shutil.copytree(PROJECT, directory / "new")
        url = wide_journal.build(directory / "wide.db", count)
        for command in wide_journal.COMMANDS:
            code, kib = wide_journal.peak(command, url, directory)
            print(f"{count:>9,} {kib / 1024:6.1f} MiB  {command.line}")
            assert code == 0, command.line
            peaks.setdefault(command.line, []).append(kib)
    too_much = {line: found for line, found in peaks.items() if found[1] > min(LARGEST_KIB, found[0] + GROWTH_KIB)}
    assert too_much == {}
