"""The load: starts, signals, cancels and schedules through a proxy that misbehaves, and what was acknowledged of them.

Nothing counts as acknowledged before it stands in the file of the journal.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio
from tests.robustness.journal import ACKNOWLEDGED, Journal

from zaptasks import (
    AsyncClient,
    CallFailed,
    ConnectionLost,
    ExecutionError,
    ExecutionHandle,
    RetryPolicy,
    ScheduleSpec,
    StartTask,
    WithStart,
)

QUEUE = "robust"
NOBODY = "nobody-serves-this"
AT_ONCE = RetryPolicy(initial_interval=0.05, maximum_interval=0.5)
THRICE = RetryPolicy(initial_interval=0.05, maximum_attempts=3)
UNSERVED_SECONDS = 2.0
SCHEDULES_MAX = 10
IN_FLIGHT_MAX = 400
"""Calls without an answer: while the server is away nothing more is begun."""
WAITED_SHARE = 0.3
"""Of the tasks and workflows, how many somebody waits for."""
TICK_SECONDS = 0.02

COMPLETED, FAILED, TIMED_OUT = "COMPLETED", "FAILED", "TIMED_OUT"


@dataclass(slots=True)
class Started:
    """An acknowledged task or workflow."""

    kind: str
    id: str
    run_id: str
    request_id: str
    ends: str
    """How it has to end, unless somebody stopped it."""
    stops: set[str] = field(default_factory=set)
    """What was asked for, acknowledged or not: "cancel", "terminate"."""
    canceled: bool = False
    """A cancel was acknowledged."""
    outcome: tuple[str, Any] | None = None
    """What somebody who waited was told: COMPLETED and the result, or the name and the text of the error."""


@dataclass(slots=True)
class Signal:
    """An acknowledged signal; `value` is its own alone."""

    id: str
    run_id: str
    value: str


@dataclass(slots=True)
class Scheduled:
    """An acknowledged schedule, with the times in milliseconds between which it was made, and was paused."""

    id: str
    interval_ms: int
    overlap: str
    asked_ms: int
    made_ms: int
    pausing_ms: int = 0
    paused_ms: int = 0
    is_deleted: bool = False
    is_doubtful: bool = False
    """A change of it was sent and never acknowledged."""


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Load:
    """Generates calls on `clients`, `rate` of them a second, until `stop`."""

    def __init__(self, clients: list[AsyncClient], journal: Journal, rng: random.Random, rate: float) -> None:
        self._clients = clients
        self._journal = journal
        self._rng = rng
        self._rate = rate
        self._number = 0
        self._in_flight = 0
        self.is_over = False
        self.counts: Counter[str] = Counter()
        """`submitted`, `acknowledged`, `unknown`, `refused`, `results`."""
        self.refusals: Counter[str] = Counter()
        self.started: dict[str, Started] = {}
        """By run id."""
        self.signals: list[Signal] = []
        self.schedules: dict[str, Scheduled] = {}
        self.contradictions: list[str] = []
        """Answers that contradict earlier ones."""
        self._parked: list[Started] = []
        operations: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            *(
                (weight, lambda kind=kind: self._task(kind))
                for kind, weight in (("quick", 58), ("slow", 8), ("threaded", 8), ("beating", 5), ("flaky", 4))
            ),
            (1, lambda: self._task("poison", ends=FAILED, retry_policy=THRICE)),
            (1, self._unserved),
            (4, lambda: self._workflow("chain")),
            (2, lambda: self._workflow("parked")),
            (4, self._signal),
            (3, self._signal_with_start),
            (0.7, lambda: self._stop("cancel")),
            (0.3, lambda: self._stop("terminate")),
            (2, self._repeat),
            (0.5, self._make_schedule),
            (0.01, self._delete_schedule),
        ]
        self._operations = [operation for _, operation in operations]
        self._weights = [weight for weight, _ in operations]

    async def run(self) -> None:
        """Until `stop`, and until every call that was begun has its outcome."""
        async with trio.open_nursery() as calls, trio.open_nursery() as waiting:
            self._waiting = waiting
            for _ in range(3):
                calls.start_soon(self._counted, self._make_schedule)
            due = 0.0
            while not self.is_over:
                due = min(due + self._rate * TICK_SECONDS, self._rate)
                while due >= 1 and self._in_flight < IN_FLIGHT_MAX:
                    due -= 1
                    (operation,) = self._rng.choices(self._operations, self._weights)
                    calls.start_soon(self._counted, operation)
                await trio.sleep(TICK_SECONDS)

    def stop(self) -> None:
        self.is_over = True

    async def _counted(self, operation: Callable[[], Awaitable[None]]) -> None:
        self._in_flight += 1
        try:
            await operation()
        except ConnectionLost:
            self.counts["unknown"] += 1
        except CallFailed as error:
            self.counts["refused"] += 1
            self.refusals[f"{error.status} {error.detail[:60]}"] += 1
        finally:
            self._in_flight -= 1

    @property
    def _client(self) -> AsyncClient:
        return self._rng.choice(self._clients)

    def _next(self) -> int:
        self._number += 1
        self.counts["submitted"] += 1
        return self._number

    def _acknowledge(self, what: str, **line: Any) -> None:
        self._note(what, **line)
        self.counts["acknowledged"] += 1

    def _note(self, what: str, **line: Any) -> None:
        self._journal.write(ACKNOWLEDGED, what=what, ms=wall_ms(), **line)

    # --- tasks and workflows ---------------------------------------------------------------------------

    async def _task(self, kind: str, *, ends: str = COMPLETED, retry_policy: RetryPolicy = AT_ONCE) -> None:
        number = self._next()
        request_id = f"r-{number}"
        beat = 1.0 if kind == "beating" else None
        handle = await self._client.start_task(
            kind, number, task_queue=QUEUE, request_id=request_id, retry_policy=retry_policy, heartbeat_timeout=beat
        )
        self._note_start(kind, handle, request_id, ends)

    async def _unserved(self) -> None:
        number = self._next()
        handle = await self._client.start_task(
            "quick", number, task_queue=NOBODY, request_id=f"r-{number}", schedule_to_start=UNSERVED_SECONDS
        )
        self._note_start("unserved", handle, f"r-{number}", TIMED_OUT)

    async def _workflow(self, kind: str) -> None:
        number = self._next()
        request_id = f"r-{number}"
        handle = await self._client.start_workflow(
            kind, number, id=f"{kind}-{number}", task_queue=QUEUE, request_id=request_id
        )
        self._note_start(kind, handle, request_id, COMPLETED)

    def _note_start(self, kind: str, handle: ExecutionHandle, request_id: str, ends: str) -> None:
        self._acknowledge("start", kind=kind, id=handle.workflow_id, run=handle.run_id, request=request_id)
        started = self.started.get(handle.run_id)
        if started is None:
            started = Started(kind, handle.workflow_id, handle.run_id, request_id, ends)
            self.started[handle.run_id] = started
            if kind == "parked":
                self._parked = [*self._parked[-30:], started]
            if self._rng.random() < WAITED_SHARE and not self.is_over:
                self._waiting.start_soon(self._wait, handle, started)
        elif kind != "parked":
            self.contradictions.append(f"{handle.run_id} was started by {started.request_id} and {request_id}")

    async def _wait(self, handle: ExecutionHandle, started: Started) -> None:
        try:
            outcome: tuple[str, Any] = (COMPLETED, await handle.result())
        except ExecutionError as error:
            outcome = (type(error).__name__, error.message)
        except (ConnectionLost, CallFailed) as error:
            self.refusals[f"result: {error}"[:80]] += 1
            return
        self._note("result", run=started.run_id, status=outcome[0], value=outcome[1])
        self.counts["results"] += 1
        started.outcome = outcome

    async def _repeat(self) -> None:
        """The same request again, as a caller does who never saw the answer: it must name the same run."""
        tasks = [each for each in list(self.started.values())[-300:] if each.kind in ("quick", "slow", "threaded")]
        if not tasks:
            return
        first = self._rng.choice(tasks)
        self.counts["submitted"] += 1
        handle = await self._client.start_task(first.kind, -1, task_queue=QUEUE, request_id=first.request_id)
        self._acknowledge("repeat", run=handle.run_id, request=first.request_id)
        if handle.run_id != first.run_id:
            self.contradictions.append(
                f"request {first.request_id} started {first.run_id}, and when repeated {handle.run_id}"
            )

    # --- signals, cancels --------------------------------------------------------------------------------

    async def _signal(self) -> None:
        if not self._parked:
            return
        target = self._rng.choice(self._parked)
        value = f"s-{self._next()}"
        handle = self._client.get_handle(target.id, target.run_id)
        try:
            await handle.signal("poke", value)
        except CallFailed as error:
            if error.status not in (404, 409):
                raise
            self.counts["signals to what had ended"] += 1
            return
        self._acknowledge("signal", run=target.run_id, value=value)
        self.signals.append(Signal(target.id, target.run_id, value))

    async def _signal_with_start(self) -> None:
        number = self._next()
        value, request_id = f"s-{number}", f"r-{number}"
        handle = await self._client.signal_with_start(
            "poke",
            value,
            start=WithStart(
                "parked", number, id=f"shared-{self._rng.randrange(5)}", task_queue=QUEUE, request_id=request_id
            ),
        )
        self._note_start("parked", handle, request_id, COMPLETED)
        self._note("signal", run=handle.run_id, value=value)
        self.signals.append(Signal(handle.workflow_id, handle.run_id, value))

    async def _stop(self, how: str) -> None:
        recent = [each for each in list(self.started.values())[-60:] if each.ends == COMPLETED]
        if not recent:
            return
        target = self._rng.choice([*recent, *self._parked])
        self._next()
        target.stops.add(how)
        handle = self._client.get_handle(target.id, target.run_id)
        await (handle.cancel("the load wants it") if how == "cancel" else handle.terminate("the load wants it"))
        self._acknowledge(how, run=target.run_id)
        target.canceled = True

    # --- schedules -----------------------------------------------------------------------------------------

    async def _make_schedule(self) -> None:
        if sum(not each.is_deleted for each in self.schedules.values()) >= SCHEDULES_MAX:
            return
        number = self._next()
        overlap = ("allow", "skip", "buffer-one")[number % 3]
        interval = self._rng.choice((0.5, 1.0, 2.0))
        kind = self._rng.choice(("quick", "slow", "beating"))
        asked_ms = wall_ms()
        name = f"schedule-{number}"
        await self._client.create_schedule(
            name,
            ScheduleSpec(interval=interval, phase=0),
            StartTask(kind, number, QUEUE, AT_ONCE, heartbeat_timeout=1.0),
            overlap=overlap,
        )
        self._acknowledge("schedule", id=name)
        self.schedules[name] = Scheduled(name, round(interval * 1000), overlap, asked_ms, wall_ms())

    async def _delete_schedule(self) -> None:
        there = [each for each in self.schedules.values() if not each.is_deleted and not each.is_doubtful]
        if len(there) < SCHEDULES_MAX // 2:
            return
        target = self._rng.choice(there)
        self._next()
        target.is_doubtful = True
        await self._client.delete_schedule(target.id)
        self._acknowledge("delete schedule", id=target.id)
        target.is_doubtful, target.is_deleted = False, True

    async def pause_schedules(self) -> None:
        """For the end, undisturbed: from here on no slot is acted on."""
        for schedule in self.schedules.values():
            if not schedule.is_deleted and not schedule.is_doubtful:
                schedule.pausing_ms = wall_ms()
                with suppress(CallFailed):  # one that is lost is found by the check
                    await self._clients[0].pause_schedule(schedule.id)
                    schedule.paused_ms = wall_ms()
