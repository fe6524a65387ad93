"""The processes of a worker, for functions that need a CPU of their own and that can be stopped by force.

A process is a fresh interpreter, started when it is first needed and used again for one call after another. It never
runs the main script: it imports the module of the function, and nothing else of the program.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec
import trio

from zapwire.failure import Failure

from .context import TaskContext
from .converters import PLAIN
from .errors import RemoteError
from .process_messages import (
    Answer,
    Cancel,
    Frames,
    Log,
    Run,
    Said,
    framed,
    read_to_worker,
)

CANCEL_SECONDS_MAX: Final = 3.0
"""How long a function that was asked to stop may take, before its process is killed. Less than a worker that leaves
gives to what it cancels."""

DEATH_SECONDS_MAX: Final = 1.0
"""How long a process that has closed its connection is given to end by itself, so that its exit code is known."""

RECEIVE_BYTES: Final = 64 * 1024

log = logging.getLogger("zaptasks.worker")

Hear = Callable[[Said], None]


class HandlerFailed(RemoteError):
    """What a handler raised in its process."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


class ProcessDied(Exception):
    """The process of an attempt ended before the attempt did."""


def run_message(
    context: TaskContext, function: Callable[..., object], input: str | bytes | None, *, is_task: bool
) -> Run:
    """What a process needs to know of an attempt; the number of the call comes later."""
    return Run(
        call=0,
        module=function.__module__,
        path=function.__qualname__,
        is_task=is_task,
        input=input.encode() if isinstance(input, str) else input,
        heartbeat_details=PLAIN.encode(list(context.heartbeat_details)),
        id=context.id,
        type=context.type,
        attempt=context.attempt,
        maximum_attempts=context.maximum_attempts,
        namespace=context.namespace,
        task_queue=context.task_queue,
        workflow_id=context.workflow_id,
        run_id=context.run_id,
        scheduled_time=context.scheduled_time,
        start_to_close=context.start_to_close,
        heartbeat_timeout=context.heartbeat_timeout,
        task_token=context.task_token,
        headers=dict(context.headers),
    )


class ProcessPool:
    """At most `size` processes. They live in `nursery`, and end with it."""

    def __init__(self, size: int, nursery: trio.Nursery) -> None:
        self._limiter = trio.CapacityLimiter(size)
        self._nursery = nursery
        self._idle: list[_Process] = []

    async def run(self, run: Run, hear: Hear, *, reason: Callable[[], str], is_lost: Callable[[], bool]) -> Answer:
        """Have a process do this call; `hear` gets what it says meanwhile.

        A cancel is passed on with its `reason`, and the function may heed it, or end otherwise, for
        `CANCEL_SECONDS_MAX`; then, and at once where its outcome is lost anyway, the process is killed. Raises
        `ProcessDied`, and `OSError` where none can be started.
        """
        async with self._limiter:
            process = await self._take()
            try:
                return await process.call(run, hear, reason=reason, is_lost=is_lost)
            finally:
                if process.is_alive:
                    self._idle.append(process)

    async def _take(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
        process = _Process()
        await self._nursery.start(process.live)
        return process


class _Process:
    """One of them. `live` is its task; `call` is called for one attempt at a time."""

    def __init__(self) -> None:
        self.is_alive = False
        self._process: trio.Process
        self._ended = trio.Event()
        self._frames = Frames()
        self._calls = 0
        self._is_calling = False
        ours, self._theirs = socket.socketpair()
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def live(self, *, task_status: trio.TaskStatus[None]) -> None:
        """From its start to its end; a cancel kills it."""
        try:
            with self._theirs as theirs:
                level = logging.getLogger().getEffectiveLevel()
                code = (
                    f"import sys; sys.path[:] = {sys.path!r}\n"
                    f"from zaptasks.process_child import serve; serve({theirs.fileno()}, {level})"
                )
                self._process = await trio.lowlevel.open_process(
                    [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
            self.is_alive = True
            task_status.started()
            try:
                await self._process.wait()
            finally:
                self.kill()
                with trio.CancelScope(shield=True):
                    await self._process.wait()
        finally:
            self.is_alive = False
            self._ended.set()
            with suppress(OSError):  # what it has forked may hold its end open: no more is read than what is there
                self._stream.socket.shutdown(socket.SHUT_RD)
            self._close_if_over()

    def kill(self) -> None:
        self.is_alive = False
        self._process.kill()

    def _close_if_over(self) -> None:
        if not self.is_alive and not self._is_calling:
            self._stream.socket.close()

    async def call(self, run: Run, hear: Hear, *, reason: Callable[[], str], is_lost: Callable[[], bool]) -> Answer:
        """As `ProcessPool.run`. The process is dead after anything but an answer."""
        self._calls += 1
        self._is_calling, is_sent = True, False
        try:
            try:
                await self._send(msgspec.structs.replace(run, call=self._calls))
                is_sent = True
                return await self._answer(hear)
            except trio.Cancelled:
                if is_sent and not is_lost():
                    with trio.CancelScope(shield=True, relative_deadline=CANCEL_SECONDS_MAX):
                        await self._send(Cancel(self._calls, reason()))
                        return await self._answer(hear)
                    log.warning("%r has not stopped within %g s: its process is killed", run.type, CANCEL_SECONDS_MAX)
                raise
        except BaseException:
            self.kill()
            raise
        finally:
            self._is_calling = False
            self._close_if_over()

    async def _send(self, message: Run | Cancel) -> None:
        try:
            await self._stream.send_all(framed(message))
        except trio.BrokenResourceError:
            raise await self._died() from None

    async def _answer(self, hear: Hear) -> Answer:
        while True:
            try:
                data = self._frames.next()
                message = None if data is None else read_to_worker(data)
            except (ValueError, msgspec.MsgspecError) as error:
                raise ProcessDied(f"the process of this attempt said what cannot be read: {error}") from None
            if message is None:
                await self._receive()
            elif message.call != self._calls:
                continue  # from a thread that an earlier call has left behind
            elif isinstance(message, Said):
                hear(message)
            elif isinstance(message, Log):
                logging.getLogger(message.logger).log(message.level, "%s", message.text)
            else:
                return message

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive_some(RECEIVE_BYTES)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise await self._died()
        self._frames.feed(data)

    async def _died(self) -> ProcessDied:
        with trio.move_on_after(DEATH_SECONDS_MAX):
            await self._ended.wait()
        code = self._process.returncode
        if code is None:
            return ProcessDied("the process of this attempt has closed its connection, and was killed")
        if code >= 0:
            return ProcessDied(f"the process of this attempt ended with exit code {code} before it had answered")
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        text = f"the process of this attempt was ended by {name} before it had answered"
        return ProcessDied(f"{text}: had the machine run out of memory?" if name == "SIGKILL" else text)
