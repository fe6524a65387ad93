"""Mistakes to make on purpose, one at least for each checker: what a simulation is worth is what it catches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from tests.sim.disk import SimDisk, SimWriter

from zapserver.dispatch import Dispatcher
from zapserver.engine import (
    activities,
    changes,
    children,
    executions,
    histories,
    recovery,
    saved,
    schedule_runs,
    schedules,
    slots,
    workflow_timers,
)
from zapserver.engine.commands import Payload
from zapserver.engine.rate import PeerRate, QueueRate
from zapserver.engine.records import AcceptedUpdate, Activity, ActivityState, Execution, WorkflowTimer
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
def detached_leases_end_with_their_workers() -> Iterator[None]:
    """Promise 3: what is detached goes to another worker once the first is gone."""

    def detach(s: State, token: str, now_ms: int) -> None:
        activities.held(s, token)

    with patch.object(activities, "detach", detach):
        yield


@contextmanager
def detached_leases_end_with_the_server() -> Iterator[None]:
    """Promise 3: that a lease is detached is not written."""
    record = saved._activity_record

    def forget(activity: Activity) -> Any:
        written = record(activity)
        if activity.lease is not None:
            written.lease = replace(activity.lease, is_detached=False)
        return written

    with patch.object(saved, "_activity_record", forget):
        yield


@contextmanager
def results_by_token_are_lost() -> Iterator[None]:
    """Promise 1: what somebody says of a detached attempt is acknowledged, and counts as if it were nothing."""

    def complete(s: State, token: str, result: Payload | None, now_ms: int) -> Any:
        lease = activities.held(s, token).lease
        assert lease is not None
        return real(s, token, None if lease.is_detached else result, now_ms)

    real = activities.complete
    with patch.object(activities, "complete", complete):
        yield


@contextmanager
def time_is_up_for_workers_only() -> Iterator[None]:
    """Promise 3: the token of a detached attempt is good for longer than its time."""
    fire = activities.fire

    def fire_unless_detached(s: State, activity: Activity, now_ms: int) -> Any:
        lease = activity.lease
        if lease is None or not lease.is_detached:
            return fire(s, activity, now_ms)
        lease.started_ms = lease.heartbeat_ms = now_ms
        s.timers.update(activity)
        return None

    with patch.object(activities, "fire", fire_unless_detached):
        yield


@contextmanager
def headers_are_not_written() -> Iterator[None]:
    """Headers: they are forgotten with the process."""
    encode = saved.encode_execution

    def encode_execution(execution: Execution) -> bytes:
        headers, execution.headers = execution.headers, None
        try:
            return encode(execution)
        finally:
            execution.headers = headers

    with patch.object(changes, "encode_execution", encode_execution):
        yield


@contextmanager
def later_runs_have_no_headers() -> Iterator[None]:
    """Headers: a retry and what continues as new go without them."""
    new_run = executions.next_run

    def forget(*arguments: Any, **named: Any) -> Execution:
        run = new_run(*arguments, **named)
        run.headers = None
        return run

    with patch.object(executions, "next_run", forget):
        yield


@contextmanager
def workers_have_no_rate() -> Iterator[None]:
    """Rates: what a worker asks for is not counted."""
    with patch.object(PeerRate, "take", lambda *_: None):
        yield


@contextmanager
def queues_have_no_rate() -> Iterator[None]:
    """Rates: what goes out of a queue is not counted."""
    with patch.object(QueueRate, "take", lambda *_: None):
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


@contextmanager
def children_are_left_alone() -> Iterator[None]:
    """Promise 6: nobody ends the children of a run that ends."""
    tell = children.tell_relatives

    def tell_relatives(s: State, ended: Execution, now_ms: int) -> None:
        ended.children = {}
        tell(s, ended, now_ms)

    with patch.object(children, "tell_relatives", tell_relatives):
        yield


@contextmanager
def parents_hear_nothing_after_a_restart() -> Iterator[None]:
    """Promise 6: which children a run has is not written."""
    encode = saved.encode_execution

    def encode_execution(execution: Execution) -> bytes:
        known, execution.children = execution.children, {}
        try:
            return encode(execution)
        finally:
            execution.children = known

    with patch.object(changes, "encode_execution", encode_execution):
        yield


@contextmanager
def update_outcomes_are_lost() -> Iterator[None]:
    """Promise 1: that an update is completed is not written, only that it was accepted."""
    encode = saved.encode_execution

    def encode_execution(execution: Execution) -> bytes:
        known = execution.updates
        execution.updates = {
            update_id: AcceptedUpdate(update.name, update.accepted_event_id) for update_id, update in known.items()
        }
        try:
            return encode(execution)
        finally:
            execution.updates = known

    with patch.object(changes, "encode_execution", encode_execution):
        yield


@contextmanager
def signals_are_taken_twice() -> Iterator[None]:
    """Promise 1: the request ids of signals are forgotten with the process."""
    encode = saved.encode_execution

    def encode_execution(execution: Execution) -> bytes:
        known, execution.signal_ids = execution.signal_ids, {}
        try:
            return encode(execution)
        finally:
            execution.signal_ids = known

    with patch.object(changes, "encode_execution", encode_execution):
        yield


@contextmanager
def signals_are_not_carried_over() -> Iterator[None]:
    """Promise 1: what came while a run continued as new is left behind."""
    with patch.object(executions, "_carry_over", lambda *_: None):
        yield


@contextmanager
def timers_fire_again_after_a_restart() -> Iterator[None]:
    """A story: a timer that has fired is still written as one that runs."""
    fire = workflow_timers.fire

    def fire_and_forget(s: State, timer: WorkflowTimer, now_ms: int) -> None:
        fire(s, timer, now_ms)
        s.executions[timer.run_id].timers[timer.command_id] = timer

    with patch.object(workflow_timers, "fire", fire_and_forget):
        yield


@contextmanager
def timers_fire_early() -> Iterator[None]:
    """A story: an engine that is built again counts the time of its timers from their start as half of it."""
    restore = saved.restored_timers

    def restored_timers(execution: Execution, records: Any) -> dict[str, WorkflowTimer]:
        timers = restore(execution, records)
        for timer in timers.values():
            timer.due_ms = (timer.started_ms + timer.due_ms) // 2
        return timers

    with patch.object(recovery, "restored_timers", restored_timers):
        yield


@contextmanager
def workers_are_told_too_little() -> Iterator[None]:
    """A story: what goes with a task begins one event too late for a worker that has the run at hand."""
    chunk = histories.chunk
    with patch.object(histories, "chunk", lambda s, execution, after: chunk(s, execution, after + (after > 3))):
        yield


@contextmanager
def steps_go_wrong() -> Iterator[None]:
    """Promise 8: a step of the engine breaks in the middle."""

    def cancel(*arguments: Any) -> None:
        raise ZeroDivisionError

    with patch.object(workflow_timers, "cancel", cancel):
        yield


@contextmanager
def one_sick_disk_stops_all() -> Iterator[None]:
    """Promise 7: a namespace takes nothing while the store of another is sick."""
    sick: set[SimWriter] = set()

    def take(self: SimWriter) -> None:
        (sick.discard if self._disk.is_well else sick.add)(self)
        if sick - {self}:
            self._later(50, lambda: take(self))
        else:
            real(self)

    real = SimWriter._take
    with patch.object(SimWriter, "_take", take):
        yield


@contextmanager
def backfills_leave_slots_out() -> Iterator[None]:
    """Promise 5: a backfill passes over every other slot."""
    work = schedule_runs._work_off_backfills

    def work_off(s: State, schedule: Any, now_ms: int) -> bool:
        for backfill in schedule.backfills:
            del backfill.slots[1::2]
        return work(s, schedule, now_ms)

    with patch.object(schedule_runs, "_work_off_backfills", work_off):
        yield


Plant = Callable[[], AbstractContextManager[None]]

PLANTED: dict[Plant, str] = {
    answers_before_the_commit: "1 kept",
    synced_commits_are_lost: "1 kept",
    a_step_keeps_one_event: "1 kept",
    heartbeat_details_are_not_written: "1 kept",
    results_are_written_wrong: "2 result",
    old_attempts_are_taken: "3 lease",
    leases_are_forgotten: "3 lease",
    detached_leases_end_with_their_workers: "3 lease",
    detached_leases_end_with_the_server: "3 lease",
    results_by_token_are_lost: "1 kept",
    time_is_up_for_workers_only: "3 lease",
    headers_are_not_written: "headers",
    later_runs_have_no_headers: "headers",
    workers_have_no_rate: "rate",
    queues_have_no_rate: "rate",
    retries_are_forgotten: "4 end",
    slots_fire_again_after_a_restart: "5 slot",
    slots_are_left_out: "5 slot",
    cancels_stay_here: "6 cancel",
    everybody_waits_for_a_slow_peer: "7 patience",
    children_are_left_alone: "6 cancel",
    parents_hear_nothing_after_a_restart: "6 cancel",
    update_outcomes_are_lost: "1 kept",
    signals_are_taken_twice: "1 kept",
    signals_are_not_carried_over: "1 kept",
    timers_fire_again_after_a_restart: "story",
    timers_fire_early: "story",
    workers_are_told_too_little: "story",
    steps_go_wrong: "8 step",
    one_sick_disk_stops_all: "7 patience",
    backfills_leave_slots_out: "5 slot",
}
"""Each with the checker that has to catch it first."""
