"""Files that commands write: which replace what is there, and what is said of those that cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Run

# With {file} for where to write; {key} is a key to seal with.
NEW_FILES = [
    "audit query {url} --parquet {file}",
    "audit prove {url} 1 --out {file}",
    "audit keys new {file}",
]
OTHERS = [
    "schema export cli_ledger --output {file}",
    "audit seal {url} --key {key} --anchor {file}",
    "replay {url} cli_ledger:Account --resume {file}",
    "fork {url} cli_ledger:Account alice {file}",
    "copy {url} sqlite:///{file}",
]


@pytest.fixture
def words(cli: Run, own_url: str, tmp_path: Path) -> dict[str, str]:
    """A sealed journal."""
    key = str(tmp_path / "seal.key")
    assert cli("audit", "keys", "new", key).code == 0
    assert cli("audit", "seal", own_url, "--key", key).code == 0
    return {"url": own_url, "key": key}


@pytest.mark.parametrize("line", [*NEW_FILES, *OTHERS])
def test_what_cannot_be_written_is_one_line_and_exit_code_3(cli: Run, words: dict[str, str], line: str) -> None:
    done = cli(*line.format(file="/nowhere/at/all", **words).split())
    errors = [each for each in done.err.splitlines() if each.startswith("error: ")]
    assert (done.code, len(errors), "Traceback" in done.err) == (3, 1, False)
    assert "/nowhere/at" in errors[0]


@pytest.mark.parametrize("line", NEW_FILES)
def test_a_file_that_is_there_is_not_overwritten(cli: Run, words: dict[str, str], tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine"
    path.write_text("mine", "utf-8")
    done = cli(*line.format(file=path, **words).split())
    assert (done.code, path.read_text("utf-8")) == (2, "mine")
    assert f"{path} exists: " in done.err


def test_a_link_that_leads_nowhere_is_there_too(cli: Run, words: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "none")
    assert cli("audit", "prove", words["url"], "1", "--out", str(path)).code == 2
    assert not (tmp_path / "none").exists()


def test_an_export_of_schemas_is_replaced(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text("old", "utf-8")
    assert cli("schema", "export", "cli_ledger", "--output", str(path)).code == 0
    assert path.read_text("utf-8") == cli("schema", "export", "cli_ledger").out
