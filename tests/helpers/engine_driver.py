"""Drives an engine by hand: ids that count, a clock that is moved, effects sorted by who gets them.

After every step the invariants of `engine_invariants` are checked, so each test proves more than it says.
"""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Sequence
from itertools import cycle
from typing import Any, TypeVar

import msgspec
import pytest
from tests.helpers.engine_invariants import Watch

from zapserver.engine import Engine, Limits
from zapserver.engine import commands as c
from zapserver.engine.effects import (
    Answered,
    Closed,
    DeliverActivityCancel,
    DeliverActivityResult,
    DeliverActivityTask,
    DeliverCancelRequest,
    DeliverQuery,
    DeliverWorkflowTask,
    Effect,
    HistoryGrew,
    UpdateAnswered,
    UpdateRejected,
)
from zapserver.engine.errors import EngineError
from zapserver.engine.records import Event, Execution, Schedule
from zapserver.engine.retry import RetryPolicy
from zapserver.engine.tables import Table
from zapserver.engine.views import Views
from zapserver.store import MemoryStore
from zapwire.failure import Failure, encode_failure

R = TypeVar("R")
E = TypeVar("E")

START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z, a Thursday."""

NO_TIMEOUTS = c.WorkflowTimeouts()
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


def payload(value: object) -> c.Payload:
    return c.Payload(msgspec.json.encode(value))


def value(raw: c.Payload | bytes | None) -> object:
    """What a payload says; None for none."""
    return None if raw is None else msgspec.json.decode(raw)


def failure(message: str = "no", code: str = "Boom", *, non_retryable: bool = False) -> bytes:
    return encode_failure(Failure(message=message, code=code, non_retryable=non_retryable))


REPORT = c.Action(type="report", task_queue="default", is_task=True, input=payload({"n": 1}))
"""What schedules start where a test does not say."""


def every(ms: int) -> c.ScheduleSpec:
    return c.ScheduleSpec(interval_ms=ms)


class _Ids:
    """Counts. Fresh in the first eight digits, because some ids are cut."""

    def __init__(self) -> None:
        self._given = 0

    def __call__(self) -> str:
        self._given += 1
        return f"{self._given:08x}".ljust(32, "0")

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("not part of the state",)


class _Randoms:
    """The given numbers in turn."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = cycle(numbers)

    def __call__(self) -> float:
        return next(self._numbers)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, ("not part of the state",)


def fingerprint(engine: Engine) -> bytes:
    """Everything that the engine remembers. Two of them are equal when nothing changed in between."""
    state = {name: value for name, value in vars(engine._state).items() if name != "reader"}
    return pickle.dumps((state, engine._now_ms))


class Driver:
    """An engine with its surroundings. Peers are small numbers, waiters any names."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        randoms: Sequence[float] = (0.5,),
        now_ms: int = START_MS,
        watch: bool = True,
    ) -> None:
        self.now_ms = START_MS
        self.effects: list[Effect] = []
        """Everything that the engine ever wanted done."""
        self._settings = (_Ids(), _Randoms(randoms), limits)
        self.store = MemoryStore(Table)
        self.engine = self._new_engine()
        self._watch = Watch(self.engine, self.store) if watch else None

    @property
    def views(self) -> Views:
        return self.engine.views

    def _new_engine(self) -> Engine:
        new_id, random, limits = self._settings
        return Engine(new_id=new_id, random=random, limits=limits, reader=self.store)

    # --- steps and time ------------------------------------------------------------------------------

    def step(self, command: c.Command[R]) -> R:
        try:
            return self.engine.step(command, self.now_ms)
        finally:
            self._settle(command)

    def _settle(self, command: c.Command[Any]) -> None:
        """Keep what a step changed, and look at what it left."""
        changes = self.engine.take_changes()
        if changes is not None:
            self.store.commit(changes)
        effects = self.engine.take_effects()
        self.effects += effects
        if self._watch is not None:
            self._watch.check(command, effects)

    def restart(self, live: Sequence[int] = ()) -> None:
        """The server starts again from what was kept; or only its store failed, and the peers in `live` still stand."""
        old, self.engine = self.engine, self._new_engine()
        damaged = self.engine.recover(self.now_ms, old=old if live else None, live=live)
        assert not damaged
        if self._watch is not None:
            self._watch.restarted(self.engine)
        self._settle(c.Tick())

    def refused(self, command: c.Command[Any], error: type[EngineError]) -> str:
        """The text with which a command is refused, after proving that the refusal left no trace."""
        self.step(c.Tick())
        before = fingerprint(self.engine)
        with pytest.raises(error) as refusal:
            self.engine.step(command, self.now_ms)
        assert type(refusal.value) is error
        assert fingerprint(self.engine) == before, "a refused command left a trace"
        return str(refusal.value)

    def advance(self, ms: int) -> None:
        """Let time pass, with a step at every deadline, as a punctual shell makes it."""
        end_ms = self.now_ms + ms
        while (due_ms := self.engine.next_deadline_ms()) is not None and due_ms <= end_ms:
            self.now_ms = max(due_ms, self.now_ms)
            self.step(c.Tick())
        self.now_ms = end_ms
        self.step(c.Tick())

    def jump(self, ms: int) -> None:
        """Let time pass unnoticed: the machine slept, or its clock was set."""
        self.now_ms += ms
        self.step(c.Tick())

    # --- what came out -------------------------------------------------------------------------------

    def all(self, kind: type[E], peer: int | None = None) -> list[E]:
        """The effects of a kind since the beginning."""
        return [
            effect for effect in self.effects if isinstance(effect, kind) and (peer is None or _peer(effect) == peer)
        ]

    def tasks(self, peer: int | None = None) -> list[DeliverActivityTask]:
        return self.all(DeliverActivityTask, peer)

    def task(self, peer: int | None = None) -> DeliverActivityTask:
        """The latest delivery of an activity or one-shot task."""
        return self.tasks(peer)[-1]

    def runs(self, peer: int | None = None) -> list[DeliverWorkflowTask]:
        return self.all(DeliverWorkflowTask, peer)

    def run(self, peer: int | None = None) -> DeliverWorkflowTask:
        return self.runs(peer)[-1]

    def results(self, peer: int | None = None) -> list[DeliverActivityResult]:
        return self.all(DeliverActivityResult, peer)

    def stops(self, peer: int | None = None) -> list[DeliverActivityCancel]:
        return self.all(DeliverActivityCancel, peer)

    def cancels(self, peer: int | None = None) -> list[DeliverCancelRequest]:
        return self.all(DeliverCancelRequest, peer)

    def questions(self, peer: int | None = None) -> list[DeliverQuery]:
        return self.all(DeliverQuery, peer)

    def told(self, waiter: Hashable) -> list[Closed | Answered | HistoryGrew | UpdateAnswered | UpdateRejected]:
        """What a waiter was told: at most one thing, ever."""
        kinds = (Closed, Answered, HistoryGrew, UpdateAnswered, UpdateRejected)
        return [effect for effect in self.effects if isinstance(effect, kinds) and effect.waiter == waiter]

    # --- what stands -----------------------------------------------------------------------------------

    def execution(self, started: c.Started) -> Execution:
        return self.views.execution(started.workflow_id, started.run_id)

    def events(self, started: c.Started) -> list[Event]:
        """The whole history."""
        return self.engine._state.events(self.execution(started))

    def status(self, started: c.Started) -> c.Status:
        return self.execution(started).status

    def history(self, started: c.Started) -> list[str]:
        """The types of the events, without the words that all of them share."""
        words = [event.type.value for event in self.events(started)]
        return [word.replace("WORKFLOW_EXECUTION_", "").replace("ACTIVITY_TASK_", "ACTIVITY_") for word in words]

    def failure(self, started: c.Started) -> dict[str, object]:
        """The body of the failure that ended an execution."""
        read = value(self.execution(started).failure)
        assert isinstance(read, dict)
        body = read["p"]
        assert isinstance(body, dict)
        return body

    # --- clients ---------------------------------------------------------------------------------------

    def submit(
        self,
        type: str = "email",
        *,
        request_id: str = "",
        retry: RetryPolicy | None = None,
        timeouts: c.ActivityTimeouts | None = None,
        queue: str = "default",
        workflow_id: str = "",
        input: object = None,
    ) -> c.Started:
        return self.step(
            c.StartTask(
                type=type,
                request_id=request_id,
                retry_policy=retry,
                timeouts=timeouts,
                task_queue=queue,
                workflow_id=workflow_id,
                input=payload(input),
            )
        )

    def start(
        self,
        type: str = "Order",
        *,
        workflow_id: str = "",
        request_id: str = "",
        retry: RetryPolicy | None = None,
        timeouts: c.WorkflowTimeouts = NO_TIMEOUTS,
        cron: str = "",
    ) -> c.Started:
        return self.step(
            c.StartWorkflow(
                type=type,
                workflow_id=workflow_id,
                request_id=request_id,
                retry_policy=retry,
                timeouts=timeouts,
                cron_schedule=cron,
                input=payload(["in"]),
            )
        )

    def cancel(self, started: c.Started, reason: str = "enough") -> None:
        self.step(
            c.CancelExecution(workflow_id=started.workflow_id, run_id=started.run_id, reason=reason, identity="me")
        )

    def terminate(self, started: c.Started) -> None:
        self.step(c.TerminateExecution(workflow_id=started.workflow_id, run_id=started.run_id, reason="now"))

    def wait(self, started: c.Started, waiter: Hashable = "waiter", peer: int = 9) -> bool:
        return self.step(
            c.AwaitExecution(workflow_id=started.workflow_id, run_id=started.run_id, waiter=waiter, peer=peer)
        )

    def ask(self, started: c.Started, waiter: Hashable = "asker", type: str = "progress") -> c.Payload | None:
        return self.step(
            c.QueryExecution(
                workflow_id=started.workflow_id, run_id=started.run_id, query_type=type, waiter=waiter, timeout_ms=5_000
            )
        )

    def schedule(
        self,
        spec: c.ScheduleSpec,
        *,
        id: str = "report",
        action: c.Action = REPORT,
        overlap: c.Overlap = c.Overlap.ALLOW,
        paused: bool = False,
    ) -> Schedule:
        self.step(c.PutSchedule(schedule_id=id, spec=spec, action=action, overlap=overlap, paused=paused))
        return self.views.schedule(id)

    # --- workers ---------------------------------------------------------------------------------------

    def subscribe(
        self,
        peer: int,
        *,
        queue: str = "default",
        kind: c.QueueKind = c.QueueKind.ACTIVITY,
        slots: int | None = None,
        types: Sequence[str] | None = None,
        per_second: float = 0.0,
        queue_per_second: float = 0.0,
    ) -> str:
        answer = self.step(
            c.Subscribe(
                peer=peer,
                kind=kind,
                per_second=per_second,
                queue_per_second=queue_per_second,
                task_queue=queue,
                identity=f"worker {peer}",
                slots=slots,
                types=None if types is None else frozenset(types),
            )
        )
        return answer.subscription_id

    def subscribe_replaying(
        self, peer: int, *, types: Sequence[str] | None = None, slots: int | None = None, queue: str = "default"
    ) -> str:
        answer = self.step(
            c.Subscribe(
                peer=peer,
                kind=c.QueueKind.WORKFLOW,
                task_queue=queue,
                identity=f"worker {peer}",
                slots=slots,
                types=None if types is None else frozenset(types),
                replays=True,
            )
        )
        return answer.subscription_id

    def subscribe_workflows(self, peer: int, *, types: Sequence[str] | None = None, slots: int | None = None) -> str:
        return self.subscribe(peer, kind=c.QueueKind.WORKFLOW, types=types, slots=slots)

    def lose(self, peer: int) -> None:
        self.step(c.PeerLost(peer=peer, reason="the line went dead"))

    def complete(self, task: DeliverActivityTask, result: object = "done") -> None:
        self.step(c.CompleteActivity(token=task.task_token, result=payload(result)))

    def fail(self, task: DeliverActivityTask, data: bytes | None = None) -> None:
        self.step(c.FailActivity(token=task.task_token, failure=failure() if data is None else data))

    def heartbeat(self, task: DeliverActivityTask, details: object = None) -> bool:
        given = None if details is None else payload(details)
        return self.step(c.HeartbeatActivity(token=task.task_token, details=given)).cancel_requested

    def hand_back(self, task: DeliverActivityTask | DeliverWorkflowTask) -> None:
        self.step(c.HandBackTask(token=task.task_token, reason="draining"))

    def call(
        self, run: DeliverWorkflowTask, type: str = "charge", input: object = 1, retry: RetryPolicy | None = None
    ) -> c.ActivityScheduled:
        """The holder of a run asks for an activity."""
        return self.step(
            c.ScheduleActivity(
                peer=run.peer,
                workflow_id=run.workflow_id,
                run_id=run.run_id,
                type=type,
                input=payload(input),
                retry_policy=retry,
            )
        )

    def signal(self, started: c.Started, name: str = "go", input: object = None, request_id: str = "") -> None:
        self.step(
            c.SignalExecution(
                workflow_id=started.workflow_id, signal_name=name, input=payload(input), request_id=request_id
            )
        )

    def update(
        self,
        started: c.Started,
        waiter: Hashable = "updater",
        *,
        id: str = "",
        peer: int = 9,
        wait: c.UpdateStage = c.UpdateStage.COMPLETED,
    ) -> None:
        self.step(
            c.UpdateExecution(
                workflow_id=started.workflow_id,
                name="set",
                update_id=id,
                args=payload([1]),
                waiter=waiter,
                peer=peer,
                wait=wait,
            )
        )

    def answer(self, run: DeliverWorkflowTask, *commands: c.TaskCommand) -> None:
        """The worker that has a run answers its workflow task."""
        self.step(c.CompleteWorkflowTask(token=run.task_token, commands=commands))

    def finish(self, run: DeliverWorkflowTask, result: object = "done") -> None:
        self.answer(run, c.WorkflowCommand(kind=c.WorkflowCommandKind.COMPLETE, payload=payload(result)))

    def fail_run(self, run: DeliverWorkflowTask, data: bytes | None = None) -> None:
        given = c.Payload(failure() if data is None else data)
        self.answer(run, c.WorkflowCommand(kind=c.WorkflowCommandKind.FAIL, payload=given))


def with_a_holder(peer: int = 1) -> tuple[Driver, c.Started]:
    """A workflow that `peer` holds, and a worker for its activities as peer 5."""
    d = Driver()
    d.subscribe_workflows(peer)
    d.subscribe(5)
    return d, d.start()


def with_a_replayed_run(peer: int = 1, *commands: c.TaskCommand) -> tuple[Driver, c.Started]:
    """A workflow whose first task `peer` answered with `commands`, and a worker for its activities as peer 5."""
    d = Driver()
    d.subscribe_replaying(peer)
    d.subscribe(5)
    started = d.start()
    d.answer(d.run(), *commands)
    return d, started


def _peer(effect: object) -> object:
    return getattr(effect, "peer", None)
