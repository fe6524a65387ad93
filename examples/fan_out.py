"""A thousand items at once, of which a few are worked on at a time.

    zaptasks serve                  # in another terminal
    python examples/fan_out.py

One task for each item, as in trio, and a limiter for how many activities are under way. If the worker is killed in the
middle, the items that were done stay done.
"""

from __future__ import annotations

import time

import trio

import zaptasks
from zaptasks import workflow

AT_A_TIME = 50


async def measure(word: str) -> int:
    return len(word)


@workflow.defn
class LongestWord:
    def __init__(self) -> None:
        self.done = 0

    @workflow.run
    async def run(self, words: list[str]) -> str:
        limiter = workflow.CapacityLimiter(AT_A_TIME)
        lengths: dict[str, int] = {}

        async def measure_one(word: str) -> None:
            async with limiter:
                lengths[word] = await workflow.execute_activity(measure, word, start_to_close=30)
            self.done += 1

        async with workflow.open_nursery() as nursery:  # ends when all of them have ended
            for word in words:
                nursery.start_soon(measure_one, word)
        # By the words and not by the dict, whose order is that in which the results came.
        return max(words, key=lambda word: lengths[word])

    @workflow.query
    def progress(self) -> int:
        return self.done


WORDS = [f"{'o' * (number * 7 % 100)}-{number}" for number in range(1_000)]


async def main() -> None:
    async with (
        zaptasks.open_client() as client,
        zaptasks.open_worker(client, "words", workflows=[LongestWord], activities=[measure]),
    ):
        began = time.perf_counter()
        handle = await client.start_workflow(LongestWord, WORDS, task_queue="words")
        longest = await handle.result()
        print(f"{len(WORDS)} words in {time.perf_counter() - began:.1f} s; the longest is {longest}")


if __name__ == "__main__":
    trio.run(main)
