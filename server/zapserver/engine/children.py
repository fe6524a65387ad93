"""Child workflows: started by command, reported to their parent once, and reached when the parent ends.

    | what happens                          | to the parent                        | to the child                     |
    |---------------------------------------|--------------------------------------|----------------------------------|
    | the command is applied                | CHILD_WORKFLOW_STARTED               | runs                             |
    | its id is taken, or there is no room  | CHILD_WORKFLOW_START_FAILED          | -                                |
    | the child's run ends, another follows | -                                    | the next run keeps the link      |
    | the child's last run ends             | CHILD_WORKFLOW_COMPLETED, _FAILED... | -                                |
    | the parent's run ends, in any way     | -                                    | terminated, canceled or left be  |
    | the parent is reset                   | the new run has the children         | runs on                          |

What one end means for others is done when the step ends, from a list and not by calls inside of calls: a chain of a
thousand generations must not be as deep as the stack.
"""

from __future__ import annotations

from zapserver.engine import executions, registry, wakeups
from zapserver.engine.commands import ParentClosePolicy, Payload, StartChildCommand, Status
from zapserver.engine.errors import Conflict, EngineError, LimitReached, Lost, NotFound
from zapserver.engine.records import Child, EventType, Execution, ParentLink
from zapserver.engine.state import State
from zapwire.failure import CANCELED_ERROR, Failure, encode_failure

CLOSING_EVENT = {
    Status.COMPLETED: EventType.CHILD_COMPLETED,
    Status.FAILED: EventType.CHILD_FAILED,
    Status.CANCELED: EventType.CHILD_CANCELED,
    Status.TERMINATED: EventType.CHILD_TERMINATED,
    Status.TIMED_OUT: EventType.CHILD_TIMED_OUT,
}


def start(s: State, parent: Execution, command: StartChildCommand, now_ms: int) -> None:
    """Start a child, or tell the parent why not. The names and times in `command` are checked already."""
    run_id = s.new_id()
    workflow_id = command.workflow_id or f"{command.type.lower()}-{run_id}"
    try:
        registry.check_free(s, workflow_id)
    except (Conflict, LimitReached) as error:
        event = s.record(
            parent,
            EventType.CHILD_START_FAILED,
            now_ms,
            commandId=command.id,
            workflowId=workflow_id,
            workflowType=command.type,
            failure=failure_of(error),
        )
        wakeups.news(s, parent, event.event_id, now_ms)
        return
    child = Execution(
        workflow_id=workflow_id,
        run_id=run_id,
        type=command.type,
        task_queue=command.task_queue or parent.task_queue,
        is_task=False,
        input=command.input,
        start_ms=now_ms,
        first_start_ms=now_ms,
        memo=command.memo,
        search_attributes=command.search_attributes,
        headers=parent.headers,
        identity=parent.identity,
        retry_policy=None if command.retry_policy is None else command.retry_policy.normalized(),
        timeouts=command.timeouts,
        cron_schedule=command.cron_schedule,
        task_due_ms=executions.first_due_ms(command.cron_schedule, now_ms),
        parent=ParentLink(parent.workflow_id, parent.run_id, command.id),
    )
    event = s.record(
        parent,
        EventType.CHILD_STARTED,
        now_ms,
        commandId=command.id,
        workflowId=workflow_id,
        runId=run_id,
        workflowType=command.type,
        parentClosePolicy=command.parent_close_policy.value,
    )
    policy = command.parent_close_policy
    parent.children[command.id] = Child(workflow_id, run_id, command.type, event.event_id, now_ms, policy)
    executions.admit(s, child, now_ms)
    executions.set_off(s, child, now_ms)
    wakeups.news(s, parent, event.event_id, now_ms)


def open_run(s: State, parent: Execution, command_id: str, child: Child) -> Execution | None:
    """The run in which a child goes on."""
    run = s.open_ids.get(child.workflow_id)
    link = None if run is None else run.parent
    return run if link is not None and (link.run_id, link.command_id) == (parent.run_id, command_id) else None


def tell_relatives(s: State, ended: Execution, now_ms: int) -> None:
    """An execution closed: report it to its parent, and do to its children what they were started for."""
    link = ended.parent
    if link is not None and not ended.new_run_id:
        parent = s.executions.get(link.run_id)
        if parent is not None and link.command_id in parent.children:
            report(s, parent, link.command_id, parent.children.pop(link.command_id), ended, now_ms)
    children, ended.children = ended.children, {}
    reason = f"its parent {ended.workflow_id!r} is {ended.status.name}"
    for command_id, child in children.items():
        run = open_run(s, ended, command_id, child)
        if run is None:
            continue
        match child.policy:
            case ParentClosePolicy.TERMINATE:
                executions.terminate(s, run, reason, "server", now_ms)
            case ParentClosePolicy.CANCEL:
                executions.cancel(s, run, reason, "server", now_ms)
            case ParentClosePolicy.ABANDON:
                run.parent = None
                s.touch(run)


def report(s: State, parent: Execution, command_id: str, child: Child, ended: Execution, now_ms: int) -> None:
    """Record the end of a child in its parent's history."""
    attributes: dict[str, object] = {
        "commandId": command_id,
        "startedEventId": child.started_event_id,
        "workflowId": ended.workflow_id,
        "runId": ended.run_id,
    }
    if ended.status is Status.COMPLETED:
        attributes["result"] = ended.result
    elif ended.failure is not None:
        attributes["failure"] = ended.failure
    else:
        attributes["failure"] = Payload(_failure_of_end(ended))
    event = s.record(parent, CLOSING_EVENT[ended.status], now_ms, **attributes)
    wakeups.news(s, parent, event.event_id, now_ms)


def report_unknown(s: State, parent: Execution, command_id: str, child: Child, now_ms: int) -> None:
    """The same for a child of which nothing is known any more."""
    text = f"the child {child.workflow_id!r} closed and was forgotten before its end was told"
    failure = encode_failure(Failure(message=text, code="ChildForgotten", non_retryable=True))
    event = s.record(
        parent,
        EventType.CHILD_TERMINATED,
        now_ms,
        commandId=command_id,
        startedEventId=child.started_event_id,
        workflowId=child.workflow_id,
        runId=child.run_id,
        failure=Payload(failure),
    )
    wakeups.news(s, parent, event.event_id, now_ms)


def last_run(s: State, child: Child) -> Execution | None:
    """The newest run of the chain that a child's first run began; None where it is forgotten or damaged."""
    try:
        run = s.execution(child.workflow_id, child.run_id)
        while run.new_run_id:
            run = s.execution(child.workflow_id, run.new_run_id)
    except (NotFound, Lost):
        return None
    return run


def failure_of(error: EngineError) -> Payload:
    text = encode_failure(Failure(message=str(error), code=type(error).__name__, non_retryable=True))
    return Payload(text)


def _failure_of_end(ended: Execution) -> bytes:
    code = CANCELED_ERROR if ended.status is Status.CANCELED else "TerminatedError"
    text = ended.close_reason or f"the child {ended.workflow_id!r} is {ended.status.name}"
    return encode_failure(Failure(message=text, code=code, non_retryable=True))
