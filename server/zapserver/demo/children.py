"""The processes of the demo: started with pipes, read line by line, ended with SIGTERM and, if need be, killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import trio

END_SECONDS_MAX: Final = 5.0
LINES_KEPT: Final = 20
"""Of each process's log, to be shown if something goes wrong."""


class ChildFailed(Exception):
    """A process ended that should have run on."""


class Child:
    """A running process of this package's code."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self.log: deque[str] = deque(maxlen=LINES_KEPT)
        self._process = process
        self._is_ending = False

    @property
    def pid(self) -> int:
        return self._process.pid

    async def lines(self) -> AsyncIterator[str]:
        """What it prints on stdout. Ends when it does."""
        assert self._process.stdout is not None
        async for line in _lines(self._process.stdout):
            yield line

    async def first_line(self, seconds: float) -> str:
        """The first line on stdout. Raises `ChildFailed` if the process ends before, or takes longer."""
        with trio.move_on_after(seconds):
            async for line in self.lines():
                return line
            raise ChildFailed(f"{self.name} ended (status {await self._process.wait()}) before it was ready")
        raise ChildFailed(f"{self.name} was not ready within {seconds:g} s")

    async def keep_log(self) -> None:
        """Read its stderr, and keep the end of it."""
        assert self._process.stderr is not None
        async for line in _lines(self._process.stderr):
            self.log.append(line)

    async def run_on(self) -> None:
        """Return when it was asked to end and has. Raises `ChildFailed` if it ends by itself."""
        status = await self._process.wait()
        if not self._is_ending:
            raise ChildFailed(f"{self.name} ended by itself, with status {status}")

    async def end(self) -> int:
        """Ask it to end, wait for it a while, and return its exit status."""
        self._is_ending = True
        if self._process.poll() is None:
            self._process.terminate()
        with trio.move_on_after(END_SECONDS_MAX):
            return await self._process.wait()
        self._process.kill()
        return await self._process.wait()


@asynccontextmanager
async def open_child(name: str, *args: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Child]:
    """Run `python -m args` until the block ends, however it ends."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", *args],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    child = Child(name, process)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.keep_log)
            try:
                yield child
            finally:
                with trio.CancelScope(shield=True):
                    await child.end()
                nursery.cancel_scope.cancel()
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                with trio.CancelScope(shield=True):
                    await stream.aclose()


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    unfinished = b""
    async for data in stream:
        *lines, unfinished = (unfinished + data).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    if unfinished:
        yield unfinished.decode("utf-8", "replace")
