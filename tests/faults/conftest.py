"""What several fault tests need: a network that fails in front of a database, and what they need of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.backends.postgres_help import proxy_to
from tests.servers.proxy import FaultProxy


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest_asyncio.fixture
async def proxy(url: str) -> AsyncIterator[FaultProxy]:
    async with proxy_to(url) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def strace() -> str:
    """The program that makes system calls fail."""
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not installed")
    inject = ["-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "true"]
    tried = subprocess.run([program, "-f", "-o", os.devnull, *inject], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace cannot trace here: {tried.stderr.strip()}")
    return program
