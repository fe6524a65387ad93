"""One run of a workflow: events go in, commands come out. A pure function of the history.

    events --feed--> wake tasks --> step until all wait --> commands

An activation is what one answer to the server stands for: the events that the worker had seen, in one group. A
WORKFLOW_TASK_COMPLETED in the history says up to which event that was, so a replay activates with the same groups, at
the same times, and makes the same commands. Those are matched by their ids against the events that they became, and
not made again. What comes after the last answer is new, and so are the commands that follow from it.

    | of the history        | the run does                                                             |
    |-----------------------|--------------------------------------------------------------------------|
    | started               | its main task begins                                                     |
    | signaled              | a handler runs as a task, or the value waits in a channel                |
    | cancel requested      | the root scope is cancelled, with the reason                             |
    | outcomes, timer fired | the task that waits goes on                                              |
    | update accepted       | its handler runs as a task, after everything else of the activation      |
    | the rest              | is the trace of its own commands, or none of its business                |
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, cast

import msgspec

from zaptasks.arguments import ArgumentsError
from zaptasks.failures import canceled_failure, failure_of
from zaptasks.headers import Headers
from zaptasks.metrics import NO_METRICS, MetricsHandler
from zaptasks.options import SPAN_SECONDS_MAX
from zaptasks.payloads import encode_payload
from zapwire.failure import DECODE_ERROR, Failure

from . import commands as c
from . import history as h
from .definition import Definition
from .endings import ContinueAsNew, alone, raw_failure
from .errors import WorkflowTaskError
from .inbox import Inbox, UpdateRequest
from .local_calls import LOCAL, LocalCalls
from .markers import Markers
from .places import Place, caller, innermost_module, raised_at, stack
from .replay import Matching
from .scheduler import FOREIGN, Scheduler, Task, current_task, foreign_await
from .scopes import CancelScope, CancelStatus, Nursery
from .steps import Step

log = logging.getLogger("zaptasks.workflow")

COMMANDS_MAX: Final = 9_900
"""In one answer. A server takes 10,000; the rest is for updates and the end."""

NEWS: Final = h.OUTCOMES | {h.STARTED, h.SIGNALED, h.CANCEL_REQUESTED}
"""The events that the code notices: the rest is the trace of its own commands, or none of its business."""

STACK_TRACE: Final = "__stack_trace"
LOOPS: Final = ("asyncio", "trio", "anyio", "sniffio")
"""Libraries whose functions raise `RuntimeError` where their loop does not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowInfo:
    """What a run knows about itself."""

    workflow_id: str
    run_id: str
    type: str
    task_queue: str = ""
    namespace: str = ""
    attempt: int = 1
    start_time: datetime = datetime.fromtimestamp(0, UTC)
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    continued_run_id: str = ""
    """The run before this one, where this one continues it."""
    headers: Headers = field(default_factory=dict)
    """What the start gave along. The runs that follow this one and its children have the same."""


@dataclass(slots=True)
class _Answer:
    """A WORKFLOW_TASK_COMPLETED, and what came in with it: accepted updates, and outcomes of local activities."""

    seen_event_id: int
    updates: list[h.Event] = field(default_factory=list)
    local: list[h.Event] = field(default_factory=list)


class Run:
    """One run. `feed` it what it has not seen; `close` it to forget it."""

    def __init__(self, definition: Definition, info: WorkflowInfo) -> None:
        self.definition: Final = definition
        self.info = info
        self.is_replaying = False
        self.seen_event_id = 0
        """Up to here everything was fed, and the run was activated with it."""
        self.end: c.End | None = None
        """How it ended, if it did."""
        self.instance: object = None
        self.inbox: Final = Inbox(self)
        self.markers: Final = Markers(self)
        self.local_calls: Final = LocalCalls(self)
        self.cancel_reason: str | None = None
        self.metrics: MetricsHandler = NO_METRICS
        self.scheduler = Scheduler(self)
        scope = self._root_scope = CancelScope()
        scope.status = CancelStatus(scope, None)
        self._root = Nursery(scope, scope.status, None)
        self._now_ms = 0
        self._seed = info.run_id
        self._result: bytes | None = None
        self._next: ContinueAsNew | None = None
        self._is_main_done = False
        self._taken_event_id = 0
        self._unseen: deque[h.Event] = deque()
        self._answers: list[_Answer] = []
        self._answers_dropped = 0
        self._activations = 0
        self._closing: h.Event | None = None
        self._commands: list[c.Command] = []
        self._made = 0
        """Commands that began something in this activation."""
        self.matching = Matching()
        self._open: dict[str, Callable[[h.Event], None]] = {}
        self._early: dict[str, list[h.Event]] = {}

    # --- what goes in and comes out ------------------------------------------------------------------------

    def feed(
        self, events: Iterable[h.Event], updates: Sequence[UpdateRequest] = (), *, last_event_id: int = 0
    ) -> list[c.Command]:
        """Go on with the events that are new to this run, and answer with what it wants done.

        For a run that is fed for the first time these are all events, from the first; those that it was fed before may
        be among them. `last_event_id` is the last one that the answer is to stand for, by default the last one given.

        Updates that are all rejected, when nothing else is new, leave no event at the server. So they are no activation
        either: the run stays where it was, and `seen_event_id` with it. Raises `WorkflowTaskError` when this worker
        cannot go on; the run is good for nothing then but `close`.
        """
        events = list(events)
        try:
            late = self._replay(events)
            if self._closing is not None:
                return []
            self._check_not_ended()
            refusals = [] if late or self._has_news() else self.inbox.refusals(updates)
            if not refusals:
                newest = self._unseen[-1].event_id if self._unseen else 0
                self._activate(max(last_event_id or newest, self.seen_event_id), updates)
        except WorkflowTaskError as error:
            self.scheduler.broken = error
            raise
        self.matching = Matching()
        self.markers.recorded.clear()  # only a replay asks for them
        return [*refusals] or late + self._take_commands()

    def replay(self, events: Iterable[h.Event]) -> None:
        """Go through the answers that a history has, and no further: whether this code does what was recorded.

        Raises `WorkflowTaskError` if not. What came after the last answer stays unseen.
        """
        try:
            self._replay(list(events))
        except WorkflowTaskError as error:
            self.scheduler.broken = error
            raise

    def local_done(self, call_id: str, result: object = None, error: BaseException | None = None) -> list[c.Command]:
        """One of `local_calls.open` was made: go on with its outcome, and answer with these commands too."""
        try:
            self.local_calls.done(call_id, result, error)
        except WorkflowTaskError as broken:
            self.scheduler.broken = broken
            raise
        return self._take_commands()

    def _take_commands(self) -> list[c.Command]:
        """What was asked for since they were taken last, with the end, if that was it."""
        commands, self._commands = self._commands, []
        if self.end is not None:
            commands.append(self.end)
        return commands

    def query(self, name: str, args: bytes | None = None) -> bytes:
        """The answer to a query, as JSON. Raises what the query raises, and `LookupError` for an unknown one."""
        if name == STACK_TRACE:
            return msgspec.json.encode({"stack": self.stack_trace()})
        bound = self.inbox.handlers["query"].get(name)
        if bound is None:
            known = ", ".join(sorted(self.inbox.handlers["query"])) or "none"
            raise LookupError(f"the workflow {self.info.type!r} answers no query {name!r}; it has: {known}")
        if bound.is_method and self.instance is None:
            raise LookupError(f"the workflow {self.info.type!r} has not begun yet, or failed to")
        values = bound.parameters.from_array(args)
        value = self.scheduler.look(f"query {name!r}", bound.call, self.instance, values)
        return encode_payload(value, f"the answer to query {name!r}")

    def stack_trace(self) -> str:
        """Where each task waits."""
        parts = []
        for task in self.scheduler.tasks:
            lines = [f"    {place}" for place in stack(task.coroutine)]
            parts.append("\n".join([f"{task.path} {task.name}", *lines]))
        return "\n".join(parts)

    @property
    def is_closed(self) -> bool:
        return self.scheduler.is_closed

    def close(self) -> None:
        """Forget the run. See `Scheduler.close` for what of its code still runs while it is dropped."""
        for place in self.scheduler.close():
            log.warning("%s: this code awaited on after its run was evicted; it is left there", place)
        self._open.clear()

    # --- the history -----------------------------------------------------------------------------------------

    def _take(self, event: h.Event) -> None:
        """Note what of an event is the trace of an earlier answer, and keep it until its activation."""
        self._taken_event_id = event.event_id
        self._unseen.append(event)
        match event.event_type:
            case h.ANSWERED:
                self._answers.append(_Answer(event.get("seenEventId", int)))
            case h.UPDATE_ACCEPTED if self._answers:
                self._answers[-1].updates.append(event)
            case h.UPDATE_COMPLETED:
                self.inbox.completed_updates.add(event.get("updateId", str))
            case h.RESET if self._seed == self.info.run_id:
                # What was drawn before the reset is drawn again, also where it was drawn before another one.
                self._seed = event.get("originalRunId", str) or event.get("baseRunId", str)
            case kind if kind in h.ENDS or kind in h.ENDS_FROM_OUTSIDE:
                self._closing = event
            case h.MARKER:
                self.markers.recorded[event.command_id] = event
                if self._answers and event.get("name", str) == LOCAL:
                    self._answers[-1].local.append(event)
        self.matching.take(event)

    def _replay(self, events: list[h.Event]) -> list[c.Command]:
        """Activate with every answer that is recorded and was not given by this run; what is left to be done now."""
        if self.scheduler.broken is not None or self.scheduler.is_closed:
            raise WorkflowTaskError("this run broke before, or was closed: begin a new one from its whole history")
        for event in events:
            if event.event_id > self._taken_event_id:
                self._take(event)
        done = self._activations - self._answers_dropped
        waiting = self._answers[done:]
        self._answers_dropped += len(self._answers)
        self._answers = []
        late: list[c.Command] = []
        if waiting:
            self.is_replaying = True
            for answer in waiting:
                self._check_not_ended()
                self._activate(answer.seen_event_id, (), answer)
                self.matching.check_made()
                self.local_calls.check()
                self._commands = []
            self.matching.check_all_made()
            self._early.clear()
            self.local_calls.forget_recorded()
            self.is_replaying = False
            late = self.matching.unrecorded_cancels()
        if self._closing is not None:
            self._check_end(self._closing)
        return late

    def _activate(self, last_event_id: int, requests: Sequence[UpdateRequest], recorded: _Answer | None = None) -> None:
        """Go on with a group of events, and with the updates that came or, in a replay, with what the answer had."""
        self._activations += 1
        self._made = 0
        group: list[h.Event] = []
        while self._unseen and self._unseen[0].event_id <= last_event_id:
            group.append(self._unseen.popleft())
        self.seen_event_id = last_event_id
        if group:
            self._now_ms = max(self._now_ms, group[-1].time_ms)
        for event in group:
            self._notice(event)
        self.step()
        if recorded is not None:
            for event in recorded.updates:
                self.inbox.start_update(event.get("updateId", str), event.get("name", str), event.payload("args"))
                self.step()
            for event in recorded.local:
                self.local_calls.recall(event.command_id, event.payload("details") or b"null")
        for request in requests:
            self.inbox.answer(request)
            self.step()

    def _notice(self, event: h.Event) -> None:
        match event.event_type:
            case h.STARTED:
                self._begin(event)
            case h.SIGNALED:
                self.inbox.signal(event.get("signalName", str), event.payload("input"))
            case h.CANCEL_REQUESTED:
                self.cancel_reason = event.get("reason", str) or "canceled"
                self._root_scope.cancel(self.cancel_reason)
            case kind if kind in h.OUTCOMES:
                command_id = event.command_id
                told = self._open.get(command_id)
                if told is not None:
                    told(event)
                elif command_id and self.is_replaying:  # changed code may come to the command later
                    self._early.setdefault(command_id, []).append(event)

    def step(self) -> None:
        """Step until everybody waits; the end, if that is it."""
        if self.end is not None:
            return
        self.scheduler.run()
        if self._root.is_closed:
            self.end = self._how_it_ended()

    # --- begin and end -------------------------------------------------------------------------------------

    def _begin(self, event: h.Event) -> None:
        self.info = WorkflowInfo(
            workflow_id=self.info.workflow_id,
            run_id=self.info.run_id,
            namespace=self.info.namespace,
            type=event.get("workflowType", str) or self.info.type,
            task_queue=event.get("taskQueue", str) or self.info.task_queue,
            attempt=event.get("attempt", int) or 1,
            start_time=event.event_time,
            parent_workflow_id=event.get("parentWorkflowId", str),
            parent_run_id=event.get("parentRunId", str),
            continued_run_id=event.get("continuedRunId", str),
            headers=event.get("headers", dict[str, str]),
        )
        self.spawn("0", self._main, event.payload("input"), name=self.definition.name)

    def spawn(self, path: str, function: Callable[..., Any], *args: object, name: str) -> None:
        """Begin a task under the root nursery: the main one, or a handler."""
        self.scheduler.spawn(function, args, self._root, path=path, name=name, context=Context())

    async def _main(self, input: bytes | None) -> None:
        try:
            main = self.definition.main
            args = main.parameters.from_array(input)
            if self.definition.cls is not None:
                self.instance = self.definition.cls()
            try:
                value = await main.call(self.instance, args)
            except BaseException as error:
                sole = alone(error)
                if not isinstance(sole, ContinueAsNew):
                    raise
                self._next = sole
                self._warn_of_handlers()
            else:
                self._result = encode_payload(value, f"the result of {self.info.type!r}")
        finally:
            self._is_main_done = True

    def _warn_of_handlers(self) -> None:
        if self.inbox.running and not self.is_replaying:
            log.warning(
                "%s %s continues as new while %d of its handlers run: what they change is lost to the next run. Before,"
                " it should `await workflow.wait_condition(workflow.all_handlers_finished)`",
                self.info.type,
                self.info.workflow_id,
                self.inbox.running,
            )

    def _how_it_ended(self) -> c.End:
        error = self._root.error()
        if error is not None:
            sole = alone(error)
            if isinstance(sole, ContinueAsNew):
                return sole.command  # out of a signal handler
            library = innermost_module(sole)
            if isinstance(sole, RuntimeError) and library in LOOPS:
                raise foreign_await(raised_at(sole, FOREIGN), library)
            if isinstance(sole, ArgumentsError):
                text = f"{self.info.type!r} cannot be called: {sole}"
                return c.Fail(failure=raw_failure(Failure(message=text, code=DECODE_ERROR, non_retryable=True)))
            return c.Fail(failure=raw_failure(failure_of(error)))
        if self._next is not None:
            return self._next.command
        if self._result is not None:
            return c.Complete(result=msgspec.Raw(self._result))
        reason = "canceled" if self.cancel_reason is None else self.cancel_reason
        return c.Cancel(failure=raw_failure(canceled_failure(reason)))

    def _check_not_ended(self) -> None:
        if self.end is not None:
            was, now = Step(text="the run goes on"), Step(text=c.describe(self.end))
            raise self.matching.mismatch("the workflow's end", was, now)

    def _check_end(self, closing: h.Event) -> None:
        """A history that is over: the code has to come to the same end."""
        kind = h.ENDS.get(closing.event_type)
        if kind is None or not self._activations:
            return  # it was ended from outside, or canceled before any worker had begun with it
        if not isinstance(self.end, kind):
            was = Step(text=closing.event_type, event_id=closing.event_id)
            now = Step(text="the run goes on" if self.end is None else c.describe(self.end))
            raise self.matching.mismatch("the workflow's end", was, now)

    def _has_news(self) -> bool:
        """Whether the code has anything to notice in the events that it has not seen."""
        return any(event.event_type in NEWS for event in self._unseen)

    # --- what tasks ask for --------------------------------------------------------------------------------

    @property
    def time(self) -> float:
        return self._now_ms / 1000

    @property
    def now_ms(self) -> int:
        return self._now_ms

    def random_of(self, task: Task) -> Random:
        """A generator for each task, so that what one task draws does not depend on what others do."""
        task.check_may_change("draw a random number")
        if task.random is None:
            task.random = Random(f"{self._seed}/{task.path}")
        return task.random

    def add(self, command: c.Named, place: Place | None = None) -> None:
        """Ask for something. In a replay the history has it already, and `Matching` sees to it that it does."""
        line = place or caller()
        self._made += 1
        if self._made > COMMANDS_MAX:
            # Not an exception of the workflow's, which would end it behind all those commands.
            self.scheduler.broken = WorkflowTaskError(
                f"{line}: more than {COMMANDS_MAX:,} commands without waiting for anything but local activities, and a"
                " server takes no more at once: let tasks wait for one another, as with a CapacityLimiter"
            )
            raise self.scheduler.broken
        self.matching.made(command, line)
        self._commands.append(command)

    def expect(self, command_id: str, told: Callable[[h.Event], None]) -> None:
        """Call `told` with every event that answers the command."""
        self._open[command_id] = told
        for event in self._early.pop(command_id, ()):
            told(event)

    def settle(self, command_id: str) -> None:
        """Nothing more is expected of the command."""
        self._open.pop(command_id, None)

    def start_timer(self, seconds: float, fire: Callable[[], None]) -> str:
        command_id = current_task().next_command_id()
        milliseconds = math.ceil(round(min(seconds, SPAN_SECONDS_MAX) * 1000, 3))
        self.add(c.StartTimer(id=command_id, fire_after_ms=milliseconds))

        def fired(event: h.Event) -> None:
            self.settle(command_id)
            fire()

        self.expect(command_id, fired)
        return command_id

    def cancel_timer(self, timer_id: str) -> None:
        self.settle(timer_id)
        for position, command in enumerate(self._commands):
            if isinstance(command, c.StartTimer) and command.id == timer_id:
                del self._commands[position]  # nobody has heard of it yet
                self._made -= 1
                self.matching.unmade(timer_id)
                return
        self.add_cancel(c.CancelTimer(id=timer_id))

    def say(self, command: c.Command) -> None:
        """Have a command in the answer that begins nothing."""
        self._commands.append(command)

    def add_cancel(self, command: c.CancelTimer | c.CancelActivity) -> None:
        self.matching.canceled(command)
        self._commands.append(command)


def current_run() -> Run:
    """The run whose code runs now. Raises `NotInWorkflow` outside of one."""
    return cast(Run, current_task().scheduler.host)
