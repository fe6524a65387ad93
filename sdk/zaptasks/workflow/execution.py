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
from typing import Any, Final, NoReturn, cast

import msgspec

from zaptasks.arguments import ArgumentsError
from zaptasks.errors import PayloadError
from zaptasks.failures import canceled_failure, failure_of
from zaptasks.headers import Headers
from zaptasks.metrics import NO_METRICS, MetricsHandler
from zaptasks.options import SPAN_SECONDS_MAX, RetryPolicy
from zaptasks.payloads import encode_payload
from zapwire.failure import DECODE_ERROR, Failure, encode_failure

from . import commands as c
from . import history as h
from .channels import MemoryReceiveChannel, MemorySendChannel, open_memory_channel
from .definition import Bound, Definition
from .errors import Broken, Cancelled, NondeterminismError, WorkflowTaskError
from .places import Place, caller, innermost_module, raised_at, stack
from .replay import PATCH, Matching
from .scheduler import FOREIGN, Scheduler, Task, current_task, foreign_await, wait
from .scopes import CancelScope, CancelStatus, Nursery
from .steps import Step

log = logging.getLogger("zaptasks.workflow")

COMMANDS_MAX: Final = 9_900
"""In one answer. A server takes 10,000; the rest is for updates and the end."""

MARKER_ID_CHARACTERS_MAX: Final = 200
"""Of the ids that workflows give to patches and to changing values: they are in every list of events."""

LOCAL: Final = "local-activity"
"""The name of the markers that keep outcomes of local activities."""

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


class ContinueAsNew(BaseException):
    """Ends the run and begins the next. Raised by `workflow.continue_as_new`; let it pass."""

    def __init__(self, command: c.ContinueAsNew) -> None:
        super().__init__("the workflow continues as new")
        self.command = command


class UpdateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An update that came with a task and is to be accepted or rejected."""

    update_id: str
    name: str
    args: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def payload(self) -> bytes | None:
        return None if bytes(self.args) == b"null" else bytes(self.args)


@dataclass(slots=True)
class _Answer:
    """A WORKFLOW_TASK_COMPLETED, and what came in with it: accepted updates, and outcomes of local activities."""

    seen_event_id: int
    updates: list[h.Event] = field(default_factory=list)
    local: list[h.Event] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LocalCall:
    """A function that the worker is to call while it has the workflow task."""

    id: str
    name: str
    function: Callable[..., Any]
    args: tuple[object, ...]
    place: Place
    start_to_close: float | None = None
    """Seconds for one attempt."""
    retry_policy: RetryPolicy | None = None
    """None: one attempt."""


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
        self.handlers: dict[str, dict[str, Bound]] = {
            "signal": dict(definition.signals),
            "query": dict(definition.queries),
            "update": dict(definition.updates),
        }
        self.cancel_reason: str | None = None
        self.metrics: MetricsHandler = NO_METRICS
        self._scheduler = Scheduler(self)
        scope = self._root_scope = CancelScope()
        scope.status = CancelStatus(scope, None)
        self._root = Nursery(scope, scope.status, None)
        self._now_ms = 0
        self._seed = info.run_id
        self._result: bytes | None = None
        self._next: ContinueAsNew | None = None
        self._is_main_done = False
        self._taken_event_id = 0
        self.handlers_running = 0
        """Signal and update handlers that have begun and not ended."""
        self._unseen: deque[h.Event] = deque()
        self._answers: list[_Answer] = []
        self._answers_dropped = 0
        self._activations = 0
        self._closing: h.Event | None = None
        self._commands: list[c.Command] = []
        self._made = 0
        """Commands that began something in this activation."""
        self._matching = Matching()
        self._markers: dict[str, h.Event] = {}
        self._patches: dict[str, bool] = {}
        self._last_values: dict[str, bytes] = {}
        """Of `changing_marker`, by name."""
        self._completed_updates: set[str] = set()
        self._open: dict[str, Callable[[h.Event], None]] = {}
        self._early: dict[str, list[h.Event]] = {}
        self.local_calls: dict[str, LocalCall] = {}
        """What the worker is to do before it answers: each is ended with `local_done`."""
        self._local_tasks: dict[str, Task] = {}
        self._local_early: dict[str, bytes] = {}
        self._signals = 0
        self._watched_signals: dict[str, Callable[[bytes | None], None]] = {}
        self._updates = 0
        self._buffered: dict[str, list[bytes | None]] = {}
        self._channels: dict[str, tuple[MemorySendChannel[bytes | None], MemoryReceiveChannel[bytes | None]]] = {}

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
            refusals = [] if late or self._has_news() else self._refusals(updates)
            if not refusals:
                newest = self._unseen[-1].event_id if self._unseen else 0
                self._activate(max(last_event_id or newest, self.seen_event_id), updates)
        except WorkflowTaskError as error:
            self._scheduler.broken = error
            raise
        self._matching = Matching()
        self._markers.clear()  # only a replay asks for them
        return [*refusals] or late + self._take_commands()

    def replay(self, events: Iterable[h.Event]) -> None:
        """Go through the answers that a history has, and no further: whether this code does what was recorded.

        Raises `WorkflowTaskError` if not. What came after the last answer stays unseen.
        """
        try:
            self._replay(list(events))
        except WorkflowTaskError as error:
            self._scheduler.broken = error
            raise

    def local_done(self, call_id: str, result: object = None, error: BaseException | None = None) -> list[c.Command]:
        """One of `local_calls` was made: go on with what it returned or raised, and answer with these commands too."""
        call = self.local_calls[call_id]
        details: dict[str, msgspec.Raw]
        try:
            if error is None:
                details = {"result": msgspec.Raw(encode_payload(result, f"the result of {call.name!r}"))}
            else:
                details = {"failure": _raw(failure_of(error))}
        except PayloadError as unfit:
            details = {"failure": _raw(failure_of(unfit))}
        try:
            self._settle_local(call, msgspec.json.encode(details))
        except WorkflowTaskError as broken:
            self._scheduler.broken = broken
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
        bound = self.handlers["query"].get(name)
        if bound is None:
            known = ", ".join(sorted(self.handlers["query"])) or "none"
            raise LookupError(f"the workflow {self.info.type!r} answers no query {name!r}; it has: {known}")
        if bound.is_method and self.instance is None:
            raise LookupError(f"the workflow {self.info.type!r} has not begun yet, or failed to")
        values = bound.parameters.from_array(args)
        value = self._scheduler.look(f"query {name!r}", bound.call, self.instance, values)
        return encode_payload(value, f"the answer to query {name!r}")

    def stack_trace(self) -> str:
        """Where each task waits."""
        parts = []
        for task in self._scheduler.tasks:
            lines = [f"    {place}" for place in stack(task.coroutine)]
            parts.append("\n".join([f"{task.path} {task.name}", *lines]))
        return "\n".join(parts)

    @property
    def is_closed(self) -> bool:
        return self._scheduler.is_closed

    def close(self) -> None:
        """Forget the run. See `Scheduler.close` for what of its code still runs while it is dropped."""
        for place in self._scheduler.close():
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
                self._completed_updates.add(event.get("updateId", str))
            case h.RESET if self._seed == self.info.run_id:
                # What was drawn before the reset is drawn again, also where it was drawn before another one.
                self._seed = event.get("originalRunId", str) or event.get("baseRunId", str)
            case kind if kind in h.ENDS or kind in h.ENDS_FROM_OUTSIDE:
                self._closing = event
            case h.MARKER:
                self._markers[event.command_id] = event
                if self._answers and event.get("name", str) == LOCAL:
                    self._answers[-1].local.append(event)
        self._matching.take(event)

    def _replay(self, events: list[h.Event]) -> list[c.Command]:
        """Activate with every answer that is recorded and was not given by this run; what is left to be done now."""
        if self._scheduler.broken is not None or self._scheduler.is_closed:
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
                self._matching.check_made()
                self._check_local_calls()
                self._commands = []
            self._matching.check_all_made()
            self._early.clear()
            self._local_early.clear()
            self.is_replaying = False
            late = self._matching.unrecorded_cancels()
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
        self._run()
        if recorded is not None:
            for event in recorded.updates:
                self._start_update(event.get("updateId", str), event.get("name", str), event.payload("args"))
                self._run()
            for event in recorded.local:
                self._recall_local(event.command_id, event.payload("details") or b"null")
        for request in requests:
            self._answer_update(request)
            self._run()

    def _notice(self, event: h.Event) -> None:
        match event.event_type:
            case h.STARTED:
                self._begin(event)
            case h.SIGNALED:
                self._signal(event.get("signalName", str), event.payload("input"))
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

    def _run(self) -> None:
        """Step until everybody waits; the end, if that is it."""
        if self.end is not None:
            return
        self._scheduler.run()
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
        self._spawn("0", self._main, event.payload("input"), name=self.definition.name)

    def _spawn(self, path: str, function: Callable[..., Any], *args: object, name: str) -> None:
        self._scheduler.spawn(function, args, self._root, path=path, name=name, context=Context())

    async def _main(self, input: bytes | None) -> None:
        try:
            main = self.definition.main
            args = main.parameters.from_array(input)
            if self.definition.cls is not None:
                self.instance = self.definition.cls()
            try:
                value = await main.call(self.instance, args)
            except BaseException as error:
                alone = _alone(error)
                if not isinstance(alone, ContinueAsNew):
                    raise
                self._next = alone
                self._warn_of_handlers()
            else:
                self._result = encode_payload(value, f"the result of {self.info.type!r}")
        finally:
            self._is_main_done = True

    def _warn_of_handlers(self) -> None:
        if self.handlers_running and not self.is_replaying:
            log.warning(
                "%s %s continues as new while %d of its handlers run: what they change is lost to the next run. Before,"
                " it should `await workflow.wait_condition(workflow.all_handlers_finished)`",
                self.info.type,
                self.info.workflow_id,
                self.handlers_running,
            )

    def _how_it_ended(self) -> c.End:
        error = self._root.error()
        if error is not None:
            alone = _alone(error)
            if isinstance(alone, ContinueAsNew):
                return alone.command  # out of a signal handler
            library = innermost_module(alone)
            if isinstance(alone, RuntimeError) and library in LOOPS:
                raise foreign_await(raised_at(alone, FOREIGN), library)
            if isinstance(alone, ArgumentsError):
                text = f"{self.info.type!r} cannot be called: {alone}"
                return c.Fail(failure=_raw(Failure(message=text, code=DECODE_ERROR, non_retryable=True)))
            return c.Fail(failure=_raw(failure_of(error)))
        if self._next is not None:
            return self._next.command
        if self._result is not None:
            return c.Complete(result=msgspec.Raw(self._result))
        reason = "canceled" if self.cancel_reason is None else self.cancel_reason
        return c.Cancel(failure=_raw(canceled_failure(reason)))

    def _check_not_ended(self) -> None:
        if self.end is not None:
            was, now = Step(text="the run goes on"), Step(text=c.describe(self.end))
            raise self._matching.mismatch("the workflow's end", was, now)

    def _check_end(self, closing: h.Event) -> None:
        """A history that is over: the code has to come to the same end."""
        kind = h.ENDS.get(closing.event_type)
        if kind is None:
            return  # it was ended from outside
        if not isinstance(self.end, kind):
            was = Step(text=closing.event_type, event_id=closing.event_id)
            now = Step(text="the run goes on" if self.end is None else c.describe(self.end))
            raise self._matching.mismatch("the workflow's end", was, now)

    # --- signals and updates -------------------------------------------------------------------------------

    def _signal(self, name: str, payload: bytes | None) -> None:
        self._signals += 1
        watching = self._watched_signals.get(name)
        if watching is not None:
            watching(payload)
            return
        bound = self.handlers["signal"].get(name)
        if bound is not None:
            self.start_signal(bound, f"s{self._signals}", payload)
        elif name in self._channels:
            self._channels[name][0].send_nowait(payload)
        else:
            self._buffered.setdefault(name, []).append(payload)

    def start_signal(self, bound: Bound, path: str, payload: bytes | None) -> None:
        try:
            args = bound.parameters.from_payload(payload)
        except ArgumentsError as error:
            # A sender's mistake is not the workflow's: it must not end for it.
            log.error("a signal %r to %s was dropped: %s", bound.name, self.info.workflow_id, error)
            return
        self.handlers_running += 1
        self._spawn(path, self._handle_signal, bound, args, name=f"signal {bound.name!r}")

    async def _handle_signal(self, bound: Bound, args: tuple[object, ...]) -> None:
        try:
            if bound.is_method and self.instance is None:
                return  # the workflow failed before it had begun
            value = bound.call(self.instance, args)
            if bound.is_async:
                await value
        finally:
            self.handlers_running -= 1

    def watch_signal(self, name: str, told: Callable[[bytes | None], None]) -> None:
        """Call `told` with the value of each signal of this name, before any code runs, those that came before
        included. For signals of our own workers."""
        self._watched_signals[name] = told
        for payload in self._buffered.pop(name, ()):
            told(payload)

    def unwatch_signal(self, name: str) -> None:
        """What still comes of this name is nobody's business."""
        self._watched_signals[name] = lambda payload: None

    def add_handler(self, kind: str, bound: Bound) -> None:
        """A handler that the running code brings: it gets what came before as well."""
        self.handlers[kind][bound.name] = bound
        if kind == "signal":
            task = current_task()
            for payload in self._buffered.pop(bound.name, ()):
                self.start_signal(bound, task.next_child_path(), payload)

    def channel(self, name: str) -> MemoryReceiveChannel[bytes | None]:
        """The values of signals of this name, those from before included."""
        if name in self.handlers["signal"]:
            raise RuntimeError(f"signal {name!r} has a handler already, which gets its values")
        if name not in self._channels:
            self._channels[name] = open_memory_channel[bytes | None](math.inf)
            for payload in self._buffered.pop(name, ()):
                self._channels[name][0].send_nowait(payload)
        return self._channels[name][1]

    def _has_news(self) -> bool:
        """Whether the code has anything to notice in the events that it has not seen."""
        return any(event.event_type in NEWS for event in self._unseen)

    def _refusals(self, requests: Sequence[UpdateRequest]) -> list[c.RejectUpdate]:
        """What is said against the updates if all of them are refused, else nothing."""
        refusals = [refusal for request in requests if (refusal := self._refusal(request)) is not None]
        return refusals if len(refusals) == len(requests) else []

    def _refusal(self, request: UpdateRequest) -> c.RejectUpdate | None:
        """What the workflow and the validator say against an update; None if they take it."""
        try:
            if self.end is not None or (self.definition.cls is not None and self.instance is None):
                raise RuntimeError(f"the workflow {self.info.type!r} has just ended")
            bound = self.handlers["update"].get(request.name)
            if bound is None:
                known = ", ".join(sorted(self.handlers["update"])) or "none"
                raise LookupError(f"the workflow {self.info.type!r} takes no update {request.name!r}; it has: {known}")
            args = bound.parameters.from_array(request.payload)
            self._scheduler.look(f"the validator of {request.name!r}", bound.validate, self.instance, args)
        except Exception as error:
            return c.RejectUpdate(update_id=request.update_id, failure=_raw(failure_of(error)))
        return None

    def _answer_update(self, request: UpdateRequest) -> None:
        """Let the validator see an update, and take it or refuse it."""
        refusal = self._refusal(request)
        if refusal is not None:
            self._commands.append(refusal)
        else:
            self._commands.append(c.AcceptUpdate(update_id=request.update_id))
            self._start_update(request.update_id, request.name, request.payload)

    def _start_update(self, update_id: str, name: str, args: bytes | None) -> None:
        bound = self.handlers["update"].get(name)
        if self.end is not None or bound is None:
            what = "nothing takes an update of that name" if bound is None else "the workflow has ended"
            was = Step(text=f"accepted update {name!r}", kind="accept-update", name=name)
            raise self._matching.mismatch(f"update {update_id!r}", was, Step(text=what))
        self._updates += 1
        self.handlers_running += 1
        self._spawn(
            f"u{self._updates}",
            self._handle_update,
            bound,
            update_id,
            bound.parameters.from_array(args),
            name=f"update {name!r}",
        )

    async def _handle_update(self, bound: Bound, update_id: str, args: tuple[object, ...]) -> None:
        try:
            value = bound.call(self.instance, args)
            if bound.is_async:
                value = await value
            payload = encode_payload(value, f"the result of update {bound.name!r}")
        except Cancelled as cancelled:
            self._complete_update(
                c.CompleteUpdate(update_id=update_id, failure=_raw(canceled_failure(cancelled.reason)))
            )
            raise
        except (Exception, ContinueAsNew) as error:
            failure = _raw(failure_of(error))
            self._complete_update(c.CompleteUpdate(update_id=update_id, failure=failure))
        else:
            self._complete_update(c.CompleteUpdate(update_id=update_id, result=msgspec.Raw(payload)))
        finally:
            self.handlers_running -= 1

    def _complete_update(self, command: c.CompleteUpdate) -> None:
        if command.update_id in self._completed_updates:
            return
        if self.is_replaying:
            self._matching.completed_unrecorded(command)
        else:
            self._commands.append(command)

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
            self._scheduler.broken = WorkflowTaskError(
                f"{line}: more than {COMMANDS_MAX:,} commands without waiting for anything but local activities, and a"
                " server takes no more at once: let tasks wait for one another, as with a CapacityLimiter"
            )
            raise self._scheduler.broken
        self._matching.made(command, line)
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
                self._matching.unmade(timer_id)
                return
        self.add_cancel(c.CancelTimer(id=timer_id))

    def add_cancel(self, command: c.CancelTimer | c.CancelActivity) -> None:
        self._matching.canceled(command)
        self._commands.append(command)

    def marker(self, name: str, make: Callable[[], object], what: str) -> bytes:
        """The recorded details of the marker that belongs here; made now, where the run is not replayed."""
        command_id = current_task().next_command_id()
        event = self._markers.get(command_id)
        if event is not None:
            details = event.payload("details") or b"null"
        elif self.is_replaying:
            self._break_at_marker(command_id, name, what)
        else:
            details = encode_payload(make(), f"the value of {what}")
        self.add(c.RecordMarker(id=command_id, name=name, details=msgspec.Raw(details)))
        return details

    def changing_marker(self, name: str, changed: Callable[[bytes | None], bytes | None], what: str) -> bytes:
        """Like `marker`, for a value of this name that is asked for again and again, and kept where it has changed.

        `changed` gets the last value and returns the new one, or None where the last one still holds.
        """
        command_id = current_task().next_command_id()
        last = self._last_values.get(name)
        event = self._markers.get(command_id)
        if event is not None:
            details = event.payload("details") or b"null"
        elif not self.is_replaying:
            new = changed(last)
            if new is None and last is not None:
                return last
            details = new or b"null"
        else:
            if self._matching.recorded_at(command_id) is None and last is not None:
                return last
            self._break_at_marker(command_id, name, what)
        self._last_values[name] = details
        self.add(c.RecordMarker(id=command_id, name=name, details=msgspec.Raw(details)))
        return details

    def _break_at_marker(self, command_id: str, name: str, what: str) -> NoReturn:
        """The code asks for a value in a replay, and the history has something else there, or nothing."""
        was, line = self._matching.recorded_at(command_id), caller()
        now = Step(text=what, kind="record-marker", name=name, place=command_id, source=line)
        self._scheduler.broken = self._matching.mismatch(command_id, was, now, line)
        raise Broken("the history does not have this value")

    async def call_locally(self, call: LocalCall) -> bytes:
        """Let the worker make a call; its outcome, as the marker keeps it. No cancel ends the wait."""
        early = self._local_early.pop(call.id, None)
        if early is not None:
            self.add(c.RecordMarker(id=call.id, name=LOCAL, details=msgspec.Raw(early)), call.place)
            return early
        self.local_calls[call.id] = call
        self._local_tasks[call.id] = current_task()
        details: bytes = await wait(None)
        return details

    def _settle_local(self, call: LocalCall, details: bytes) -> None:
        del self.local_calls[call.id]
        self.add(c.RecordMarker(id=call.id, name=LOCAL, details=msgspec.Raw(details)), call.place)
        self._scheduler.reschedule(self._local_tasks.pop(call.id), details)
        self._run()

    def _recall_local(self, call_id: str, details: bytes) -> None:
        """In a replay: the outcome that was recorded, for the task that waits for it now or later."""
        call = self.local_calls.get(call_id)
        if call is None:
            self._local_early[call_id] = details
        else:
            self._settle_local(call, details)

    def _check_local_calls(self) -> None:
        for call in self.local_calls.values():
            was = self._matching.recorded_at(call.id)
            what = f"local activity {call.name!r}"
            now = Step(text=what, kind="record-marker", name=call.name, place=call.id, source=call.place)
            raise self._matching.mismatch(call.id, was, now, call.place)

    def patched(self, patch_id: str, *, is_deprecated: bool) -> bool:
        """Whether code behind this patch runs: in what is new, and in what was done with the patch in place."""
        check_marker_id("patch id", patch_id)
        known = self._patches.get(patch_id)
        if known is not None:
            return known
        current_task().check_may_change("record a patch")
        command_id = f"{PATCH}/{patch_id}"
        is_on = not self.is_replaying or command_id in self._markers
        self._patches[patch_id] = is_on
        if is_on:
            details = msgspec.json.encode({"deprecated": is_deprecated})
            self.add(c.RecordMarker(id=command_id, name=PATCH, details=msgspec.Raw(details)))
        return is_on


def check_marker_id(what: str, marker_id: str) -> None:
    """Raise `ValueError` for an id that a marker cannot go by."""
    if not marker_id or len(marker_id) > MARKER_ID_CHARACTERS_MAX or not marker_id.isprintable() or "|" in marker_id:
        raise ValueError(
            f"{what} {marker_id!r}: it must be 1 to {MARKER_ID_CHARACTERS_MAX} printable characters, and no '|'"
        )


def current_run() -> Run:
    """The run whose code runs now. Raises `NotInWorkflow` outside of one."""
    return cast(Run, current_task().scheduler.host)


def _alone(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _raw(failure: Failure) -> msgspec.Raw:
    return msgspec.Raw(encode_failure(failure))


__all__ = [
    "ContinueAsNew",
    "LocalCall",
    "NondeterminismError",
    "Place",
    "Run",
    "UpdateRequest",
    "WorkflowInfo",
    "check_marker_id",
    "current_run",
]
