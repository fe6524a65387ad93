"""What tasks cost against a real server process: submits, deliveries, idle connections.

The server is `zaptasks serve`, in memory or on a disk, the workers are processes of their own, and
everything travels over loopback TCP. Clocks of one machine are compared across processes: on
Linux `perf_counter` counts from one origin for all of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import trio
from benchmarks.floors import WARM_UP_ROUNDS, Figures, figures

import zaptasks
from zapwire.client_link import open_link
from zapwire.envelope import decode_submit_reply, encode_task_submit

_ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS_MAX = 20


@dataclass(frozen=True, slots=True)
class ServerProcess:
    host: str
    port: int
    pid: int

    @property
    def zap(self) -> str:
        return f"{self.host}:{self.port}"

    def memory_bytes(self) -> int:
        """What the process holds in memory now."""
        return resident_bytes(self.pid)


def resident_bytes(pid: int) -> int:
    """The resident set of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} tells no resident set size")


@contextlib.contextmanager
def serving(level: str = "memory") -> Iterator[ServerProcess]:
    """A server of its own on free ports, gone at the end of the block. At any level but "memory" it has a disk."""
    with (
        tempfile.TemporaryDirectory(prefix="zaptasks-bench-", dir=disk_folder()) as folder,
        serving_data(":memory:" if level == "memory" else folder) as server,
    ):
        yield server


def disk_folder() -> Path:
    """Where the benchmarks write: the disk of the working directory, since /tmp may be none."""
    return Path.cwd()


@contextlib.contextmanager
def serving_data(data: str) -> Iterator[ServerProcess]:
    """The same on a data directory that is there already."""
    command = [sys.executable, "-m", "zapserver.cli", "serve", "--zap-port", "0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--data", data, "--log-level", "error"], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("ready "):
                raise RuntimeError(f"the server said {line!r} instead of its ready line")
            host, _, port = line.split()[1].removeprefix("zap=").rpartition(":")
            yield ServerProcess(host, int(port), process.pid)
        finally:
            process.kill()


def now_to_started(samples: int = 2_000, level: str = "memory") -> Figures:
    """From `client.now` in one process to the first line of the handler in another."""
    with serving(level) as server, _worker(server, "started"):
        return trio.run(_now_to_started, server, samples, level)


async def _now_to_started(server: ServerProcess, samples: int, level: str) -> Figures:
    durations: list[float] = []
    async with zaptasks.open_client(server.zap) as client:
        for number in range(-WARM_UP_ROUNDS, samples):
            if number == 0:
                began = time.perf_counter()
            submitted = time.perf_counter()
            handle = await client.now("started")
            started = await handle.result()
            if number >= 0:
                assert isinstance(started, float)
                durations.append(started - submitted)
        return figures(f"now to handler started, {level}", durations, time.perf_counter() - began)


def submits(in_flight: int, calls: int = 20_000, level: str = "memory") -> Figures:
    """Tasks submitted to a queue that nobody works on, so many calls at once on one connection.

    `level` is the durability that each of them asks for, and its answer waits for.
    """
    with serving(level) as server:
        return trio.run(_submits, server, in_flight, calls, level)


async def _submits(server: ServerProcess, in_flight: int, calls: int, level: str) -> Figures:
    durations: list[float] = []
    options = json.dumps({"task_queue": "nobody", "durability": level}).encode()
    message = encode_task_submit("benchmark", b'{"to":"ada@example.com"}', options)

    async def one_after_the_other(count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            reply = await link.call_raw(message)
            durations.append(time.perf_counter() - start)
            status, _ = decode_submit_reply(reply)
            assert status == 200, status

    async with open_link(server.host, server.port, node_id="submits") as link:
        await one_after_the_other(WARM_UP_ROUNDS)
        durations.clear()
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(one_after_the_other, math.ceil(calls / in_flight))
        return figures(f"submit, {in_flight} in flight, {level}", durations, time.perf_counter() - began)


def delivery(workers: int, tasks: int = 5_000, in_flight: int = 16) -> Figures:
    """From submit to handler started, with so many workers on the queue and so many tasks at once."""
    with serving() as server, _worker(server, "started", workers):
        return trio.run(_delivery, server, workers, tasks, in_flight)


async def _delivery(server: ServerProcess, workers: int, tasks: int, in_flight: int) -> Figures:
    durations: list[float] = []

    async def one_after_the_other(count: int) -> None:
        for _ in range(count):
            submitted = time.perf_counter()
            handle = await client.now("started")
            started = await handle.result()
            assert isinstance(started, float)
            durations.append(started - submitted)

    async with zaptasks.open_client(server.zap) as client:
        await one_after_the_other(WARM_UP_ROUNDS)
        durations.clear()
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(one_after_the_other, math.ceil(tasks / in_flight))
        name = f"delivery to {workers} worker{'s' if workers > 1 else ''}, {in_flight} in flight"
        return figures(name, durations, time.perf_counter() - began)


def idle_connection_bytes(connections: int = 1_000) -> float:
    """What the server's memory grows by for each connection that does nothing."""
    with serving() as server:
        return trio.run(_idle_connection_bytes, server, connections)


async def _idle_connection_bytes(server: ServerProcess, connections: int) -> float:
    async with contextlib.AsyncExitStack() as stack:
        for number in range(10):  # what the first connections load is not theirs
            await stack.enter_async_context(open_link(server.host, server.port, node_id=f"first-{number}"))
        before = server.memory_bytes()
        for number in range(connections):
            await stack.enter_async_context(open_link(server.host, server.port, node_id=f"idle-{number}"))
        return (server.memory_bytes() - before) / connections


@contextlib.contextmanager
def worker_process(module: str, *arguments: str) -> Iterator[int]:
    """`python -m module arguments`, once it has printed that it is subscribed; its process id."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line.strip() != "subscribed":
                raise RuntimeError(f"the worker said {line!r} instead of subscribed")
            yield process.pid
        finally:
            process.kill()


def _worker(server: ServerProcess, task_type: str, connections: int = 1) -> AbstractContextManager[int]:
    """A process with so many workers, each on a connection of its own, once all of them are subscribed."""
    return worker_process("benchmarks.tasks", "worker", server.zap, task_type, str(connections))


async def _work(zap: str, task_type: str, connections: int) -> None:
    async def started() -> float:
        return time.perf_counter()

    async with contextlib.AsyncExitStack() as stack:
        for number in range(connections):
            client = await stack.enter_async_context(zaptasks.open_client(zap, identity=f"worker-{number}"))
            await stack.enter_async_context(zaptasks.open_worker(client, tasks={task_type: started}))
        print("subscribed", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        trio.run(_work, sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        print(json.dumps([str(now_to_started()), str(submits(64)), str(delivery(10)), idle_connection_bytes()]))
