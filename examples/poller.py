"""Something outside is asked again and again until it is ready, for months if need be.

    zaptasks serve                  # in another terminal
    python examples/poller.py

Everything that a workflow does is an event in its history, and a history is bounded. So it ends now and then and begins
again as a new run of the same id, with what counts as its arguments: `continue_as_new`. Whoever waits for its result
notices nothing.
"""

from __future__ import annotations

import trio

import zaptasks
from zaptasks import workflow

POLLS_PER_RUN = 20


async def look(place: str, number: int) -> str:
    """In earnest an HTTP request. This one finds something at the 50th look."""
    return f"a letter in {place}" if number >= 50 else ""


@workflow.defn
async def poll(place: str, every: float, done: int) -> str:
    for number in range(done + 1, done + POLLS_PER_RUN + 1):
        # If the request fails it is tried again, after 1 s, 2 s, 4 s...: no code is needed for that.
        found = await workflow.execute_activity(look, place, number, start_to_close=30)
        if found:
            return f"{found}, after {number} looks"
        await workflow.sleep(every)
    workflow.continue_as_new(place, every, done + POLLS_PER_RUN)


async def main() -> None:
    async with (
        zaptasks.open_client() as client,
        zaptasks.open_worker(client, "letters", workflows=[poll], activities=[look]),
    ):
        handle = await client.start_workflow(poll, "the letterbox", 0.02, 0, task_queue="letters")
        print("the first run:", handle.run_id)
        print(await handle.result())
        print("the last run: ", (await client.get_handle(handle.workflow_id).describe()).run_id)


if __name__ == "__main__":
    trio.run(main)
