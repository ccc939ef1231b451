"""The process that a runner of a projection is in: what it is called, and whether it is still there."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from uuid import getnode, uuid4

from eventstore.contract.checkpoint import Checkpoint


def this_process() -> str:
    """What runners of this process are called, so that others on this machine can see whether it is there."""
    return f"{platform.node()}:{os.getpid()}"


def new_runner() -> str:
    """What a runner is told from all others by, and where it runs."""
    return f"{uuid4().hex}@{_place()}"


@cache
def _place() -> str:
    """Where the numbers of processes mean the same as here. Machines may share a name, and containers too, which have
    numbers of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{getnode():x}"


def has_ended(checkpoint: Checkpoint) -> bool:
    """Whether a runner was a process of this machine that is there no more: then its lease need not be waited for."""
    node, _, pid = checkpoint.runner_name.rpartition(":")
    is_from_here = node == platform.node() and checkpoint.runner.partition("@")[2] == _place()
    if not is_from_here or not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False
