"""Workflows that replay, on a worker's connection: tasks come in, the history is read where it is needed, and the
commands that follow go back.

What the code of a workflow does is decided in `zaptasks.workflow`, which knows no network. A run stays at hand from
one task to the next; whenever it is in doubt whether the server and the run agree, the run is forgotten, and the next
task replays it.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec
import trio

from zapwire.body import BODY_BYTES_MAX, decode_json
from zapwire.errors import ZapError
from zapwire.opcodes import Op

from .converters import DataConverter
from .deliveries import QueryDelivery
from .handlers import Handlers
from .line import TOO_LARGE, Line
from .local_activity_attempts import Allowance, call_locally
from .metrics import MetricsHandler
from .watchdog import Watchdog
from .workflow import LocalCall, WorkflowTask, WorkflowTaskHandler, answer_body
from .workflow import commands as c
from .workflow.definition import is_definition
from .workflow.history import STARTED, Event, EventPage
from .workflow_payloads import hidden_reason, open_json, opened_task, sealed_commands

log = logging.getLogger("zaptasks.worker")

PAGE_EVENTS: Final = 1_000
"""Events that one call asks for; a server sends fewer where they are large."""

Commands: TypeAlias = list[c.Command]
Workflows: TypeAlias = Iterable[object] | Mapping[str, object]


def split_workflows(workflows: Handlers) -> tuple[Workflows, Handlers]:
    """Those under `@workflow.defn`, which replay, and the others, which run once from the top."""
    if callable(workflows):
        raise TypeError(f"{workflows!r} is one function or class: pass a list of them, or a dict of names to them")
    if isinstance(workflows, Mapping):
        replaying = {name: target for name, target in workflows.items() if is_definition(target)}
        return replaying, {name: target for name, target in workflows.items() if name not in replaying}
    targets = list(workflows)
    return [one for one in targets if is_definition(one)], [one for one in targets if not is_definition(one)]


@dataclass(slots=True, eq=False)
class Served:
    """A workflow task of this worker, from its delivery to the end of its answer."""

    task: WorkflowTask
    line: Line
    before: Served | None
    """An earlier task of the same run, which ends first."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    handled: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
    began: float = field(default_factory=trio.current_time)
    hand_back_reason: str = ""

    def __str__(self) -> str:
        return f"workflow {self.task.workflow_type_name!r} ({self.task.workflow_id}, run {self.task.run_id})"


class WorkflowServing:
    """The workflow tasks of one worker. Raises `TypeError` and `ValueError` for what cannot be served."""

    def __init__(
        self,
        workflows: Workflows,
        *,
        namespace: str,
        task_queue: str,
        converter: DataConverter,
        max_threads: int,
        runs_max: int,
        metrics: MetricsHandler,
    ) -> None:
        self._handler = WorkflowTaskHandler(
            workflows, namespace=namespace, task_queue=task_queue, runs_max=runs_max, metrics=metrics
        )
        self.types: Final = self._handler.types
        self._converter = converter
        self._limiter = trio.CapacityLimiter(max_threads)
        self._watchdog = Watchdog()
        self._served: dict[str, Served] = {}
        self._newest: dict[str, Served] = {}

    def __contains__(self, token: str) -> bool:
        return token in self._served

    def has(self, run_id: str) -> bool:
        """Whether the run is at hand."""
        return self._handler.has(run_id)

    @property
    def works_on(self) -> list[str]:
        """The tasks that are being worked on, in words."""
        return [str(served) for served in self._served.values()]

    # --- tasks -------------------------------------------------------------------------------------------

    def accept(self, task: WorkflowTask, line: Line) -> Served:
        """Take note of a task before it starts. Another one of its run that is still worked on is out of date."""
        before = self._newest.get(task.run_id)
        if before is not None:
            before.scope.cancel()
        served = self._served[task.task_token] = self._newest[task.run_id] = Served(task, line, before)
        return served

    async def run(self, served: Served) -> None:
        """Answer one task. Raises nothing but `trio.Cancelled` and `KeyboardInterrupt`."""
        try:
            if served.before is not None:
                await served.before.done.wait()
                served.before = None
            await self._serve(served)
        except (trio.Cancelled, KeyboardInterrupt):
            await self._hand_back(served, "the worker was canceled")
            raise
        finally:
            served.handled.set()
            served.done.set()
            del self._served[served.task.task_token]
            if self._newest.get(served.task.run_id) is served:
                del self._newest[served.task.run_id]

    async def _serve(self, served: Served) -> None:
        commands: Commands | None = None
        with served.scope:
            commands = await self._commands(served)
        if commands is None:
            await self._hand_back(served, served.hand_back_reason)
        else:
            await self._answer(served, commands)

    async def _hand_back(self, served: Served, reason: str) -> None:
        """Give a task up. Without a reason the lease is over, and there is nothing to give back."""
        self._handler.evict(served.task.run_id)
        if reason:
            await served.line.answer(Op.HAND_BACK_TASK, served.task.task_token, reason.encode(), what=served)

    async def _answer(self, served: Served, commands: Commands) -> None:
        body = answer_body(commands)
        status = TOO_LARGE
        if len(body) < BODY_BYTES_MAX:
            status = await self._respond(served, body)
        if status == TOO_LARGE:
            reason = f"the answer has {len(body)} bytes, more than the server takes: ask for less at once"
            commands = [c.FailTask(reason=reason)]
            status = await self._respond(served, answer_body(commands))
        if status != 200 or any(isinstance(command, c.FailTask) for command in commands):
            self._handler.evict(served.task.run_id)  # whether the server has what the run has done is in doubt

    async def _respond(self, served: Served, body: bytes) -> int:
        token = served.task.task_token
        return await served.line.answer(Op.RESPOND_WORKFLOW_TASK_COMPLETED, token, body, what=served)

    # --- what follows from a task ------------------------------------------------------------------------

    async def _commands(self, served: Served) -> Commands:
        """The commands that answer a task, as they leave; a `fail-task` alone where this worker cannot go on."""
        try:
            task = opened_task(self._converter, await self._whole(served))
            with self._watchdog.watch(str(served)):
                commands = self._handler.handle(task)
            served.handled.set()
            commands = await self._with_local_calls(served, commands)
            _log_failed_task(served, commands)
            return sealed_commands(self._converter, commands)
        except (trio.Cancelled, KeyboardInterrupt):
            raise
        except BaseException as error:  # of the workflow's own only SystemExit and the like: the worker goes on
            if isinstance(error, BaseExceptionGroup) and error.subgroup((trio.Cancelled, KeyboardInterrupt)):
                raise
            log.warning("%s cannot be gone on with here: %s: %s", served, type(error).__name__, error)
            return [c.FailTask(reason=hidden_reason(self._converter, f"{type(error).__name__}: {error}"))]

    async def _whole(self, served: Served) -> WorkflowTask:
        """The task with all events that are needed."""
        first = self._handler.first_event_needed(served.task)
        task = await self._with_history(served, first)
        if self._handler.first_event_needed(task) < first:  # the run had to make room for others meanwhile
            task = await self._with_history(served, 1)
        return task

    async def _with_history(self, served: Served, first: int) -> WorkflowTask:
        task, line = served.task, served.line
        history: list[Event] = []
        if first <= task.previous_event_id:
            history += await _read(line, task.workflow_id, task.run_id, first - 1, task.previous_event_id)
        history += task.history
        if task.next_event_id:
            history += await _read(line, task.workflow_id, task.run_id, task.next_event_id - 1, task.last_event_id)
        return msgspec.structs.replace(task, history=history, next_event_id=0)

    async def _with_local_calls(self, served: Served, commands: Commands) -> Commands:
        """Make the calls that the run waits for, side by side: the commands, with those that follow from them."""
        run_id = served.task.run_id
        send, receive = trio.open_memory_channel[tuple[str, object, BaseException | None]](0)
        begun: set[str] = set()
        allowance = Allowance.of_task(served.task.task_timeout_ms, served.began)
        async with trio.open_nursery() as nursery:
            while calls := self._handler.local_calls(run_id):
                for call in calls:
                    if call.id not in begun:
                        begun.add(call.id)
                        nursery.start_soon(self._call_locally, call, allowance, send)
                call_id, result, error = await receive.receive()
                await trio.lowlevel.checkpoint_if_cancelled()  # then the run may be gone
                with self._watchdog.watch(str(served)):
                    more = self._handler.local_done(run_id, call_id, result, error)
                if more and isinstance(more[0], c.FailTask):
                    commands = more
                    break
                commands += more
            nursery.cancel_scope.cancel()
        return commands

    async def _call_locally(
        self,
        call: LocalCall,
        allowance: Allowance,
        send: trio.MemorySendChannel[tuple[str, object, BaseException | None]],
    ) -> None:
        try:
            result = await call_locally(call, allowance, self._limiter)
        except (trio.Cancelled, KeyboardInterrupt):
            raise
        except BaseException as error:
            await send.send((call.id, None, error))
        else:
            await send.send((call.id, result, None))

    # --- queries -----------------------------------------------------------------------------------------

    async def answer_query(self, query: QueryDelivery, line: Line) -> None:
        """Ask the run, which is replayed if it is not at hand, and tell the server what it says."""
        request: dict[str, object] = {"token": query.token}
        try:
            answer = self._converter.seal(await self._ask(query, line), f"the answer to query {query.query_type!r}")
            request["result"] = base64.b64encode(answer).decode()
        except (trio.Cancelled, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit and the like end the query and not the worker
            request["error"] = self._converter.hide_text(f"{type(error).__name__}: {error}")
        try:
            await line.call(Op.RESPOND_QUERY, request)
        except ZapError as error:
            log.info("the answer to query %r of %s was not taken: %s", query.query_type, query.workflow_id, error)

    async def _ask(self, query: QueryDelivery, line: Line) -> bytes:
        args = open_json(self._converter, base64.b64decode(query.args, validate=True)) if query.args else None
        served = self._newest.get(query.run_id)
        if served is not None:
            await served.handled.wait()  # what the server sent first is seen first
        label = f"query {query.query_type!r} of workflow {query.workflow_id}"
        if self._handler.has(query.run_id):
            with self._watchdog.watch(label):
                return self._handler.query(query.run_id, query.query_type, args)
        history = await _read(line, query.workflow_id, query.run_id, 0)
        task = opened_task(self._converter, self._task_of(query, history))
        with self._watchdog.watch(label):
            run = self._handler.replay_for_query(task)
            try:
                return run.query(query.query_type, args)
            finally:
                run.close()

    def _task_of(self, query: QueryDelivery, history: list[Event]) -> WorkflowTask:
        types = [event.get("workflowType", str) for event in history if event.event_type == STARTED]
        if not types or types[0] not in self.types:
            raise LookupError(f"run {query.run_id} does not run on this worker")
        return WorkflowTask(
            task_token="",
            workflow_id=query.workflow_id,
            run_id=query.run_id,
            workflow_type_name=types[0],
            history=history,
            last_event_id=history[-1].event_id,
        )

    # --- ends --------------------------------------------------------------------------------------------

    def lose_all(self) -> None:
        """The connection is gone, and with it every lease and what the server knew to be at hand."""
        for served in self._served.values():
            served.scope.cancel()
        self._handler.evict_all()

    def hand_back_all(self, reason: str) -> None:
        for served in self._served.values():
            served.hand_back_reason = reason
            served.scope.cancel()

    def close(self) -> None:
        """Forget all runs, and let the watchdog's thread end."""
        self._handler.evict_all()
        self._watchdog.close(wait=False)


async def _read(line: Line, workflow_id: str, run_id: str, after: int, until: int = 0) -> list[Event]:
    """The events past `after`, up to and with `until`; 0 for all that there are."""
    events: list[Event] = []
    while True:
        request: dict[str, object] = {
            "workflow_id": workflow_id,
            "run_id": run_id,
            "after_event_id": after,
            "page_size": min(PAGE_EVENTS, until - after) if until else PAGE_EVENTS,
        }
        page = decode_json(await line.call(Op.GET_WORKFLOW_HISTORY, request), EventPage)
        events += page.events
        if not page.next_cursor or not page.events or (until and page.events[-1].event_id >= until):
            return events
        after = page.events[-1].event_id


def _log_failed_task(served: Served, commands: Commands) -> None:
    for command in commands:
        if isinstance(command, c.FailTask):
            log.warning("%s cannot be gone on with by this code: %s", served, command.reason)
