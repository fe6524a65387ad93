"""Reset: a new run that begins with a part of another run's history, as if nothing had happened since.

    | of the copied events           | a run that replays              | a run of a holder             |
    |--------------------------------|---------------------------------|-------------------------------|
    | an activity that closed        | its outcome is in the history   | is the answer when it is      |
    |                                |                                 | asked for again               |
    | an activity that was open      | is scheduled again              | is scheduled again            |
    | a timer that ran               | runs on to its original time    | -                             |
    | a child that is open           | gets the new run as its parent  | -                             |
    | a child that closed since      | its end is told again           | -                             |
    | a cancel request               | stands                          | does not                      |

    | of the events after them       |                                                                 |
    |--------------------------------|-----------------------------------------------------------------|
    | a signal                       | is recorded again: it was acknowledged                          |
    | a child that was started       | what its parent close policy says, as at every other end        |
    | everything else                | is not part of the new run                                      |

The answer of a replaying worker is copied whole or not at all, since a replay makes its commands all together: a cut
in the middle of them, or behind an answer that ended the run, moves to before the answer.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from zapserver.engine import activities, children, decisions, executions, registry, workflow_timers
from zapserver.engine.commands import ActivityTimeouts, ParentClosePolicy, Payload, ResetExecution, Started, Status
from zapserver.engine.errors import Invalid
from zapserver.engine.records import (
    AcceptedUpdate,
    Activity,
    ActivityCall,
    Child,
    Event,
    EventType,
    Execution,
    ParentLink,
)
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.state import State
from zapwire.failure import CANCELED_ERROR, Failure, encode_failure

_ACTIVITY_CLOSED = frozenset(
    {
        EventType.ACTIVITY_COMPLETED,
        EventType.ACTIVITY_FAILED,
        EventType.ACTIVITY_TIMED_OUT,
        EventType.ACTIVITY_CANCELED,
    }
)
_ENDS_BY_ANSWER = frozenset(
    {
        EventType.EXECUTION_COMPLETED,
        EventType.EXECUTION_FAILED,
        EventType.EXECUTION_CANCELED,
        EventType.EXECUTION_CONTINUED_AS_NEW,
    }
)
_ENDS = _ENDS_BY_ANSWER | {EventType.EXECUTION_TERMINATED, EventType.EXECUTION_TIMED_OUT}
_CHILD_CLOSED = frozenset(children.CLOSING_EVENT.values())


class _Story:
    """What a part of a history says is done and what is not."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.scheduled: dict[int, Event] = {}
        """Activities, by the id of the event that scheduled them."""
        self.closed: dict[int, Event] = {}
        """How those ended that did."""
        self.stopped: set[int] = set()
        """Those that were asked to stop."""
        self.timers: dict[str, Event] = {}
        self.children: dict[str, Event] = {}
        self.updates: dict[str, AcceptedUpdate] = {}
        self.answer: Event | None = None
        """The last one of a replaying worker."""
        self.cancel: Event | None = None
        for event in events:
            self._add(event)

    def _add(self, event: Event) -> None:
        of = event.attributes
        match event.type:
            case EventType.ACTIVITY_SCHEDULED:
                self.scheduled[event.event_id] = event
            case EventType.ACTIVITY_CANCEL_REQUESTED:
                self.stopped.add(of["scheduledEventId"])
            case closing if closing in _ACTIVITY_CLOSED:
                self.closed[of["scheduledEventId"]] = event
            case EventType.TIMER_STARTED:
                self.timers[of["commandId"]] = event
            case EventType.TIMER_FIRED | EventType.TIMER_CANCELED:
                self.timers.pop(of["commandId"], None)
            case EventType.CHILD_STARTED:
                self.children[of["commandId"]] = event
            case closing if closing in _CHILD_CLOSED:
                self.children.pop(of["commandId"], None)
            case EventType.UPDATE_ACCEPTED:
                self.updates[of["updateId"]] = AcceptedUpdate(of["name"], event.event_id)
            case EventType.UPDATE_COMPLETED:
                known = self.updates[of["updateId"]]
                self.updates[of["updateId"]] = AcceptedUpdate(known.name, known.accepted_event_id, event.event_id)
            case EventType.WORKFLOW_TASK_COMPLETED:
                self.answer = event
            case EventType.EXECUTION_CANCEL_REQUESTED:
                self.cancel = event


def reset(s: State, source: Execution, command: ResetExecution, now_ms: int) -> Started:
    """End `source` and start a new run from its input, with its history up to the event named."""
    if not 1 <= command.event_id <= source.history_length:
        raise Invalid(f"event id {command.event_id} is not in 1..{source.history_length} of run {source.run_id}")
    registry.check_room(s, source.workflow_id)
    registry.check_backlog(s, executions.queue_of(source))
    history = s.events(source)
    cut = _whole_answers(history, command.event_id)
    story = _Story(history[:cut]) if not source.is_task else _Story(())
    execution = executions.next_run(source, s.new_id(), now_ms)
    inherited = _take_children(source, story)
    if source.status.is_open:
        source.new_run_id = execution.run_id
        executions.move_followers(s, source, execution)
    else:
        execution.parent = None  # it was told of the end
    newest = s.open_ids.get(source.workflow_id)
    for run in {id(run): run for run in (source, newest) if run is not None and run.status.is_open}.values():
        reason = f"reset: {command.reason}"
        executions.close(s, run, Status.TERMINATED, now_ms, reason=reason, identity=command.identity)
    registry.index(s, execution)
    for event in history[:cut]:
        execution.signal_count += event.type is EventType.EXECUTION_SIGNALED
        s.record(execution, event.type, event.time_ms, **event.attributes)
    s.record(
        execution,
        EventType.EXECUTION_RESET,
        now_ms,
        baseRunId=source.run_id,
        originalRunId=_original_run_id(source, history),
        eventId=cut,
        reason=command.reason,
        identity=command.identity,
    )
    if not execution.is_task:
        for event in history[cut:]:
            if event.type is EventType.EXECUTION_SIGNALED:
                execution.signal_count += 1
                s.record(execution, event.type, now_ms, **event.attributes)
    if story.answer is None:
        _rebuild_calls(s, execution, story, now_ms)
    else:
        _go_on(s, execution, story, inherited, now_ms)
        execution.is_replayed = True  # not before: nothing of this is to wake it
    execution.news_event_id = execution.history_length
    executions.set_off(s, execution, now_ms)
    return Started(workflow_id=execution.workflow_id, run_id=execution.run_id)


def _original_run_id(source: Execution, history: list[Event]) -> str:
    """The run that no reset made: its id is the seed of what its workflow drew at random, and stays so."""
    for event in history:
        if event.type is EventType.EXECUTION_RESET:
            original: str = event.attributes.get("originalRunId") or event.attributes["baseRunId"]
            return original
    return source.run_id


def _whole_answers(history: list[Event], event_id: int) -> int:
    """Where to cut so that no answer of a replaying worker is torn, and no end is copied: at `event_id` or before."""
    if history[event_id - 1].type in _ENDS:
        event_id -= 1
    answer = 0
    for event in history[:event_id]:
        if event.type is EventType.WORKFLOW_TASK_COMPLETED:
            answer = event.event_id
    if not answer:
        return event_id
    for event in history[event_id:]:
        if event.type is EventType.WORKFLOW_TASK_COMPLETED:
            break
        if event.type in decisions.COMMAND_EVENTS or event.type in _ENDS_BY_ANSWER:
            return answer - 1
    return event_id


def _rebuild_calls(s: State, execution: Execution, story: _Story, now_ms: int) -> None:
    """A worker of the Go kind asks again from the first: what is recorded is its answer, the rest is done again."""
    for position, (event_id, scheduled) in enumerate(story.scheduled.items()):
        of = scheduled.attributes
        closed = story.closed.get(event_id)
        activity_id = f"act-{s.new_id()[:24]}" if closed is None else closed.attributes["activityId"]
        call = ActivityCall(position, activity_id, of["activityType"], of["input"])
        execution.calls.append(call)
        if closed is None:
            _schedule_again(s, execution, scheduled, call.activity_id, now_ms, call=call)
            continue
        failure = closed.attributes.get("failure")
        call.is_closed = True
        call.result = closed.attributes.get("result")
        call.failure = None if failure is None else bytes(failure)


def _go_on(s: State, execution: Execution, story: _Story, inherited: dict[str, Child], now_ms: int) -> None:
    """What was open at the cut is open again."""
    assert story.answer is not None
    execution.seen_event_id = story.answer.attributes["seenEventId"]
    execution.updates = story.updates
    if story.cancel is not None:
        execution.status = Status.CANCELING
        execution.cancel_reason = story.cancel.attributes["reason"]
        execution.cancel_identity = story.cancel.attributes["identity"]
    for command_id, started in story.timers.items():
        due_ms = started.time_ms + started.attributes["fireAfterMs"]
        workflow_timers.arm(s, execution, command_id, started.event_id, started.time_ms, due_ms)
    for event_id, scheduled in story.scheduled.items():
        if event_id in story.closed:
            continue
        command_id = scheduled.attributes["commandId"]
        activity_id = decisions.activity_id(execution, command_id)
        if event_id in story.stopped:
            _cancel_unbegun(s, execution, scheduled, activity_id, now_ms)
        else:
            _schedule_again(s, execution, scheduled, activity_id, now_ms, command_id=command_id)
    for command_id, child in inherited.items():
        run = children.last_run(s, child)
        if run is None:
            children.report_unknown(s, execution, command_id, child, now_ms)
        elif run.status.is_open:
            run.parent = ParentLink(execution.workflow_id, execution.run_id, command_id)
            s.touch(run)
            execution.children[command_id] = child
        else:
            children.report(s, execution, command_id, child, run, now_ms)


def _cancel_unbegun(s: State, execution: Execution, scheduled: Event, activity_id: str, now_ms: int) -> None:
    """The workflow had asked the activity to stop: nobody begins with it again."""
    text = "the workflow canceled it, and a reset ended the attempt"
    failure = encode_failure(Failure(message=text, code=CANCELED_ERROR, non_retryable=True))
    s.record(
        execution,
        EventType.ACTIVITY_CANCELED,
        now_ms,
        activityId=activity_id,
        attempt=0,
        failure=Payload(failure),
        scheduledEventId=scheduled.event_id,
        commandId=scheduled.attributes["commandId"],
    )


def _schedule_again(
    s: State,
    execution: Execution,
    scheduled: Event,
    activity_id: str,
    now_ms: int,
    *,
    call: ActivityCall | None = None,
    command_id: str = "",
) -> Activity:
    of = scheduled.attributes
    return activities.schedule(
        s,
        execution,
        activity_id=activity_id,
        activity_type=of["activityType"],
        task_queue=of["taskQueue"],
        input=of["input"],
        timeouts=msgspec.convert(of["timeouts"], ActivityTimeouts),
        retry_policy=msgspec.convert(of["retryPolicy"], RetryPolicy),
        now_ms=now_ms,
        scheduled_event_id=scheduled.event_id,
        call=call,
        command_id=command_id,
    )


def _take_children(source: Execution, story: _Story) -> dict[str, Child]:
    """The children that the new run goes on with; those that are open leave the old run, which is about to end."""
    taken: dict[str, Child] = {}
    for command_id, started in story.children.items():
        of = started.attributes
        taken[command_id] = Child(
            workflow_id=of["workflowId"],
            run_id=of["runId"],
            type=of["workflowType"],
            started_event_id=started.event_id,
            started_ms=started.time_ms,
            policy=ParentClosePolicy(of["parentClosePolicy"]),
        )
        source.children.pop(command_id, None)
    return taken
