"""Progress: a bar on stderr with rate and remaining time, where stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """How far the work is."""

    def advance(self, count: int) -> None: ...

    @contextmanager
    def aside(self) -> Generator[None]:
        """Make room for output while the bar is there."""
        ...


class Silent:
    """No bar: nobody would see it."""

    def advance(self, count: int) -> None:
        pass

    @contextmanager
    def aside(self) -> Generator[None]:
        yield


def is_shown() -> bool:
    """Whether there is somebody to see a bar."""
    return sys.stderr.isatty()


@contextmanager
def bar(what: str, total: int | None) -> Generator[Progress]:
    """A bar that is removed when the work ends, however it ends. None: nobody knows how much it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f}/s", style="dim")

    class Shown:
        def advance(self, count: int) -> None:
            progress.advance(task, count)

        @contextmanager
        def aside(self) -> Generator[None]:
            progress.stop()
            try:
                yield
            finally:
                progress.start()

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    progress = RichProgress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = progress.add_task(what, total=total)
    with progress:
        yield Shown()
