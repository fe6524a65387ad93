"""The shop: what an application that uses zaptasks looks like on its workers' side."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import trio

import zaptasks
from zapserver.demo.journal import journaled, tell_progress
from zaptasks import activity

BANK_VARIABLE = "ZAPTASKS_DEMO_BANK"
"""A directory with a file for each card that the bank declines."""

PIXELS = 96
ROWS = 5_000
ROWS_AT_ONCE = 50
SUPPLIER_HANGS_UP_AT = 1_000


class Photo(msgspec.Struct):
    order: int
    name: str


class Mail(msgspec.Struct):
    order: int
    to: str


class Charge(msgspec.Struct):
    order: int
    card: str
    cents: int


@zaptasks.task(name="till.ring")
@journaled
async def ring_up(cents: int) -> int:
    """As quick as work can be, so that it shows what the way to it costs."""
    return cents


@zaptasks.task(name="image.thumbnail")
@journaled
def make_thumbnail(photo: Photo) -> dict[str, object]:
    """A plain function: it runs in a thread, so that its computing holds up nobody."""
    time.sleep(0.03)  # the disk
    pixels = [(x * y * (photo.order + 7)) % 256 for y in range(PIXELS) for x in range(PIXELS)]
    small = bytes(
        sum(pixels[(4 * y + dy) * PIXELS + 4 * x + dx] for dy in range(4) for dx in range(4)) // 16
        for y in range(PIXELS // 4)
        for x in range(PIXELS // 4)
    )
    return {"name": f"{photo.name}.thumb", "bytes": len(zlib.compress(small))}


@zaptasks.task(name="email.send")
@journaled
async def send_mail(mail: Mail) -> str:
    """Raising is all that it takes to be run again, after a pause that grows."""
    await trio.sleep(0.02)  # the mail server
    if mail.to.startswith("busy") and zaptasks.current_task().attempt <= 2:
        raise zaptasks.TaskError("421 too many connections, try again later", code="MailServerBusy")
    return f"250 accepted for {mail.to}"


@zaptasks.task(name="payment.charge")
@journaled
async def charge(order: Charge) -> dict[str, object]:
    """A failure that no repetition mends is not repeated: it becomes a dead letter, for a person to decide."""
    await trio.sleep(0.02)  # the bank
    if await trio.Path(os.environ[BANK_VARIABLE], order.card).exists():
        raise zaptasks.TaskError(f"card {order.card} was declined", code="CardDeclined", non_retryable=True)
    return {"charged": order.cents, "order": order.order}


@zaptasks.task(name="stock.check")
@journaled
async def check_stock() -> None:
    """A schedule starts it; each firing runs on one of the workers."""
    await trio.sleep(0.01)


@zaptasks.task(name="catalog.import")
@journaled
async def import_catalog() -> int:
    """Long work says how far it is. The next attempt goes on from there, and a cancel reaches it at once."""
    task = zaptasks.current_task()
    start = int(task.heartbeat_details[0]) if task.heartbeat_details else 0
    if start:
        tell_progress(start / ROWS, f"goes on at row {start}")
    for row in range(start, ROWS, ROWS_AT_ONCE):
        if row >= SUPPLIER_HANGS_UP_AT and task.attempt == 1:
            raise ConnectionResetError(f"the supplier hung up at row {row}")
        await trio.sleep(0.06)  # the supplier
        task.heartbeat(row + ROWS_AT_ONCE)
        tell_progress((row + ROWS_AT_ONCE) / ROWS, f"row {row + ROWS_AT_ONCE} of {ROWS}")
    return ROWS


@activity.defn(name="warehouse.reserve")
@journaled
async def reserve(sku: str, quantity: int) -> str:
    await trio.sleep(0.02)
    return f"shelf 7, {quantity} x {sku}"


@activity.defn(name="parcel.label")
@journaled
async def print_label(street: str) -> str:
    await trio.sleep(0.02)
    return f"label for {street}"


async def fulfill(ctx: zaptasks.WorkflowContext, order: int, sku: str, street: str) -> dict[str, object]:
    """A workflow: steps that belong together, each run by whichever worker is free."""
    shelf = await ctx.execute_activity(reserve, sku, 2)
    label = await ctx.execute_activity(print_label, street)
    return {"order": order, "shelf": shelf, "label": label}


TASKS: list[Callable[..., Any]] = [ring_up, make_thumbnail, send_mail, charge, check_stock, import_catalog]
ACTIVITIES: list[Callable[..., Any]] = [reserve, print_label]
WORKFLOWS: dict[str, Callable[..., Any]] = {"order.fulfill": fulfill}
