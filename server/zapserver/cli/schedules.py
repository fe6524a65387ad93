"""`zaptasks schedule ...`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from zapserver.cli.connecting import DURATION, JSON, SPEC, TIME, durability_option, with_client
from zapserver.cli.executions import print_started
from zapserver.cli.output import Output, Payload
from zaptasks import AsyncClient, Durability, Every, ScheduleInfo, ScheduleSpec, StartTask, StartWorkflow
from zaptasks.duration import MILLISECOND, format_duration
from zaptasks.records import IntervalInfo, ScheduleSpecInfo

OVERLAPS = ("skip", "allow", "buffer-one", "buffer-all", "cancel-other", "terminate-other")
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
    return {
        "schedule_id": info.id,
        "spec": _rules(info.spec),
        "timezone": info.spec.timezone,
        "start": _moment(info.spec.start_time_ms),
        "end": _moment(info.spec.end_time_ms),
        "jitter": _span(info.spec.jitter_ms),
        "starts": "task" if info.action.is_task else "workflow",
        "type": info.action.type,
        "task_queue": info.action.task_queue,
        "input": Payload(info.action.input),
        "overlap": info.overlap_policy,
        "catchup": _span(info.catchup_window_ms or 0),
        "pause_on_failure": info.pause_on_failure,
        "remaining": info.remaining_actions,
        "paused": info.paused,
    }


def _rules(spec: ScheduleSpecInfo) -> list[str]:
    rules = [*(spec.cron or ())]
    first = [IntervalInfo(interval_ms=spec.interval_ms, phase_ms=spec.phase_ms)] if spec.interval_ms else []
    for interval in (*first, *spec.intervals):
        phase = "" if interval.phase_ms is None else f" + {format_duration(interval.phase_ms * MILLISECOND)}"
        rules.append(format_duration(interval.interval_ms * MILLISECOND) + phase)
    return rules


def _span(milliseconds: int) -> str | None:
    return format_duration(milliseconds * MILLISECOND) if milliseconds else None


def _moment(milliseconds: int) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _spec(
    texts: Sequence[str],
    *,
    phase: float | None,
    start: datetime | None,
    end: datetime | None,
    jitter: float | None,
    timezone: str,
) -> ScheduleSpec:
    """The union of durations and cron expressions; the phase is that of the durations."""
    parsed = [ScheduleSpec.parse(text) for text in texts]
    intervals = [Every(spec.interval, phase) for spec in parsed if spec.interval is not None]
    if phase is not None and not intervals:
        raise click.UsageError("--phase places the times of a duration, and there is none: SPEC is a cron expression")
    first = intervals[0] if intervals else None
    return ScheduleSpec(
        cron=[expression for spec in parsed for expression in spec.cron],
        interval=None if first is None else first.interval,
        phase=None if first is None else first.phase,
        intervals=intervals[1:],
        start_time=start,
        end_time=end,
        jitter=jitter,
        timezone=timezone,
    )


@schedule.command()
@_id
@click.argument("spec", type=SPEC)
@click.argument("type")
@click.argument("input", type=JSON, required=False)
@click.option("--workflow", "is_workflow", is_flag=True, help="Start a workflow, with INPUT as its array of arguments.")
@click.option("--task-queue", default="default", show_default=True)
@click.option("--also", type=SPEC, multiple=True, help="One more SPEC; may be given again.")
@click.option("--phase", type=DURATION, help="Where in the duration the times lie, counted from the epoch.")
@click.option("--timezone", default="", help="Where cron expressions read the clock; UTC if not given.")
@click.option("--start", type=TIME, help="Nothing fires before.")
@click.option("--end", type=TIME, help="Nothing fires after.")
@click.option("--jitter", type=DURATION, help="Each firing is late by up to this much.")
@click.option(
    "--overlap", type=click.Choice(OVERLAPS), default="skip", show_default=True, help="While a run is still open."
)
@click.option("--catchup", type=DURATION, help="How old a missed time may be and still be made up for; 10s or more.")
@click.option("--max-runs", type=click.IntRange(1), help="Fire so many times, then no more.")
@click.option("--pause-on-failure", is_flag=True, help="Pause it after a run that failed for good.")
@click.option("--paused", is_flag=True, help="Do not fire until it is unpaused.")
@durability_option
@click.option("--dry-run", is_flag=True, help="Make nothing; print when it would fire in the next 24 hours.")
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
    also: tuple[str, ...],
    phase: float | None,
    timezone: str,
    start: datetime | None,
    end: datetime | None,
    jitter: float | None,
    overlap: str,
    catchup: float | None,
    max_runs: int | None,
    pause_on_failure: bool,
    paused: bool,
    durability: Durability | None,
    dry_run: bool,
) -> None:
    """Make or replace a schedule that starts a task of TYPE with the payload INPUT.

    SPEC is a duration such as 1h30m, or a cron expression such as "0 3 * * *".
    """
    action: StartTask | StartWorkflow = StartTask(type, input, task_queue)
    if is_workflow:
        if not isinstance(input, list | None):
            raise click.UsageError("INPUT of a workflow is a JSON array of its arguments")
        action = StartWorkflow(type, input or (), task_queue)
    when = _spec((spec, *also), phase=phase, start=start, end=end, jitter=jitter, timezone=timezone)
    if dry_run:
        now = datetime.now(UTC)
        _print_times(await client.schedule_times(when, now, now + timedelta(days=1)), output)
        return
    info = await client.create_schedule(
        schedule_id,
        when,
        action,
        paused=paused,
        overlap=overlap,
        catchup_window=catchup,
        pause_on_failure=pause_on_failure,
        remaining_actions=max_runs,
        durability=durability,
    )
    output.reached(info.durability, durability)
    output.record({**_record(info), "durability": info.durability})


def _print_times(times: Sequence[datetime], output: Output) -> None:
    output.rows([{"time": moment} for moment in times], {"time": "TIME (UTC)"}, none="no times")


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
    done = info.info
    progress = {
        "state": done.state,
        "fired": done.action_count,
        "skipped_overlap": done.overlap_skipped,
        "missed": done.missed_catchup_count,
        "buffered": done.buffer_size,
        "buffer_dropped": done.buffer_dropped,
        "backfill": done.backfill_slots,
        "running": [run.workflow_id for run in done.running_workflows],
        "recent": [run.workflow_id for run in done.recent_actions],
        "next": done.next_action_times,
        "note": done.note,
    }
    output.record({**_record(info), **progress})


@schedule.command()
@_id
@click.argument("start", metavar="FROM", type=TIME)
@click.argument("end", metavar="TO", type=TIME)
@with_client
async def times(client: AsyncClient, output: Output, schedule_id: str, start: datetime, end: datetime) -> None:
    """When it fires, or would have fired, from FROM to TO: the first 1,000 times.

    FROM and TO are such as 2026-01-31 or 2026-01-31T08:00:00+01:00, in UTC if they do not say.
    """
    _print_times(await client.schedule_times(schedule_id, start, end), output)


@schedule.command()
@_id
@click.argument("start", metavar="FROM", type=TIME)
@click.argument("end", metavar="TO", type=TIME)
@click.option(
    "--overlap", type=click.Choice(OVERLAPS), default="buffer-all", show_default=True, help="While a run is still open."
)
@with_client
async def backfill(
    client: AsyncClient, output: Output, schedule_id: str, start: datetime, end: datetime, overlap: str
) -> None:
    """Do its action for every time from FROM to TO, which is past; at most 1,000 of them.

    FROM and TO are such as 2026-01-31 or 2026-01-31T08:00:00+01:00, in UTC if they do not say.
    """
    slots = await client.backfill_schedule(schedule_id, start, end, overlap=overlap)
    output.record({"schedule_id": schedule_id, "slots": slots})


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
        raise click.ClickException(
            f"{schedule_id} started nothing: a run of it is still open, and its policy says no, or wait"
        )
    print_started(handle, output)


@schedule.command()
@_id
@with_client
async def delete(client: AsyncClient, output: Output, schedule_id: str) -> None:
    """Delete a schedule; what it has started goes on."""
    await client.delete_schedule(schedule_id)
    output.say(f"deleted {schedule_id}")
