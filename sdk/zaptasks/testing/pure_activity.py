"""One attempt of an activity in one step, without a worker."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from zapserver.engine.effects import DeliverActivityTask
from zaptasks.context import TaskContext, as_current, said_before
from zaptasks.handlers import Handler

from .pure_worker import in_one_step


def run_purely(
    handler: Handler,
    task: DeliverActivityTask,
    called: Callable[[tuple[Any, ...]], None],
    send: Callable[[bytes], None],
) -> object:
    """Call the function with what was delivered, and return or raise what it does.

    `called` is told the arguments first, `send` the details of heartbeats. Raises `Waits` for a function that waits.
    """
    args = handler.parameters.from_array(None if task.input is None else bytes(task.input))
    called(args)
    details = None if task.heartbeat_details is None else msgspec.Raw(task.heartbeat_details)
    context = TaskContext(
        id=task.activity_id,
        type=task.activity_type,
        attempt=task.attempt,
        maximum_attempts=task.maximum_attempts,
        namespace="default",
        task_queue="default",
        workflow_id=task.workflow_id,
        run_id=task.run_id,
        scheduled_time=datetime.fromtimestamp(task.scheduled_ms / 1000, UTC),
        start_to_close=task.start_to_close_ms / 1000 or None,
        heartbeat_timeout=task.heartbeat_ms / 1000 or None,
        heartbeat_details=said_before(details),
        send=send,
        emit=lambda item: None,  # nobody reads it
        task_token=task.task_token,
    )
    with as_current(context):
        return in_one_step(handler.function, *args)
