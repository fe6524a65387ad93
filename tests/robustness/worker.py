"""A worker to be killed: every handler leaves a line on the disk before it returns.

    python -m tests.robustness.worker HOST:PORT FOLDER NAME

Beside the side effects it writes down what the server acknowledged to it: each result, and each heartbeat.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import trio
from tests.robustness.journal import BEGUN, KEPT, SIDE_EFFECTS, Journal

import zaptasks
from zaptasks import WorkflowContext, activity, current_task
from zaptasks.line import Line
from zapwire.client_link import Backoff
from zapwire.envelope import Envelope
from zapwire.opcodes import Op

BEATS = 5
BEAT_SECONDS = 0.05
PARKED_ACTIVITIES = 4
SLOTS = 40

journal: Journal
name = ""


def done(number: int) -> dict[str, Any]:
    """Leave the side effect, and make a result that no other attempt makes."""
    task = current_task()
    by = uuid.uuid4().hex
    journal.write(
        SIDE_EFFECTS,
        sync=True,
        run=task.run_id,
        activity=task.id,
        attempt=task.attempt,
        worker=name,
        pid=os.getpid(),
        ms=time.time_ns() // 1_000_000,
        by=by,
    )
    return {"run": task.run_id, "activity": task.id, "number": number, "by": by}


@zaptasks.task
async def quick(number: int) -> dict[str, Any]:
    return done(number)


@zaptasks.task
async def slow(number: int) -> dict[str, Any]:
    await trio.sleep(0.2)
    return done(number)


@zaptasks.task
def threaded(number: int) -> dict[str, Any]:
    time.sleep(0.02)
    return done(number)


@zaptasks.task
async def beating(number: int) -> dict[str, Any]:
    """Goes on where the attempt before it was when the server last heard of it."""
    task = current_task()
    step = task.heartbeat_details[1] if task.heartbeat_details else 0
    journal.write(BEGUN, run=task.run_id, attempt=task.attempt, step=step)
    while step < BEATS:
        await trio.sleep(BEAT_SECONDS)
        step += 1
        task.heartbeat(task.run_id, step, task.attempt)
    return done(number)


@zaptasks.task
async def flaky(number: int) -> dict[str, Any]:
    if current_task().attempt == 1:
        raise ValueError("the first attempt fails, as planned")
    return done(number)


@zaptasks.task
async def poison(number: int) -> None:
    raise ValueError("every attempt fails, as planned")


@activity.defn
async def part(number: int) -> dict[str, Any]:
    return done(number)


@activity.defn
async def pause(number: int) -> dict[str, Any]:
    await trio.sleep(0.3)
    return done(number)


async def chain(ctx: WorkflowContext, number: int) -> list[str]:
    """Three activities, one after the other."""
    policy = zaptasks.RetryPolicy(initial_interval=0.05)
    results = [await ctx.execute_activity(part, step, retry_policy=policy) for step in range(3)]
    return [ctx.run_id, *(result["by"] for result in results)]


async def parked(ctx: WorkflowContext, number: int) -> list[str]:
    """Open for a second or more, to be signaled and canceled."""
    policy = zaptasks.RetryPolicy(initial_interval=0.05)
    results = [await ctx.execute_activity(pause, step, retry_policy=policy) for step in range(PARKED_ACTIVITIES)]
    return [ctx.run_id, *(result["by"] for result in results)]


async def _respond(self: Line, opcode: int, token: str, payload: bytes) -> Envelope:
    """In the place of `Line.respond`: note what the server has acknowledged."""
    envelope = await _send(self, opcode, token, payload)
    if envelope.ok and opcode == Op.RESPOND_ACTIVITY_TASK_COMPLETED:
        result = msgspec.json.decode(payload)
        journal.write(KEPT, what="result", run=result["run"], activity=result["activity"], by=result["by"])
    elif envelope.ok and opcode == Op.RECORD_ACTIVITY_TASK_HEARTBEAT:
        run_id, step, attempt = msgspec.json.decode(payload)
        journal.write(KEPT, what="heartbeat", run=run_id, attempt=attempt, step=step)
    return envelope


_send = Line.respond


async def main(address: str) -> None:
    # A server that is away at the moment is no reason to end.
    async with zaptasks.open_client(address, identity=name, wait=False, backoff=Backoff(0.05, 0.5)) as client:
        await zaptasks.run_worker(
            client,
            "robust",
            tasks=[quick, slow, threaded, beating, flaky, poison],
            activities=[part, pause],
            workflows=[chain, parked],
            slots=SLOTS,
            max_threads=10,
            identity=f"{name}@{os.getpid()}",
            shutdown_timeout=5,
        )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("zaptasks.worker").setLevel(logging.ERROR)
    journal, name = Journal(Path(sys.argv[2])), sys.argv[3]
    Line.respond = _respond  # type: ignore[method-assign]
    trio.run(main, sys.argv[1])
