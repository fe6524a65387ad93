"""A TCP proxy that behaves badly when told to: it cuts connections, stops forwarding for a while, and delays."""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress

import trio

CHUNK_BYTES = 65_536
RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing the socket sends a reset, and what was on its way is lost."""


class Proxy:
    """Forwards every connection to one address of loopback. `run` is its task; `address` is set once it listens."""

    def __init__(self, target_port: int, rng: random.Random) -> None:
        self._target_port = target_port
        self._rng = rng
        self._pairs: set[_Pair] = set()
        self.address = ""

    @property
    def connections(self) -> int:
        return len(self._pairs)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """For ever."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        task_status.started()
        await trio.serve_listeners(self._serve, listeners)

    def cut(self, share: float) -> int:
        """Cut some of the connections, some in the middle of a frame; how many."""
        chosen = [pair for pair in self._pairs if self._rng.random() < share]
        for pair in chosen:
            pair.cut(reset=self._rng.random() < 0.5)
        return len(chosen)

    def stall(self, share: float, seconds: float) -> int:
        """Forward nothing more, in one direction or both, for a while; how many connections that concerns."""
        chosen = [pair for pair in self._pairs if self._rng.random() < share]
        until = trio.current_time() + seconds
        for pair in chosen:
            ways = self._rng.choice(([0], [1], [0, 1]))
            for way in ways:
                pair.forward_from[way] = until
        return len(chosen)

    def delay(self, share: float, seconds: float) -> int:
        """From now on every chunk of some connections arrives later by `seconds`."""
        chosen = [pair for pair in self._pairs if self._rng.random() < share]
        for pair in chosen:
            pair.delay_seconds = seconds
        return len(chosen)

    async def _serve(self, client: trio.SocketStream) -> None:
        with client.socket:
            try:
                server = await trio.open_tcp_stream("127.0.0.1", self._target_port)
            except OSError:
                return  # as a server that is not there
            with server.socket:
                pair = _Pair(client, server)
                self._pairs.add(pair)
                try:
                    await pair.run()
                finally:
                    self._pairs.discard(pair)


class _Pair:
    """One connection, and what is done to it."""

    def __init__(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        self._streams = (client, server)
        self._scope = trio.CancelScope()
        self.forward_from = [0.0, 0.0]
        self.delay_seconds = 0.0

    def cut(self, *, reset: bool) -> None:
        if reset:
            for stream in self._streams:
                with suppress(OSError):
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._scope.cancel()

    async def run(self) -> None:
        client, server = self._streams
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, 0, client, server)
                nursery.start_soon(self._forward, 1, server, client)

    async def _forward(self, way: int, source: trio.SocketStream, target: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(CHUNK_BYTES):
                await trio.sleep_until(max(trio.current_time() + self.delay_seconds, self.forward_from[way]))
                await target.send_all(data)
        self._scope.cancel()
