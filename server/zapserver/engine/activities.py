"""The life of an activity: scheduled, started under a lease, retried, closed.

A one-shot task is an execution with one such activity, so both live by these rules. STARTED is
given twice: before and after somebody asked for a cancel.

    | input                            | SCHEDULED | BACKOFF   | STARTED   | STARTED, canceled | CLOSED  |
    |----------------------------------|-----------|-----------|-----------|-------------------|---------|
    | a slot is free                   | STARTED   | -         | -         | -                 | -       |
    | the worker completes it          | refused   | refused   | COMPLETED | COMPLETED         | refused |
    | it fails, attempts left          | refused   | refused   | BACKOFF   | FAILED            | refused |
    | it fails, no attempt left        | refused   | refused   | FAILED    | FAILED            | refused |
    | it fails, not to be retried      | refused   | refused   | FAILED    | FAILED            | refused |
    | it fails with CanceledError      | refused   | refused   | BACKOFF   | CANCELED          | refused |
    | heartbeat                        | refused   | refused   | STARTED   | STARTED           | refused |
    | handed back                      | refused   | refused   | SCHEDULED | CANCELED          | refused |
    | detached                         | refused   | refused   | STARTED   | STARTED           | refused |
    | worker lost, attempts left       | -         | -         | SCHEDULED | CANCELED          | -       |
    | worker lost, no attempt left     | -         | -         | FAILED    | CANCELED          | -       |
    | cancel                           | CANCELED  | CANCELED  | STARTED   | STARTED           | -       |
    | the retry is due                 | -         | SCHEDULED | -         | -                 | -       |
    | schedule-to-start timeout        | TIMED_OUT | -         | -         | -                 | -       |
    | schedule-to-close timeout        | TIMED_OUT | TIMED_OUT | TIMED_OUT | TIMED_OUT         | -       |
    | start-to-close, attempts left    | -         | -         | BACKOFF   | TIMED_OUT         | -       |
    | start-to-close, no attempt left  | -         | -         | TIMED_OUT | TIMED_OUT         | -       |
    | heartbeat timeout, attempts left | -         | -         | BACKOFF   | TIMED_OUT         | -       |
    | the execution ends               | CLOSED    | CLOSED    | CLOSED    | CLOSED            | -       |

COMPLETED, FAILED, CANCELED and TIMED_OUT are the outcomes of CLOSED; "-" cannot happen or changes
nothing. No attempt is left when the policy says so, when the wait would end past schedule-to-close,
or when the history is full. A detached attempt is STARTED still, but no worker can be lost with it:
it ends by whoever holds its token, by a timeout or with the execution. Functions that can close an
activity return its `Outcome`; what that means for the execution is decided in `executions`.
"""

from __future__ import annotations

import msgspec

from zapserver.engine import matching, registry
from zapserver.engine.commands import ActivityTimeouts, Payload, QueueKind, Status
from zapserver.engine.effects import DeliverActivityCancel
from zapserver.engine.errors import NotFound, StaleToken
from zapserver.engine.records import Activity, ActivityCall, ActivityState, EventType, Execution, Lease, QueuedTask
from zapserver.engine.retry import INTERVAL_MS_MAX, RetryPolicy
from zapserver.engine.state import State
from zapserver.engine.validation import storable_failure
from zapwire.failure import CANCELED_ERROR, TIMEOUT_ERROR, Failure, decode_failure, encode_failure

HISTORY_FULL_ERROR = "HistoryFull"


class Outcome(msgspec.Struct, frozen=True):
    """How an activity ended."""

    activity: Activity
    status: Status
    result: Payload | None = None
    failure: bytes | None = None


_NOW = {
    ActivityState.SCHEDULED: "it waits for a worker again",
    ActivityState.BACKOFF: "its next attempt backs off",
    ActivityState.STARTED: "a later attempt runs",
}

_CLOSING_EVENT = {
    Status.COMPLETED: EventType.ACTIVITY_COMPLETED,
    Status.FAILED: EventType.ACTIVITY_FAILED,
    Status.TIMED_OUT: EventType.ACTIVITY_TIMED_OUT,
    Status.CANCELED: EventType.ACTIVITY_CANCELED,
}


def schedule(
    s: State,
    execution: Execution,
    *,
    activity_id: str,
    activity_type: str,
    task_queue: str,
    input: Payload | None,
    timeouts: ActivityTimeouts,
    retry_policy: RetryPolicy,
    now_ms: int,
    call: ActivityCall | None = None,
    command_id: str = "",
    scheduled_event_id: int = 0,
) -> Activity:
    """Create an activity and hand it to a worker or to the line.

    `scheduled_event_id` is given where its scheduling is in the history already.
    """
    if not scheduled_event_id:
        attributes: dict[str, object] = {
            "activityId": activity_id,
            "activityType": activity_type,
            "taskQueue": task_queue,
            "input": input,
        }
        if not execution.is_task:  # a reset schedules it again from this
            attributes["timeouts"] = msgspec.structs.asdict(timeouts)
            attributes["retryPolicy"] = msgspec.structs.asdict(retry_policy)
        if command_id:
            attributes["commandId"] = command_id
        scheduled_event_id = s.record(execution, EventType.ACTIVITY_SCHEDULED, now_ms, **attributes).event_id
    activity = Activity(
        execution=execution,
        type=activity_type,
        queue=(QueueKind.ACTIVITY, task_queue),
        activity_id=activity_id,
        input=input,
        retry_policy=retry_policy,
        timeouts=timeouts,
        scheduled_ms=now_ms,
        ready_ms=now_ms,
        call=call,
        command_id=command_id,
        scheduled_event_id=scheduled_event_id,
    )
    s.activities[activity_id] = activity
    execution.open_activities[activity_id] = activity
    s.touch_activity(activity)
    matching.enqueue(s, activity, now_ms)
    s.timers.update(activity)
    return activity


def held(s: State, token: str) -> Activity:
    """The activity that `token` proves a present lease of.

    Raises `StaleToken` for a token of a lease that ended, `NotFound` for one that never was, or
    whose activity is closed.
    """
    parts = token.split("|")
    activity = s.activities.get(parts[1]) if len(parts) == 4 and parts[0] == "act" else None
    if activity is None:
        raise NotFound("task token not found: what it was for is closed, or it never was given out")
    if activity.lease is None or activity.lease.token != token:
        raise StaleToken(
            f"the lease of attempt {parts[2]} of {activity.type!r} ({activity.activity_id}) ended and"
            f" {_NOW[activity.state]}; this answer is refused"
        )
    return activity


def complete(s: State, token: str, result: Payload | None, now_ms: int) -> Outcome:
    return _close(s, Outcome(held(s, token), Status.COMPLETED, result=result), now_ms)


def fail(s: State, token: str, failure: bytes, now_ms: int) -> Outcome | None:
    """An attempt failed: closed, or None when another attempt follows."""
    activity = held(s, token)
    failure = storable_failure(failure)
    if activity.cancel_reason is not None and decode_failure(failure).code == CANCELED_ERROR:
        return _close(s, Outcome(activity, Status.CANCELED, failure=failure), now_ms)
    return _attempt_failed(s, activity, failure, Status.FAILED, now_ms)


def heartbeat(s: State, token: str, details: Payload | None, now_ms: int) -> bool:
    """Extend the lease and keep `details` for the next attempt; True when a cancel was asked for."""
    activity = held(s, token)
    assert activity.lease is not None
    activity.lease.heartbeat_ms = now_ms
    if details is not None:
        activity.heartbeat_details = details
    s.touch_activity(activity)
    return activity.cancel_reason is not None


def hand_back(s: State, token: str, reason: str, now_ms: int) -> Outcome | None:
    """The holder returns the task unharmed: to another worker, with no attempt charged."""
    activity = held(s, token)
    if activity.cancel_reason is not None:
        return _close(s, Outcome(activity, Status.CANCELED, failure=_canceled(activity)), now_ms)
    if not _has_room(s, activity):
        text = f"handed back with a history that is full ({activity.execution.history_length} events): {reason}"
        failure = encode_failure(Failure(message=text, code=HISTORY_FULL_ERROR, non_retryable=True))
        return _close(s, Outcome(activity, Status.FAILED, failure=failure), now_ms)
    activity.charged -= 1
    _event(s, activity, EventType.ACTIVITY_HANDED_BACK, now_ms, attempt=activity.attempt, reason=reason)
    activity.state = ActivityState.SCHEDULED
    matching.pass_on(s, activity, now_ms)
    s.timers.update(activity)
    return None


def detach(s: State, token: str, now_ms: int) -> None:
    """The worker is done with it, and whoever has the token is not: the slot is free, the lease stays.

    A second time changes nothing, so that a worker may repeat itself.
    """
    activity = held(s, token)
    lease = activity.lease
    assert lease is not None
    subscription = s.free_slot(lease)
    lease.is_detached = True
    s.touch_activity(activity)
    if subscription is not None:
        matching.serve(s, subscription, now_ms)


def workers_lost(s: State, lost: list[Activity], reason: str, now_ms: int) -> tuple[list[Outcome], list[QueuedTask]]:
    """The holders of `lost` are gone: what closes by that, and what another worker takes over now.

    A lost worker counts as an attempt, so that a task which kills its workers ends as a dead letter,
    but nothing waits for a backoff. The caller puts the second list back in line.
    """
    outcomes: list[Outcome] = []
    again: list[QueuedTask] = []
    for activity in lost:
        assert activity.lease is not None
        text = f"{activity.lease} was lost during attempt {activity.attempt}: {reason}"
        failure = encode_failure(Failure(message=text, code="WorkerLost"))
        if activity.cancel_reason is not None:
            outcomes.append(_close(s, Outcome(activity, Status.CANCELED, failure=_canceled(activity)), now_ms))
        elif not activity.retry_policy.allows_another(activity.charged) or not _has_room(s, activity):
            outcomes.append(_close(s, Outcome(activity, Status.FAILED, failure=failure), now_ms))
        else:
            _event(s, activity, EventType.ACTIVITY_RETRYING, now_ms, attempt=activity.attempt, failure=Payload(failure))
            activity.last_failure = failure
            activity.state = ActivityState.SCHEDULED
            activity.ready_ms = now_ms
            s.release(activity)
            s.timers.update(activity)
            again.append(activity)
    return outcomes, again


def request_cancel(s: State, activity: Activity, reason: str, now_ms: int) -> Outcome | None:
    """Cancel at once what nobody runs; ask the worker to stop what somebody runs."""
    if activity.cancel_reason is None:
        activity.cancel_reason = reason
        s.touch_activity(activity)
        if activity.lease is not None:
            _tell_worker(s, activity.lease, reason)
    if activity.lease is not None:
        return None
    return _close(s, Outcome(activity, Status.CANCELED, failure=_canceled(activity)), now_ms)


def abandon(s: State, activity: Activity, reason: str, now_ms: int) -> None:
    """The execution is over: close without a word to it, and stop the worker if one runs it."""
    if activity.lease is not None:
        _tell_worker(s, activity.lease, reason)
    _detach(s, activity, now_ms)


def fire(s: State, activity: Activity, now_ms: int) -> Outcome | None:
    """The activity's deadline has come: find which, and act on it."""
    timeouts = activity.timeouts
    if timeouts.schedule_to_close_ms and activity.scheduled_ms + timeouts.schedule_to_close_ms <= now_ms:
        return _timed_out(s, activity, "schedule-to-close", timeouts.schedule_to_close_ms, now_ms)
    if activity.state is ActivityState.BACKOFF:
        activity.state = ActivityState.SCHEDULED
        s.touch_activity(activity)
        matching.enqueue(s, activity, now_ms)
        s.timers.update(activity)
        return None
    if activity.state is ActivityState.SCHEDULED:
        return _timed_out(s, activity, "schedule-to-start", timeouts.schedule_to_start_ms, now_ms)
    lease = activity.lease
    assert lease is not None
    if timeouts.start_to_close_ms and lease.started_ms + timeouts.start_to_close_ms <= now_ms:
        kind, limit_ms = "start-to-close", timeouts.start_to_close_ms
    else:
        kind, limit_ms = "heartbeat", timeouts.heartbeat_ms
    text = f"{kind} timeout: attempt {activity.attempt} gave no answer within {limit_ms} ms"
    if kind == "heartbeat":
        text = f"heartbeat timeout: attempt {activity.attempt} was silent for {limit_ms} ms"
    _tell_worker(s, lease, text)
    failure = encode_failure(Failure(message=text, code=TIMEOUT_ERROR))
    return _attempt_failed(s, activity, failure, Status.TIMED_OUT, now_ms)


def _timed_out(s: State, activity: Activity, kind: str, limit_ms: int, now_ms: int) -> Outcome:
    text = f"{kind} timeout of {limit_ms} ms passed"
    if activity.lease is not None:
        _tell_worker(s, activity.lease, text)
    elif (queue := s.queues.get(activity.queue)) is not None and activity.state is ActivityState.SCHEDULED:
        text += f" while {queue.why_waiting(activity)}"
    cause = None if activity.last_failure is None else decode_failure(activity.last_failure)
    failure = encode_failure(Failure(message=text, code=TIMEOUT_ERROR, non_retryable=True, cause=cause))
    return _close(s, Outcome(activity, Status.TIMED_OUT, failure=failure), now_ms)


def _attempt_failed(s: State, activity: Activity, failure: bytes, status: Status, now_ms: int) -> Outcome | None:
    """Retry after a wait, or close when the policy, the failure or the total time says no."""
    policy = activity.retry_policy
    read = decode_failure(failure)
    wait_ms = policy.interval_ms(activity.charged) if read.next_retry_ms is None else read.next_retry_ms
    retry_ms = now_ms + max(0, min(wait_ms, INTERVAL_MS_MAX))
    close_ms = activity.timeouts.schedule_to_close_ms
    if (
        read.non_retryable
        or activity.cancel_reason is not None
        or read.code in policy.non_retryable_error_types
        or not policy.allows_another(activity.charged)
        or not _has_room(s, activity)
        or (close_ms and retry_ms >= activity.scheduled_ms + close_ms)
    ):
        return _close(s, Outcome(activity, status, failure=failure), now_ms)
    _event(
        s,
        activity,
        EventType.ACTIVITY_RETRYING,
        now_ms,
        attempt=activity.attempt,
        failure=Payload(failure),
        retryInMs=retry_ms - now_ms,
    )
    activity.last_failure = failure
    activity.state = ActivityState.BACKOFF
    activity.retry_ms = retry_ms
    matching.finish(s, activity, now_ms)
    s.timers.update(activity)
    return None


def _tell_worker(s: State, lease: Lease, reason: str) -> None:
    """Stop the code that runs for this lease. Of one that is detached none does: its holder asks by heartbeat."""
    if not lease.is_detached:
        s.effects.append(DeliverActivityCancel(peer=lease.peer, task_token=lease.token, reason=reason))


def _has_room(s: State, activity: Activity) -> bool:
    """Whether the history may grow by another attempt. Some policies would retry for ever."""
    return registry.history_has_room(s, activity.execution)


def _close(s: State, outcome: Outcome, now_ms: int) -> Outcome:
    activity = outcome.activity
    attributes: dict[str, object] = {"attempt": activity.attempt}
    if activity.lease is not None:
        attributes.update(activity.lease.holder)
    if outcome.status is Status.COMPLETED:
        attributes["result"] = outcome.result
    else:
        assert outcome.failure is not None
        attributes["failure"] = Payload(outcome.failure)
    if not activity.execution.is_task:
        attributes["scheduledEventId"] = activity.scheduled_event_id
    if activity.command_id:
        attributes["commandId"] = activity.command_id
    _event(s, activity, _CLOSING_EVENT[outcome.status], now_ms, **attributes)
    _detach(s, activity, now_ms)
    return outcome


def _detach(s: State, activity: Activity, now_ms: int) -> None:
    """Take a closing activity out of every index."""
    was_waiting = activity.state is ActivityState.SCHEDULED
    activity.state = ActivityState.CLOSED
    s.timers.remove(activity)
    del s.activities[activity.activity_id]
    del activity.execution.open_activities[activity.activity_id]
    s.touch_activity(activity)
    if was_waiting:
        matching.withdraw(s, activity)
    else:
        matching.finish(s, activity, now_ms)


def _event(s: State, activity: Activity, event_type: EventType, now_ms: int, **attributes: object) -> None:
    s.record(activity.execution, event_type, now_ms, activityId=activity.activity_id, **attributes)
    s.touch_activity(activity)


def _canceled(activity: Activity) -> bytes:
    text = activity.cancel_reason or "canceled"
    return encode_failure(Failure(message=text, code=CANCELED_ERROR, non_retryable=True))
