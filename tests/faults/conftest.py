"""What several fault tests need of the machine."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


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
