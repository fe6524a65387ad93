"""The workflows whose histories are kept in this folder.

Their code must go on fitting those histories, and so must the runner under it: change what a workflow does only under
a patch, or record a new history (record.py) and keep the old one.
"""

from __future__ import annotations

import math
from typing import Any

import zaptasks
from zaptasks import RetryPolicy, workflow

ONCE = RetryPolicy(maximum_attempts=1)
SOON = RetryPolicy(initial_interval=0.01, maximum_attempts=5)


def local_sum(*numbers: int) -> int:
    return sum(numbers)


async def local_refusal() -> None:
    raise ValueError("not here")


@workflow.defn
class Order:
    """Activities that are retried, timers, signals, updates, values that are drawn and kept, what lists show."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.paid_by = ""

    @workflow.run
    async def run(self, customer: str) -> dict[str, Any]:
        number = workflow.random().randrange(1_000_000)
        key = workflow.side_effect(lambda: "key-7", type=str)
        workflow.upsert_memo({"customer": customer})
        workflow.upsert_search_attributes({"Customer": customer, "Open": True})
        await workflow.wait_condition(lambda: len(self.lines) >= 2)
        await workflow.sleep(0.05)
        with workflow.move_on_after(3600) as patience:
            await workflow.wait_condition(lambda: bool(self.paid_by))
        receipt = await workflow.execute_activity("flaky", key, start_to_close=5, retry_policy=SOON)
        try:
            await workflow.execute_activity("fails", start_to_close=5, retry_policy=ONCE)
        except workflow.ActivityFailed as error:
            self.lines.append(error.type)
        try:
            await workflow.execute_activity("hangs", start_to_close=0.05, retry_policy=ONCE)
        except workflow.ActivityFailed as error:
            self.lines.append(error.type)
        workflow.upsert_search_attributes({"Open": False})
        return {
            "number": number,
            "id": str(workflow.uuid4()),
            "lines": self.lines,
            "receipt": receipt,
            "late": patience.cancelled_caught,
        }

    @workflow.signal
    def pay(self, who: str) -> None:
        self.paid_by = who

    @workflow.signal
    async def note(self, text: str) -> None:
        await workflow.sleep(0.01)
        self.lines.append(text)

    @workflow.update
    async def add(self, line: str) -> int:
        if line == "gold":
            raise ValueError("no gold")
        await workflow.execute_activity("echo", line, start_to_close=5)
        self.lines.append(line)
        return len(self.lines)

    @add.validator
    def check_line(self, line: str) -> None:
        if not line:
            raise ValueError("an empty line")


@workflow.defn
class Stops:
    """Every way in which something is cancelled, the run itself at the end."""

    @workflow.run
    async def run(self) -> None:
        with workflow.move_on_after(3600):
            await workflow.execute_activity("echo", 1, start_to_close=5)  # its timer is cancelled
        for on_cancel in ("wait", "request", "abandon"):
            with workflow.move_on_after(0.05):
                await workflow.execute_activity("waits", on_cancel, start_to_close=30, on_cancel=on_cancel)
        handle = workflow.start_activity("waits", "by handle", start_to_close=30)
        await workflow.sleep(0.05)
        handle.cancel()
        try:
            await handle.result()
        except workflow.ActivityFailed as error:
            workflow.logger.info("as it should: %s", error.type)
        with workflow.move_on_after(0.05):
            await workflow.execute_child_workflow("Sleeper", 3600)
        async with workflow.open_nursery() as nursery:
            nursery.start_soon(workflow.sleep, 3600)
            await workflow.sleep(0.01)
            nursery.cancel_scope.cancel("no longer needed")
        try:
            await workflow.execute_activity("waits", "the run", start_to_close=30)
        finally:
            with workflow.CancelScope(shield=True):
                await workflow.execute_activity("echo", "clean", start_to_close=5)


@workflow.defn
async def Sleeper(seconds: float) -> float:
    await workflow.sleep(seconds)
    return seconds


@workflow.defn
async def Refuses(text: str) -> None:
    raise ValueError(text)


@workflow.defn
class Family:
    """Children with every end, and other executions, there and not there."""

    @workflow.run
    async def run(self, friend: str) -> list[object]:
        found: list[object] = [await workflow.execute_child_workflow(Sleeper, 0.01)]
        await self.keep(found, workflow.execute_child_workflow(Refuses, "no"))
        await self.keep(found, workflow.execute_child_workflow(Sleeper, 1.0, id=friend))  # its id is taken
        await self.keep(found, workflow.execute_child_workflow(Sleeper, 3600.0, run_timeout=0.05))
        async with workflow.open_nursery() as nursery:
            nursery.start_soon(self.keep, found, workflow.execute_child_workflow(Sleeper, 3600.0, id="doomed"))
            nursery.start_soon(self.keep, found, workflow.execute_child_workflow(Sleeper, 3600.0, id="called-off"))
        other = workflow.external_workflow(friend)
        await other.signal("hello", {"from": "family"})
        await other.cancel("enough")
        nobody = workflow.external_workflow("nobody-of-that-name")
        await self.keep(found, nobody.signal("hello"))
        await self.keep(found, nobody.cancel())
        await workflow.start_child_workflow(Sleeper, 0.01, parent_close_policy="abandon")
        return found

    async def keep(self, found: list[object], outcome: Any) -> None:
        try:
            found.append(await outcome)
        except zaptasks.RemoteError as error:
            found.append(error.type)


@workflow.defn
class Local:
    """Local activities, one by one and side by side, that return and that raise."""

    @workflow.run
    async def run(self) -> list[int]:
        sums = [await workflow.execute_local_activity(local_sum, 1, 2)]

        async def add(number: int) -> None:
            sums.append(await workflow.execute_local_activity(local_sum, number, number))
            await workflow.sleep(0.01)

        async with workflow.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(add, number)
        try:
            await workflow.execute_local_activity(local_refusal)
        except workflow.ActivityFailed:
            sums.append(-1)
        return sums


@workflow.defn
class Counter:
    """Continues as new, with what it has counted, and waits when it has counted enough."""

    def __init__(self) -> None:
        self.count = 0

    @workflow.run
    async def run(self, before: int) -> None:
        await workflow.wait_condition(lambda: self.count >= 2)
        await workflow.sleep(0.01)
        if before + self.count < 4:
            workflow.continue_as_new(before + self.count)
        await workflow.sleep_forever()

    @workflow.signal
    def add(self, number: int) -> None:
        self.count += number


@workflow.defn
class Pipeline:
    """Everything that tasks of one run have among themselves."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @workflow.run
    async def run(self, count: int) -> list[str]:
        send, receive = workflow.open_memory_channel[int](1)
        begun, lock, limiter = workflow.Event(), workflow.Lock(), workflow.CapacityLimiter(2)

        async def feed(*, task_status: workflow.TaskStatus[str] = workflow.TASK_STATUS_IGNORED) -> None:
            task_status.started("feeding")
            async with send:
                for number in range(count):
                    await send.send(number)
                    await workflow.sleep(0.005)

        async def work(name: str) -> None:
            await begun.wait()
            async for number in receive:
                async with limiter:
                    echoed = await workflow.execute_activity("echo", number, start_to_close=5)
                async with lock:
                    self.log.append(f"{name} {echoed} {workflow.random().randrange(100)}")

        async with workflow.open_nursery() as nursery:
            self.log.append(await nursery.start(feed))
            for name in ("ada", "bob", "cyd"):
                nursery.start_soon(work, name)
            begun.set()
        try:
            async with workflow.open_nursery() as nursery:
                nursery.start_soon(self.fail_after, 0.01)
                nursery.start_soon(workflow.sleep, math.inf)
        except* ValueError as group:
            self.log.append(str(group.exceptions[0]))
        with workflow.fail_after(60):
            await self.semaphores()
        return sorted(self.log)

    async def fail_after(self, seconds: float) -> None:
        await workflow.sleep(seconds)
        raise ValueError("after all")

    async def semaphores(self) -> None:
        semaphore, condition = workflow.Semaphore(0), workflow.Condition()

        async def wake() -> None:
            await workflow.sleep(0.01)
            semaphore.release()
            async with condition:
                condition.notify_all()

        async with workflow.open_nursery() as nursery:
            nursery.start_soon(wake)
            async with condition:
                await condition.wait()
            await semaphore.acquire()


@workflow.defn
class Patched:
    """A patch that runs have taken, one that is deprecated, and one that came when they had passed its place."""

    @workflow.run
    async def run(self) -> str:
        if workflow.patched("since-the-first"):
            await workflow.execute_activity("echo", "new", start_to_close=5)
        workflow.deprecate_patch("older")
        await workflow.wait_signal("go")
        if workflow.patched("came-later"):  # the code that was recorded had not this one
            return await workflow.execute_local_activity(local_words)
        return "old"


def local_words() -> str:
    return "new"


@workflow.defn(name="Patched")
class BeforeThePatch:
    """What `Patched` was when its history was recorded."""

    @workflow.run
    async def run(self) -> str:
        if workflow.patched("since-the-first"):
            await workflow.execute_activity("echo", "new", start_to_close=5)
        workflow.deprecate_patch("older")
        await workflow.wait_signal("go")
        return "old"


@workflow.defn
class Draws:
    """Draws numbers before and after the points that it is reset to."""

    @workflow.run
    async def run(self) -> list[int]:
        drawn = []
        for _ in range(6):
            drawn.append(workflow.random().randrange(1_000))
            await workflow.sleep(0.001)
            await workflow.execute_activity("echo" if drawn[-1] % 2 else "slow", drawn[-1], start_to_close=5)
        return drawn


@workflow.defn
class Survivor:
    """Goes from worker to worker: one leaves, one has broken code, one is too slow."""

    @workflow.run
    async def run(self) -> list[str]:
        words = []
        for number in range(4):
            words.append(await workflow.wait_signal("word", str))
            await workflow.execute_activity("slow", number, start_to_close=30)
        return words


LOCAL_TRIES = {"count": 0}


def local_flaky(least: int) -> int:
    LOCAL_TRIES["count"] += 1
    if LOCAL_TRIES["count"] < least:
        raise OSError("not yet")
    return LOCAL_TRIES["count"]


@workflow.defn
class Studio:
    """Sessions, a value that is looked at again and again, headers, and local activities that are retried."""

    @workflow.run
    async def run(self) -> list[object]:
        tenant = workflow.info().headers.get("tenant", "")
        found: list[object] = [tenant]
        settings = iter(("slow", "slow", "fast"))
        for _ in range(3):
            found.append(workflow.mutable_side_effect("speed", lambda: next(settings)))
            await workflow.sleep(0.01)
        async with workflow.open_session(creation_timeout=10) as session:
            found.append(await session.execute_activity("echo", tenant, start_to_close=5))
            found.append(await session.execute_activity("echo", 2, start_to_close=5))
        found.append(await workflow.execute_local_activity(local_flaky, 3, retry_policy=SOON))
        await workflow.execute_child_workflow(Sleeper, 0.01)
        return found
