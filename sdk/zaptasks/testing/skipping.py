"""Virtual time: it stands still while anything can happen, and goes on to the next deadline when nothing can.

everybody is blocked, nothing is worked on --> the next deadline of the engine, or the end of a sleep --> tick
             ^                                                                                            |
             +--------------------------- what follows from it -------------------------------------------+
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Final

import trio
import trio.testing

from zapserver.dispatch import Dispatcher
from zapserver.engine.errors import EngineError

log = logging.getLogger("zaptasks.testing")

SKIPS_MAX: Final = 50_000
"""How often time may be skipped while somebody waits for one result: forty seconds of work. What has not ended then is
taken for something that repeats for ever."""

TASK_FAILURES_MAX: Final = 3
"""So many workflow tasks in a row that fail are not bad luck: the code cannot go on."""

HELD_SECONDS: Final = 5.0
"""After so many real seconds in which time could not go on, the log says what holds it."""


class VirtualClock:
    """Milliseconds since 1970, as somebody sets them."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@dataclass(slots=True, eq=False)
class Wait:
    """Somebody waits for an execution."""

    workflow_id: str
    run_id: str
    began: int
    why_never: str = ""
    """Why the wait was given up, if it was."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def give_up(self, why: str) -> None:
        self.why_never = why
        self.scope.cancel()


class Skipper:
    """The timer of an environment's server. `run` is its task, and `works_on` says what holds time."""

    def __init__(self, clock: VirtualClock, dispatcher: Dispatcher, works_on: Callable[[], list[str]]) -> None:
        self._clock = clock
        self._dispatcher = dispatcher
        self._works_on = works_on
        self.is_on = True
        """Whether time is skipped by itself. A sleep passes it in any case."""
        self._is_advancing = False
        self._changed = trio.Event()
        self._sleepers: list[tuple[int, int, trio.Event]] = []
        self._numbers = count()
        self._waits: dict[Wait, None] = {}
        self._skips = 0

    def notice(self) -> None:
        """Something happened: look again once everybody is blocked."""
        self._changed.set()

    def switch(self, *, on: bool) -> None:
        """Off from any thread, on from the loop's own."""
        self.is_on = on
        if on:
            self.notice()

    # --- what others do ------------------------------------------------------------------------------------

    async def sleep(self, ms: int) -> None:
        """Wait until so much time has passed and what was due in it is done."""
        event = trio.Event()
        heappush(self._sleepers, (self._clock.now_ms + ms, next(self._numbers), event))
        self.notice()
        await event.wait()

    async def advance(self, ms: int) -> None:
        """Let time pass now, whatever is worked on."""
        end_ms = self._clock.now_ms + ms
        self._is_advancing = True
        try:
            await trio.testing.wait_all_tasks_blocked()
            while (due_ms := self._dispatcher.next_deadline_ms()) is not None and due_ms <= end_ms:
                self._tick_at(due_ms)
                await trio.testing.wait_all_tasks_blocked()
            self._clock.now_ms = max(self._clock.now_ms, end_ms)
        finally:
            self._is_advancing = False
            self.notice()

    @contextmanager
    def waiting(self, workflow_id: str, run_id: str) -> Iterator[Wait]:
        """Within, somebody waits for an execution. The block is left early, with `why_never`, if that is in vain."""
        wait = Wait(workflow_id, run_id, began=self._skips)
        self._waits[wait] = None
        self.notice()
        try:
            with wait.scope:
                yield wait
        finally:
            del self._waits[wait]

    # --- the timer -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever."""
        while True:
            self._changed = trio.Event()
            await trio.testing.wait_all_tasks_blocked()
            if self._changed.is_set():
                continue  # meanwhile, or by a task that was woken together with this one
            if self._is_advancing or not self._go_on():
                await self._wait_for_news()

    def _go_on(self) -> bool:
        """Let time pass up to what comes next; False if it stands still."""
        if self._works_on():
            return False
        due_ms = self._dispatcher.next_deadline_ms()
        wake_ms = self._sleepers[0][0] if self._sleepers else None
        if wake_ms is None and not self.is_on:
            return False
        if due_ms is not None and (wake_ms is None or due_ms <= wake_ms):
            self._skips += 1
            self._check_waits()
            self._tick_at(due_ms)
            return True
        if wake_ms is not None:
            self._clock.now_ms = max(self._clock.now_ms, wake_ms)
            heappop(self._sleepers)[2].set()
            return True
        for wait in self._waits:
            wait.give_up("nothing is due, nothing is worked on, and nobody is left to do anything")
        return False

    def _tick_at(self, due_ms: int) -> None:
        self._clock.now_ms = max(self._clock.now_ms, due_ms)
        self._dispatcher.tick()

    def _check_waits(self) -> None:
        for wait in self._waits:
            if self._skips - wait.began > SKIPS_MAX:
                wait.give_up(
                    f"time was skipped {SKIPS_MAX:,} times and it has not ended: does something repeat for ever?"
                )
            elif self._task_failures(wait) >= TASK_FAILURES_MAX:
                wait.give_up(f"its workflow task failed {TASK_FAILURES_MAX} times in a row")

    def _task_failures(self, wait: Wait) -> int:
        namespaces = self._dispatcher.namespaces
        try:
            return namespaces.get("").engine.views.execution(wait.workflow_id, wait.run_id).task_failures
        except EngineError:
            return 0

    async def _wait_for_news(self) -> None:
        with trio.move_on_after(HELD_SECONDS) as scope:
            await self._changed.wait()
        if scope.cancelled_caught:
            if held_by := self._works_on():
                log.warning("time has stood still for %g s, while these run: %s", HELD_SECONDS, ", ".join(held_by))
            await self._changed.wait()
