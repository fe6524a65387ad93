"""One-shot tasks: `now`, `add`, `worker`, `dead-letters`, and `health`."""

from __future__ import annotations

import sys

import click

from zapserver.cli.connecting import JSON, SPEC, durability_option, with_client
from zapserver.cli.executions import execution_record, print_result, print_started
from zapserver.cli.output import Output
from zaptasks import AsyncClient, Durability

DEAD_LETTER_COLUMNS = {"workflow_id": "ID", "type": "TYPE", "close_time": "GAVE UP", "error": "ERROR"}

_task_queue = click.option("--task-queue", default="default", show_default=True)


@click.command(short_help="Start a one-shot task.")
@click.argument("type")
@click.argument("payload", type=JSON, required=False)
@_task_queue
@click.option("--id", "task_id", default="", help="Its id; without it the server's choice.")
@click.option("--request-id", default="", help="The same one again starts nothing new.")
@durability_option
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@with_client
async def now(
    client: AsyncClient,
    output: Output,
    type: str,
    payload: object,
    task_queue: str,
    task_id: str,
    request_id: str,
    durability: Durability | None,
    wait: bool,
) -> None:
    """Start a one-shot task of TYPE with PAYLOAD as JSON (- for stdin), and print its id."""
    handle = await client.now(
        type, payload, id=task_id, task_queue=task_queue, request_id=request_id, durability=durability
    )
    output.reached(handle.durability, durability)
    if wait:
        await print_result(handle, output)
    else:
        print_started(handle, output)


@click.command(short_help="Start a one-shot task on a schedule.")
@click.argument("name")
@click.argument("spec", type=SPEC)
@_task_queue
@durability_option
@with_client
async def add(
    client: AsyncClient, output: Output, name: str, spec: str, task_queue: str, durability: Durability | None
) -> None:
    """Start the task NAME at every time of SPEC: a duration such as 1h30m, or a cron expression.

    It runs in one of the processes that serve NAME. `zaptasks schedule add` can say more.
    """
    kept = await client.put_task_schedule(name, spec, task_queue=task_queue, durability=durability)
    output.reached(kept.durability, durability)
    if output.as_json:
        output.json({"schedule_id": name, "durability": kept.durability})
    output.say(f"scheduled {name}")


@click.group(name="dead-letters", short_help="Tasks that failed for good.")
def dead_letters() -> None:
    """Tasks that failed for good: their handler raised, and no attempt was left."""


@dead_letters.command(name="list")
@with_client
async def list_(client: AsyncClient, output: Output) -> None:
    """The oldest first, each with its error. `zaptasks workflow describe ID` shows the input."""
    rows = [execution_record(info) for info in await client.dead_letters()]
    output.rows(rows, DEAD_LETTER_COLUMNS, none="no dead letters")


@dead_letters.command()
@click.argument("task_id", metavar="ID")
@click.option("--run-id", default="", help="A particular run; without it the latest.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@with_client
async def requeue(client: AsyncClient, output: Output, task_id: str, run_id: str, wait: bool) -> None:
    """Run one again, with the same input, as a new run of its id."""
    handle = await client.requeue_dead_letter(task_id, run_id)
    if wait:
        await print_result(handle, output)
    else:
        print_started(handle, output)


@click.command(short_help="Ask a server how it is.")
@with_client
async def health(client: AsyncClient, output: Output) -> None:
    """Ask a server how it is. The exit status is 1 when it does not answer, or takes nothing because its disk fails."""
    answer = await client.health()
    output.record(
        {
            "service": answer.service,
            "status": answer.status,
            "namespace": answer.namespace,
            "durability": answer.durability,
            "store": answer.store,
            "queued_bytes": answer.queued_bytes,
            "refused": answer.refused if output.as_json else "",
        }
    )
    if answer.refused and not output.as_json:
        rows = [{"limit": name, "refused": count} for name, count in sorted(answer.refused.items())]
        output.rows(rows, {"limit": "LIMIT", "refused": "REFUSED"}, none="")
    if answer.status == "failing":
        sys.exit(1)
