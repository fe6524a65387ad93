"""A report every night at three, in Berlin's time.

    zaptasks serve                  # in another terminal
    python examples/nightly_report.py

The schedule is the server's: it fires whether this program runs or not, and what it starts waits for a worker. Each
night has one report; those on which the clocks change are no exception.
"""

from __future__ import annotations

import trio

import zaptasks
from zaptasks import ScheduleSpec, StartWorkflow, workflow

EVERY_NIGHT = ScheduleSpec(cron=["0 3 * * *"], timezone="Europe/Berlin")


async def count_sales(day: str) -> int:
    return 17


async def mail(text: str) -> None:
    print(f"mail: {text}")


@workflow.defn
async def nightly_report() -> str:
    day = workflow.now().date().isoformat()  # the server's time, the same in every replay
    sales = await workflow.execute_activity(count_sales, day, start_to_close=600)
    await workflow.execute_activity(mail, f"{sales} sales by {day}", start_to_close=30)
    return f"{sales} sales"


async def main() -> None:
    async with (
        zaptasks.open_client() as client,
        zaptasks.open_worker(client, "reports", workflows=[nightly_report], activities=[count_sales, mail]),
    ):
        action = StartWorkflow("nightly_report", task_queue="reports")
        await client.create_schedule("nightly-report", EVERY_NIGHT, action)
        schedule = await client.describe_schedule("nightly-report")
        for moment in schedule.info.next_action_times[:3]:
            print("due:", moment.isoformat())
        # We do not wait for the night: a schedule may be triggered at any time.
        report = await client.trigger_schedule("nightly-report")
        if report is not None:
            print(await report.result())
        await client.delete_schedule("nightly-report")


if __name__ == "__main__":
    trio.run(main)
