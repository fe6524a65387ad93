"""The engine of one namespace: commands in, answers and effects out. No clock, no randomness, no I/O.

    answer = engine.step(command, now_ms)     # all of it, or an EngineError and nothing
    changes = engine.take_changes()           # what has to be kept of it; `reader` must know it from now on
    effects = engine.take_effects()           # what to do outside, in this order
    engine.next_deadline_ms()                 # when to call engine.step(Tick(), ...) at the latest

Whatever became due before a command is done first, so a result that comes after its deadline is too
late no matter how busy the caller was. Time never runs backwards inside: a clock that jumps back
is held at the latest time seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, TypeVar, cast

from zapserver.engine import (
    activities,
    changes,
    children,
    executions,
    queries,
    rebuild,
    recovery,
    registry,
    schedule_runs,
    schedules,
    updates,
    wakeups,
    watching,
    workflow_tasks,
    workflow_timers,
)
from zapserver.engine import commands as c
from zapserver.engine.effects import Effect
from zapserver.engine.errors import Invalid, LimitReached, NotFound
from zapserver.engine.limits import Limits
from zapserver.engine.matching import (
    put_back,
    rate_recovered,
    resume,
    review_queue_rate,
    serve,
    state_rates,
)
from zapserver.engine.rate import PER_SECOND_MAX, PER_SECOND_MIN, DeliveryRate, TokenBucket
from zapserver.engine.records import (
    Activity,
    Execution,
    PendingQuery,
    PendingResult,
    QueuedTask,
    Schedule,
    Subscription,
    WorkflowTask,
    WorkflowTimer,
)
from zapserver.engine.state import State
from zapserver.engine.validation import check_name, check_payloads
from zapserver.engine.views import Views
from zapserver.store.errors import Damaged
from zapserver.store.interface import Batch, Reader

R = TypeVar("R")

DUE_PER_STEP_MAX = 1_000
"""What becomes due at once, after a restart or when the clock jumps, is done in as many steps as it takes: some 50 ms
each, and others are served in between."""


class Engine:
    """Everything that happens in one namespace. Not thread safe: one caller at a time.

    `reader` reads what was kept: every batch that `take_changes` ever gave out, from the moment it was given out.
    `new_id` returns 32 fresh lowercase hex digits a call and must not be guessable, since task
    tokens are made of them; `random` returns a float in [0, 1) and spreads jitter.
    """

    def __init__(
        self,
        *,
        new_id: Callable[[], str],
        random: Callable[[], float],
        reader: Reader,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self._state = State(new_id=new_id, random=random, limits=limits, reader=reader)
        actions = limits.actions_per_second
        self._rate = TokenBucket(actions, burst=actions) if actions else None
        self._now_ms = 0
        self.views = Views(self._state)

    def recover(self, now_ms: int, *, old: Engine | None = None, live: Iterable[c.PeerKey] = ()) -> list[Damaged]:
        """Fill a fresh engine from its reader; damaged records are left out and returned.

        `old` is the engine that this one replaces after a failure of the store, `live` its connections that still
        stand.
        """
        s = self._state
        damaged = recovery.load(s)
        self._now_ms = max(now_ms, recovery.latest_ms(s))
        if old is not None:
            self._now_ms = max(self._now_ms, old._now_ms)
            recovery.adopt(s, old._state, live, self._now_ms)
        recovery.put_in_line(s, self._now_ms)
        recovery.serve_everybody(s, self._now_ms)
        self._follow_up(self._now_ms)
        return damaged

    def step(self, command: c.Command[R], now_ms: int) -> R:
        """Apply one command at `now_ms`.

        Raises:
            EngineError: the command is refused and nothing of it happened. What had become due
                by the passing of time has happened all the same.
        """
        s = self._state
        self._now_ms = now_ms = max(now_ms, self._now_ms)
        self._pass_time(now_ms)
        rate = self._rate
        if rate is not None and type(command) not in _ACTIONS:
            rate = None
        try:
            check_payloads(command, s.limits)
            if rate is not None:
                _check_rate(rate, now_ms)
            answer = _HANDLERS[type(command)](s, command, now_ms)
        finally:
            self._follow_up(now_ms)
        if rate is not None:
            rate.take(now_ms)
        return cast(R, answer)

    @property
    def now_ms(self) -> int:
        """The latest time that it knows of."""
        return self._now_ms

    def take_effects(self) -> list[Effect]:
        """What has to be done outside since the last call, in order."""
        effects, self._state.effects = self._state.effects, []
        return effects

    def take_changes(self) -> Batch | None:
        """What has to be kept of everything since the last call; None when nothing changed."""
        return changes.take(self._state)

    def next_deadline_ms(self) -> int | None:
        """When something happens by itself; never later than that, perhaps a little earlier."""
        return self._state.timers.next_ms()

    def _pass_time(self, now_ms: int) -> None:
        s = self._state
        for target in islice(s.timers.due(now_ms), DUE_PER_STEP_MAX):
            match target:
                case Activity():
                    executions.apply(s, activities.fire(s, target, now_ms), now_ms)
                case Execution():
                    if not executions.fire(s, target, now_ms):
                        workflow_tasks.task_is_due(s, target, now_ms)
                case WorkflowTimer():
                    workflow_timers.fire(s, target, now_ms)
                case Schedule():
                    schedules.fire(s, target, now_ms)
                case PendingQuery():
                    queries.expire(s, target)
                case DeliveryRate():
                    rate_recovered(s, target, now_ms)
                case PendingResult():
                    workflow_tasks.deliver_recorded_result(s, target)
                case _:
                    raise AssertionError(f"an unknown timer target: {target!r}")
        self._follow_up(now_ms)

    def _follow_up(self, now_ms: int) -> None:
        """What the schedules do about those of their runs that closed."""
        s = self._state
        while s.ended or s.freed_schedules:
            if s.ended:
                children.tell_relatives(s, s.ended.popleft(), now_ms)
            else:
                schedule, execution = s.freed_schedules.pop(0)
                schedule_runs.run_closed(s, schedule, execution, now_ms)


def _check_rate(rate: TokenBucket, now_ms: int) -> None:
    wait_ms = rate.wait_ms(now_ms)
    if wait_ms:
        raise LimitReached(
            f"this namespace takes {rate.per_second:g} actions a second: try again in {wait_ms} ms",
            limit="actions-per-second",
            retry_after_ms=wait_ms,
        )


# --- one handler a command ------------------------------------------------------------------------


def _signal(s: State, command: c.SignalExecution, now_ms: int) -> None:
    execution = s.execution(command.workflow_id, command.run_id)
    executions.signal(
        s,
        execution,
        command.signal_name,
        command.input,
        command.identity,
        now_ms,
        request_id=command.request_id,
    )


def _cancel(s: State, command: c.CancelExecution, now_ms: int) -> None:
    execution = s.execution(command.workflow_id, command.run_id)
    executions.cancel(s, execution, command.reason, command.identity, now_ms)


def _terminate(s: State, command: c.TerminateExecution, now_ms: int) -> None:
    execution = s.execution(command.workflow_id, command.run_id)
    executions.terminate(s, execution, command.reason, command.identity, now_ms)


def _reset(s: State, command: c.ResetExecution, now_ms: int) -> c.Started:
    return rebuild.reset(s, s.execution(command.workflow_id, command.run_id), command, now_ms)


def _query(s: State, command: c.QueryExecution, now_ms: int) -> c.Payload | None:
    return queries.ask(s, s.execution(command.workflow_id, command.run_id), command, now_ms)


def _await(s: State, command: c.AwaitExecution, now_ms: int) -> bool:
    execution = s.execution(command.workflow_id, command.run_id)
    return executions.wait_for_close(s, execution, command.waiter, command.peer, follow=command.follow)


def _update(s: State, command: c.UpdateExecution, now_ms: int) -> None:
    execution = s.execution(command.workflow_id, command.run_id)
    updates.check(s, command)
    updates.ask(s, execution, command, now_ms)
    wakeups.wake(s, execution, now_ms)


def _await_events(s: State, command: c.AwaitEvents, now_ms: int) -> bool:
    return watching.wait(s, s.execution(command.workflow_id, command.run_id), command)


def _abandon(s: State, command: c.AbandonWait, now_ms: int) -> None:
    peer = s.peers.get(command.peer)
    execution = None if peer is None else peer.waiting.pop(command.waiter, None)
    if execution is not None:
        execution.waiters.pop(command.waiter, None)
        execution.followers.pop(command.waiter, None)
        return
    update = None if peer is None else peer.updating.pop(command.waiter, None)
    if update is not None:
        updates.forget_waiter(s, update, command.waiter)
        return
    watched = None if peer is None else peer.watching.pop(command.waiter, None)
    if watched is not None:
        del watched.watchers[command.waiter]
        return
    for query in list(s.queries.values()):
        if query.waiter == command.waiter:
            queries.abandon(s, query)


def _requeue_dead_letter(s: State, command: c.RequeueDeadLetter, now_ms: int) -> c.Started:
    source = s.execution(command.workflow_id, command.run_id)
    return executions.requeue_dead_letter(s, source, command.identity, now_ms)


def _complete_activity(s: State, command: c.CompleteActivity, now_ms: int) -> None:
    executions.apply(s, activities.complete(s, command.token, command.result, now_ms), now_ms)


def _fail_activity(s: State, command: c.FailActivity, now_ms: int) -> None:
    executions.apply(s, activities.fail(s, command.token, command.failure, now_ms), now_ms)


def _heartbeat(s: State, command: c.HeartbeatActivity, now_ms: int) -> c.Heartbeaten:
    return c.Heartbeaten(cancel_requested=activities.heartbeat(s, command.token, command.details, now_ms))


def _hand_back(s: State, command: c.HandBackTask, now_ms: int) -> None:
    if command.token.startswith("wf|"):
        workflow_tasks.hand_back(s, workflow_tasks.held(s, command.token), now_ms)
    else:
        executions.apply(s, activities.hand_back(s, command.token, command.reason, now_ms), now_ms)


def _complete_workflow_task(s: State, command: c.CompleteWorkflowTask, now_ms: int) -> None:
    workflow_tasks.complete_workflow_task(s, command.token, command.commands, now_ms)


def _fail_workflow_task(s: State, command: c.FailWorkflowTask, now_ms: int) -> None:
    workflow_tasks.fail_workflow_task(s, command, now_ms)


def _subscribe(s: State, command: c.Subscribe, now_ms: int) -> c.Subscribed:
    check_name("task queue", command.task_queue, s.limits)
    if command.replays and command.kind is not c.QueueKind.WORKFLOW:
        raise Invalid("replays is for workflow tasks; an activity worker has nothing to replay")
    if command.build_id:
        check_name("build id", command.build_id, s.limits)
    slots = _slots(s, s.limits.slots_max if command.slots is None else command.slots)
    per_second = _per_second(command, "per_second", command.per_second)
    queue_per_second = _per_second(command, "queue_per_second", command.queue_per_second)
    types = 0 if command.types is None else len(command.types)
    if types > s.limits.types_per_subscription_max:
        raise LimitReached(
            f"a subscription to {types} types; at most {s.limits.types_per_subscription_max} are allowed",
            limit="types-per-subscription",
        )
    peer = s.peers.get(command.peer)
    if peer is not None and len(peer.subscriptions) >= s.limits.subscriptions_per_peer_max:
        raise LimitReached(
            f"this connection has {len(peer.subscriptions)} subscriptions, as many as it may: open another connection",
            limit="subscriptions-per-peer",
        )
    subscription = Subscription(
        subscription_id=s.new_id()[:24],
        peer=command.peer,
        queue=(command.kind, command.task_queue),
        identity=command.identity,
        slots=slots,
        types=command.types,
        build_id=command.build_id,
        is_full=peer is not None and peer.is_full,
        replays=command.replays,
        queue_per_second=queue_per_second,
    )
    s.peer(command.peer).subscriptions[subscription.subscription_id] = subscription
    s.queue(subscription.queue).add(subscription)
    state_rates(s, subscription, per_second, now_ms)
    serve(s, subscription, now_ms)
    return c.Subscribed(subscription_id=subscription.subscription_id)


def _unsubscribe(s: State, command: c.Unsubscribe, now_ms: int) -> bool:
    """Deliveries stop; what the worker holds stays its own until it answers."""
    peer = s.peers.get(command.peer)
    subscription = None if peer is None else peer.subscriptions.pop(command.subscription_id, None)
    if subscription is None:
        return False
    s.queue(subscription.queue).remove(subscription)
    review_queue_rate(s, subscription.queue, now_ms)
    s.drop_queue_if_unused(subscription.queue)
    return True


def _set_slots(s: State, command: c.SetSlots, now_ms: int) -> None:
    peer = s.peers.get(command.peer)
    subscription = None if peer is None else peer.subscriptions.get(command.subscription_id)
    if subscription is None:
        raise NotFound("subscription not found")
    subscription.slots = _slots(s, command.slots)
    serve(s, subscription, now_ms)


def _slots(s: State, slots: int) -> int:
    if not 0 <= slots <= s.limits.slots_max:
        raise Invalid(f"slots is {slots}; it must be 0 to {s.limits.slots_max}")
    return slots


def _per_second(command: c.Subscribe, what: str, per_second: float) -> float:
    if per_second and command.kind is not c.QueueKind.ACTIVITY:
        raise Invalid(f"{what} is for activities and tasks; workflow tasks have no rate")
    if per_second and not PER_SECOND_MIN <= per_second <= PER_SECOND_MAX:
        raise Invalid(f"{what} is {per_second:g}; it must be {PER_SECOND_MIN:g} to {PER_SECOND_MAX:g}, or 0 for none")
    return per_second


def _resume_peer(s: State, command: c.ResumePeer, now_ms: int) -> None:
    peer = s.peers.get(command.peer)
    if peer is not None:
        resume(s, peer, now_ms)


def _peer_lost(s: State, command: c.PeerLost, now_ms: int) -> None:
    peer = s.peers.pop(command.peer, None)
    if peer is None:
        return
    for waiter, execution in peer.waiting.items():
        execution.waiters.pop(waiter, None)
        execution.followers.pop(waiter, None)
    for waiter, update in peer.updating.items():
        updates.forget_waiter(s, update, waiter)
    for waiter, execution in peer.watching.items():
        del execution.watchers[waiter]
    for query in list(peer.queries.values()):
        queries.worker_lost(s, query)
    for subscription in peer.subscriptions.values():
        s.queue(subscription.queue).remove(subscription)
    lost = list(peer.leases.values())
    again: list[QueuedTask] = []
    for task in lost:
        if isinstance(task, WorkflowTask):
            returned = workflow_tasks.worker_lost(s, task, command.reason, now_ms)
            again += [] if returned is None else [returned]
    held = [task for task in lost if isinstance(task, Activity)]
    outcomes, returned_activities = activities.workers_lost(s, held, command.reason, now_ms)
    for outcome in outcomes:
        executions.apply(s, outcome, now_ms)
    put_back(s, [*again, *returned_activities], now_ms)
    if peer.rate is not None:
        s.timers.remove(peer.rate)
    for subscription in peer.subscriptions.values():
        review_queue_rate(s, subscription.queue, now_ms)
        s.drop_queue_if_unused(subscription.queue)


def _answer_query(s: State, command: c.AnswerQuery, now_ms: int) -> None:
    queries.answer(s, command)


def _delete_schedule(s: State, command: c.DeleteSchedule, now_ms: int) -> bool:
    return schedules.delete(s, command.schedule_id)


def _pause_schedule(s: State, command: c.PauseSchedule, now_ms: int) -> None:
    schedules.pause(s, command.schedule_id, command.paused, command.note, now_ms)


def _tick(s: State, command: c.Tick, now_ms: int) -> None:
    """Time has passed already, in `step`."""


def _sweep_closed(s: State, command: c.SweepClosed, now_ms: int) -> int:
    return registry.sweep(s, command.closed_before_ms, command.limit)


_ACTIONS = frozenset(
    {
        c.StartTask,
        c.StartWorkflow,
        c.SignalExecution,
        c.ResetExecution,
        c.RequeueDeadLetter,
        c.TriggerSchedule,
    }
)
"""What `actions_per_second` counts: what clients begin. Workers and schedules go on with what was taken before."""

_HANDLERS: dict[type[c.Command[Any]], Callable[[State, Any, int], Any]] = {
    c.StartTask: executions.start_task,
    c.StartWorkflow: executions.start_workflow,
    c.SignalExecution: _signal,
    c.CancelExecution: _cancel,
    c.TerminateExecution: _terminate,
    c.ResetExecution: _reset,
    c.QueryExecution: _query,
    c.UpdateExecution: _update,
    c.AwaitExecution: _await,
    c.AwaitEvents: _await_events,
    c.AbandonWait: _abandon,
    c.RequeueDeadLetter: _requeue_dead_letter,
    c.Subscribe: _subscribe,
    c.Unsubscribe: _unsubscribe,
    c.SetSlots: _set_slots,
    c.PeerLost: _peer_lost,
    c.ResumePeer: _resume_peer,
    c.ScheduleActivity: workflow_tasks.schedule_activity,
    c.CompleteWorkflowTask: _complete_workflow_task,
    c.FailWorkflowTask: _fail_workflow_task,
    c.CompleteActivity: _complete_activity,
    c.FailActivity: _fail_activity,
    c.HeartbeatActivity: _heartbeat,
    c.HandBackTask: _hand_back,
    c.AnswerQuery: _answer_query,
    c.PutSchedule: schedules.put,
    c.UpdateSchedule: schedules.update,
    c.DeleteSchedule: _delete_schedule,
    c.PauseSchedule: _pause_schedule,
    c.TriggerSchedule: schedules.trigger,
    c.SweepClosed: _sweep_closed,
    c.BackfillSchedule: schedules.backfill,
    c.Tick: _tick,
}
