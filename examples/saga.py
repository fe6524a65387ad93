"""An order that is paid, packed and shipped, and undone where a step fails for good.

    zaptasks serve                  # in another terminal
    python examples/saga.py

A saga is a row of steps, each with a step that undoes it. Nothing of it is special here: what is to be undone is a
list, and `except` goes through it. What makes it hold is that the workflow survives its worker: if that is killed after
the payment, another one goes on, and either ships the parcel or pays the money back.
"""

from __future__ import annotations

import trio

import zaptasks
from zaptasks import TaskError, workflow

# --- activities: they reach outside, may fail, and are tried again. So each must bear being called twice ----------


async def charge(order: str, cents: int) -> None:
    print(f"  charged {cents / 100:.2f}")


async def refund(order: str) -> None:
    """Also of an order that was never charged: then there is nothing to do."""
    print("  refunded")


async def pack(order: str, item: str) -> None:
    print(f"  packed {item}")


async def unpack(order: str) -> None:
    print("  unpacked")


async def ship(order: str, item: str) -> str:
    if item == "piano":
        # Not worth another try: without `non_retryable` it would be tried again, with growing pauses.
        raise TaskError("nobody carries a piano", code="TooHeavy", non_retryable=True)
    return f"{item} is on its way"


# --- the workflow: it decides, and what it decided is kept ---------------------------------------------------------


@workflow.defn
async def order(item: str, cents: int) -> str:
    order_id = workflow.info().workflow_id
    undo = []
    try:
        # First how it is undone, then the step: it may have happened although its answer was lost.
        undo.append(refund)
        await workflow.execute_activity(charge, order_id, cents, start_to_close=30)
        undo.append(unpack)
        await workflow.execute_activity(pack, order_id, item, start_to_close=30)
        return await workflow.execute_activity(ship, order_id, item, start_to_close=30)
    except (workflow.ActivityFailed, workflow.Cancelled):
        # When somebody cancels the order, the shield lets the undoing come to its end all the same.
        with workflow.CancelScope(shield=True):
            for step in reversed(undo):
                await workflow.execute_activity(step, order_id, start_to_close=30)
        raise


async def main() -> None:
    async with (
        zaptasks.open_client() as client,  # the server in TASKS_ZAP, or the one on this machine
        zaptasks.open_worker(client, "shop", workflows=[order], activities=[charge, refund, pack, unpack, ship]),
    ):
        for item, cents in (("tea", 450), ("piano", 900_000)):
            print(f"{item}:")
            handle = await client.start_workflow(order, item, cents, task_queue="shop")
            try:
                print(" ", await handle.result())
            except zaptasks.TaskFailed as error:
                print(f"  no order: {error.message}")


if __name__ == "__main__":
    trio.run(main)
