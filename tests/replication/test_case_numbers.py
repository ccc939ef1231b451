"""The numbered cases about replicated state are all shown here."""

from __future__ import annotations

import re
from pathlib import Path

OURS = (
    *("C235", "C236", "C237", "C238", "C239", "C240", "C245", "C246", "C247", "C248", "C249"),
    *("C254", "C256", "C257", "C264", "C265"),
)


def test_every_case_about_replicated_state_is_shown() -> None:
    decorators = re.compile(r"^ *@case\((.+)\)$", re.MULTILINE)
    found = [decorators.findall(path.read_text("utf-8")) for path in Path(__file__).parent.glob("test_*.py")]
    shown = {number for lines in found for line in lines for number in re.findall(r"C\d{3}", line)}
    assert sorted(set(OURS) - shown) == []
