"""What the links of one listener or one client share: their handler, bounds, nursery, and three small tasks."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from zapwire.connection import CALLS_IN_FLIGHT_MAX, UNANSWERED_CALLS_MAX
from zapwire.frame import FRAME_BYTES_MAX
from zapwire.handshake import Hello, encode_hello
from zapwire.link_handler import LinkHandler

if TYPE_CHECKING:
    from zapwire.link import Link
    from zapwire.outbox import Outbox

SILENT_INTERVALS_MAX: Final = 3
"""Probe intervals without a byte after which a connection is given up: one to notice, two for the probes."""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """The bounds of one link: times in seconds, sizes in bytes."""

    handshake_seconds: float = 10.0
    """The TLS handshake and the peer's hello must be complete within this."""

    write_stall_seconds: float = 10.0
    """A peer that takes nothing for this long while something waits for it is disconnected."""

    probe_seconds: float = 15.0
    """A connection that was silent this long is probed with a Health call, and after three such intervals it
    is closed. A Go peer may not answer and is left to TCP keep-alive."""

    close_seconds: float = 1.0
    """How long `aclose` waits for what is still to be sent."""

    outbox_bytes: int = 16 * 1024 * 1024
    """What may wait for a peer that does not read, plus one frame; past it the peer is disconnected."""

    pause_bytes: int = 1024 * 1024
    """A server reads no more from a peer while more than this waits for it. Not a client: if both ends stopped
    reading until the other reads, neither ever would."""

    frame_bytes: int = FRAME_BYTES_MAX
    """The longest payload that is accepted."""

    calls_in_flight: int = CALLS_IN_FLIGHT_MAX
    """Our own unanswered calls on one connection; one more raises `LocalProtocolError`."""

    unanswered_calls: int = UNANSWERED_CALLS_MAX
    """The peer's calls that we have not answered; one more is answered 429 at once."""


class Flusher:
    """Gathers what is written in one batch, or in one trio tick, into one send for each link.

    As a context manager it is the batch: what is marked within is flushed at its end.
    """

    __slots__ = ("_marked", "_sleeper", "batches")

    def __init__(self) -> None:
        self.batches = 0
        """How deep in batches we are; 0 is outside."""
        self._marked: list[Outbox] = []
        self._sleeper: Task | None = None

    def __enter__(self) -> None:
        self.batches += 1

    def __exit__(self, *_: object) -> None:
        self.batches -= 1
        if not self.batches:
            self._flush()

    def mark(self, outbox: Outbox) -> None:
        """Flush this outbox at the end of the batch; outside a batch, in the next tick."""
        self._marked.append(outbox)
        if not self.batches and self._sleeper is not None:
            reschedule(self._sleeper)
            self._sleeper = None

    def _flush(self) -> None:
        marked, self._marked = self._marked, []
        for outbox in marked:
            outbox.flush()

    async def run(self) -> None:
        """Flush in the tick after each mark, for ever."""

        def forget(_: object) -> Abort:
            self._sleeper = None
            return Abort.SUCCEEDED

        while True:
            self._flush()
            self._sleeper = current_task()
            await wait_task_rescheduled(forget)


class CallTimer:
    """Ends calls at their deadlines, with one sleeping task for all links.

    A trio cancel scope around each call costs as much as the call: 17 us beside 16 us, both ends together,
    32 in flight. Here a call only compares its deadline with the time of the next look, which comes no later
    than the earliest deadline; the look goes through all calls, and happens about once per timeout's length.
    """

    __slots__ = ("_links", "_scope")

    def __init__(self, links: set[Link]) -> None:
        self._links = links
        self._scope = trio.CancelScope()

    def look_by(self, deadline: float) -> None:
        """Look no later than this (trio's clock)."""
        if deadline < self._scope.deadline:
            self._scope.deadline = deadline

    async def run(self) -> None:
        """Look whenever a deadline may have come, for ever."""
        while True:
            with self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            self._scope = trio.CancelScope(
                deadline=min((link.expire_calls(now) for link in self._links), default=math.inf)
            )


class LinkGroup:
    """Everything that a link needs besides its socket. Opened with `open_link_group`."""

    __slots__ = ("call_timer", "flusher", "handler", "hello", "limits", "links", "nursery", "refused")

    def __init__(
        self,
        nursery: trio.Nursery,
        hello: Hello,
        handler: LinkHandler,
        limits: LinkLimits,
        refused: Counter[str] | None = None,
    ) -> None:
        encode_hello(hello)  # a bad node id is the caller's mistake and is told to the caller
        self.nursery = nursery
        self.hello = hello
        self.handler = handler
        self.limits = limits
        self.links: set[Link] = set()
        """The links whose handshake is done and whose end has not come."""
        self.refused: Counter[str] = Counter() if refused is None else refused
        """How often each bound refused a peer something, by the bound's name."""
        self.flusher = Flusher()
        self.call_timer = CallTimer(self.links)

    async def watch(self) -> None:
        """Probe silent connections and end dead ones, for ever."""
        while True:
            await trio.sleep(self.limits.probe_seconds)
            for link in list(self.links):
                link.check_alive()


@contextlib.asynccontextmanager
async def open_link_group(
    hello: Hello, handler: LinkHandler, limits: LinkLimits, refused: Counter[str] | None = None
) -> AsyncIterator[LinkGroup]:
    """Run the tasks that links share. At the end every link and task is canceled.

    An exception of the body comes out as it is: the nursery is ours, so its exception group is unwrapped here.
    """
    try:
        async with trio.open_nursery() as nursery:
            group = LinkGroup(nursery, hello, handler, limits, refused)
            nursery.start_soon(group.flusher.run)
            nursery.start_soon(group.call_timer.run)
            nursery.start_soon(group.watch)
            try:
                yield group
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as failures:
        if len(failures.exceptions) > 1:
            raise
        _raise_only(failures.exceptions[0])


def _raise_only(error: BaseException) -> None:
    """Raise an exception that was taken out of a group without the group as its context."""
    context = error.__context__
    try:
        raise error
    finally:
        error.__context__ = context
