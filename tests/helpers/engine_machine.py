"""A hypothesis machine that does to an engine whatever clients, workers, operators and clocks can do.

The invariants of `engine_invariants` hold after every step; a refusal leaves no trace; and at the end,
when the faults have stopped and somebody does the work, everything that is open comes to an end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from tests.helpers.engine_driver import DAY_MS, Driver, failure, payload, snapshot

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import QueueKind, WorkflowCommand, WorkflowCommandKind
from zapserver.engine.errors import EngineError
from zapserver.engine.records import Execution
from zapserver.engine.retry import RetryPolicy

T = TypeVar("T")

PEERS = st.integers(1, 4)
PICKS = st.integers(0, 1_000)
"""Which one of those there are, counted around."""
TYPES = st.sampled_from(["a", "b", "c"])
QUEUES = st.sampled_from(["q", "r"])
IDS = st.sampled_from(["", "", "one", "two"])
REQUESTS = st.sampled_from(["", "", "r1", "r2"])
MOMENTS = st.sampled_from([0, 1, 20, 99, 100, 101, 500, 1_000, 5_000, 60_000, 3_600_000])
TIMES = st.sampled_from([0, 0, 0, 1, 100, 1_000, 30_000])
SLOTS = st.sampled_from([None, 0, 1, 2, 3])
OVERLAPS = st.sampled_from(list(c.Overlap))
POLICIES = st.one_of(
    st.none(),
    st.builds(
        RetryPolicy,
        initial_interval_ms=st.sampled_from([1, 100, 1_000]),
        backoff_coefficient=st.sampled_from([1.0, 2.0]),
        maximum_attempts=st.integers(0, 3),
        non_retryable_error_types=st.sampled_from([(), ("Fatal",)]),
    ),
)
ACTIVITY_TIMEOUTS = st.builds(
    c.ActivityTimeouts,
    schedule_to_start_ms=TIMES,
    schedule_to_close_ms=TIMES,
    start_to_close_ms=TIMES,
    heartbeat_ms=TIMES,
)
WORKFLOW_TIMEOUTS = st.builds(c.WorkflowTimeouts, execution_ms=TIMES, run_ms=TIMES)
SPECS = st.builds(
    c.ScheduleSpec,
    interval_ms=st.sampled_from([0, 10, 100, 1_000, 60_000]),
    cron=st.sampled_from([(), ("* * * * *",), ("@every 1s", "30 * * * *")]),
    jitter_ms=st.sampled_from([0, 0, 50, 5_000]),
    start_ms=st.none(),
)
FAILURES = st.sampled_from(
    [failure(), failure(code="Fatal"), failure(code="CanceledError"), failure(non_retryable=True), b"garbage", b"\xff"]
)
END_COMMANDS = st.lists(
    st.builds(
        WorkflowCommand,
        kind=st.sampled_from(list(WorkflowCommandKind)),
        payload=st.one_of(st.none(), st.just(payload({"x": 1})), FAILURES.map(c.Payload)),
    ),
    max_size=2,
).map(tuple)

LIMITS = Limits(
    open_executions_max=12,
    closed_executions_max=8,
    dead_letters_max=3,
    schedules_max=2,
    subscriptions_per_peer_max=3,
    waits_per_peer_max=3,
    pending_queries_max=2,
    history_events_max=30,
)
"""Small, so that each of them is met."""


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.d = Driver(limits=LIMITS, randoms=(0.0, 0.3, 0.9))
        self.waiters = 0

    def attempt(self, command: c.Command[Any]) -> None:
        """One step; where it is refused, nothing of it happened."""
        self.d.step(c.Tick())
        before = snapshot(self.d.engine)
        try:
            self.d.step(command)
        except EngineError as refusal:
            note(f"refused: {refusal}")
            assert snapshot(self.d.engine) == before, "a refused command left a trace"

    def executions(self) -> list[Execution]:
        return list(self.d.engine._state.executions.values())

    def subscriptions(self) -> list[tuple[int, str]]:
        return [(key, id) for key, peer in self.d.engine._state.peers.items() for id in peer.subscriptions]

    # --- clients -----------------------------------------------------------------------------------

    @rule(type=TYPES, queue=QUEUES, id=IDS, request=REQUESTS, retry=POLICIES, timeouts=st.none() | ACTIVITY_TIMEOUTS)
    def submit(
        self,
        type: str,
        queue: str,
        id: str,
        request: str,
        retry: RetryPolicy | None,
        timeouts: c.ActivityTimeouts | None,
    ) -> None:
        self.attempt(
            c.StartTask(
                type=type,
                task_queue=queue,
                workflow_id=id,
                request_id=request,
                retry_policy=retry,
                timeouts=timeouts,
                input=payload(1),
            )
        )

    @rule(
        type=TYPES,
        queue=QUEUES,
        id=IDS,
        request=REQUESTS,
        retry=POLICIES,
        timeouts=WORKFLOW_TIMEOUTS,
        cron=st.sampled_from(["", "", "* * * * *"]),
        signal=st.sampled_from(["", "", "go", "\0"]),
    )
    def start(
        self,
        type: str,
        queue: str,
        id: str,
        request: str,
        retry: RetryPolicy | None,
        timeouts: c.WorkflowTimeouts,
        cron: str,
        signal: str,
    ) -> None:
        self.attempt(
            c.StartWorkflow(
                type=type,
                task_queue=queue,
                workflow_id=id,
                request_id=request,
                retry_policy=retry,
                timeouts=timeouts,
                cron_schedule=cron,
                signal_name=signal,
            )
        )

    @precondition(lambda self: self.executions())
    @rule(
        pick=PICKS,
        what=st.sampled_from(
            [c.CancelExecution, c.CancelExecution, c.TerminateExecution, c.RequeueDeadLetter, c.AwaitExecution]
        ),
        peer=PEERS,
    )
    def to_an_execution(self, pick: int, what: type[c.Command[Any]], peer: int) -> None:
        execution = _pick(self.executions(), pick)
        given: dict[str, object] = {"workflow_id": execution.workflow_id, "run_id": execution.run_id}
        if what is c.AwaitExecution:
            self.waiters += 1
            given |= {"waiter": self.waiters, "peer": peer}
        self.attempt(what(**given))

    @precondition(lambda self: self.executions())
    @rule(pick=PICKS, event_id=st.integers(0, 5))
    def reset(self, pick: int, event_id: int) -> None:
        execution = _pick(self.executions(), pick)
        self.attempt(c.ResetExecution(workflow_id=execution.workflow_id, run_id=execution.run_id, event_id=event_id))

    @precondition(lambda self: self.executions())
    @rule(pick=PICKS, timeout_ms=MOMENTS)
    def ask(self, pick: int, timeout_ms: int) -> None:
        self.waiters += 1
        execution = _pick(self.executions(), pick)
        self.attempt(
            c.QueryExecution(
                workflow_id=execution.workflow_id, query_type="q", waiter=self.waiters, timeout_ms=timeout_ms
            )
        )

    @rule(pick=PICKS, peer=PEERS)
    def abandon(self, pick: int, peer: int) -> None:
        self.attempt(c.AbandonWait(waiter=pick % (self.waiters + 1), peer=peer))

    # --- workers -----------------------------------------------------------------------------------

    @rule(
        peer=PEERS,
        kind=st.sampled_from(list(QueueKind)),
        queue=QUEUES,
        slots=SLOTS,
        types=st.one_of(st.none(), st.frozensets(TYPES)),
    )
    def subscribe(
        self, peer: int, kind: QueueKind, queue: str, slots: int | None, types: frozenset[str] | None
    ) -> None:
        self.attempt(c.Subscribe(peer=peer, kind=kind, task_queue=queue, slots=slots, types=types))

    @precondition(lambda self: self.subscriptions())
    @rule(pick=PICKS, slots=st.integers(-1, 4))
    def set_slots(self, pick: int, slots: int) -> None:
        peer, id = _pick(self.subscriptions(), pick)
        self.attempt(c.SetSlots(peer=peer, subscription_id=id, slots=slots))

    @precondition(lambda self: self.subscriptions())
    @rule(pick=PICKS)
    def unsubscribe(self, pick: int) -> None:
        peer, id = _pick(self.subscriptions(), pick)
        self.attempt(c.Unsubscribe(peer=peer, subscription_id=id))

    @rule(peer=PEERS)
    def lose(self, peer: int) -> None:
        self.attempt(c.PeerLost(peer=peer, reason="gone"))

    @precondition(lambda self: self.d.tasks())
    @rule(pick=PICKS, data=FAILURES, what=st.sampled_from(["complete", "complete", "fail", "fail", "beat", "back"]))
    def answer_task(self, pick: int, data: bytes, what: str) -> None:
        """With the token of any delivery that ever was, counted from the latest."""
        token = _pick(self.d.tasks()[::-1], pick).task_token
        commands: dict[str, c.Command[Any]] = {
            "complete": c.CompleteActivity(token=token, result=payload(1)),
            "fail": c.FailActivity(token=token, failure=data),
            "beat": c.HeartbeatActivity(token=token, details=payload(2)),
            "back": c.HandBackTask(token=token),
        }
        self.attempt(commands[what])

    @precondition(lambda self: self.d.runs())
    @rule(pick=PICKS, commands=END_COMMANDS)
    def answer_run(self, pick: int, commands: tuple[WorkflowCommand, ...]) -> None:
        self.attempt(c.CompleteWorkflowTask(token=_pick(self.d.runs()[::-1], pick).task_token, commands=commands))

    @precondition(lambda self: self.d.runs())
    @rule(pick=PICKS)
    def hand_back_run(self, pick: int) -> None:
        self.attempt(c.HandBackTask(token=_pick(self.d.runs()[::-1], pick).task_token))

    @precondition(lambda self: self.d.runs())
    @rule(pick=PICKS, type=TYPES, queue=QUEUES, retry=POLICIES, timeouts=ACTIVITY_TIMEOUTS)
    def call(self, pick: int, type: str, queue: str, retry: RetryPolicy | None, timeouts: c.ActivityTimeouts) -> None:
        run = _pick(self.d.runs()[::-1], pick)
        self.attempt(
            c.ScheduleActivity(
                peer=run.peer,
                workflow_id=run.workflow_id,
                run_id=run.run_id,
                type=type,
                task_queue=queue,
                retry_policy=retry,
                timeouts=timeouts,
            )
        )

    @precondition(lambda self: self.d.questions())
    @rule(pick=PICKS, peer=PEERS, error=st.sampled_from(["", "no"]), is_right=st.booleans())
    def answer_query(self, pick: int, peer: int, error: str, is_right: bool) -> None:
        question = _pick(self.d.questions(), pick)
        peer = question.peer if is_right else peer
        self.attempt(c.AnswerQuery(peer=peer, token=question.token, result=payload(1), error=error))

    # --- schedules ---------------------------------------------------------------------------------

    @rule(
        id=st.sampled_from(["s", "t", "u"]),
        spec=SPECS,
        overlap=OVERLAPS,
        paused=st.booleans(),
        is_task=st.booleans(),
        type=TYPES,
    )
    def put_schedule(
        self, id: str, spec: c.ScheduleSpec, overlap: c.Overlap, paused: bool, is_task: bool, type: str
    ) -> None:
        action = c.Action(type=type, task_queue="q", is_task=is_task, retry_policy=RetryPolicy(maximum_attempts=2))
        self.attempt(c.PutSchedule(schedule_id=id, spec=spec, action=action, overlap=overlap, paused=paused))

    @rule(
        id=st.sampled_from(["s", "t"]),
        what=st.sampled_from(["pause", "resume", "update", "trigger", "trigger", "delete"]),
        spec=SPECS,
        overlap=st.none() | OVERLAPS,
        request=REQUESTS,
    )
    def to_a_schedule(self, id: str, what: str, spec: c.ScheduleSpec, overlap: c.Overlap | None, request: str) -> None:
        commands: dict[str, c.Command[Any]] = {
            "pause": c.PauseSchedule(schedule_id=id, paused=True),
            "resume": c.PauseSchedule(schedule_id=id, paused=False),
            "update": c.UpdateSchedule(schedule_id=id, spec=spec),
            "trigger": c.TriggerSchedule(schedule_id=id, overlap=overlap, request_id=request),
            "delete": c.DeleteSchedule(schedule_id=id),
        }
        self.attempt(commands[what])

    # --- time --------------------------------------------------------------------------------------

    @rule(ms=MOMENTS)
    def jump(self, ms: int) -> None:
        self.d.jump(ms)

    @rule(ms=st.sampled_from([1, 99, 1_000]))
    def set_the_clock_back(self, ms: int) -> None:
        self.d.jump(-ms)

    @rule()
    def to_the_next_deadline(self) -> None:
        due_ms = self.d.engine.next_deadline_ms()
        if due_ms is not None:
            self.d.jump(max(0, due_ms - self.d.now_ms))

    # --- the end -----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Faults stop, somebody does the work: everything ends, and nothing is left over."""
        d, s = self.d, self.d.engine._state
        for schedule_id in list(s.schedules):
            d.step(c.DeleteSchedule(schedule_id=schedule_id))
        for peer in (1, 2, 3, 4):
            d.lose(peer)
        helpers = (5, 6)
        for kind, peer in zip(QueueKind, helpers, strict=True):
            for queue in ("q", "r"):
                d.subscribe(peer, queue=queue, kind=kind)
        for _ in range(60):
            if not s.open_count:
                break
            for peer in helpers:
                for token in list(s.peers[peer].leases):
                    if token in s.peers[peer].leases:
                        self._do(token)
            for execution in self.executions():
                if execution.cron_schedule and execution.status.is_open:
                    d.step(c.TerminateExecution(workflow_id=execution.workflow_id))
            d.jump(DAY_MS)
        assert not s.open_count, [execution for execution in self.executions() if execution.status.is_open]
        for peer in helpers:
            d.lose(peer)
        assert (s.activities, s.queues, s.peers, s.queries) == ({}, {}, {}, {})
        assert d.engine.next_deadline_ms() is None
        assert len(s.timers) == 0

    def _do(self, token: str) -> None:
        if token.startswith("wf|"):
            done = WorkflowCommand(kind=WorkflowCommandKind.COMPLETE)
            self.d.step(c.CompleteWorkflowTask(token=token, commands=(done,)))
        else:
            self.d.step(c.CompleteActivity(token=token, result=None))


def _pick(things: Sequence[T], number: int) -> T:
    return things[number % len(things)]
