"""One run of a workflow in a world without time, threads and network, where a seed decides what happens next.

Whatever could happen next is a choice: a workflow task or an activity is done, something comes from outside, time
passes to the next deadline, an attempt fails, the worker dies. How likely each kind is comes from the seed too, so that
some runs are calm, some are all crashes, and in some the outside is always early or always late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, Final, NamedTuple

import msgspec

from zapserver.engine import Engine
from zapserver.engine import commands as c
from zapserver.engine.effects import (
    DeliverActivityCancel,
    DeliverActivityTask,
    DeliverWorkflowTask,
    Effect,
    UpdateAnswered,
    UpdateRejected,
)
from zapserver.engine.errors import EngineError
from zapserver.engine.records import Activity, Event, Execution
from zapserver.engine.tables import Table
from zapserver.store import MemoryStore
from zaptasks.failures import canceled_failure, failure_of
from zaptasks.handlers import Handler
from zaptasks.payloads import encode_arguments, encode_optional, encode_payload
from zaptasks.workflow import WorkflowTaskHandler
from zaptasks.workflow.execution import STACK_TRACE
from zapwire.failure import Failure, decode_failure, encode_failure

from .pure_activity import run_purely
from .pure_worker import PureWorker, answer_command
from .script import Cancel, ScriptStep, Signal, Update

STEPS_MAX: Final = 20_000
"""A run that is not over after so many is taken for one that never ends."""

FAULTS_MAX: Final = 8
"""Crashes and failures in one run: faults have to stop for anything to end."""

WORDS_CHARACTERS_MAX: Final = 80
"""Of the arguments of an activity, in a report."""

QUEUE: Final = "default"
WORKFLOW_ID: Final = "explored"


class Call(NamedTuple):
    """One call of an activity's function."""

    name: str
    args: tuple[Any, ...]


class Unexpected(Exception):
    """What must not happen, in words."""


class _Choice(NamedTuple):
    weight: float
    act: Callable[[], None]


class Play:
    """One run, from its start to its end. `calls`, `faults`, `updates` and `trace` say what happened."""

    def __init__(
        self,
        seed: int,
        workflows: WorkflowTaskHandler,
        handlers: Mapping[str, Handler],
        script: Sequence[ScriptStep],
        *,
        start_ms: int,
    ) -> None:
        self.calls: list[Call] = []
        self.faults: Counter[str] = Counter()
        self.updates: list[object] = []
        """What each update came to, in the order of their answers: its result, or the `Failure`."""
        self.trace: list[str] = []
        self.worker = PureWorker(workflows, self.events)
        self._random = Random(seed)
        self._now_ms = self._start_ms = start_ms
        self._store = MemoryStore(Table)
        self.engine = Engine(new_id=self._new_id, random=self._random.random, reader=self._store)
        self._handlers = handlers
        self._script = list(script)
        self._tasks: list[DeliverWorkflowTask] = []
        self._attempts: list[DeliverActivityTask] = []
        self._stopped: dict[str, str] = {}
        """Reasons of cancels, by the token of the attempt that is to stop."""
        self._peer = 0
        self._queues = {QUEUE}
        self._forgetfulness = self._random.choice((0.0, 0.1, 0.9))
        """How likely a worker drops its runs before a task."""
        self._likely = {
            kind: self._random.choice(weights)
            for kind, weights in {
                "task": (1.0, 5.0, 25.0),
                "activity": (1.0, 5.0, 25.0),
                "outside": (1.0, 5.0, 25.0),
                "time": (0.2, 1.0, 5.0),
                "fault": (0.0, 0.2, 1.0),
            }.items()
        }

    def run(self, type: str, args: Sequence[object]) -> Execution:
        """From the start to the end, of the last run in a chain. Raises `Unexpected` and `Waits`."""
        input = c.Payload(encode_arguments(tuple(args), f"the arguments of {type!r}"))
        self._begin_worker()
        self._step(c.StartWorkflow(type=type, workflow_id=WORKFLOW_ID, input=input))
        self._note(f"{type} starts")
        for _ in range(STEPS_MAX):
            execution = self.engine.views.execution(WORKFLOW_ID)
            if not execution.status.is_open and execution.status is not c.Status.CONTINUED_AS_NEW:
                self._note(f"it ends: {execution.status.name}")
                return execution
            choices = [choice for choice in self._choices() if choice.weight]
            if not choices:
                raise Unexpected(self._why_stuck())
            self._random.choices(choices, [choice.weight for choice in choices])[0].act()
        raise Unexpected(f"it has not ended after {STEPS_MAX:,} steps: does something repeat for ever?")

    @property
    def seconds(self) -> float:
        """How long it has taken so far, in its own time."""
        return (self._now_ms - self._start_ms) / 1000

    def close(self) -> None:
        """Forget all runs."""
        self.worker.handler.evict_all()

    def events(self, workflow_id: str, run_id: str) -> list[Event]:
        """The whole history of a run."""
        execution = self.engine.views.execution(workflow_id, run_id)
        return self.engine.views.history(workflow_id, run_id, limit=execution.history_length)[0]

    # --- what can happen -----------------------------------------------------------------------------------

    def _choices(self) -> Iterator[_Choice]:
        likely = self._likely
        for task in self._tasks:
            yield _Choice(likely["task"], partial(self._do_task, task))
        for attempt in self._attempts:
            yield _Choice(likely["activity"], partial(self._do_activity, attempt))
            if self._may_fail([attempt]):
                yield _Choice(likely["fault"], partial(self._fail_activity, attempt))
        if self._script:
            yield _Choice(likely["outside"], self._do_script)
        if self._time_may_pass():
            yield _Choice(likely["time"], self._pass_time)
        if (self._tasks or self._attempts) and self._may_fail(self._attempts):
            yield _Choice(likely["fault"], self._crash)

    def _may_fail(self, tasks: Sequence[DeliverActivityTask]) -> bool:
        """Whether these attempts can fail and nothing is lost: only what a retry policy absorbs is done."""
        return sum(self.faults.values()) < FAULTS_MAX and all(map(_has_another_attempt, map(self._activity, tasks)))

    def _time_may_pass(self) -> bool:
        """Work is quick: it is over before its timeouts."""
        due_ms = self.engine.next_deadline_ms()
        if due_ms is None or self._tasks:
            return False
        deadlines = [activity.deadline_ms() for activity in map(self._activity, self._attempts) if activity]
        return all(deadline is None or due_ms < deadline for deadline in deadlines)

    def _activity(self, task: DeliverActivityTask) -> Activity | None:
        execution = self.engine.views.execution(task.workflow_id, task.run_id)
        return execution.open_activities.get(task.activity_id)

    # --- what happens --------------------------------------------------------------------------------------

    def _do_task(self, task: DeliverWorkflowTask) -> None:
        self._tasks.remove(task)
        forgets = self._random.random() < self._forgetfulness
        if forgets:
            self.worker.handler.evict_all()
        how = "replayed from its history" if forgets else "on what it has at hand"
        self._note(f"workflow task of {task.workflow_type}, up to event {task.last_event_id}, {how}")
        command = answer_command(task, self.worker.answer(task))
        if isinstance(command, c.FailWorkflowTask):
            raise Unexpected(f"its workflow task failed: {command.reason}")
        self._note_queues(command)
        if not self._try(command):
            self.worker.handler.evict(task.run_id)

    def _do_activity(self, task: DeliverActivityTask) -> None:
        self._attempts.remove(task)
        reason = self._stopped.pop(task.task_token, None)
        if reason is not None and self._random.random() < 0.5:
            self._note(f"{_words(task)} stops")
            self._try(c.FailActivity(token=task.task_token, failure=encode_failure(canceled_failure(reason))))
            return
        self._note(f"{_words(task)} is done")
        try:
            result = self._call(task)
            payload = encode_payload(result, f"the result of {task.activity_type!r}")
        except Exception as error:
            self._note(f"  it raises {type(error).__name__}: {error}")
            self._try(c.FailActivity(token=task.task_token, failure=encode_failure(failure_of(error))))
        else:
            self._try(c.CompleteActivity(token=task.task_token, result=c.Payload(payload)))

    def _call(self, task: DeliverActivityTask) -> object:
        def called(args: tuple[Any, ...]) -> None:
            self.calls.append(Call(task.activity_type, args))

        def beat(details: bytes) -> None:
            self._try(c.HeartbeatActivity(token=task.task_token, details=c.Payload(details)))

        return run_purely(self._handlers[task.activity_type], task, called, beat)

    def _fail_activity(self, task: DeliverActivityTask) -> None:
        """Before or after it has done its work."""
        self._attempts.remove(task)
        self._stopped.pop(task.task_token, None)
        self.faults["activity failed"] += 1
        when = self._work_in_vain(task)
        self._note(f"{_words(task)} fails {when}")
        failure = Failure(message="a fault of the exploration", code="InjectedFailure")
        self._try(c.FailActivity(token=task.task_token, failure=encode_failure(failure)))

    def _work_in_vain(self, task: DeliverActivityTask) -> str:
        if self._random.random() < 0.5:
            return "before its work"
        try:
            self._call(task)
        except Exception as error:
            self._note(f"  it raises {type(error).__name__}: {error}")
        return "after its work"

    def _do_script(self) -> None:
        step = self._script.pop(0)
        self._note(f"from outside: {step}")
        match step:
            case Signal(name, value):
                payload = encode_optional(value, f"the value of signal {name!r}")
                self._try(c.SignalExecution(workflow_id=WORKFLOW_ID, signal_name=name, input=_payload(payload)))
            case Update(name, args):
                payload = encode_arguments(args, f"the arguments of update {name!r}")
                number = len(self._script)
                update = c.UpdateExecution(
                    workflow_id=WORKFLOW_ID, name=name, args=_payload(payload), waiter=number, peer=-1
                )
                self._try(update)
            case Cancel(reason):
                self._try(c.CancelExecution(workflow_id=WORKFLOW_ID, reason=reason))

    def _pass_time(self) -> None:
        due_ms = self.engine.next_deadline_ms()
        assert due_ms is not None
        self._now_ms = max(self._now_ms, due_ms)
        self._note("time passes")
        self._step(c.Tick())

    def _crash(self) -> None:
        """The worker dies, with or without having done what it had, and another one takes its place."""
        self.faults["worker lost"] += 1
        for activity in self._attempts:
            self._work_in_vain(activity)
        if self._tasks and self._random.random() < 0.5:
            self.worker.answer(self._tasks[0])
        self._note(f"the worker dies with {len(self._tasks)} workflow tasks and {len(self._attempts)} activities")
        self.worker.handler.evict_all()
        self._tasks.clear()
        self._attempts.clear()
        self._stopped.clear()
        self._step(c.PeerLost(peer=self._peer, reason="it died"))
        self._begin_worker()

    # --- the engine ----------------------------------------------------------------------------------------

    def _begin_worker(self) -> None:
        self._peer += 1
        for queue in sorted(self._queues):
            self._subscribe(queue)

    def _subscribe(self, queue: str) -> None:
        identity = f"worker {self._peer}"
        for kind, types in (
            (c.QueueKind.WORKFLOW, frozenset(self.worker.handler.types)),
            (c.QueueKind.ACTIVITY, frozenset(self._handlers)),
        ):
            replays = kind is c.QueueKind.WORKFLOW
            self._step(
                c.Subscribe(
                    peer=self._peer, kind=kind, task_queue=queue, identity=identity, types=types, replays=replays
                )
            )

    def _note_queues(self, command: c.CompleteWorkflowTask) -> None:
        """The worker serves whatever queue the workflow uses."""
        for one in command.commands:
            queue = getattr(one, "task_queue", "")
            if queue and queue not in self._queues:
                self._queues.add(queue)
                self._subscribe(queue)

    def _try(self, command: c.Command[Any]) -> bool:
        """False if the engine refuses it: it came too late."""
        try:
            self._step(command)
        except EngineError as error:
            self._note(f"  refused: {error}")
            return False
        return True

    def _step(self, command: c.Command[Any]) -> None:
        try:
            self.engine.step(command, self._now_ms)
        finally:
            changes = self.engine.take_changes()
            if changes is not None:
                self._store.commit(changes)
            for effect in self.engine.take_effects():
                self._take(effect)

    def _take(self, effect: Effect) -> None:
        match effect:
            case DeliverWorkflowTask():
                self._tasks.append(effect)
            case DeliverActivityTask():
                self._attempts.append(effect)
            case DeliverActivityCancel():
                self._stopped[effect.task_token] = effect.reason
            case UpdateAnswered(failure=None):
                self.updates.append(None if effect.result is None else msgspec.json.decode(effect.result))
            case UpdateAnswered(failure=failure) | UpdateRejected(failure=failure):
                assert failure is not None
                self.updates.append(decode_failure(failure))

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    # --- words ---------------------------------------------------------------------------------------------

    def _note(self, what: str) -> None:
        self.trace.append(f"{self.seconds:12.3f} s  {what}")

    def _why_stuck(self) -> str:
        lines = ["it never ends: nothing is due, and nothing can happen"]
        lines += [f"  {waiting.what}: {waiting.reason}" for waiting in self.engine.views.explain(WORKFLOW_ID)]
        run_id = self.engine.views.execution(WORKFLOW_ID).run_id
        if self.worker.handler.has(run_id):
            stack = msgspec.json.decode(self.worker.handler.query(run_id, STACK_TRACE))["stack"]
            lines += [f"  {line}" for line in stack.splitlines()]
        return "\n".join(lines)


def _words(task: DeliverActivityTask) -> str:
    input = bytes(task.input or b"[]").decode()
    args = input[1:-1] if len(input) < WORDS_CHARACTERS_MAX else input[1:WORDS_CHARACTERS_MAX] + "..."
    return f"{task.activity_type}({args}), attempt {task.attempt},"


def _has_another_attempt(activity: Activity | None) -> bool:
    if activity is None:  # the workflow is over, and nobody minds
        return True
    is_bounded = activity.timeouts.schedule_to_close_ms > 0
    return not is_bounded and activity.retry_policy.allows_another(activity.charged)


def _payload(data: bytes | None) -> c.Payload | None:
    return None if data is None else c.Payload(data)
