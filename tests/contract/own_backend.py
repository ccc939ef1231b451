"""The backend that `docs/backends.md` writes, made of the page's code blocks and installed as its reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"

Done = subprocess.CompletedProcess[str]


class OwnBackend:
    """A package in a folder of its own, and the place where it is installed, or where another copy of it is."""

    def __init__(self, folder: Path, *, site: Path | None = None) -> None:
        self.folder = folder
        self.site = site or folder / "site"
        *module, test = blocks("python")
        (project,) = blocks("toml")
        self.write("jsonl_journal.py", "\n\n".join(module))
        self.write("test_jsonl_journal.py", test)
        self.write("pyproject.toml", project)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def install(self) -> None:
        """Build it and install it. Nothing is fetched."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        self._run(
            [*pip, "--no-index", "--no-deps", "--no-build-isolation", "--target", str(self.site), "."], check=True
        )

    def pytest(self, *arguments: str) -> Done:
        return self.python("-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)

    def python(self, *arguments: str) -> Done:
        return self._run([sys.executable, *arguments])

    def _run(self, command: list[str], *, check: bool = False) -> Done:
        # Nothing of this project's own test run may help: neither its options nor its working directory.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=kept | {"PYTHONPATH": str(self.site)},
            capture_output=True,
            text=True,
            timeout=240,
            check=check,
        )


def blocks(language: str) -> list[str]:
    """The page's code blocks in a language."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    return found
