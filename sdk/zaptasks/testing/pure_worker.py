"""The workflows of one worker without a connection, a loop or a clock: the engine's tasks go in, commands come out."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, Final, TypeAlias

import msgspec

from zapserver.deliveries import delivery_body
from zapserver.engine import commands as c
from zapserver.engine.effects import DeliverQuery, DeliverWorkflowTask
from zapserver.engine.records import Event
from zapserver.shapes import event as event_shape
from zapserver.task_commands import read_answer
from zaptasks.context import CompleteLater
from zaptasks.failures import failure_of
from zaptasks.local_activity_attempts import pause_after
from zaptasks.workflow import LocalCall, WorkflowTask, WorkflowTaskHandler, answer_body
from zaptasks.workflow import commands as wc
from zaptasks.workflow.execution import LOOPS
from zaptasks.workflow.history import Event as SdkEvent
from zaptasks.workflow.places import innermost_module

ReadEvents: TypeAlias = Callable[[str, str], list[Event]]
"""From a workflow id and a run id to the whole history."""

_read_task = msgspec.json.Decoder(WorkflowTask).decode


LOCAL_SECONDS_MAX: Final = 8.0
"""What a server's workflow task leaves for local activities, unless the server was told otherwise."""


class Waits(BaseException):
    """An `async def` function waits for something, where everything has to be done in one step.

    No `Exception`: it is a mistake in a test, and no failure of an activity.
    """


class PureWorker:
    """Deliveries and answers pass through their JSON, as they do between a server and a worker.

    `handler` has the runs at hand; whoever wants one replayed evicts it there.
    """

    def __init__(self, handler: WorkflowTaskHandler, read_events: ReadEvents) -> None:
        self.handler = handler
        self._read_events = read_events

    def answer(self, effect: DeliverWorkflowTask) -> list[wc.Command]:
        """What the workflow's code wants done; local activities are called on the way."""
        _, body = delivery_body(effect, "default")
        task = _read_task(body)
        first = self.handler.first_event_needed(task)
        if task.next_event_id or first != task.previous_event_id + 1:
            events = self._read_events(effect.workflow_id, effect.run_id)[first - 1 : task.last_event_id]
            task = msgspec.structs.replace(task, history=read_events(events), next_event_id=0)
        answer = self.handler.handle(task)
        while calls := self.handler.local_calls(task.run_id):
            more = self._local_call(task.run_id, calls[0])
            answer = more if more and isinstance(more[0], wc.FailTask) else answer + more
        return answer

    def _local_call(self, run_id: str, call: LocalCall) -> list[wc.Command]:
        """Attempt after attempt, as far as the policy goes and the pauses would fit into the task's time."""
        waited = 0.0
        for attempt in count(1):
            try:
                result = in_one_step(call.function, *call.args)
            except Exception as error:
                pause = pause_after(call.retry_policy, failure_of(error), attempt)
                waited += pause or 0
                if pause is None or waited > LOCAL_SECONDS_MAX:
                    return self.handler.local_done(run_id, call.id, error=error)
            else:
                return self.handler.local_done(run_id, call.id, result)
        raise AssertionError("attempts are counted without end")

    def query(self, effect: DeliverQuery) -> c.AnswerQuery:
        """The answer of a run at hand."""
        try:
            result = self.handler.query(effect.run_id, effect.query_type, effect.args)
        except Exception as error:
            return c.AnswerQuery(peer=effect.peer, token=effect.token, error=f"{type(error).__name__}: {error}")
        return c.AnswerQuery(peer=effect.peer, token=effect.token, result=c.Payload(result))


def answer_command(
    effect: DeliverWorkflowTask, answer: list[wc.Command]
) -> c.CompleteWorkflowTask | c.FailWorkflowTask:
    """What an answer is to the engine."""
    return read_answer(effect.task_token, answer_body(answer))


def read_events(events: list[Event]) -> list[SdkEvent]:
    """The engine's events as a worker reads them."""
    return msgspec.json.decode(msgspec.json.encode([event_shape(event) for event in events]), type=list[SdkEvent])


def in_one_step(function: Callable[..., Any], *args: object) -> Any:
    """Call a `def` function, or an `async def` function that never waits. Raises `Waits` for one that does."""
    try:
        value = function(*args)
        if not isinstance(value, Coroutine):
            return value
        value.send(None)
    except StopIteration as end:
        return end.value
    except CompleteLater:
        raise _waits(function) from None
    except RuntimeError as error:
        if innermost_module(error) in LOOPS:
            raise _waits(function) from error
        raise
    value.close()
    raise _waits(function)


def _waits(function: Callable[..., Any]) -> Waits:
    return Waits(f"{function!r} waits, and here everything is done in one step: give testing.mock(...) in its place")
