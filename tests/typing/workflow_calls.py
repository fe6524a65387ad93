"""Calls that type checkers accept, and calls that they must refuse, each marked as refused.

Not run: `test_typing` gives it to the checkers, and compares the lines.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from zaptasks import RetryPolicy, workflow


async def charge(item: str, amount: int) -> float:
    return 0.0


def resize(path: str) -> bytes:
    return b""


async def many(
    a: int, b: str, c: float, d: bool, e: bytes, f: list[int], g: dict[str, int], h: None
) -> tuple[int, str]:
    return 1, ""


def with_default(a: int, b: str = "") -> str:
    return b


class Mailer:
    async def send(self, to: str, times: int) -> bool:
        return True

    def render(self, to: str) -> str:
        return to


@workflow.defn
class Order:
    @workflow.run
    async def run(self, item: str, amount: int) -> float:
        return 0.0

    @workflow.signal
    def approve(self, who: str) -> None: ...

    @workflow.query
    def state(self) -> str:
        return ""

    @workflow.update
    async def rename(self, name: str) -> int:
        return 0

    @rename.validator
    def check_name(self, name: str) -> None: ...


@workflow.defn
async def greet(name: str) -> str:
    return name


async def accepted(mailer: Mailer) -> None:
    assert_type(await workflow.execute_activity(charge, "x", 1, start_to_close=3), float)
    assert_type(await workflow.execute_activity(resize, "x"), bytes)
    assert_type(
        await workflow.execute_activity(many, 1, "", 0.5, True, b"", [1], {"": 1}, None, task_queue="q"),
        tuple[int, str],
    )
    assert_type(await workflow.execute_activity(mailer.send, "you", 3), bool)
    assert_type(await workflow.execute_activity_method(Mailer.send, "you", 3), bool)
    assert_type(await workflow.execute_activity_method(Mailer.render, "you"), str)
    assert_type(await workflow.execute_activity("by name", 1, object()), Any)
    assert_type(workflow.start_activity(charge, "x", 1), workflow.ActivityHandle[float])
    assert_type(await workflow.start_activity(charge, "x", 1).result(), float)
    assert_type(await workflow.execute_child_workflow(Order.run, "x", 1, id="o"), float)
    assert_type(await workflow.execute_child_workflow(Order, "x", 1, id="o"), float)
    assert_type(await workflow.execute_child_workflow(greet, "x"), str)
    assert_type(await workflow.execute_child_workflow("Order", 1), Any)
    assert_type(await workflow.start_child_workflow(Order.run, "x", 1), workflow.ChildHandle[float])
    assert_type(await (await workflow.start_child_workflow(greet, "x")).result(), str)
    assert_type(await workflow.execute_local_activity(charge, "x", 1), float)
    assert_type(await workflow.execute_local_activity(resize, "x"), bytes)
    policy = RetryPolicy(initial_interval=0.1, maximum_attempts=3)
    assert_type(await workflow.execute_local_activity(charge, "x", 1, start_to_close=2, retry_policy=policy), float)
    assert_type(workflow.side_effect(lambda: 3), int)
    assert_type(workflow.side_effect(object, type=int), int)
    assert_type(workflow.mutable_side_effect("x", lambda: 3), int)
    assert_type(workflow.mutable_side_effect("x", object, type=int, same=lambda a, b: a > b), int)
    async with workflow.open_session(task_queue="gpu") as session:
        assert_type(await session.execute_activity(charge, "x", 1, start_to_close=3), float)
        assert_type(await session.execute_activity(mailer.render, "x"), str)
        assert_type(await session.execute_activity("by name", 1), Any)
        assert_type(session.start_activity(charge, "x", 1), workflow.ActivityHandle[float])
    workflow.metrics.counter("orders", 2, region="eu")
    assert_type(await workflow.wait_signal("x", int), int)
    async for word in workflow.signals("word", str):
        assert_type(word, str)
    send, receive = workflow.open_memory_channel[int](0)
    await send.send(3)
    assert_type(await receive.receive(), int)
    async with workflow.open_nursery() as nursery:
        nursery.start_soon(charge, "x", 1)
    await workflow.external_workflow("o").signal(Order.approve, "me")
    await workflow.external_workflow("o").signal("approve", "me")
    assert_type(await workflow.execute_activity(with_default, 1, "x"), str)
    assert_type(await workflow.execute_activity(with_default, 1), str)
    run: Callable[[str, int], Coroutine[Any, Any, float]] = Order().run
    assert_type(await Order().rename("x"), int)
    assert_type(await greet("x"), str)
    await run("x", 1)


async def refused(mailer: Mailer) -> None:
    await workflow.execute_activity(charge, 1, "x")  # refused
    await workflow.execute_activity(charge, "x")  # refused
    await workflow.execute_activity(charge, "x", 1, 2)  # refused
    await workflow.execute_activity(charge, "x", 1, start_to_close="soon")  # refused
    await workflow.execute_activity(resize, 3)  # refused
    await workflow.execute_activity(mailer.send, "you", "often")  # refused
    await workflow.execute_activity_method(Mailer.send, 3, 3)  # refused
    await workflow.execute_activity(many, 1, "", 0.5, True, b"", [1], {"": "x"}, None)  # refused
    await workflow.execute_activity(3)  # refused
    text: str = await workflow.execute_activity(charge, "x", 1)  # refused
    await workflow.execute_child_workflow(Order.run, 1, "x")  # refused
    await workflow.execute_child_workflow(Order.run, "x")  # refused
    await workflow.execute_child_workflow(Order, "x")  # refused
    await workflow.execute_child_workflow(Order, "x", "y")  # refused
    await workflow.execute_child_workflow(int, 3)  # refused
    await workflow.external_workflow("o").signal(Order.approve)  # refused
    await workflow.external_workflow("o").signal(Order.approve, 3)  # refused
    await workflow.execute_child_workflow(greet, 3)  # refused
    await workflow.execute_child_workflow(greet)  # refused
    number: int = await workflow.execute_child_workflow(greet, "x")  # refused
    workflow.start_activity(charge, "x", 1, on_cancel="perhaps")  # refused
    await workflow.execute_local_activity(resize, 3)  # refused
    await workflow.execute_local_activity(resize, "x", start_to_close="soon")  # refused
    await workflow.execute_local_activity(resize, "x", task_queue="q")  # refused
    await workflow.execute_activity(resize, "x", start_to_closed=3)  # refused
    workflow.mutable_side_effect("x", object, type=int, same=lambda a, b: a.lower() == b)  # refused
    async with workflow.open_session() as session:
        await session.execute_activity(charge, "x")  # refused
        await session.execute_activity(charge, "x", 1, task_queue="other")  # refused
        session.start_activity(resize, 3)  # refused
    workflow.metrics.gauge("orders", 2, region=3)  # refused
    send, _ = workflow.open_memory_channel[int](0)
    await send.send("x")  # refused
    async with workflow.open_nursery() as nursery:
        nursery.start_soon(charge, "x")  # refused
    print(text, number)
