"""Updates: a caller asks a running workflow to change, and the workflow answers.

    | update       | admitted | out with a task | accepted             | completed            |
    |--------------|----------|-----------------|----------------------|----------------------|
    | is kept      | no       | no              | yes, as an event     | yes, as an event     |
    | its caller   | waits    | waits           | is answered, or waits for the outcome | is answered |
    | worker lost  | stays    | admitted        | stays                | stays                |
    | server lost  | is gone  | is gone         | stays                | stays                |
    | run closes   | refused  | refused         | refused              | stays                |

A caller that lost its connection asks again under the same update id, and joins or gets what is recorded.
A rejected update leaves no event: it might never have been asked.

An update may start its workflow, in one step: `StartWorkflow.update`. It then goes with the first task of the run.
"""

from __future__ import annotations

from zapserver.engine import registry
from zapserver.engine.commands import Payload, PeerKey, UpdateExecution, UpdateStage, Waiter
from zapserver.engine.effects import Answered, UpdateAnswered, UpdateRejected, UpdateRequest
from zapserver.engine.errors import Conflict, EngineError, LimitReached
from zapserver.engine.records import AcceptedUpdate, Event, EventType, Execution, PendingUpdate, WorkerKind
from zapserver.engine.state import State
from zapserver.engine.validation import check_name
from zapwire.failure import Failure, encode_failure

DELIVERED_BYTES_MAX = 1024 * 1024
"""Updates that go out with one task, but always one."""

UNANSWERED_ERROR = "UpdateUnanswered"


# --- asking ----------------------------------------------------------------------------------------


def check(s: State, update: UpdateExecution) -> None:
    """Refuse an update that no workflow could be asked for."""
    check_name("update name", update.name, s.limits)
    if update.update_id:
        check_name("update id", update.update_id, s.limits)
    registry.check_wait(s, update.peer, update.waiter)


def ask(s: State, execution: Execution, update: UpdateExecution, now_ms: int) -> None:
    """Admit an update, join one, or answer from what is recorded. The caller has checked it, and wakes the run."""
    known = execution.updates.get(update.update_id)
    if known is not None and known.completed_event_id:
        s.effects.append(_outcome(s, execution, update.update_id, known, update.waiter))
        return
    if execution.is_task:
        raise Conflict(f"{execution.workflow_id!r} is a one-shot task; only workflows take updates")
    if not execution.status.is_open:
        raise Conflict(f"workflow not running: status={execution.status.long_name}; it can take no update")
    if known is not None and update.wait is UpdateStage.ACCEPTED:
        s.effects.append(_accepted(execution, update.update_id, update.waiter))
        return
    if execution.worker_kind is WorkerKind.HOLDING or (
        execution.task is not None and execution.task.lease is not None and not execution.task.lease.replays
    ):
        raise _no_updates(execution)
    pending = execution.pending_updates.get(update.update_id)
    if pending is None:
        if known is None:
            _check_room(s, execution)
        update_id = update.update_id or s.new_id()
        pending = PendingUpdate(execution, update_id, update.name, update.args, now_ms, is_accepted=known is not None)
        execution.pending_updates[update_id] = pending
    pending.waiters[update.waiter] = (update.peer, update.wait)
    s.peer(update.peer).updating[update.waiter] = pending


def _check_room(s: State, execution: Execution) -> None:
    waiting = sum(not pending.is_accepted for pending in execution.pending_updates.values())
    if waiting >= s.limits.pending_updates_max:
        raise LimitReached(
            f"{waiting} updates of {execution.workflow_id!r} wait to be accepted, as many as may: wait for one",
            limit="pending-updates",
        )
    if len(execution.updates) + waiting >= s.limits.updates_max:
        raise LimitReached(
            f"this run of {execution.workflow_id!r} took {len(execution.updates)} updates, as many as it may:"
            " let it continue as new",
            limit="updates",
        )
    registry.check_history(s, execution)


def forget_waiter(s: State, pending: PendingUpdate, waiter: Waiter) -> None:
    """The asking call is gone. What no worker has and nobody waits for is not asked."""
    pending.waiters.pop(waiter, None)
    if not pending.waiters and not pending.is_out:
        pending.execution.pending_updates.pop(pending.update_id, None)


# --- at a worker ------------------------------------------------------------------------------------


def hand_out(execution: Execution) -> tuple[UpdateRequest, ...]:
    """The updates that go with the task which is being delivered."""
    requests: list[UpdateRequest] = []
    size = 0
    for pending in execution.pending_updates.values():
        if pending.is_accepted:
            continue
        size += len(pending.args or b"")
        if requests and size > DELIVERED_BYTES_MAX:
            break
        pending.is_out = True
        requests.append(UpdateRequest(pending.update_id, pending.name, pending.args))
    return tuple(requests)


def take_back(execution: Execution) -> None:
    """The worker that had them is out of the game: they wait for the next, or for nobody."""
    for pending in list(execution.pending_updates.values()):
        if pending.is_out:
            pending.is_out = False
            if not pending.waiters:
                del execution.pending_updates[pending.update_id]


def accept(s: State, execution: Execution, update_id: str, now_ms: int) -> None:
    pending = execution.pending_updates[update_id]
    pending.is_out, pending.is_accepted = False, True
    event = s.record(
        execution,
        EventType.UPDATE_ACCEPTED,
        now_ms,
        updateId=update_id,
        name=pending.name,
        args=pending.args,
    )
    execution.updates[update_id] = AcceptedUpdate(pending.name, event.event_id)
    for waiter, (peer, stage) in list(pending.waiters.items()):
        if stage is UpdateStage.ACCEPTED:
            _let_go(s, pending, waiter, peer)
            s.effects.append(_accepted(execution, update_id, waiter))
    if not pending.waiters:
        del execution.pending_updates[update_id]


def reject(s: State, execution: Execution, update_id: str, failure: bytes) -> None:
    pending = execution.pending_updates.pop(update_id)
    for waiter, (peer, _) in list(pending.waiters.items()):
        _let_go(s, pending, waiter, peer)
        s.effects.append(UpdateRejected(waiter=waiter, update_id=update_id, failure=Payload(failure)))


def reject_unanswered(s: State, execution: Execution) -> None:
    """The worker answered its task without a word about these: their callers must not wait for ever."""
    text = "the workflow's worker neither accepted nor rejected the update"
    failure = encode_failure(Failure(message=text, code=UNANSWERED_ERROR, non_retryable=True))
    for pending in list(execution.pending_updates.values()):
        if pending.is_out:
            reject(s, execution, pending.update_id, failure)


def complete(
    s: State, execution: Execution, update_id: str, result: Payload | None, failure: bytes | None, now_ms: int
) -> None:
    outcome: dict[str, object] = {"result": result} if failure is None else {"failure": Payload(failure)}
    event = s.record(execution, EventType.UPDATE_COMPLETED, now_ms, updateId=update_id, **outcome)
    accepted = execution.updates[update_id]
    known = execution.updates[update_id] = AcceptedUpdate(accepted.name, accepted.accepted_event_id, event.event_id)
    pending = execution.pending_updates.pop(update_id, None)
    if pending is not None:
        for waiter, (peer, _) in list(pending.waiters.items()):
            _let_go(s, pending, waiter, peer)
            s.effects.append(_outcome(s, execution, update_id, known, waiter))


# --- no answer will come ------------------------------------------------------------------------------


def refuse_all(s: State, execution: Execution, error: EngineError) -> None:
    for pending in execution.pending_updates.values():
        for waiter, (peer, _) in list(pending.waiters.items()):
            _let_go(s, pending, waiter, peer)
            s.effects.append(Answered(waiter=waiter, error=error))
    execution.pending_updates.clear()


def execution_closed(s: State, execution: Execution) -> None:
    if execution.pending_updates:
        text = f"the workflow closed ({execution.status.name}) before it answered the update"
        refuse_all(s, execution, Conflict(text))


def taken_by_holder(s: State, execution: Execution) -> None:
    if execution.pending_updates:
        refuse_all(s, execution, _no_updates(execution))


def _no_updates(execution: Execution) -> Conflict:
    return Conflict(
        f"the worker that runs {execution.workflow_id!r} is of the kind that cannot take updates; signal it instead"
    )


def _let_go(s: State, pending: PendingUpdate, waiter: Waiter, peer_key: PeerKey) -> None:
    del pending.waiters[waiter]
    del s.peers[peer_key].updating[waiter]


def _accepted(execution: Execution, update_id: str, waiter: Waiter) -> UpdateAnswered:
    return UpdateAnswered(
        waiter=waiter,
        workflow_id=execution.workflow_id,
        run_id=execution.run_id,
        update_id=update_id,
        stage=UpdateStage.ACCEPTED,
    )


def _outcome(s: State, execution: Execution, update_id: str, known: AcceptedUpdate, waiter: Waiter) -> UpdateAnswered:
    event: Event = s.events(execution, known.completed_event_id - 1, 1)[0]
    return UpdateAnswered(
        waiter=waiter,
        workflow_id=execution.workflow_id,
        run_id=execution.run_id,
        update_id=update_id,
        stage=UpdateStage.COMPLETED,
        result=event.attributes.get("result"),
        failure=event.attributes.get("failure"),
    )
