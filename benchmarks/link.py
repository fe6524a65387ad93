"""The link: what one call costs, how many a connection carries, what an idle connection weighs.

    python -m benchmarks.link

prints them beside the floors, in turns and in one run.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from pathlib import Path

import trio
from benchmarks.floors import (
    REPLY_BYTES,
    REQUEST_BYTES,
    WARM_UP_ROUNDS,
    Figures,
    alternate,
    blocking_echo,
    figures,
    server_process,
    trio_echo,
)

from zapwire.client_link import open_link
from zapwire.envelope import Envelope
from zapwire.frame import frame
from zapwire.handshake import Hello, encode_hello
from zapwire.link import Link
from zapwire.link_handler import RefusingHandler
from zapwire.listener import open_listener
from zapwire.opcodes import Op

WIRE_BYTES = 52
"""What surrounds a body: prefix 4, correlation 8, message header 16, envelope 24."""

REQUEST_BODY = b"{}".ljust(REQUEST_BYTES - WIRE_BYTES)
REPLY_BODY = b"{}".ljust(REPLY_BYTES - WIRE_BYTES)

ROUNDS = 5
IN_FLIGHT = (1, 8, 32, 256)
IDLE_CONNECTIONS = 1000


class _Health(RefusingHandler):
    """Answers every call at once with the sample body."""

    def on_call(self, link: Link, request_id: int, envelope: Envelope, message: bytes) -> None:
        link.reply(request_id, 200, REPLY_BODY)


def link_calls(in_flight: int, calls: int) -> Figures:
    """Calls over one connection, `in_flight` tasks with one call each at a time.

    Client and server are two processes, and a request and its reply have the floors' sizes. p50 and p99 are of
    the single call; with many in flight most of that is waiting for the others.
    """
    with server_process("benchmarks.link", "serve") as server:
        return trio.run(_calls, server.port, in_flight, calls)


async def _calls(port: int, in_flight: int, calls: int) -> Figures:
    durations: list[float] = []

    async def caller(link: Link, count: int) -> None:
        for _ in range(count):
            start = time.perf_counter()
            await link.call(Op.HEALTH, REQUEST_BODY)
            durations.append(time.perf_counter() - start)

    async with open_link("127.0.0.1", port, node_id="benchmark") as link:
        await caller(link, WARM_UP_ROUNDS)
        durations.clear()
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(caller, link, calls // in_flight)
        return figures(f"call, {in_flight} in flight", durations, time.perf_counter() - began)


def idle_link_bytes(connections: int = IDLE_CONNECTIONS) -> float:
    """What the server's resident memory grows by for each connection that has shaken hands and is silent.

    The kernel's own buffers are not in it. Linux only.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, connections + 100)), hard))
    with server_process("benchmarks.link", "serve") as server:
        # The first ones pay for what all share.
        return trio.run(_idle_bytes, server.port, server.pid, 100, connections)


async def _idle_bytes(port: int, pid: int, warm_up: int, connections: int) -> float:
    async with contextlib.AsyncExitStack() as stack:

        async def connect(node_id: str) -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stack.enter_async_context(stream)
            await stream.send_all(frame(encode_hello(Hello(node_id))))
            assert await stream.receive_some(1000)

        for number in range(warm_up):
            await connect(f"first-{number}")
        before = _resident_bytes(pid)
        for number in range(connections):
            await connect(f"idle-{number}")
        return (_resident_bytes(pid) - before) / connections


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def _serve() -> None:
    async with open_listener("127.0.0.1", 0, _Health(), node_id="benchmark-server") as listener:
        print(listener.address[1], flush=True)
        await trio.sleep_forever()


def main() -> None:
    """Print everything, the ratios to the bare trio echo included."""
    rows = alternate([blocking_echo, trio_echo, lambda: link_calls(1, 10_000)], ROUNDS)
    echo = rows[1].p50_us
    rows += alternate([lambda n=n: link_calls(n, 40_000) for n in IN_FLIGHT[1:]], ROUNDS)  # type: ignore[misc]
    for row in rows:
        ratio = row.p50_us / echo
        print(f"{row.name:24} p50 {row.p50_us:7.0f} us  p99 {row.p99_us:7.0f} us  {row.rate:9,.0f}/s  {ratio:6.2f} x")
    print(f"an idle connection costs the server {idle_link_bytes():,.0f} bytes")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        trio.run(_serve)
    elif sys.argv[1:]:
        raise SystemExit("usage: python -m benchmarks.link [serve]")
    else:
        main()
