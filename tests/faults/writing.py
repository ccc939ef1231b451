"""Writing: a process that keeps depositing (`writer.py`) while a test does harm to the server it deposits on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .vault import Record

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 60.0


class Writing:
    """Begins when it is entered, and ends with the block or with `end`."""

    def __init__(self, url: str, record_file: Path, *, store: str = "honest", keys: int = 5) -> None:
        self._record_file = record_file
        arguments = [url, str(record_file), "w", "3600", store, *(str(key) for key in range(keys))]
        self._command = [sys.executable, "-W", "error", "-m", "tests.faults.writer", *arguments]

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        self._say("begin\n")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate(timeout=PATIENCE_SECONDS)

    def acknowledged(self) -> int:
        """How many deposits were acknowledged so far."""
        return self._record_file.read_bytes().count(b"\nack ")

    def wait_for(self, acks: int) -> float:
        """Wait until so many more deposits are acknowledged. Returns the seconds that took."""
        start = time.monotonic()
        before = self.acknowledged()
        while self.acknowledged() < before + acks:
            assert self.process.poll() is None, "the writer has ended by itself"
            assert time.monotonic() < start + PATIENCE_SECONDS, "nothing is acknowledged any more"
            time.sleep(0.002)
        return time.monotonic() - start

    def end(self) -> float:
        """Let it end in good order. Returns the seconds that its slowest deposit took."""
        self._say("end\n")
        output, _ = self.process.communicate(timeout=PATIENCE_SECONDS)
        assert self.process.returncode == 0
        return float(output)

    def record(self) -> Record:
        record = Record()
        record.read(self._record_file.read_text())
        return record

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()
