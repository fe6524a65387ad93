"""How executions are printed, whichever command asked for them."""

from __future__ import annotations

from typing import Any

import click

from zapserver.cli.output import Output, Payload
from zaptasks import ExecutionError, ExecutionHandle, ExecutionInfo

COLUMNS = {
    "workflow_id": "ID",
    "type": "TYPE",
    "kind": "KIND",
    "status": "STATUS",
    "task_queue": "QUEUE",
    "start_time": "STARTED",
    "close_time": "CLOSED",
}


def execution_record(info: ExecutionInfo) -> dict[str, Any]:
    """An execution as names and values, payloads decoded."""
    error = info.error
    return {
        "workflow_id": info.workflow_id,
        "run_id": info.run_id,
        "type": info.type,
        "kind": info.kind,
        "status": info.status.name,
        "dead_letter": info.is_dead_letter or None,
        "task_queue": info.task_queue,
        "attempt": info.attempt if info.attempt > 1 else None,
        "start_time": info.start_time,
        "close_time": info.close_time,
        "schedule_id": info.schedule_id,
        "history_length": info.history_length,
        "input": Payload(info.input),
        "result": Payload(info.result),
        "memo": Payload(info.memo),
        "search_attributes": info.search_attributes,
        "headers": info.headers or None,
        "build_id": info.build_id or None,
        "error": None if error is None else f"{error.message} ({error.type})" if error.message else error.type,
    }


async def print_result(handle: ExecutionHandle, output: Output) -> None:
    """Wait until it is over and print what it returned. Any other end is an error, with status 1."""
    try:
        output.json(await handle.result())
    except ExecutionError as error:
        raise click.ClickException(str(error)) from None


def print_started(handle: ExecutionHandle, output: Output) -> None:
    """The ids of what was started, and how durable it is: the workflow id alone for eyes and for `$(...)`."""
    if output.as_json:
        output.json({"workflow_id": handle.workflow_id, "run_id": handle.run_id, "durability": handle.durability})
    else:
        output.say(handle.workflow_id)
