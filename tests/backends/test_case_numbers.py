"""The contract's case numbers are well formed, and each is either shown or said to be shown elsewhere."""

from __future__ import annotations

import re

from backends.conformance import BackendContract
from backends.conformance.cases import NOT_HERE, covered_cases


def test_every_case_number_is_well_formed():
    numbers = {*covered_cases(BackendContract), *NOT_HERE}
    assert [number for number in numbers if not re.fullmatch(r"C\d{3}", number)] == []


def test_no_case_is_both_shown_and_said_to_be_shown_elsewhere():
    assert sorted(covered_cases(BackendContract).keys() & NOT_HERE.keys()) == []


def test_every_case_that_is_not_shown_has_a_reason():
    assert [number for number, reason in NOT_HERE.items() if not reason.strip()] == []


def test_the_tests_of_the_contract_do_carry_numbers():
    assert "C031" in covered_cases(BackendContract)


def test_no_two_parts_of_the_contract_have_a_test_of_one_name():
    # The parts are combined by inheritance: of two tests with one name only the first would run.
    names = [name for part in BackendContract.__mro__[1:] for name in vars(part) if name.startswith("test_")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
