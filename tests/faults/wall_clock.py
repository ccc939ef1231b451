"""WallClock: a clock that a test sets, for the programs that are started with it; their monotonic clocks go on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    char text[32] = {0};
    const char *name = getenv("CLOCK_OFFSET_FILE");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    ssize_t count = read(file, text, sizeof text - 1);
    close(file);
    return count > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, id, now);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (result) *result = exact.tv_sec;
    return exact.tv_sec;
}
"""


class WallClock:
    """`folder` must be readable by the programs."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "clock-offset"
        self._library = folder / "clock.so"
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("there is no C compiler (cc), which makes the library that sets a program's clock")
        source = folder / "clock.c"
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", self._library, source], check=True, timeout=180)
        self._library.chmod(0o755)
        self.set(0)

    def set(self, seconds: int) -> None:
        """Let it be ahead of the real one by so much."""
        new = self._file.with_suffix(".new")
        new.write_text(str(seconds))
        new.chmod(0o644)
        new.replace(self._file)

    @property
    def variables(self) -> dict[str, str]:
        """What puts a program on this clock."""
        return {"LD_PRELOAD": str(self._library), "CLOCK_OFFSET_FILE": str(self._file)}

    @property
    def prefix(self) -> tuple[str, ...]:
        """The same before a command line."""
        return ("env", *(f"{name}={value}" for name, value in self.variables.items()))

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables}
