"""The real engine with a replaying worker and activities, in virtual time and without a network.

    world = World(Order, charge=lambda item: f"paid {item}")
    started = world.start("book")
    world.settle()
    assert world.result(started) == "paid book"

Deliveries and answers pass through their JSON, as they do between a server and a worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.helpers.engine_driver import Driver, failure, payload, value

from zapserver.engine import commands as c
from zapserver.engine.effects import DeliverActivityTask, DeliverQuery, DeliverWorkflowTask
from zapserver.engine.errors import NotFound, StaleToken
from zapserver.engine.records import Event
from zaptasks import WorkflowHistory
from zaptasks.testing.pure_worker import PureWorker, answer_command, read_events
from zaptasks.workflow import WorkflowTaskHandler, definition_of
from zaptasks.workflow import commands as wc
from zaptasks.workflow.history import Event as SdkEvent

WORKFLOWS = 1
ACTIVITIES = 5
ACTIVITY_TYPES = ("charge", "refund", "slow", "fail")


class World:
    """Peer 1 runs the workflows, peer 5 does activities: at once with the functions given, else as the test says."""

    def __init__(
        self, *workflows: object, forgetful: bool = False, watch: bool = True, **activities: Callable[..., object]
    ) -> None:
        self.d = Driver(watch=watch)
        self.workflows = workflows
        self.worker = PureWorker(WorkflowTaskHandler(workflows), self.events)
        self.activities = activities
        self.forgetful = forgetful
        """Evict after every task, so that everything is replayed all the time."""
        self.answers: list[list[wc.Command]] = []
        self.reasons: list[str] = []
        """Of workflow tasks that failed."""
        self.held: list[DeliverActivityTask] = []
        """Activities that have no function here and are open."""
        self._seen = 0
        self.d.subscribe_replaying(WORKFLOWS, types=[definition_of(workflow).name for workflow in workflows])
        self.d.subscribe(ACTIVITIES)

    @property
    def handler(self) -> WorkflowTaskHandler:
        return self.worker.handler

    def __del__(self) -> None:
        self.handler.evict_all()

    def start(self, *args: object, type: str = "", workflow_id: str = "w") -> c.Started:
        name = type or definition_of(self.workflows[0]).name
        started = self.d.step(c.StartWorkflow(type=name, workflow_id=workflow_id, input=payload(list(args))))
        self.settle()
        return started

    # --- the worker ----------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let the worker handle everything that is delivered."""
        while self._seen < len(self.d.effects):
            effect = self.d.effects[self._seen]
            self._seen += 1
            match effect:
                case DeliverWorkflowTask():
                    self._workflow_task(effect)
                case DeliverActivityTask() if effect.activity_type in self.activities:
                    self._activity(effect)
                case DeliverActivityTask():
                    self.held.append(effect)
                case DeliverQuery():
                    self.d.step(self.worker.query(effect))

    def _workflow_task(self, effect: DeliverWorkflowTask) -> None:
        answer = self.worker.answer(effect)
        self.answers.append(answer)
        command = answer_command(effect, answer)
        if isinstance(command, c.FailWorkflowTask):
            self.reasons.append(command.reason)
        try:
            self.d.step(command)
        except (StaleToken, NotFound):
            self.handler.evict(effect.run_id)  # too late: another task was sent out, or the run was closed
        if self.forgetful:
            self.handler.evict_all()

    def _activity(self, task: DeliverActivityTask) -> None:
        args = value(task.input)
        assert isinstance(args, list)
        try:
            self.d.complete(task, self.activities[task.activity_type](*args))
        except Exception as error:
            self.d.fail(task, failure(str(error), type(error).__name__, non_retryable=True))

    # --- the outside ---------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass; whatever is due happens at its time, and the worker answers at once."""
        end_ms = self.d.now_ms + round(seconds * 1000)
        while (due_ms := self.d.engine.next_deadline_ms()) is not None and due_ms <= end_ms:
            self.d.advance(max(0, due_ms - self.d.now_ms))
            self.settle()
        self.d.advance(end_ms - self.d.now_ms)
        self.settle()

    def signal(self, started: c.Started, name: str, input: object = None) -> None:
        self.d.signal(started, name, input)
        self.settle()

    def update(self, started: c.Started, name: str, *args: object, id: str = "") -> Any:
        """What the caller of an update was told so far: an effect, or None."""
        waiter = f"updater {len(self.d.effects)}"
        self.d.step(
            c.UpdateExecution(
                workflow_id=started.workflow_id,
                name=name,
                update_id=id,
                args=payload(list(args)),
                waiter=waiter,
                peer=9,
            )
        )
        self.settle()
        told = self.d.told(waiter)
        return told[0] if told else None

    def query(self, started: c.Started, name: str, *args: object) -> Any:
        """The result of a query; raises what the caller is told."""
        waiter = f"asker {len(self.d.effects)}"
        self.d.step(
            c.QueryExecution(workflow_id=started.workflow_id, query_type=name, waiter=waiter, args=payload(list(args)))
        )
        self.settle()
        (told,) = self.d.told(waiter)
        error = getattr(told, "error", None)
        if error is not None:
            raise error
        return value(getattr(told, "result", None))

    def cancel(self, started: c.Started, reason: str = "enough") -> None:
        self.d.cancel(started, reason)
        self.settle()

    def complete(self, result: object = None) -> None:
        """Complete the activity that was held longest."""
        self.d.complete(self.held.pop(0), result)
        self.settle()

    def lose_the_worker(self) -> None:
        """Another one, with nothing at hand, takes its place."""
        self.handler.evict_all()
        self.d.lose(WORKFLOWS)
        self.d.subscribe_replaying(WORKFLOWS, types=[definition_of(workflow).name for workflow in self.workflows])
        self.settle()

    # --- what came of it -------------------------------------------------------------------------------------

    def events(self, workflow_id: str, run_id: str = "") -> list[Event]:
        return self.d.engine._state.events(self.d.views.execution(workflow_id, run_id))

    def history(self, started: c.Started) -> list[SdkEvent]:
        return read_events(self.d.events(started))

    def exported(self, started: c.Started) -> WorkflowHistory:
        return WorkflowHistory(
            namespace="default",
            workflow_id=started.workflow_id,
            run_id=started.run_id,
            workflow_type=self.d.execution(started).type,
            events=self.history(started),
        )

    def status(self, started: c.Started) -> str:
        return self.d.status(started).name

    def result(self, started: c.Started) -> Any:
        """The result of a run that completed."""
        execution = self.d.execution(started)
        assert execution.status is c.Status.COMPLETED, (execution.status, execution.failure, self.reasons)
        return value(execution.result)
