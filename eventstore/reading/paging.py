"""Listing what a backend gives in pages, without holding more than one of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

from eventstore.contract.pages import checked_page_size

T = TypeVar("T")
K = TypeVar("K")


async def every(
    read_page: Callable[[K], Awaitable[Sequence[T]]], *, after: K, key: Callable[[T], K], page_size: int
) -> AsyncGenerator[T, None]:
    """Everything behind `after`, in the order of the pages: each begins behind the `key` of the last one's end, and one
    of less than `page_size` is the last."""
    checked_page_size(page_size)
    while True:
        page = await read_page(after)
        for item in page:
            yield item
        if len(page) < page_size:
            return
        after = key(page[-1])
