"""`zaptasks workflow ...`: executions of every kind, one-shot tasks too."""

from __future__ import annotations

from typing import Any

import click

from zapserver.cli.connecting import JSON, durability_option, with_client
from zapserver.cli.executions import COLUMNS, execution_record, print_result, print_started
from zapserver.cli.output import Output
from zaptasks import AsyncClient, Durability
from zaptasks.client import PAGE_SIZE

LISTED_DEFAULT = 50


@click.group(short_help="Start, look at and steer workflows and tasks.")
def workflow() -> None:
    """Start, look at and steer executions: workflows, and one-shot tasks as well."""


_id = click.argument("workflow_id", metavar="ID")
_run_id = click.option("--run-id", default="", help="A particular run; without it the latest.")
_reason = click.option("--reason", default="", help="For the history, and for the handler that is stopped.")


@workflow.command()
@click.argument("type")
@click.argument("args", nargs=-1, type=JSON)
@click.option("--id", "workflow_id", default="", help="Its id; without it the server's choice.")
@click.option("--task-queue", default="default", show_default=True)
@click.option("--request-id", default="", help="The same one again starts nothing new.")
@click.option("--run-timeout", type=float, help="Seconds.")
@durability_option
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@with_client
async def start(
    client: AsyncClient,
    output: Output,
    type: str,
    args: tuple[Any, ...],
    workflow_id: str,
    task_queue: str,
    request_id: str,
    run_timeout: float | None,
    durability: Durability | None,
    wait: bool,
) -> None:
    """Start a workflow of TYPE. Each of ARGS is one argument, as JSON."""
    handle = await client.start_workflow(
        type,
        *args,
        id=workflow_id,
        task_queue=task_queue,
        request_id=request_id,
        run_timeout=run_timeout,
        durability=durability,
    )
    output.reached(handle.durability, durability)
    if wait:
        await print_result(handle, output)
    else:
        print_started(handle, output)


@workflow.command()
@_id
@_run_id
@with_client
async def describe(client: AsyncClient, output: Output, workflow_id: str, run_id: str) -> None:
    """Where an execution stands, with its input and its result or failure."""
    output.record(execution_record(await client.get_handle(workflow_id, run_id).describe()))


@workflow.command(name="list")
@click.argument("query", default="")
@click.option("--limit", type=click.IntRange(1), default=LISTED_DEFAULT, show_default=True)
@with_client
async def list_(client: AsyncClient, output: Output, query: str, limit: int) -> None:
    """Executions, newest first. QUERY is such as "WorkflowType = 'Order' AND ExecutionStatus = 'Running'"."""
    rows: list[dict[str, Any]] = []
    # Pages no larger than the limit, so that no more is fetched than is shown.
    async for info in client.list(query, page_size=min(limit, PAGE_SIZE)):
        rows.append(execution_record(info))
        if len(rows) == limit:
            break
    output.rows(rows, COLUMNS, none="no executions")


@workflow.command()
@_id
@_run_id
@with_client
async def history(client: AsyncClient, output: Output, workflow_id: str, run_id: str) -> None:
    """Everything that happened to an execution. With --json it is what `zaptasks replay` reads."""
    handle = client.get_handle(workflow_id, run_id)
    if output.as_json:
        click.echo((await handle.export_history()).to_json(), nl=False)
        return
    rows = [
        {
            "event_id": event.event_id,
            "event_time": event.event_time,
            "event_type": event.event_type,
            "attributes": event.attributes,
        }
        async for event in handle.history()
    ]
    columns = {"event_id": "EVENT", "event_time": "TIME", "event_type": "TYPE", "attributes": "ATTRIBUTES"}
    output.rows(rows, columns, none="no events")


@workflow.command()
@_id
@click.argument("name")
@click.argument("value", type=JSON, required=False)
@_run_id
@durability_option
@with_client
async def signal(
    client: AsyncClient,
    output: Output,
    workflow_id: str,
    name: str,
    value: object,
    run_id: str,
    durability: Durability | None,
) -> None:
    """Send the signal NAME, with VALUE as JSON."""
    kept = await client.get_handle(workflow_id, run_id).signal(name, value, durability=durability)
    output.reached(kept.durability, durability)
    if output.as_json:
        output.json({"workflow_id": workflow_id, "durability": kept.durability})
    output.say(f"signaled {workflow_id}")


@workflow.command()
@_id
@click.argument("name")
@click.argument("args", nargs=-1, type=JSON)
@_run_id
@with_client
async def query(
    client: AsyncClient, output: Output, workflow_id: str, name: str, args: tuple[Any, ...], run_id: str
) -> None:
    """Ask the worker that runs it; built in are __stack_trace and __workflow_metadata."""
    output.json(await client.get_handle(workflow_id, run_id).query(name, *args))


@workflow.command()
@_id
@click.argument("name")
@click.argument("args", nargs=-1, type=JSON)
@click.option("--update-id", default="", help="Of your own; a repeat with the same one is harmless.")
@_run_id
@with_client
async def update(
    client: AsyncClient,
    output: Output,
    workflow_id: str,
    name: str,
    args: tuple[Any, ...],
    update_id: str,
    run_id: str,
) -> None:
    """Have a workflow handle an update, and print what it returns."""
    output.json(await client.get_handle(workflow_id, run_id).update(name, *args, id=update_id))


@workflow.command()
@_id
@_run_id
@_reason
@with_client
async def cancel(client: AsyncClient, output: Output, workflow_id: str, run_id: str, reason: str) -> None:
    """Ask an execution to stop; what runs may clean up."""
    await client.get_handle(workflow_id, run_id).cancel(reason)
    output.say(f"asked {workflow_id} to stop")


@workflow.command()
@_id
@_run_id
@_reason
@with_client
async def terminate(client: AsyncClient, output: Output, workflow_id: str, run_id: str, reason: str) -> None:
    """End an execution at once, without asking it."""
    await client.get_handle(workflow_id, run_id).terminate(reason)
    output.say(f"terminated {workflow_id}")


@workflow.command()
@_id
@_run_id
@with_client
async def result(client: AsyncClient, output: Output, workflow_id: str, run_id: str) -> None:
    """Wait until an execution is over and print its result, or say how else it ended (exit status 1)."""
    await print_result(client.get_handle(workflow_id, run_id), output)


@workflow.command(name="output")
@_id
@click.option("--after", type=click.IntRange(0), default=0, help="The number of the last item that is known already.")
@_run_id
@with_client
async def output_(client: AsyncClient, output: Output, workflow_id: str, after: int, run_id: str) -> None:
    """Print what its activities emit, as it comes, until it is closed: one JSON value a line."""
    async for item in client.get_handle(workflow_id, run_id).output(after=after):
        if output.as_json:
            output.json({"number": item.number, "value": item.value, "activity_type": item.activity_type})
        else:
            output.json(item.value)


@workflow.command()
@_id
@click.argument("event_id", type=click.IntRange(1), metavar="EVENT")
@_run_id
@_reason
@with_client
async def reset(client: AsyncClient, output: Output, workflow_id: str, event_id: int, run_id: str, reason: str) -> None:
    """End a run and start another that goes on from EVENT of its history: `zaptasks workflow history` numbers them."""
    print_started(await client.get_handle(workflow_id, run_id).reset(event_id, reason), output)


@workflow.command()
@_id
@_run_id
@with_client
async def explain(client: AsyncClient, output: Output, workflow_id: str, run_id: str) -> None:
    """What an open execution waits for, and why."""
    rows = [
        {
            "what": item.what,
            "reason": item.reason,
            "since": item.since,
            "until": item.until,
            "activity_id": item.activity_id,
            "identity": item.identity,
            "build_id": item.build_id,
            "attempt": item.attempt,
        }
        for item in await client.get_handle(workflow_id, run_id).explain()
    ]
    columns = {"what": "WHAT", "since": "SINCE", "until": "AT THE LATEST UNTIL", "reason": "WAITS BECAUSE"}
    output.rows(rows, columns, none=f"{workflow_id} waits for nothing: it is closed")
