"""When a store that failed is tried again, and how often."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import trio
from trio.testing import MockClock

from zapserver.mending import RELAPSE_SECONDS, Mender
from zapserver.store import DiskFull, StoreError


class FailingNamespace:
    """Says whether its store is well as the test has it, and notes when it was asked."""

    def __init__(self) -> None:
        self.name = "default"
        self.journal = SimpleNamespace(failure=DiskFull("no room"), recover=self._recover)
        self.errors: list[StoreError] = []
        self.asked: list[float] = []

    def _recover(self, on_done: Callable[[StoreError | None], None]) -> None:
        self.asked.append(trio.current_time())
        on_done(self.errors.pop(0) if self.errors else None)


class Rebuilder:
    """In the place of a dispatcher."""

    def __init__(self) -> None:
        self.on_store_failure: Callable[[Any], None] = lambda namespace: None
        self.rebuilt: list[float] = []
        self.errors: list[StoreError] = []
        self._another = trio.Event()

    def rebuild(self, namespace: object) -> None:
        self.rebuilt.append(trio.current_time())
        if self.errors:
            self.on_store_failure(namespace)
            raise self.errors.pop(0)
        self._another.set()
        self._another = trio.Event()

    async def until(self, count: int) -> None:
        while len(self.rebuilt) < count:
            await self._another.wait()


@asynccontextmanager
async def mender() -> AsyncIterator[tuple[Rebuilder, FailingNamespace]]:
    rebuilder = Rebuilder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Mender(rebuilder).run)  # type: ignore[arg-type]
        yield rebuilder, FailingNamespace()
        nursery.cancel_scope.cancel()


def pauses(times: list[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in itertools.pairwise(times)]


async def test_a_store_is_asked_at_once_and_then_less_and_less_often(autojump_clock: MockClock) -> None:
    async with mender() as (rebuilder, namespace):
        namespace.errors = [DiskFull("no room")] * 8
        began = trio.current_time()
        rebuilder.on_store_failure(namespace)
        await trio.sleep(60)
        assert namespace.asked[0] == began
        assert pauses(namespace.asked) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
        assert rebuilder.rebuilt == namespace.asked[-1:]


async def test_a_store_that_fails_again_at_once_is_not_believed_so_soon(autojump_clock: MockClock) -> None:
    """Or a disk that takes only the commit of the attempt would have everything read again for each call."""
    async with mender() as (rebuilder, namespace):
        for number in range(1, 10):
            rebuilder.on_store_failure(namespace)
            await rebuilder.until(number)
        assert pauses(rebuilder.rebuilt) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]


async def test_what_cannot_be_read_after_the_store_took_a_commit_is_tried_again_later(
    autojump_clock: MockClock,
) -> None:
    async with mender() as (rebuilder, namespace):
        rebuilder.errors = [DiskFull("the read failed")]
        began = trio.current_time()
        rebuilder.on_store_failure(namespace)
        await trio.sleep(5)
        assert rebuilder.rebuilt == [began, began + 0.1]


async def test_nobody_reaches_a_store_that_is_well_before_its_engine_is_built_again(
    autojump_clock: MockClock,
) -> None:
    """An engine that is ahead of a commit that failed would answer for what was never kept."""
    async with mender() as (rebuilder, namespace):
        seen: list[int] = []
        ask = namespace.journal.recover

        def recover(on_done: Callable[[StoreError | None], None]) -> None:
            ask(on_done)
            seen.append(len(rebuilder.rebuilt))

        namespace.journal.recover = recover
        rebuilder.on_store_failure(namespace)
        await trio.sleep(1)
        assert seen == [1]


async def test_a_failure_long_after_the_last_one_is_a_new_one(autojump_clock: MockClock) -> None:
    async with mender() as (rebuilder, namespace):
        for _ in range(3):
            began = trio.current_time()
            rebuilder.on_store_failure(namespace)
            await trio.sleep(RELAPSE_SECONDS + 1)
            assert rebuilder.rebuilt[-1] == began
