"""Completion by the shell: what Typer makes of it, with what its script for zsh lacks, and with shells named."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

_OPTIONS = ("--install-completion", "--show-completion")

# An autoloaded function of zsh defines itself when it is first called. Without this the first tab would do no more.
_ZSH_TAIL = '\n[[ ${funcstack[1]} != _%(prog_name)s ]] || %(complete_func)s "$@"\n'

# Typer takes a shell's name only where it may not look which one it is.
_NO_DETECTION = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"


@contextmanager
def completion_mended(arguments: Sequence[str]) -> Generator[None]:
    """Let Typer do better at what these arguments ask for, if that is completion."""
    if not arguments or arguments[0] not in _OPTIONS:
        yield
        return
    from typer import _completion_shared as shared

    scripts: dict[str, Any] = getattr(shared, "_completion_scripts", {})
    if "zsh" in scripts and _ZSH_TAIL not in scripts["zsh"]:
        scripts["zsh"] += _ZSH_TAIL
    if len(arguments) > 1:
        os.environ[_NO_DETECTION] = "1"
    try:
        yield
    finally:
        os.environ.pop(_NO_DETECTION, None)
