"""Memory channels, with trio's names and semantics."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from types import TracebackType
from typing import Generic, TypeVar, final

from .errors import BrokenResourceError, ClosedResourceError, EndOfChannel, WouldBlock
from .scheduler import Task, checkpoint, checkpoint_if_cancelled, current_task, wait, yield_to_others
from .sync import check_may_change

T = TypeVar("T")


class _State(Generic[T]):
    __slots__ = ("buffer", "buffer_max", "receivers", "senders", "waiting_receivers", "waiting_senders")

    def __init__(self, buffer_max: float) -> None:
        self.buffer_max = buffer_max
        self.buffer: deque[T] = deque()
        self.senders = 0
        """Open ends; likewise `receivers`."""
        self.receivers = 0
        self.waiting_senders: OrderedDict[Task, tuple[MemorySendChannel[T], T]] = OrderedDict()
        self.waiting_receivers: OrderedDict[Task, MemoryReceiveChannel[T]] = OrderedDict()


class _End(Generic[T]):
    _state: _State[T]
    _is_closed: bool

    def close(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.close()
        await checkpoint()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


@final
class MemorySendChannel(_End[T]):
    """The end that values go into. Made by `open_memory_channel` and `clone`."""

    def __init__(self, state: _State[T]) -> None:
        self._state = state
        self._is_closed = False
        state.senders += 1

    def send_nowait(self, value: T) -> None:
        """Send, or raise `WouldBlock` when the buffer is full."""
        check_may_change("send to a channel")
        state = self._state
        if self._is_closed:
            raise ClosedResourceError("this end of the channel is closed")
        if not state.receivers:
            raise BrokenResourceError("nobody can receive from this channel any more")
        if state.waiting_receivers:
            task, _ = state.waiting_receivers.popitem(last=False)
            task.scheduler.reschedule(task, value)
        elif len(state.buffer) < state.buffer_max:
            state.buffer.append(value)
        else:
            raise WouldBlock

    async def send(self, value: T) -> None:
        """Send, and wait while the buffer is full."""
        await checkpoint_if_cancelled()
        try:
            self.send_nowait(value)
        except WouldBlock:
            pass
        else:
            await yield_to_others()
            return
        task = current_task()
        waiting = self._state.waiting_senders
        waiting[task] = (self, value)

        def abort() -> bool:
            del waiting[task]
            return True

        await wait(abort)

    def clone(self) -> MemorySendChannel[T]:
        """Another end: receivers see the end of the channel when all of them are closed."""
        if self._is_closed:
            raise ClosedResourceError("this end of the channel is closed")
        return MemorySendChannel(self._state)

    def close(self) -> None:
        if self._is_closed:
            return
        check_may_change("close a channel")
        self._is_closed = True
        state = self._state
        for task in [task for task, (end, _) in state.waiting_senders.items() if end is self]:
            del state.waiting_senders[task]
            task.scheduler.reschedule(task, error=ClosedResourceError("this end of the channel was closed"))
        state.senders -= 1
        if not state.senders:
            for task in state.waiting_receivers:
                task.scheduler.reschedule(task, error=EndOfChannel())
            state.waiting_receivers.clear()

    def __enter__(self) -> MemorySendChannel[T]:
        return self

    async def __aenter__(self) -> MemorySendChannel[T]:
        return self


@final
class MemoryReceiveChannel(_End[T]):
    """The end that values come out of: `async for value in receive_channel`."""

    def __init__(self, state: _State[T]) -> None:
        self._state = state
        self._is_closed = False
        state.receivers += 1

    def receive_nowait(self) -> T:
        """The next value, or `WouldBlock`."""
        check_may_change("receive from a channel")
        state = self._state
        if self._is_closed:
            raise ClosedResourceError("this end of the channel is closed")
        if state.waiting_senders:
            task, (_, value) = state.waiting_senders.popitem(last=False)
            task.scheduler.reschedule(task)
            state.buffer.append(value)
        if state.buffer:
            return state.buffer.popleft()
        if not state.senders:
            raise EndOfChannel
        raise WouldBlock

    async def receive(self) -> T:
        """The next value. Raises `EndOfChannel` when no more can come."""
        await checkpoint_if_cancelled()
        try:
            value = self.receive_nowait()
        except WouldBlock:
            pass
        else:
            await yield_to_others()
            return value
        task = current_task()
        waiting = self._state.waiting_receivers
        waiting[task] = self

        def abort() -> bool:
            del waiting[task]
            return True

        received: T = await wait(abort)
        return received

    def clone(self) -> MemoryReceiveChannel[T]:
        """Another end: each value goes to one of them."""
        if self._is_closed:
            raise ClosedResourceError("this end of the channel is closed")
        return MemoryReceiveChannel(self._state)

    def close(self) -> None:
        if self._is_closed:
            return
        check_may_change("close a channel")
        self._is_closed = True
        state = self._state
        for task in [task for task, end in state.waiting_receivers.items() if end is self]:
            del state.waiting_receivers[task]
            task.scheduler.reschedule(task, error=ClosedResourceError("this end of the channel was closed"))
        state.receivers -= 1
        if not state.receivers:
            for task in state.waiting_senders:
                task.scheduler.reschedule(task, error=BrokenResourceError("the receiving end was closed"))
            state.waiting_senders.clear()
            state.buffer.clear()

    def __aiter__(self) -> MemoryReceiveChannel[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except EndOfChannel:
            raise StopAsyncIteration from None

    def __enter__(self) -> MemoryReceiveChannel[T]:
        return self

    async def __aenter__(self) -> MemoryReceiveChannel[T]:
        return self


@final
class open_memory_channel(tuple[MemorySendChannel[T], MemoryReceiveChannel[T]]):  # noqa: N801
    """The two ends of a channel between tasks of a run: `send, receive = open_memory_channel[int](0)`.

    `max_buffer_size` values may wait in it, math.inf for any number; with 0 a send waits for its receiver.
    """

    def __new__(cls, max_buffer_size: float) -> open_memory_channel[T]:
        if max_buffer_size != math.inf and not isinstance(max_buffer_size, int):
            raise TypeError("max_buffer_size must be an integer or math.inf")
        if max_buffer_size < 0:
            raise ValueError("max_buffer_size must be >= 0")
        state: _State[T] = _State(max_buffer_size)
        return tuple.__new__(cls, (MemorySendChannel(state), MemoryReceiveChannel(state)))

    def __init__(self, max_buffer_size: float) -> None: ...
