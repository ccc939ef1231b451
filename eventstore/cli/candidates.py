"""Candidates: a version of the user's code, from a folder, or from a package that is installed for the purpose."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import sysconfig
import venv
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from eventstore.cli.escaping import one_line, printable
from eventstore.cli.exits import WrongUsage


class Candidate(NamedTuple):
    """The interpreter that runs the code, and the folder that it is in; none ("") if it is installed."""

    python: str
    folder: str


# A package without a version, or a folder that is not there.
_BARE = re.compile(r"[A-Za-z0-9._-]+")


@asynccontextmanager
async def candidate(code: str) -> AsyncGenerator[Candidate, None]:
    """The code in a folder, or that of a requirement such as `bank==1.2`, which pip installs into a virtual environment
    that is removed behind the block. What is installed here already is seen there too, behind what that brings.

    Raises `WrongUsage` for a folder that is not there, and for what pip cannot install.
    """
    if (folder := _folder(code)) is not None:
        yield Candidate(sys.executable, folder)
        return
    with TemporaryDirectory(prefix="eventstore-whatif-") as place:
        python = await _installed(code, Path(place))
        yield Candidate(python, "")


def _folder(code: str) -> str | None:
    folder = Path(code)
    if folder.is_dir():
        return str(folder.resolve())
    if os.sep in code and "://" not in code and not folder.exists():
        raise WrongUsage(f"{printable(code)} is no folder, and no package")
    if _BARE.fullmatch(code):
        # It would come from wherever pip finds something by that name.
        raise WrongUsage(
            f"there is no folder {printable(code)}; a package is named with its version, as in {printable(code)}==1.2"
        )
    return None


async def _installed(requirement: str, place: Path) -> str:
    await asyncio.to_thread(venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create, place)
    names = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", "venv", names))
    here = [entry for entry in sys.path if Path(entry).name == "site-packages"]
    (packages / "eventstore_whatif.pth").write_text("\n".join(dict.fromkeys(here)) + "\n", "utf-8")
    python = str(Path(sysconfig.get_path("scripts", "venv", names)) / Path(sys.executable).name)
    pip = await asyncio.create_subprocess_exec(
        *(python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", requirement),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        _, errors = await pip.communicate()
    finally:
        if pip.returncode is None:
            pip.kill()
            await pip.wait()
    if pip.returncode:
        lines = [line for line in errors.decode(errors="replace").splitlines() if line.startswith("ERROR")]
        reason = one_line(lines[-1]) if lines else f"it ended with {pip.returncode}"
        raise WrongUsage(f"pip cannot install {printable(requirement)}: {reason}")
    return python
