"""Both type checkers, strict, know what `asking.py` says they know, and reject what it says they reject."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).parent / "asking.py"


def run(*command: str, cwd: Path) -> str:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return f"{done.stdout}{done.stderr}".strip()


def test_mypy_agrees(tmp_path: Path):
    # A cache of its own: another run of mypy may be using the project's.
    cache = f"--cache-dir={tmp_path}"
    printed = run(sys.executable, "-m", "mypy", "--no-incremental", cache, str(FILE), cwd=ROOT)
    assert printed == "Success: no issues found in 1 source file"


def test_basedpyright_agrees(tmp_path: Path):
    # It would take mypy's comments for its own, and these say nothing about what it finds itself.
    shutil.copy(FILE, tmp_path)
    config = {
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config), "utf-8")
    printed = run(
        sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "-p", str(tmp_path), cwd=tmp_path
    )
    assert printed.splitlines()[-1] == "0 errors, 0 warnings, 0 notes", printed
