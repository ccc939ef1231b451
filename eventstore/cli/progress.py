"""Progress: a bar on stderr with rate and remaining time, where stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from eventstore.store import EventStore


class Progress(Protocol):
    """How far the work is."""

    def advance(self, count: int, *, lag: int | None = None) -> None:
        """So much more is done. With a `lag`: so many positions of the log are left."""
        ...

    @contextmanager
    def aside(self) -> Generator[None]:
        """Make room for output while the bar is there."""
        ...


class Silent:
    """No bar: nobody would see it."""

    def advance(self, count: int, *, lag: int | None = None) -> None:
        pass

    @contextmanager
    def aside(self) -> Generator[None]:
        yield


def is_shown() -> bool:
    """Whether there is somebody to see a bar."""
    return sys.stderr.isatty()


@asynccontextmanager
async def events_bar(store: EventStore, what: str = "events") -> AsyncGenerator[Progress, None]:
    """A bar over all events of a store, where there is somebody to see it."""
    if not is_shown():
        yield Silent()
        return
    with bar(what, (await store.statistics()).events) as shown:
        yield shown


@contextmanager
def bar(what: str, total: int | None) -> Generator[Progress]:
    """A bar that is removed when the work ends, however it ends. Without a total nobody knows when that will be."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f}/s", style="dim")

    class Lag(ProgressColumn):
        def render(self, task: Task) -> Text:
            lag = task.fields.get("lag")
            return Text("" if lag is None else f"lag {lag:,}", style="bold yellow" if lag else "green")

    class Shown:
        def advance(self, count: int, *, lag: int | None = None) -> None:
            progress.update(task, advance=count, lag=lag)

        @contextmanager
        def aside(self) -> Generator[None]:
            progress.stop()
            try:
                yield
            finally:
                progress.start()

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        Lag(),
        TimeRemainingColumn(),
    )
    progress = RichProgress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
    task = progress.add_task(what, total=total)
    with progress:
        yield Shown()
