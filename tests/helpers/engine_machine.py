"""A hypothesis machine that does to an engine whatever clients, workers, operators and clocks can do.

The invariants of `engine_invariants` hold after every step; a refusal leaves no trace; and at the end,
when the faults have stopped and somebody does the work, everything that is open comes to an end.

There are few rules with many arms, because hypothesis leaves out about half of the rules of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from tests.helpers.engine_driver import DAY_MS, Driver, failure, fingerprint, payload

from zapserver.engine import Limits
from zapserver.engine import commands as c
from zapserver.engine.commands import QueueKind, WorkflowCommand, WorkflowCommandKind
from zapserver.engine.errors import EngineError
from zapserver.engine.records import Execution
from zapserver.engine.retry import RetryPolicy

T = TypeVar("T")

PEERS = st.integers(1, 3)
PICKS = st.integers(0, 100)
"""Which one of those there are, counted around."""
TYPES = st.sampled_from(["a", "a", "b"])
QUEUES = st.sampled_from(["q"] * 7 + ["r"])
IDS = st.sampled_from([""] * 6 + ["one", "two"])
REQUESTS = st.sampled_from([""] * 6 + ["r1", "r2"])
MOMENTS = st.sampled_from([0, 1, 20, 99, 100, 101, 500, 1_000, 5_000, 60_000, 3_600_000])
TIMES = st.sampled_from([0] * 8 + [1, 100, 1_000, 30_000])
OVERLAPS = st.sampled_from(list(c.Overlap))
KINDS = st.sampled_from(list(QueueKind))
RATES = st.sampled_from([(0.0, 0.0)] * 4 + [(1.0, 0.0), (0.0, 2.0), (0.01, 50.0), (200.0, 0.5)])
"""Of a worker and of its queue, a second."""
POLICIES = st.none() | st.builds(
    RetryPolicy,
    initial_interval_ms=st.sampled_from([1, 100, 1_000]),
    backoff_coefficient=st.sampled_from([1.0, 2.0]),
    maximum_attempts=st.integers(0, 3),
    non_retryable_error_types=st.sampled_from([(), ("Fatal",)]),
)
ACTIVITY_TIMEOUTS = st.builds(
    c.ActivityTimeouts,
    schedule_to_start_ms=TIMES,
    schedule_to_close_ms=TIMES,
    start_to_close_ms=TIMES,
    heartbeat_ms=TIMES,
)
SPECS = st.builds(
    c.ScheduleSpec,
    interval_ms=st.sampled_from([0, 10, 100, 1_000, 60_000]),
    phase_ms=st.sampled_from([None, None, 0, 7]),
    intervals=st.sampled_from([(), (), ((100, 30), (1_000, None))]),
    cron=st.sampled_from([(), (), (), ("@every 1s", "30 * * * *")]),
    jitter_ms=st.sampled_from([0, 0, 50, 5_000]),
)
FAILURES = st.sampled_from(
    [failure(), failure(code="Fatal"), failure(code="CanceledError"), failure(non_retryable=True), b"garbage", b"\xff"]
)
HEADERS = st.sampled_from([None, None, {}, {"trace": "1"}, {"trace": "2"}, {"\n": "refused"}])
TASKS = st.builds(
    c.StartTask,
    headers=HEADERS,
    type=TYPES,
    task_queue=QUEUES,
    workflow_id=IDS,
    request_id=REQUESTS,
    retry_policy=POLICIES,
    timeouts=st.none() | ACTIVITY_TIMEOUTS,
    input=st.just(payload(1)),
)
WORKFLOWS = st.builds(
    c.StartWorkflow,
    headers=HEADERS,
    type=TYPES,
    task_queue=QUEUES,
    workflow_id=IDS,
    request_id=REQUESTS,
    retry_policy=POLICIES,
    timeouts=st.builds(c.WorkflowTimeouts, execution_ms=TIMES, run_ms=TIMES, task_ms=st.sampled_from([0, 0, 100])),
    cron_schedule=st.sampled_from(["", "", "", "", "", "@every 1m"]),
    signal_name=st.sampled_from(["", "", "go", "\0"]),
    id_reuse=st.sampled_from([*[c.IdReuse.ALLOW] * 3, *c.IdReuse]),
    id_conflict=st.sampled_from([*[c.IdConflict.FAIL] * 3, *c.IdConflict]),
)
ENDINGS = st.lists(
    st.builds(
        WorkflowCommand,
        kind=st.sampled_from(list(WorkflowCommandKind)),
        payload=st.none() | st.just(payload({"x": 1})),
    )
    # Only a failure may be garbage: the shell lets no result pass that is not JSON.
    | st.builds(
        WorkflowCommand,
        kind=st.sampled_from([WorkflowCommandKind.FAIL, WorkflowCommandKind.CANCEL]),
        payload=FAILURES.map(c.Payload),
    ),
    max_size=2,
).map(tuple)

COMMAND_IDS = st.sampled_from(["0", "1", "2", "1", "2", "|"])
CHILD_IDS = st.sampled_from(["", "", "", "kid", "one"])
UPDATE_IDS = st.sampled_from(["u1", "u2", "u3"])
DECISIONS = st.lists(
    st.one_of(
        st.builds(c.StartTimerCommand, id=COMMAND_IDS, fire_after_ms=MOMENTS),
        st.builds(c.CancelTimerCommand, id=COMMAND_IDS),
        st.builds(
            c.ScheduleActivityCommand,
            id=COMMAND_IDS,
            type=TYPES,
            task_queue=st.sampled_from(["", "q", "r"]),
            timeouts=ACTIVITY_TIMEOUTS,
            retry_policy=POLICIES,
        ),
        st.builds(c.CancelActivityCommand, id=COMMAND_IDS),
        st.builds(
            c.StartChildCommand,
            id=COMMAND_IDS,
            type=TYPES,
            workflow_id=CHILD_IDS,
            retry_policy=POLICIES,
            timeouts=st.builds(c.WorkflowTimeouts, execution_ms=TIMES, run_ms=TIMES),
            parent_close_policy=st.sampled_from(list(c.ParentClosePolicy)),
        ),
        st.builds(c.SignalExternalCommand, id=COMMAND_IDS, workflow_id=st.sampled_from(["one", "kid"]), name=TYPES),
        st.builds(c.CancelExternalCommand, id=COMMAND_IDS, workflow_id=st.sampled_from(["one", "two", "kid"])),
        st.builds(c.RecordMarkerCommand, id=COMMAND_IDS, name=TYPES, details=st.just(payload(1))),
        st.builds(c.UpsertCommand, id=COMMAND_IDS, search_attributes=st.just({"a": 1, "b": None})),
        st.builds(c.AcceptUpdateCommand, update_id=UPDATE_IDS),
        st.builds(c.RejectUpdateCommand, update_id=UPDATE_IDS, failure=FAILURES),
        st.builds(c.CompleteUpdateCommand, update_id=UPDATE_IDS, failure=st.none() | FAILURES),
    ),
    max_size=4,
)
LAST_DECISIONS = st.sampled_from(
    [
        *[None] * 6,
        c.ContinueAsNewCommand(input=payload(2)),
        c.CompleteCommand(),
        c.FailCommand(failure=c.Payload(failure())),
        c.CancelCommand(failure=c.Payload(failure())),
        WorkflowCommand(kind=WorkflowCommandKind.COMPLETE),
        WorkflowCommand(kind=WorkflowCommandKind.FAIL),
        WorkflowCommand(kind=WorkflowCommandKind.CANCEL),
    ]
)

LIMITS = Limits(
    open_executions_max=12,
    closed_executions_max=8,
    dead_letters_max=3,
    schedules_max=2,
    subscriptions_per_peer_max=4,
    waits_per_peer_max=3,
    pending_queries_max=2,
    history_events_max=30,
    burst_bytes_max=2_500,
    buffered_runs_max=3,
    schedule_slots_per_step_max=4,
    backfill_slots_max=20,
    backfills_max=2,
    pending_updates_max=2,
    updates_max=4,
    signal_ids_max=1,
)
"""Small, so that each of them is met."""


class Machine(RuleBasedStateMachine):
    """What machines share: a step that may be refused, and an end to which everything comes."""

    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.d = Driver(limits=self.limits, randoms=(0.0, 0.3, 0.9))
        self.waiters = 0

    def attempt(self, command: c.Command[Any]) -> None:
        """One step; where it is refused, nothing of it happened."""
        self.d.step(c.Tick())
        before = fingerprint(self.d.engine)
        try:
            self.d.step(command)
        except EngineError as refusal:
            note(f"refused: {refusal}")
            assert fingerprint(self.d.engine) == before, "a refused command left a trace"

    def executions(self) -> list[Execution]:
        """The open ones, the latest first, then the closed ones."""
        return self.d.views.executions(lambda execution: True)[0]

    @rule(live=st.lists(PEERS, unique=True) | st.just([]))
    def the_server_or_its_store_fails(self, live: list[int]) -> None:
        """It goes on from what was kept. With `live` only the store failed, and these connections still stand."""
        self.d.restart(live)

    # --- the end -----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Faults stop, somebody does the work: everything ends, and nothing is left over."""
        d, s = self.d, self.d.engine._state
        for schedule_id in list(s.schedules):
            d.step(c.DeleteSchedule(schedule_id=schedule_id))
        for peer in (1, 2, 3, 4):
            d.lose(peer)
        helpers = (5, 6, 7)
        for queue in ("q", "r"):
            d.subscribe(5, queue=queue, kind=QueueKind.WORKFLOW)
            d.subscribe(6, queue=queue)
            d.subscribe_replaying(7, queue=queue)
        for _ in range(60):
            s = d.engine._state
            if not s.executions:
                break
            for peer in helpers:
                d.step(c.ResumePeer(peer=peer))
                for token in list(s.peers[peer].leases):
                    if token in s.peers[peer].leases:
                        self._do(token)
            for execution in self.executions():
                if not execution.status.is_open:
                    continue
                if execution.cron_schedule:
                    d.step(c.TerminateExecution(workflow_id=execution.workflow_id))
                elif execution.is_replayed and execution.task is None:
                    self.attempt(c.SignalExecution(workflow_id=execution.workflow_id, signal_name="end"))
            d.jump(DAY_MS)
        assert not s.executions, list(s.executions.values())
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


class EngineMachine(Machine):
    @initialize(workers=st.lists(st.tuples(PEERS, st.integers(1, 3)), min_size=1, max_size=3))
    def some_workers(self, workers: list[tuple[int, int]]) -> None:
        for peer, slots in workers:
            for kind in QueueKind:
                replays = kind is QueueKind.WORKFLOW and (peer + slots) % 2 == 0
                self.attempt(c.Subscribe(peer=peer, kind=kind, task_queue="q", slots=slots, replays=replays))

    # --- clients -----------------------------------------------------------------------------------

    @rule(command=TASKS | WORKFLOWS)
    def start(self, command: c.Command[Any]) -> None:
        self.attempt(command)

    @rule(
        pick=PICKS,
        what=st.sampled_from(
            [
                "cancel",
                "cancel",
                "terminate",
                "requeue",
                "await",
                "follow",
                "watch",
                "watch",
                "reset",
                "ask",
                "signal",
                "update",
                "update",
            ]
        ),
        peer=PEERS,
        number=MOMENTS,
        update_id=UPDATE_IDS,
        request=REQUESTS,
        stage=st.sampled_from(list(c.UpdateStage)),
    )
    def to_an_execution(
        self, pick: int, what: str, peer: int, number: int, update_id: str, request: str, stage: c.UpdateStage
    ) -> None:
        if not self.executions():
            return
        execution = pick_one(self.executions(), pick)
        id, run_id = execution.workflow_id, execution.run_id
        self.waiters += 1
        commands: dict[str, c.Command[Any]] = {
            "cancel": c.CancelExecution(workflow_id=id, run_id=run_id),
            "terminate": c.TerminateExecution(workflow_id=id, run_id=run_id),
            "requeue": c.RequeueDeadLetter(workflow_id=id, run_id=run_id),
            "await": c.AwaitExecution(workflow_id=id, run_id=run_id, waiter=self.waiters, peer=peer),
            "follow": c.AwaitExecution(workflow_id=id, run_id=run_id, waiter=self.waiters, peer=peer, follow=True),
            "reset": c.ResetExecution(workflow_id=id, run_id=run_id, event_id=number % 13),
            "update": c.UpdateExecution(
                workflow_id=id, name="set", update_id=update_id, waiter=self.waiters, peer=peer, wait=stage
            ),
            "watch": c.AwaitEvents(
                workflow_id=id, run_id=run_id, waiter=self.waiters, peer=peer, after=execution.history_length - pick % 2
            ),
            "ask": c.QueryExecution(workflow_id=id, query_type="q", waiter=self.waiters, timeout_ms=number),
            "signal": c.SignalExecution(workflow_id=id, signal_name="go", request_id=request),
        }
        self.attempt(commands[what])

    # --- workers -----------------------------------------------------------------------------------

    @rule(
        peer=PEERS,
        pick=PICKS,
        what=st.sampled_from(["subscribe"] * 3 + ["resume"] * 3 + ["slots", "unsubscribe", "lose", "abandon"]),
        kind=KINDS,
        queue=QUEUES,
        slots=st.sampled_from([None, 1, 2, 3, 1, 2, 3, 0, -1]),
        types=st.sampled_from([None, None, frozenset("a"), frozenset("ab"), frozenset()]),
        replays=st.booleans(),
        rates=RATES,
    )
    def a_worker_comes_or_goes(
        self,
        peer: int,
        pick: int,
        what: str,
        kind: QueueKind,
        queue: str,
        slots: int | None,
        types: frozenset[str] | None,
        replays: bool,
        rates: tuple[float, float],
    ) -> None:
        known = self.d.engine._state.peers.get(peer)
        id = pick_one(list(known.subscriptions), pick) if known is not None and known.subscriptions else "unknown"
        commands: dict[str, c.Command[Any]] = {
            "subscribe": c.Subscribe(
                peer=peer,
                kind=kind,
                task_queue=queue,
                slots=slots,
                types=types,
                build_id=("", "b1")[peer % 2],
                replays=replays,
                per_second=rates[0] if kind is QueueKind.ACTIVITY else 0.0,
                queue_per_second=rates[1] if kind is QueueKind.ACTIVITY else 0.0,
            ),
            "slots": c.SetSlots(peer=peer, subscription_id=id, slots=1 if slots is None else slots),
            "unsubscribe": c.Unsubscribe(peer=peer, subscription_id=id),
            "lose": c.PeerLost(peer=peer, reason="gone"),
            "resume": c.ResumePeer(peer=peer),
            "abandon": c.AbandonWait(waiter=self.waiters - pick % 5, peer=peer),
        }
        self.attempt(commands[what])

    @rule(
        pick=PICKS, data=FAILURES, what=st.sampled_from(["complete", "complete", "fail", "fail", "heartbeat", "return"])
    )
    def a_worker_answers_a_task(self, pick: int, data: bytes, what: str) -> None:
        """With the token of any delivery that ever was, counted from the latest."""
        if not self.d.tasks():
            return
        token = pick_one(self.d.tasks()[::-1], pick).task_token
        commands: dict[str, c.Command[Any]] = {
            "complete": c.CompleteActivity(token=token, result=payload(1)),
            "fail": c.FailActivity(token=token, failure=data),
            "heartbeat": c.HeartbeatActivity(token=token, details=payload(2)),
            "return": c.HandBackTask(token=token),
        }
        self.attempt(commands[what])

    @rule(
        pick=PICKS,
        what=st.sampled_from(["call", "call", "call", "end", "return", "answer", "answer another's"]),
        type=TYPES,
        queue=QUEUES,
        retry=POLICIES,
        timeouts=ACTIVITY_TIMEOUTS,
        ending=ENDINGS,
    )
    def a_worker_runs_a_workflow(
        self,
        pick: int,
        what: str,
        type: str,
        queue: str,
        retry: RetryPolicy | None,
        timeouts: c.ActivityTimeouts,
        ending: tuple[WorkflowCommand, ...],
    ) -> None:
        if not self.d.runs():
            return
        run = pick_one(self.d.runs()[::-1], pick)
        commands: dict[str, c.Command[Any]] = {
            "call": c.ScheduleActivity(
                peer=run.peer,
                workflow_id=run.workflow_id,
                run_id=run.run_id,
                type=type,
                task_queue=queue,
                retry_policy=retry,
                timeouts=timeouts,
            ),
            "end": c.CompleteWorkflowTask(token=run.task_token, commands=ending),
            "return": c.HandBackTask(token=run.task_token),
        }
        for question in self.d.questions()[-1:]:
            commands["answer"] = c.AnswerQuery(peer=question.peer, token=question.token, result=payload(1))
            commands["answer another's"] = c.AnswerQuery(peer=run.peer, token=question.token, error="no")
        if what in commands:
            self.attempt(commands[what])

    @rule(
        pick=PICKS,
        what=st.sampled_from([*["answer"] * 6, "fail", "fail", "does not know"]),
        decisions=DECISIONS,
        last=LAST_DECISIONS,
        decide_updates=st.booleans(),
    )
    def a_worker_decides(
        self,
        pick: int,
        what: str,
        decisions: list[c.TaskCommand],
        last: c.TaskCommand | None,
        decide_updates: bool,
    ) -> None:
        """With the token of a delivery to a replaying worker, counted from the latest."""
        runs = [run for run in self.d.runs()[::-1] if run.replays]
        if not runs:
            return
        run = pick_one(runs, pick // 20)
        answer = list(decisions)
        if decide_updates:
            answer += [c.AcceptUpdateCommand(update_id=update.update_id) for update in run.updates]
        answer += [] if last is None else [last]
        commands: dict[str, c.Command[Any]] = {
            "answer": c.CompleteWorkflowTask(token=run.task_token, commands=tuple(answer)),
            "fail": c.FailWorkflowTask(token=run.task_token, reason="it is broken"),
            "does not know": c.FailWorkflowTask(token=run.task_token, reason="", unknown_type=True),
        }
        self.attempt(commands[what])

    # --- operators and time ------------------------------------------------------------------------

    @rule(
        id=st.sampled_from(["s", "s", "t", "u"]),
        what=st.sampled_from(
            ["put", "put", "pause", "resume", "update", "trigger", "trigger", "backfill", "backfill", "delete"]
        ),
        spec=SPECS,
        overlap=OVERLAPS,
        request=REQUESTS,
        is_task=st.booleans(),
        paused=st.booleans(),
        window=st.sampled_from([None, None, 10_000, 3_600_000]),
        actions=st.sampled_from([None, None, 1, 3]),
        past=MOMENTS,
    )
    def to_a_schedule(
        self,
        id: str,
        what: str,
        spec: c.ScheduleSpec,
        overlap: c.Overlap,
        request: str,
        is_task: bool,
        paused: bool,
        window: int | None,
        actions: int | None,
        past: int,
    ) -> None:
        action = c.Action(type="a", task_queue="q", is_task=is_task, retry_policy=RetryPolicy(maximum_attempts=2))
        commands: dict[str, c.Command[Any]] = {
            "put": c.PutSchedule(
                schedule_id=id,
                spec=spec,
                action=action,
                overlap=overlap,
                paused=paused and is_task,
                catchup_window_ms=window,
                pause_on_failure=paused,
                remaining_actions=actions,
            ),
            "backfill": c.BackfillSchedule(
                schedule_id=id,
                start_ms=self.d.now_ms - past,
                end_ms=self.d.now_ms - past // 3,
                overlap=overlap if paused else None,
                request_id=request,
            ),
            "pause": c.PauseSchedule(schedule_id=id, paused=True),
            "resume": c.PauseSchedule(schedule_id=id, paused=False),
            "update": c.UpdateSchedule(
                schedule_id=id, spec=spec if is_task else None, remaining_actions=actions, overlap=overlap
            ),
            "trigger": c.TriggerSchedule(schedule_id=id, overlap=overlap if paused else None, request_id=request),
            "delete": c.DeleteSchedule(schedule_id=id),
        }
        self.attempt(commands[what])

    @rule(ms=MOMENTS, how=st.sampled_from(["jump", "jump back", "to the next deadline", "to the next deadline"]))
    def time_passes(self, ms: int, how: str) -> None:
        if how == "to the next deadline":
            due_ms = self.d.engine.next_deadline_ms()
            ms = 0 if due_ms is None else max(0, due_ms - self.d.now_ms)
        self.d.jump(-ms if how == "jump back" else ms)


def pick_one(things: Sequence[T], number: int) -> T:
    return things[number % len(things)]
