"""Floors: what an echo of the same size costs without any of our code, measured in the same run.

A figure of ours means little alone, because it moves with the machine and with what else runs on it.
Beside a bare blocking echo (the socket and the scheduler) and a bare trio echo (the same and a trio
`SocketStream`) it says what the protocol and the link add, or save.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

REQUEST_BYTES = 58
"""A small call as it stands on the wire: prefix 4, correlation 8, message 40, body 6."""
REPLY_BYTES = 107
"""The recorded Health reply: prefix 4, correlation 8, message 40, body 55."""

READ_BYTES_MAX = 65536
WARM_UP_ROUNDS = 200

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement: the median and the 99th percentile of a call in microseconds, and calls a second."""

    name: str
    calls: int
    p50_us: float
    p99_us: float
    rate: float


def figures(name: str, seconds: list[float], elapsed: float) -> Figures:
    """Sum up the duration of every call and the time that all of them took together."""
    ordered = sorted(seconds)
    count = len(ordered)
    return Figures(
        name=name,
        calls=count,
        p50_us=ordered[count // 2] * 1e6,
        p99_us=ordered[min(count - 1, count * 99 // 100)] * 1e6,
        rate=count / elapsed,
    )


def alternate(measures: Sequence[Callable[[], Figures]], rounds: int) -> list[Figures]:
    """Measure in turns and keep of each the round with the median p50.

    On a machine that others use too, figures taken one after the other differ by more than what they measure.
    """
    taken: list[list[Figures]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, results in zip(measures, taken, strict=True):
            results.append(measure())
    return [sorted(results, key=lambda result: result.p50_us)[rounds // 2] for results in taken]


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server in a process of its own, so that it shares no interpreter lock and no loop with its client."""

    port: int
    pid: int


@contextlib.contextmanager
def server_process(module: str, *arguments: str) -> Iterator[ServerProcess]:
    """Run `python -m module arguments` from the repository's root; its first line must be its port."""
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{module} {' '.join(arguments)} ended before it printed its port")
            yield ServerProcess(int(line), process.pid)
        finally:
            process.kill()


def blocking_echo(calls: int = 10_000) -> Figures:
    """Request and reply over a blocking socket, one after the other."""
    with (
        server_process("benchmarks.floors", "blocking") as server,
        socket.create_connection(("127.0.0.1", server.port)) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = bytes(REQUEST_BYTES)
        durations: list[float] = []
        for number in range(-WARM_UP_ROUNDS, calls):
            if number == 0:
                began = time.perf_counter()
            start = time.perf_counter()
            sock.sendall(request)
            left = REPLY_BYTES
            while left:
                left -= len(sock.recv(left))
            if number >= 0:
                durations.append(time.perf_counter() - start)
        return figures("bare blocking echo", durations, time.perf_counter() - began)


def trio_echo(calls: int = 10_000) -> Figures:
    """Request and reply over two trio `SocketStream`s, one after the other."""
    with server_process("benchmarks.floors", "trio") as server:
        return trio.run(_trio_echo_calls, server.port, calls)


async def _trio_echo_calls(port: int, calls: int) -> Figures:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        request = bytes(REQUEST_BYTES)
        durations: list[float] = []
        for number in range(-WARM_UP_ROUNDS, calls):
            if number == 0:
                began = time.perf_counter()
            start = time.perf_counter()
            await stream.send_all(request)
            left = REPLY_BYTES
            while left:
                left -= len(await stream.receive_some(READ_BYTES_MAX))
            if number >= 0:
                durations.append(time.perf_counter() - start)
        return figures("bare trio echo", durations, time.perf_counter() - began)


def _serve_blocking() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reply = bytes(REPLY_BYTES)
    with sock:
        while sock.recv(READ_BYTES_MAX):
            sock.sendall(reply)


async def _serve_trio() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    print(listener.socket.getsockname()[1], flush=True)
    reply = bytes(REPLY_BYTES)
    async with listener, await listener.accept() as stream:
        while await stream.receive_some(READ_BYTES_MAX):
            await stream.send_all(reply)


if __name__ == "__main__":
    if sys.argv[1:] == ["blocking"]:
        _serve_blocking()
    elif sys.argv[1:] == ["trio"]:
        trio.run(_serve_trio)
    else:
        raise SystemExit("usage: python -m benchmarks.floors blocking|trio")
