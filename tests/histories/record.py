"""Records histories of the workflows beside this, from a real server and real workers.

    python -m tests.histories.record              # those that are not there yet
    python -m tests.histories.record order        # one of them

A file that is there is never written again: what was recorded once must be readable for ever. When a workflow gets
new parts, give the recording another name, such as `order_2`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from tests.helpers.sdk_servers import open_real_server
from tests.histories import workflows as w

from zaptasks import AsyncClient, ExecutionError, WorkflowHandle, current_task, open_client, open_worker, workflow
from zaptasks.errors import UpdateFailed
from zaptasks.records import Started
from zapwire.opcodes import Op

FOLDER = Path(__file__).parent
HERE = (f"{FOLDER.parents[1]}/", f"{sys.prefix}/")
"""What is cut from the paths in stacks: where the recording machine has its files is nobody's business."""

Recording = Callable[[AsyncClient], Awaitable[WorkflowHandle]]
RECORDINGS: dict[str, Recording] = {}

TYPES: list[Any] = [
    w.Order,
    w.Stops,
    w.Sleeper,
    w.Refuses,
    w.Family,
    w.Local,
    w.Counter,
    w.Pipeline,
    w.Draws,
    w.Survivor,
    w.Studio,
]


def recording(function: Recording) -> Recording:
    RECORDINGS[function.__name__] = function
    return function


# --- activities ----------------------------------------------------------------------------------------


async def echo(value: object) -> object:
    return value


async def flaky(key: str) -> str:
    attempt = current_task().attempt
    if attempt < 3:
        raise OSError(f"attempt {attempt} had no luck")
    return f"receipt {key}"


async def fails() -> None:
    raise ValueError("never")


async def hangs() -> None:
    await trio.sleep_forever()


async def waits(what: str) -> None:
    await trio.sleep_forever()


async def slow(number: int) -> int:
    await trio.sleep(0.03)
    return number


ACTIVITIES: list[Any] = [echo, flaky, fails, hangs, waits, slow]


@asynccontextmanager
async def worker(client: AsyncClient, *types: Any, activities: bool = True) -> AsyncIterator[None]:
    served: list[Any] = ACTIVITIES if activities else []
    async with open_worker(client, workflows=types or TYPES, activities=served, shutdown_timeout=0, sessions=2):
        yield


async def seen(handle: WorkflowHandle, event_type: str, count: int = 1) -> int:
    """Wait for so many events of a type; returns the id of the last of them."""
    with trio.fail_after(20):
        while True:
            found = [event.event_id async for event in handle.history() if event.event_type == event_type]
            if len(found) >= count:
                return found[count - 1]
            await trio.sleep(0.01)


async def ended(handle: WorkflowHandle) -> WorkflowHandle:
    with trio.fail_after(20):
        try:
            await handle.result()
        except ExecutionError as error:
            print(f"  {error}")
    return handle


# --- the recordings ----------------------------------------------------------------------------------------


@recording
async def order(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        handle = await client.start_workflow("Order", "ada")
        await handle.signal("note", "tea")
        await handle.update("add", "pot")
        for bad in ("gold", ""):
            try:
                await handle.update("add", bad)
            except UpdateFailed as error:
                print(f"  {error}")
        await handle.signal("pay", "bob")
        return await ended(handle)


@recording
async def order_open(client: AsyncClient) -> WorkflowHandle:
    """Exported while nobody has seen the last events."""
    async with worker(client):
        handle = await client.start_workflow("Order", "ada")
        await handle.signal("note", "tea")
        await handle.signal("note", "pot")
        await seen(handle, "TIMER_FIRED", 3)
    await handle.signal("pay", "bob")
    return handle


@recording
async def stops(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        handle = await client.start_workflow("Stops")
        await seen(handle, "CHILD_WORKFLOW_CANCELED")
        await seen(handle, "ACTIVITY_TASK_STARTED", 6)
        await handle.cancel("the shop closes")
        return await ended(handle)


@recording
async def family(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        friend = await client.start_workflow("Sleeper", 3600, id="friend")
        await seen(friend, "TIMER_STARTED")
        handle = await client.start_workflow("Family", "friend")
        await seen(handle, "CHILD_WORKFLOW_STARTED", 5)
        await client.get_handle("doomed").terminate("not needed")
        await client.get_handle("called-off").cancel("not needed")
        return await ended(handle)


@recording
async def local(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        return await ended(await client.start_workflow("Local"))


@recording
async def counter_first(client: AsyncClient) -> WorkflowHandle:
    handle, _ = await counted(client)
    return handle


@recording
async def counter_last(client: AsyncClient) -> WorkflowHandle:
    _, handle = await counted(client)
    await ended(handle)
    return handle


async def counted(client: AsyncClient) -> tuple[WorkflowHandle, WorkflowHandle]:
    async with worker(client):
        first = await client.start_workflow("Counter", 0, run_timeout=0.5)
        await first.signal("add", 2)
        await seen(first, "WORKFLOW_EXECUTION_CONTINUED_AS_NEW")
        last = client.get_handle(first.workflow_id)
        await last.signal("add", 2)
        await seen(last, "TIMER_FIRED")
        return first, client.get_handle(first.workflow_id, (await last.describe()).run_id)


@recording
async def pipeline(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        return await ended(await client.start_workflow("Pipeline", 8))


@recording
async def patched(client: AsyncClient) -> WorkflowHandle:
    async with worker(client, w.BeforeThePatch):
        handle = await client.start_workflow("Patched")
        await seen(handle, "WORKFLOW_TASK_COMPLETED", 2)
    return handle


@recording
async def patched_over(client: AsyncClient) -> WorkflowHandle:
    async with worker(client, w.Patched):
        handle = await client.start_workflow("Patched")
        await seen(handle, "WORKFLOW_TASK_COMPLETED", 2)
        await handle.signal("go")
        return await ended(handle)


@recording
async def draws_reset_twice(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        handle = await ended(await client.start_workflow("Draws"))
        for number in (2, 1):
            point = await seen(handle, "ACTIVITY_TASK_COMPLETED", number)
            handle = await ended(await handle.reset(point, "once more"))
        return handle


@recording
async def survivor(client: AsyncClient) -> WorkflowHandle:
    @workflow.defn(name="Survivor")
    async def broken() -> None:
        await workflow.sleep(7)

    @workflow.defn(name="Survivor")
    async def holds() -> None:
        time.sleep(0.3)  # noqa: ASYNC251 - that is the point

    request = {
        "workflow_type": "Survivor",
        "workflow_id": "survivor",
        "task_queue": "default",
        "timeouts": {"workflow_task_ms": 200},
    }
    await client.call(Op.START_WORKFLOW, request, Started)
    handle = client.get_handle("survivor")
    async with worker(client, w.Survivor):
        await handle.signal("word", "one")
        await seen(handle, "ACTIVITY_TASK_COMPLETED", 1)
        await handle.signal("word", "two")
        await seen(handle, "ACTIVITY_TASK_STARTED", 2)  # and handed back
    async with worker(client, broken, activities=False):
        await handle.signal("word", "three")
        await seen(handle, "WORKFLOW_TASK_FAILED")
    async with worker(client, w.Survivor):
        await seen(handle, "ACTIVITY_TASK_COMPLETED", 3)
    async with worker(client, holds, activities=False):
        await handle.signal("word", "four")
        await seen(handle, "WORKFLOW_TASK_TIMED_OUT")
    async with worker(client, w.Survivor):
        return await ended(handle)


@recording
async def studio(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        return await ended(await client.start_workflow("Studio", headers={"tenant": "blue"}))


@recording
async def ends_failed(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        return await ended(await client.start_workflow("Refuses", "no"))


@recording
async def ends_terminated(client: AsyncClient) -> WorkflowHandle:
    async with worker(client):
        handle = await client.start_workflow("Sleeper", 3600)
        await seen(handle, "TIMER_STARTED")
        await handle.terminate("enough")
        return await ended(handle)


# --- writing ------------------------------------------------------------------------------------------------


async def record(name: str, path: Path) -> None:
    print(name)
    async with open_real_server() as server, open_client(server.zap, identity="recorder") as client:
        handle = await RECORDINGS[name](client)
        history = await handle.export_history()
    text = history.to_json().decode()
    for start in HERE:
        text = text.replace(start, "")
    with path.open("x") as file:
        file.write(text)


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - RECORDINGS.keys())
    if unknown:
        print(f"no recording is called {', '.join(unknown)}; there are: {', '.join(RECORDINGS)}", file=sys.stderr)
        return 2
    for name in names or RECORDINGS:
        path = FOLDER / f"{name}.json"
        if not path.exists():
            trio.run(record, name, path)
        elif names:
            print(f"{path} is there already, and is kept as it is: record under another name", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
