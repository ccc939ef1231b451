"""The numbered cases that are about actors are all shown here, in the contract of backends, or nowhere for a reason."""

from __future__ import annotations

import re
from pathlib import Path

from backends.conformance import BackendContract
from backends.conformance.cases import covered_cases

OURS = (
    *("C057", "C066", "C139", "C140", "C142", "C148", "C149", "C153", "C154", "C155", "C157"),
    *("C159", "C160", "C161", "C164", "C166", "C167", "C171"),
)


def shown() -> set[str]:
    decorators = re.compile(r"^ *@case\((.+)\)$", re.MULTILINE)
    found = [decorators.findall(path.read_text("utf-8")) for path in Path(__file__).parent.glob("test_*.py")]
    return {number for lines in found for line in lines for number in re.findall(r"C\d{3}", line)}


def test_every_case_about_actors_is_shown():
    assert sorted(set(OURS) - shown()) == []


def test_what_a_backend_has_part_in_is_shown_by_its_contract():
    numbers = {"C139", "C140", "C142", "C148", "C153", "C154", "C155", "C159", "C160", "C171"}
    assert sorted(numbers - covered_cases(BackendContract).keys()) == []
