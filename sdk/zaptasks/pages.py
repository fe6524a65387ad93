"""Long lists, fetched page by page while they are iterated.

A class and not an async generator: trio warns about a generator that is dropped half way, and to leave a list when
one has found what one looked for is no mistake.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
CursorT = TypeVar("CursorT")


class Pages(AsyncIterator[ItemT], Generic[ItemT, CursorT]):
    """Iterate it once, with `async for`.

    `fetch` takes a cursor and returns a page and the cursor of the next one; a cursor that is false ends the list.
    """

    def __init__(self, fetch: Callable[[CursorT], Awaitable[tuple[list[ItemT], CursorT]]], first: CursorT) -> None:
        self._fetch = fetch
        self._cursor = first
        self._page: Iterator[ItemT] = iter(())
        self._is_last = False

    async def __anext__(self) -> ItemT:
        while True:
            for item in self._page:
                return item
            if self._is_last:
                raise StopAsyncIteration
            page, self._cursor = await self._fetch(self._cursor)
            self._page = iter(page)
            self._is_last = not self._cursor
