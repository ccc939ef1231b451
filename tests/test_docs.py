"""What the pages in docs/ show works as it is printed, and what they link to is there."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from .starter import ROOT, Starter
from .stories import DOCS, Command, Program, Teller, cells_of, story

PAGES = ["actors", "idempotency", "ownership", "supervision", "tamper-evidence", "transactions"]

# Pages that tell a story: programs under the names that they begin with, and commands between them, all in one folder.
STORIES = ["audit", "copying", "projections", "retention", "schema-evolution", "tenants", "time-travel"]

# A part of a program is run with what the page's first program defines, and a system that is open.
FRAME = """
{definitions}

async def fragment() -> None:
    async with ActorSystem("memory://") as system:
{fragment}

asyncio.run(fragment())
"""


class Snippet(NamedTuple):
    """A block of Python, and what it prints according to the page."""

    page: str
    number: int
    code: str
    output: str

    @property
    def program(self) -> str:
        if "asyncio.run(" in self.code:
            return self.code
        definitions = snippets(self.page)[0].code.partition("\nasync def main")[0]
        return FRAME.format(definitions=definitions, fragment=textwrap.indent(self.code, " " * 8))

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def snippets(page: str) -> list[Snippet]:
    text = (DOCS / f"{page}.md").read_text("utf-8")
    found = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", text, re.DOTALL)
    return [Snippet(page, number, code, output) for number, (code, output) in enumerate(found, start=1)]


@pytest.mark.parametrize("snippet", [snippet for page in PAGES for snippet in snippets(page)], ids=str)
def test_a_snippet_prints_what_the_page_says(snippet: Snippet, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(snippet.program, "utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == snippet.output


@pytest.mark.parametrize("page", PAGES)
def test_no_snippet_of_a_page_is_left_out(page: str) -> None:
    assert len(snippets(page)) == (DOCS / f"{page}.md").read_text("utf-8").count("```python") > 0


@pytest.mark.parametrize("page", STORIES)
def test_a_story_goes_as_the_page_tells_it(page: str, tmp_path: Path, starter: Starter) -> None:
    teller = Teller(tmp_path, starter)
    for step in story(page):
        match step:
            case Program():
                teller.write(step)
            case Command():
                assert cells_of(teller.run(step.words)) == cells_of(step.output), step.line


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in [*DOCS.glob("*.md"), *ROOT.glob("*.md")])
)
def test_every_page_and_every_heading_that_is_linked_is_there(page: str) -> None:
    path = ROOT / page
    links = [link.partition("#") for link in re.findall(r"\]\((?!http)([^)\s]+)\)", path.read_text("utf-8"))]
    places = [(path.parent / name if name else path, anchor) for name, _, anchor in links]
    assert [place.name for place, _ in places if not place.exists()] == []
    assert [(place.name, anchor) for place, anchor in places if anchor and anchor not in _anchors(place)] == []


def _anchors(page: Path) -> set[str]:
    """What a page's headings are linked by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
