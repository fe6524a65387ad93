"""What a call costs from trio, from asyncio and from a thread: `python -m benchmarks.loops [CALLS]`.

The same `health` call, made on the trio loop that has the connection, from an asyncio loop, and from a thread with
`zaptasks.Client`. All three are measured in turns against one server, so that a machine which changes its pace changes
it for all.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import trio
from benchmarks.floors import Figures, figures
from benchmarks.tasks import serving

import zaptasks
from zaptasks import aio

TURNS = 10
IN_FLIGHT = 100


async def one_by_one(call: Callable[[], Awaitable[object]], calls: int) -> list[float]:
    """The seconds that each call took."""
    durations = []
    for _ in range(calls):
        start = time.perf_counter()
        await call()
        durations.append(time.perf_counter() - start)
    return durations


async def from_trio(zap: str, calls: int) -> tuple[list[float], float]:
    """The seconds of single calls, and of as many with a hundred in flight."""
    async with zaptasks.open_client(zap) as client:
        durations = await one_by_one(client.health, calls)
        start = time.perf_counter()
        for _ in range(calls // IN_FLIGHT):
            async with trio.open_nursery() as nursery:
                for _ in range(IN_FLIGHT):
                    nursery.start_soon(client.health)
        return durations, time.perf_counter() - start


async def from_asyncio(zap: str, calls: int) -> tuple[list[float], float]:
    async with aio.open_client(zap) as client:
        durations = await one_by_one(client.health, calls)
        start = time.perf_counter()
        for _ in range(calls // IN_FLIGHT):
            await asyncio.gather(*(client.health() for _ in range(IN_FLIGHT)))
        return durations, time.perf_counter() - start


def from_thread(zap: str, calls: int) -> list[float]:
    with zaptasks.Client(zap=zap) as client:
        client.health()  # it connects with its first call
        durations = []
        for _ in range(calls):
            start = time.perf_counter()
            client.health()
            durations.append(time.perf_counter() - start)
    return durations


def compare(calls: int) -> list[Figures]:
    """`calls` calls of each kind: one by one from each place, then a hundred in flight from trio and asyncio."""
    single: dict[str, list[float]] = {"trio": [], "asyncio": [], "a thread": []}
    many = {"trio": 0.0, "asyncio": 0.0}
    each = max(calls // TURNS, IN_FLIGHT)
    with serving() as server:
        for _ in range(TURNS):
            for place, (durations, seconds) in (
                ("trio", trio.run(from_trio, server.zap, each)),
                ("asyncio", asyncio.run(from_asyncio(server.zap, each))),
            ):
                single[place] += durations
                many[place] += seconds
            single["a thread"] += from_thread(server.zap, each)
    rows = [figures(f"health from {place}", durations, sum(durations)) for place, durations in single.items()]
    for place, seconds in many.items():
        count = each // IN_FLIGHT * IN_FLIGHT * TURNS
        rows.append(figures(f"health from {place}, {IN_FLIGHT} in flight", [seconds / count] * count, seconds))
    return rows


def main() -> None:
    rows = compare(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    floor = rows[0].p50_us
    for row in rows:
        each = f"{row.p50_us:7.0f} us a call, {row.p50_us / floor:4.1f} x trio, one by one"
        print(f"{row.name:36} {each if 'in flight' not in row.name else f'{row.rate:7.0f} calls a second'}")


if __name__ == "__main__":
    main()
