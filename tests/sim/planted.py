"""Mistakes to make on purpose, one for each checker: what a simulation is worth is what it catches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

from tests.sim.disk import SimDisk

from zapserver.dispatch import Dispatcher
from zapserver.engine import activities, changes, recovery, saved, schedules, slots
from zapserver.engine.commands import Payload
from zapserver.engine.records import Activity, ActivityState, Execution
from zapserver.engine.state import State
from zapserver.engine.timers import Timers
from zapserver.journal import Journal


@contextmanager
def answers_before_the_commit() -> Iterator[None]:
    """Promise 1: an acknowledgement leaves before what it acknowledges is kept."""

    def send(self: Journal, send: Callable[[], None], fail: object = None) -> None:
        send()

    with patch.object(Journal, "send", send):
        yield


@contextmanager
def synced_commits_are_lost() -> Iterator[None]:
    """Promise 1: the disk lies about its syncs."""
    with patch.object(SimDisk, "sync", lambda self: None):
        yield


@contextmanager
def a_step_keeps_one_event() -> Iterator[None]:
    """Promise 1: a history gets the first event of a step only."""
    encode = saved.encode_events
    with patch.object(changes, "encode_events", lambda events: encode(events[:1])):
        yield


@contextmanager
def heartbeat_details_are_not_written() -> Iterator[None]:
    """Promise 1: what a heartbeat left behind is forgotten with the process."""
    record = saved._activity_record

    def forget(activity: Activity) -> Any:
        details, activity.heartbeat_details = activity.heartbeat_details, None
        try:
            return record(activity)
        finally:
            activity.heartbeat_details = details

    with patch.object(saved, "_activity_record", forget):
        yield


@contextmanager
def results_are_written_wrong() -> Iterator[None]:
    """Promise 2: who waited hears one result, who asks later another."""
    encode = saved.encode_execution

    def encode_execution(execution: Execution) -> bytes:
        if execution.result is None or execution.status.is_open:
            return encode(execution)
        result, execution.result = execution.result, Payload(b'"another"')
        try:
            return encode(execution)
        finally:
            execution.result = result

    with patch.object(changes, "encode_execution", encode_execution):
        yield


@contextmanager
def old_attempts_are_taken() -> Iterator[None]:
    """Promise 3: an answer counts whatever its token."""

    def held(s: State, token: str) -> Activity:
        parts = token.split("|")
        activity = s.activities.get(parts[1]) if len(parts) == 4 else None
        if activity is None or activity.lease is None:
            return real(s, token)
        return activity

    real = activities.held
    with patch.object(activities, "held", held):
        yield


@contextmanager
def leases_are_forgotten() -> Iterator[None]:
    """Promise 3: an engine that is built again gives away what its connections hold."""
    adopt = recovery.adopt

    def forget(s: State, old: State, live: Any, now_ms: int) -> None:
        leases = [
            task
            for execution in s.executions.values()
            for task in (execution.task, *execution.open_activities.values())
            if task is not None and task.lease is not None
        ]
        for task in leases:
            assert task.lease is not None
            task.lease.peer = -1
        adopt(s, old, live, now_ms)

    with patch.object(recovery, "adopt", forget):
        yield


@contextmanager
def retries_are_forgotten() -> Iterator[None]:
    """Promise 4: nothing wakes an activity that backs off."""
    update = Timers.update

    def forget(self: Timers, target: Any) -> None:
        if not (isinstance(target, Activity) and target.state is ActivityState.BACKOFF):
            update(self, target)

    with patch.object(Timers, "update", forget):
        yield


@contextmanager
def slots_fire_again_after_a_restart() -> Iterator[None]:
    """Promise 5: what a schedule has done is not written."""

    def touch_schedule(self: State, schedule: Any) -> None:
        if schedule.last_slot_ms is None or schedule.is_deleted:
            self.changed_schedules[schedule.schedule_id] = schedule

    with patch.object(State, "touch_schedule", touch_schedule):
        yield


@contextmanager
def slots_are_left_out() -> Iterator[None]:
    """Promise 5: a schedule that catches up acts on the first slot only, and counts none of the others."""
    plan = schedules._plan

    def skip(s: State, schedule: Any, next_ms: int | None, now_ms: int) -> None:
        if next_ms is not None and next_ms <= now_ms:
            next_ms = slots.slot_after(schedule.spec, schedule.anchor_ms, now_ms)
        plan(s, schedule, next_ms, now_ms)

    with patch.object(schedules, "_plan", skip), patch.object(schedules, "slots_at_once", lambda *_: 1):
        yield


@contextmanager
def cancels_stay_here() -> Iterator[None]:
    """Promise 6: nobody tells the worker that runs an activity."""

    def request_cancel(s: State, activity: Activity, reason: str, now_ms: int) -> None:
        if activity.lease is None:
            real(s, activity, reason, now_ms)
            return
        activity.cancel_reason = None

    real = activities.request_cancel
    with patch.object(activities, "request_cancel", request_cancel):
        yield


@contextmanager
def everybody_waits_for_a_slow_peer() -> Iterator[None]:
    """Promise 7: no answer leaves while somebody does not read."""
    reply = Dispatcher._reply

    def wait(self: Dispatcher, link: Any, request_id: int, opcode: int, answer: bytes) -> None:
        slow = [each for each in self._peers if each.outbox_bytes]
        if slow and link not in slow:
            slow[0].start_soon(_when_read, slow[0], lambda: reply(self, link, request_id, opcode, answer))
        else:
            reply(self, link, request_id, opcode, answer)

    with patch.object(Dispatcher, "_reply", wait):
        yield


async def _when_read(link: Any, send: Callable[[], None]) -> None:
    await link.wait_sent(0)
    send()


Plant = Callable[[], AbstractContextManager[None]]

PLANTED: dict[Plant, str] = {
    answers_before_the_commit: "1 kept",
    synced_commits_are_lost: "1 kept",
    a_step_keeps_one_event: "1 kept",
    heartbeat_details_are_not_written: "1 kept",
    results_are_written_wrong: "2 result",
    old_attempts_are_taken: "3 lease",
    leases_are_forgotten: "3 lease",
    retries_are_forgotten: "4 end",
    slots_fire_again_after_a_restart: "5 slot",
    slots_are_left_out: "5 slot",
    cancels_stay_here: "6 cancel",
    everybody_waits_for_a_slow_peer: "7 patience",
}
"""Each with the checker that has to catch it first."""
