"""`zaptasks schedule ...`."""

from __future__ import annotations

from typing import Any

import click

from zapserver.cli.connecting import JSON, SPEC, with_client
from zapserver.cli.executions import print_started
from zapserver.cli.output import Output, Payload
from zaptasks import AsyncClient, ScheduleInfo, StartTask, StartWorkflow
from zaptasks.duration import MILLISECOND, format_duration

OVERLAPS = ("skip", "allow", "buffer-one")
COLUMNS = {
    "schedule_id": "ID",
    "spec": "WHEN",
    "starts": "STARTS",
    "type": "TYPE",
    "task_queue": "QUEUE",
    "paused": "PAUSED",
}


@click.group(short_help="Make, look at and steer schedules.")
def schedule() -> None:
    """Make, look at and steer schedules."""


_id = click.argument("schedule_id", metavar="NAME")
_note = click.option("--note", default="", help="Kept with the schedule.")


def _record(info: ScheduleInfo) -> dict[str, Any]:
    spec = [*(info.spec.cron or ())]
    if info.spec.interval_ms:
        spec.append(format_duration(info.spec.interval_ms * MILLISECOND))
    return {
        "schedule_id": info.id,
        "spec": spec,
        "timezone": info.spec.timezone,
        "starts": "task" if info.action.is_task else "workflow",
        "type": info.action.type,
        "task_queue": info.action.task_queue,
        "input": Payload(info.action.input),
        "overlap": info.overlap_policy,
        "paused": info.paused,
    }


@schedule.command()
@_id
@click.argument("spec", type=SPEC)
@click.argument("type")
@click.argument("input", type=JSON, required=False)
@click.option("--workflow", "is_workflow", is_flag=True, help="Start a workflow, with INPUT as its array of arguments.")
@click.option("--task-queue", default="default", show_default=True)
@click.option("--overlap", type=click.Choice(OVERLAPS), default="skip", show_default=True)
@click.option("--paused", is_flag=True, help="Do not fire until it is unpaused.")
@with_client
async def add(
    client: AsyncClient,
    output: Output,
    schedule_id: str,
    spec: str,
    type: str,
    input: object,
    is_workflow: bool,
    task_queue: str,
    overlap: str,
    paused: bool,
) -> None:
    """Make or replace a schedule that starts a task of TYPE with the payload INPUT.

    SPEC is a duration such as 1h30m, or a cron expression such as "0 3 * * *".
    """
    action: StartTask | StartWorkflow = StartTask(type, input, task_queue)
    if is_workflow:
        if not isinstance(input, list | None):
            raise click.UsageError("INPUT of a workflow is a JSON array of its arguments")
        action = StartWorkflow(type, input or (), task_queue)
    output.record(_record(await client.create_schedule(schedule_id, spec, action, paused=paused, overlap=overlap)))


@schedule.command(name="list")
@with_client
async def list_(client: AsyncClient, output: Output) -> None:
    """Every schedule of the namespace."""
    output.rows([_record(info) for info in await client.list_schedules()], COLUMNS, none="no schedules")


@schedule.command()
@_id
@with_client
async def describe(client: AsyncClient, output: Output, schedule_id: str) -> None:
    """A schedule, with what it has done and when it fires next."""
    info = await client.describe_schedule(schedule_id)
    progress = {
        "fired": info.info.action_count,
        "skipped_overlap": info.info.overlap_skipped,
        "missed": info.info.missed_catchup_count,
        "running": [run.workflow_id for run in info.info.running_workflows],
        "next": info.info.next_action_times,
        "note": info.info.note,
    }
    output.record({**_record(info), **progress})


@schedule.command()
@_id
@_note
@with_client
async def pause(client: AsyncClient, output: Output, schedule_id: str, note: str) -> None:
    """Fire no more until it is unpaused."""
    await client.pause_schedule(schedule_id, note)
    output.say(f"paused {schedule_id}")


@schedule.command()
@_id
@_note
@with_client
async def unpause(client: AsyncClient, output: Output, schedule_id: str, note: str) -> None:
    """Fire again, from the next time on."""
    await client.unpause_schedule(schedule_id, note)
    output.say(f"unpaused {schedule_id}")


@schedule.command()
@_id
@click.option("--overlap", type=click.Choice(OVERLAPS), default=None, help="Instead of the schedule's own policy.")
@with_client
async def trigger(client: AsyncClient, output: Output, schedule_id: str, overlap: str | None) -> None:
    """Do its action now."""
    handle = await client.trigger_schedule(schedule_id, overlap=overlap or "")
    if handle is None:
        raise click.ClickException(f"{schedule_id} started nothing: a run of it is still open, and its policy says no")
    print_started(handle, output)


@schedule.command()
@_id
@with_client
async def delete(client: AsyncClient, output: Output, schedule_id: str) -> None:
    """Delete a schedule; what it has started goes on."""
    await client.delete_schedule(schedule_id)
    output.say(f"deleted {schedule_id}")
