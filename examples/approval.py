"""An expense that a human approves, with reminders and a deadline.

    zaptasks serve                  # in another terminal
    python examples/approval.py

The workflow waits for days without costing anything: no thread, no polling, nothing but a record on the server.
"""

from __future__ import annotations

import trio

import zaptasks
from zaptasks import workflow


async def remind(approver: str, cents: int) -> None:
    print(f"  to {approver}: {cents / 100:.2f} wait for you")


@workflow.defn
class Expense:
    def __init__(self) -> None:
        self.whose = ""
        self.decision = ""

    @workflow.run
    async def run(self, whose: str, cents: int, deadline: float, remind_every: float) -> str:
        """Both times are in seconds."""
        self.whose = whose
        async with workflow.open_nursery() as nursery:
            nursery.start_soon(self.remind, cents, remind_every)
            with workflow.move_on_after(deadline):
                await workflow.wait_condition(lambda: bool(self.decision))
            nursery.cancel_scope.cancel()  # no more reminders
        return self.decision or "rejected: nobody decided in time"

    async def remind(self, cents: int, every: float) -> None:
        while True:
            await workflow.sleep(every)
            await workflow.execute_activity(remind, "the boss", cents, start_to_close=30)

    @workflow.update
    def decide(self, who: str, yes: bool) -> str:
        """An update changes something and answers, unlike a signal, which is only sent."""
        self.decision = f"{'approved' if yes else 'rejected'} by {who}"
        return self.decision

    @decide.validator
    def _may_decide(self, who: str, yes: bool) -> None:
        """What this raises, the caller gets, and the workflow never knew of it."""
        if who == self.whose:
            raise ValueError("nobody decides on their own expense")

    @workflow.query
    def state(self) -> str:
        return self.decision or "undecided"


async def main() -> None:
    async with (
        zaptasks.open_client() as client,
        zaptasks.open_worker(client, "expenses", workflows=[Expense], activities=[remind]),
    ):
        # In earnest the deadline is days, and another process decides. Here all of it takes a second.
        print("somebody decides:")
        expense = await client.start_workflow(Expense, "bob", 4_200, 60.0, 0.2, task_queue="expenses")
        await trio.sleep(0.5)
        print(" ", await expense.query(Expense.state))
        await expense.update(Expense.decide, "ada", True)
        print(" ", await expense.result())

        print("nobody decides:")
        expense = await client.start_workflow(Expense, "bob", 99_900, 0.5, 0.2, task_queue="expenses")
        print(" ", await expense.result())


if __name__ == "__main__":
    trio.run(main)
