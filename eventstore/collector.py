"""The garbage collector, kept from looking at what is made a page at a time."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Generator[None]:
    """Make many lasting objects without the garbage collector looking at them again and again: twice as fast.

    Only around code that awaits nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
