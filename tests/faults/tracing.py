"""Tracing a server's system calls, and making its syncs fail."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

INJECTED = "(INJECTED)"


@contextmanager
def injecting(strace: str, pid: int, fault: str, trace: Path) -> Iterator[None]:
    """Let the process's syncs fail, or be late."""
    options = ["-e", "trace=fdatasync,fsync", "-e", f"inject=fdatasync,fsync:{fault}"]
    with tracing(strace, [pid], trace, options):
        yield


@contextmanager
def tracing(strace: str, pids: Sequence[int], trace: Path, options: Sequence[str]) -> Iterator[None]:
    """Write what processes ask of the system to a file, in the order in which it happens."""
    places = [part for pid in pids for part in ("-p", str(pid))]
    with subprocess.Popen(
        [strace, "-f", *places, "-o", str(trace), *options], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # A process that has several threads is told as one.
        for _ in pids:
            line = process.stderr.readline()
            if "attached" not in line:
                process.kill()
                pytest.skip(f"strace cannot attach here: {line.strip()}")
        try:
            yield
        finally:
            process.terminate()
            process.communicate(timeout=60)


def replies_without_a_sync(trace: str, marker: str) -> list[bool]:
    """For every request that holds the marker, in order: whether it was answered before anything was synced."""
    waiting: dict[tuple[str, str], bool] = {}
    unfinished: dict[tuple[str, str], str] = {}
    found: list[bool] = []
    for line in trace.splitlines():
        if (call := re.match(r"(\d+) +(\w+)\((\d+)", line)) is not None:
            pid, name, descriptor = call.groups()
            if "<unfinished" in line:
                unfinished[pid, name] = descriptor
        elif (call := re.match(r"(\d+) +<\.\.\. (\w+) resumed", line)) is not None:
            pid, name = call.groups()
            descriptor = unfinished.pop((pid, name), "")
        else:
            continue
        if name in {"read", "recvfrom"}:
            if marker in line:
                waiting[pid, descriptor] = True
        elif name in {"fdatasync", "fsync"}:
            if line.endswith("= 0"):
                waiting = dict.fromkeys(waiting, False)
        elif (pid, descriptor) in waiting:
            found.append(waiting.pop((pid, descriptor)))
    return found
