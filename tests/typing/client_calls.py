"""Calls of the client that type checkers accept, and calls that they must refuse, each marked as refused.

Not run: `test_typing` gives it to the checkers, and compares the lines.
"""

from __future__ import annotations

from typing import Any, assert_type

import zaptasks
from zaptasks import (
    AsyncClient,
    BlockingWorkflowHandle,
    Client,
    TaskHandle,
    WithStart,
    WorkflowContext,
    WorkflowHandle,
    workflow,
)


@workflow.defn
class Order:
    @workflow.run
    async def run(self, item: str, amount: int) -> float:
        return 0.0

    @workflow.signal
    def approve(self, who: str) -> None: ...

    @workflow.signal
    async def nudge(self) -> None: ...

    @workflow.signal(name="perhaps")
    def maybe(self, who: str = "") -> None: ...

    @workflow.query
    def state(self) -> str:
        return ""

    @workflow.query(name="nth")
    def item(self, number: int) -> bytes:
        return b""

    @workflow.update
    async def rename(self, name: str) -> int:
        return 0

    @workflow.update(name="title")
    def retitle(self, name: str, times: int) -> str:
        return ""

    @rename.validator
    def check_name(self, name: str) -> None: ...


@workflow.defn
class Defaulted:
    @workflow.run
    async def run(self, item: str, amount: int = 1) -> bool:
        return True

    @workflow.query
    def state(self, day: int = 1) -> str:
        return ""

    @workflow.update
    async def rename(self, name: str, times: int = 1) -> int:
        return 0


@workflow.defn
class Empty:
    @workflow.run
    async def run(self) -> int:
        return 1


@workflow.defn
class Otherwise:
    @workflow.run
    async def main(self) -> int:
        return 1


@workflow.defn
async def greet(name: str) -> str:
    return name


async def held(ctx: WorkflowContext, total: int) -> bytes:
    return b""


def bare(handle: WorkflowHandle, task: TaskHandle) -> None:
    assert_type(handle, WorkflowHandle[Any])


async def accepted(client: AsyncClient) -> None:
    handle = await client.start_workflow(Order.run, "x", 1, id="o", task_queue="orders", run_timeout=3)
    assert_type(handle, WorkflowHandle[float])
    assert_type(await handle.result(), float)
    assert_type(await handle.result(int), int)
    assert_type(await client.start_workflow(Order, "x", 1), WorkflowHandle[float])
    assert_type(await client.start_workflow(Empty), WorkflowHandle[int])
    assert_type(await client.start_workflow(Defaulted.run, "x"), WorkflowHandle[bool])
    assert_type(await client.start_workflow(Defaulted.run, "x", 2), WorkflowHandle[bool])
    assert_type(await client.start_workflow(Defaulted, "x", 2), WorkflowHandle[bool])
    assert_type(await handle.query(Defaulted.state), str)
    assert_type(await handle.update(Defaulted.rename, "x"), int)
    assert_type(await client.start_workflow(Otherwise.main), WorkflowHandle[int])
    assert_type(await client.start_workflow(greet, "x"), WorkflowHandle[str])
    assert_type(await client.start_workflow(held, 3), WorkflowHandle[bytes])
    assert_type(await client.start_workflow("order", 3, id="o"), WorkflowHandle[Any])
    assert_type(await client.execute_workflow(Order.run, "x", 1, id_conflict_policy="use-existing"), float)
    assert_type(await client.execute_workflow(Order, "x", 1), float)
    assert_type(await client.execute_workflow(greet, "x", id_reuse_policy="reject-duplicate"), str)
    assert_type(await client.execute_workflow(held, 3), bytes)
    assert_type(await client.execute_workflow("order"), Any)
    assert_type(await handle.query(Order.state), str)
    assert_type(await handle.query(Order.item, 3), bytes)
    assert_type(await handle.query("item", 3), Any)
    assert_type(await handle.update(Order.rename, "x"), int)
    assert_type(await handle.update(Order.rename, "x", id="7"), int)
    assert_type(await handle.update(Order.retitle, "x", 3), str)
    assert_type(await handle.update("retitle", "x", 3), Any)
    await handle.signal(Order.approve, "ada", durability="memory")
    await handle.signal(Order.nudge)
    await handle.signal(Order.maybe)
    await handle.signal(Order.maybe, "x")
    await handle.signal("approve", 3)
    async for event in handle.history(follow=True):
        assert_type(event.event_type, str)
    assert_type(await handle.reset(3), WorkflowHandle[float])
    start = WithStart(Order.run, "x", 1, id="o", task_queue="orders")
    assert_type(start, WithStart[float])
    assert_type(WithStart(Order, "x", 1, id="o"), WithStart[float])
    assert_type(WithStart(greet, "x", id="o"), WithStart[str])
    assert_type(WithStart(held, 3, id="o"), WithStart[bytes])
    assert_type(WithStart("greet", "x", id="o"), WithStart[Any])
    assert_type(await client.signal_with_start(Order.approve, "ada", start=start), WorkflowHandle[float])
    assert_type(await client.signal_with_start(Order.nudge, start=start), WorkflowHandle[float])
    assert_type(await client.signal_with_start("nudge", 3, start=start), WorkflowHandle[float])
    assert_type(await client.update_with_start(Order.rename, "x", start=start), tuple[WorkflowHandle[float], int])
    assert_type(
        await client.update_with_start(Order.retitle, "x", 3, start=start, id="u"), tuple[WorkflowHandle[float], str]
    )
    assert_type(await client.update_with_start("title", 3, start=start), tuple[WorkflowHandle[float], Any])
    assert_type(client.get_handle("o"), WorkflowHandle[Any])
    assert_type(client.get_handle("o", result_type=int), WorkflowHandle[int])
    assert_type(client.get_handle_for(Order, "o"), WorkflowHandle[float])
    assert_type(client.get_handle_for(Order.run, "o", "run"), WorkflowHandle[float])
    assert_type(client.get_handle_for(held, "o"), WorkflowHandle[bytes])
    await client.now("mail", id="m", id_reuse_policy="allow-duplicate-failed-only")
    async with zaptasks.aio.open_client() as other:
        assert_type(await other.execute_workflow(greet, "x"), str)


def accepted_blocking(client: Client) -> None:
    handle = client.start_workflow(Order.run, "x", 1, id="o", task_queue="orders")
    assert_type(handle, BlockingWorkflowHandle[float])
    assert_type(handle.result(), float)
    assert_type(handle.result(int, timeout=3), int)
    assert_type(client.start_workflow(Order, "x", 1), BlockingWorkflowHandle[float])
    assert_type(client.start_workflow(greet, "x"), BlockingWorkflowHandle[str])
    assert_type(client.start_workflow(held, 3), BlockingWorkflowHandle[bytes])
    assert_type(client.start_workflow("order", 3), BlockingWorkflowHandle[Any])
    assert_type(client.execute_workflow(Order.run, "x", 1, timeout=3, id="o"), float)
    assert_type(client.execute_workflow(greet, "x", timeout=3), str)
    assert_type(handle.query(Order.item, 3), bytes)
    assert_type(handle.update(Order.rename, "x", timeout=3), int)
    assert_type(handle.update("rename", "x"), Any)
    handle.signal(Order.approve, "ada")
    handle.signal("approve", 3)
    assert_type(handle.reset(3), BlockingWorkflowHandle[float])
    start = WithStart(Order.run, "x", 1, id="o")
    assert_type(client.signal_with_start(Order.approve, "ada", start=start), BlockingWorkflowHandle[float])
    assert_type(
        client.update_with_start(Order.rename, "x", start=start, timeout=3), tuple[BlockingWorkflowHandle[float], int]
    )
    assert_type(client.get_handle_for(Order, "o"), BlockingWorkflowHandle[float])
    assert_type(client.get_handle("o", result_type=int).result(), int)
    for info in client.list():
        assert_type(info.workflow_id, str)
    for event in handle.history():
        assert_type(event.event_type, str)
    assert_type(client.now("mail").result(), Any)
    assert_type(client.now("mail").result(str, timeout=3), str)


def refused_blocking(client: Client, handle: BlockingWorkflowHandle[int], start: WithStart[int]) -> None:
    client.start_workflow(Order.run, 1, "x")  # refused
    client.start_workflow(Order.run, "x", 1, queue="orders")  # refused
    client.execute_workflow(greet, 3)  # refused
    text: str = client.execute_workflow(Order, "x", 1)  # refused
    handle.query(Order.item, "x")  # refused
    handle.update(Order.rename, 3)  # refused
    handle.signal(Order.approve, 3)  # refused
    handle.result(timeout="soon")  # refused
    client.signal_with_start(Order.approve, 3, start=start)  # refused
    client.update_with_start(Order.rename, 3, start=start)  # refused
    print(text)


async def refused(client: AsyncClient, handle: WorkflowHandle[int], start: WithStart[int]) -> None:
    await client.start_workflow(Order.run, 1, "x")  # refused
    await client.start_workflow(Order.run, "x")  # refused
    await client.start_workflow(Order.run, Order(), "x", 1)  # refused
    await client.start_workflow(Defaulted.run)  # refused
    await client.start_workflow(Defaulted.run, "x", "y")  # refused
    await client.start_workflow(Defaulted, 3)  # refused
    await client.start_workflow(Empty.run, 3)  # refused
    await client.start_workflow(Order, "x")  # refused
    await client.start_workflow(Order, "x", "y")  # refused
    await client.start_workflow(Empty, 3)  # refused
    await client.start_workflow(greet, 3)  # refused
    await client.start_workflow(greet)  # refused
    await client.start_workflow(held, "x")  # refused
    await client.start_workflow(held)  # refused
    await client.start_workflow(3)  # refused
    await client.start_workflow(int, "x")  # refused
    await client.start_workflow(Order.run, "x", 1, id=3)  # refused
    await client.start_workflow(Order.run, "x", 1, queue="orders")  # refused
    await client.start_workflow(Order.run, "x", 1, id_conflict_policy="perhaps")  # refused
    await client.execute_workflow(Order.run, "x")  # refused
    await client.execute_workflow(greet, 3)  # refused
    text: str = await client.execute_workflow(Order, "x", 1)  # refused
    number: int = await (await client.start_workflow(greet, "x")).result()  # refused
    await handle.query(Order.state, 3)  # refused
    await handle.query(Order.item)  # refused
    await handle.query(Order.item, "x")  # refused
    await handle.update(Order.rename, 3)  # refused
    await handle.update(Order.rename)  # refused
    await handle.update(Order.retitle, "x", "y")  # refused
    text = await handle.update(Order.rename, "x")  # refused
    await handle.signal(Order.approve, 3)  # refused
    await handle.signal(Order.approve)  # refused
    await handle.signal(Order.nudge, 3)  # refused
    WithStart(Order.run, "x", id="o")  # refused
    WithStart(Order, "x", id="o")  # refused
    WithStart(Order, "x", 1)  # refused
    await client.signal_with_start(Order.approve, 3, start=start)  # refused
    await client.signal_with_start(Order.approve, start=start)  # refused
    await client.signal_with_start("approve", 3)  # refused
    await client.update_with_start(Order.rename, 3, start=start)  # refused
    await client.update_with_start(Order.rename, start=start)  # refused
    await client.update_with_start(Order.rename, "x")  # refused
    client.get_handle_for("order", "o")  # refused
    print(text, number)
