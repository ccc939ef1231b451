"""The tour of docs/tour.md goes as the page tells it, and each answer is what the log and the file say without the
library."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tests.examples.permit_log import ACTIVITY, CASE, make_rows, write_log
from tests.starter import ROOT, Starter
from tests.stories import INTERRUPTED, Command, Program, Teller, cells_of, story

from .answers import CHECKS, Asked, check
from .permit_facts import JournalFile, PermitLog

TOUR = story("tour")

REAL_LOG = os.environ.get("PERMIT_LOG")
"""The log that the page was recorded with. With another one all but the page's words is checked."""

# Commits of several cases at once decide which event of the log gets which position: in these columns.
PLACES = {"events": 1, "changed": 3, "truncated": 3}


def test_the_tour_goes_as_the_page_tells_it_and_every_answer_is_right(tmp_path: Path, starter: Starter) -> None:
    for name in ("permits.py", "permit_reports.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    log = PermitLog(_log_in(tmp_path))
    teller = Teller(tmp_path, starter)
    used = set[tuple[str, ...]]()
    for step in TOUR:
        match step:
            case Program():
                teller.write(step)
            case Command(line, output):
                # The position of the first event behind those of the log.
                words = [f"{len(log.rows) + 1}" if word == "8578" else word for word in step.words]
                answer = _interrupted(teller, words) if output.startswith(INTERRUPTED) else teller.run(words)
                used.add(check(Asked(words, answer, tmp_path, log)))
                if REAL_LOG:
                    assert _without_places(words, answer) == _without_places(words, output), line
    assert used == CHECKS.keys()


def _log_in(folder: Path) -> Path:
    """The real log, or one with the cases that the page asks about."""
    path = folder / "receipt.csv"
    if REAL_LOG:
        return Path(shutil.copy(REAL_LOG, path))
    rows = make_rows(1500, cases=130, seed=5)
    asked = dict.fromkeys(
        re.findall(r"case-\d+", " ".join(str(step[:1]) for step in TOUR if isinstance(step, Command)))
    )
    adjusted = dict.fromkeys(row[CASE] for row in rows if row[ACTIVITY].startswith("T03"))
    names = dict(zip(adjusted, asked, strict=False))
    for row in rows:
        row[CASE] = names.get(row[CASE], row[CASE])
    return write_log(path, rows)


def _interrupted(teller: Teller, words: list[str]) -> str:
    if "--resume" in words:
        return next(filter(None, (teller.interrupt(words, (teller.folder / "replay.json").exists) for _ in range(50))))
    source, target = (JournalFile(teller.folder / word.removeprefix("sqlite:///")) for word in words[2:4])
    end = source.value("SELECT max(position) FROM journal_events")

    def is_copied() -> bool:
        try:
            return bool(target.value("SELECT max(position) FROM journal_events") == end)
        except Exception:
            return False

    return teller.interrupt(words, is_copied) or "it ended by itself"


def _without_places(words: list[str], output: str) -> list[list[str]]:
    lines = cells_of(output)
    for cells in lines:
        place = PLACES.get(words[1], PLACES.get(cells[0]))
        if place is not None and len(cells) > place:
            cells[place] = "…"
    lines = [[cell for cell in cells if cell] for cells in lines]
    # These come in the order of their places.
    return sorted(lines) if lines and lines[0][0] == "truncated" else lines
