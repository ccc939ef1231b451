"""Each promise of docs/reliability.md names tests, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROMISES = (
    (ROOT / "docs/reliability.md").read_text("utf-8").partition("## What is promised")[2].partition("| Store |")[0]
)


def test_promises_are_numbered_and_each_names_the_tests_that_back_it() -> None:
    promises = re.split(r"^(\d+)\. ", PROMISES, flags=re.MULTILINE)[1:]
    numbers, texts = promises[::2], promises[1::2]
    assert [int(number) for number in numbers] == list(range(1, len(numbers) + 1))
    for text in texts:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
        assert named, text
        for file, test in named:
            assert re.search(rf"^\s*(async )?def {test}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), (
                file,
                test,
            )
