"""The shop's night: the client's jobs, all at once, and what has to come of them.

thumbnails   30 pictures, made by plain functions in threads
e-mails      30, of which one is refused twice and sent at the third attempt
payments     5, of which one is declined, becomes a dead letter, and is put back when the bank relents
stock        a schedule that fires every second
import       long work that fails, goes on where it was, and is canceled on the way
order        a workflow of two activities
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import trio
from rich.console import Console

from zapserver.demo.board import Board
from zapserver.demo.children import Child, ChildFailed, open_child
from zapserver.demo.journal import READY, WORKER_VARIABLE, Entry, read_entry
from zapserver.demo.report import Attempt, detail_table, read_attempts, summary_table
from zapserver.demo.shop import BANK_VARIABLE
from zaptasks import AsyncClient, RetryPolicy, TaskCanceled, TaskFailed, open_client
from zaptasks.groups import unwrapped
from zapwire.errors import ZapError

NIGHT_SECONDS_MAX: Final = 60.0
"""It takes some 6 s. A machine that is ten times slower is still no failure."""
READY_SECONDS_MAX: Final = 20.0

WORKERS: Final = ("ada", "grace")
SALES: Final = 50
ORDERS: Final = 30
CHARGES: Final = 5
FIRINGS: Final = 3
BUSY_ORDER: Final = 13
DECLINED_ORDER: Final = 3
IMPORT_CANCELED_AT: Final = 0.4

SOON: Final = RetryPolicy(initial_interval=0.2, maximum_attempts=5)

TILL, THUMBNAILS, MAILS, PAYMENTS, STOCK, IMPORT, ORDER = (
    "sales at the till",
    "thumbnails",
    "e-mails",
    "payments",
    "stock checks",
    "catalog import, %",
    "order workflow",
)


class NotAsExpected(Exception):
    """Something came out otherwise than it must."""


def expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise NotAsExpected(otherwise)


class Night:
    """The jobs of one night, and what is known about them so far."""

    def __init__(self, client: AsyncClient, board: Board, bank: Path) -> None:
        self._client = client
        self._board = board
        self._bank = bank
        self.entries: list[Entry] = []
        self.submitted: defaultdict[str, list[float]] = defaultdict(list)
        self._import_is_far = trio.Event()
        self._has_fired_enough = trio.Event()
        self._firings = 0

    def hear(self, entry: Entry) -> None:
        """A worker's journal says something."""
        self.entries.append(entry)
        if entry.event == "failed":
            self._board.tell(f"{entry.id} failed on {entry.worker}, attempt {entry.attempt}: {entry.text}")
        elif entry.event == "progress":
            self._board.set(IMPORT, round(100 * entry.fraction), entry.text)
            if entry.fraction >= IMPORT_CANCELED_AT:
                self._import_is_far.set()
        elif entry.event == "completed" and entry.type == "stock.check":
            self._firings += 1
            if self._firings <= FIRINGS:
                self._board.advance(STOCK)
            if self._firings == FIRINGS:
                self._has_fired_enough.set()

    async def run(self) -> None:
        """The till alone, and then everything at once. Raises `NotAsExpected`."""
        for label, total in (
            (TILL, SALES),
            (THUMBNAILS, ORDERS),
            (MAILS, ORDERS),
            (PAYMENTS, CHARGES),
            (STOCK, FIRINGS),
            (IMPORT, 100),
            (ORDER, 1),
        ):
            self._board.expect(label, total)
        for sale in range(1, SALES + 1):
            expect(await self._run(f"sale-{sale}", "till.ring", sale) == sale, f"sale-{sale} came back wrong")
            self._board.advance(TILL)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._check_stock)
            nursery.start_soon(self._import_catalog)
            nursery.start_soon(self._fulfill_order)
            for order in range(1, ORDERS + 1):
                nursery.start_soon(self._make_thumbnail, order)
                nursery.start_soon(self._send_mail, order)
            for order in range(1, CHARGES + 1):
                nursery.start_soon(self._charge, order)

    async def _make_thumbnail(self, order: int) -> None:
        id = f"thumbnail-{order}"
        result = await self._run(id, "image.thumbnail", {"order": order, "name": f"photo-{order}"})
        expect(result["bytes"] > 0, f"{id} is empty: {result}")
        self._board.advance(THUMBNAILS)

    async def _send_mail(self, order: int) -> None:
        to = f"{'busy' if order == BUSY_ORDER else 'customer'}-{order}@example.org"
        result = await self._run(f"mail-{order}", "email.send", {"order": order, "to": to}, retry_policy=SOON)
        expect(result == f"250 accepted for {to}", f"mail-{order} returned {result!r}")
        self._board.advance(MAILS)

    async def _charge(self, order: int) -> None:
        id = f"charge-{order}"
        payload = {"order": order, "card": f"card-{order}", "cents": 1000 + order}
        if order != DECLINED_ORDER:
            result = await self._run(id, "payment.charge", payload)
        else:
            try:
                await self._run(id, "payment.charge", payload)
            except TaskFailed as error:
                expect(error.type == "CardDeclined", f"{id} failed with {error.type}, not CardDeclined")
            else:
                raise NotAsExpected(f"{id} was charged to a card that the bank declines")
            letters = [letter.workflow_id for letter in await self._client.dead_letters()]
            expect(letters == [id], f"the dead letters are {letters}, not [{id!r}]")
            self._board.tell(f"{id} is a dead letter; the bank relents, and it is put back")
            await trio.Path(self._bank / f"card-{order}").unlink()
            self.submitted[id].append(time.time())
            result = await (await self._client.requeue_dead_letter(id)).result()
            expect(not await self._client.dead_letters(), f"{id} is still a dead letter")
        expect(result == {"charged": 1000 + order, "order": order}, f"{id} returned {result!r}")
        self._board.advance(PAYMENTS)

    async def _check_stock(self) -> None:
        await self._client.put_task_schedule("stock.check", "1s")
        await self._has_fired_enough.wait()
        fired = (await self._client.describe_schedule("stock.check")).info.action_count
        expect(fired >= FIRINGS, f"the schedule says that it fired {fired} times, and {FIRINGS} tasks ran")
        await self._client.delete_schedule("stock.check")

    async def _import_catalog(self) -> None:
        id = "import-autumn"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_import, id)
            try:
                await self._run(id, "catalog.import", heartbeat_timeout=1.0, retry_policy=SOON)
            except TaskCanceled as error:
                self._board.tell(f"{id} was canceled: {error.message or 'without a reason'}")
            else:
                raise NotAsExpected(f"{id} ran to its end though it was canceled")

    async def _cancel_import(self, id: str) -> None:
        await self._import_is_far.wait()
        await self._client.get_handle(id).cancel("the autumn catalog comes later")

    async def _fulfill_order(self) -> None:
        self.submitted["order-1"].append(time.time())
        handle = await self._client.start_workflow("order.fulfill", 1, "teapot", "12 Mill Lane", id="order-1")
        result = await handle.result()
        expected = {"order": 1, "shelf": "shelf 7, 2 x teapot", "label": "label for 12 Mill Lane"}
        expect(result == expected, f"order-1 returned {result!r}")
        self._board.advance(ORDER)

    async def _run(self, id: str, type: str, payload: object = None, **options: Any) -> Any:
        self.submitted[id].append(time.time())
        handle = await self._client.start_task(type, payload, id=id, **options)
        return await handle.result()


def check_attempts(attempts: list[Attempt]) -> None:
    """What only the workers' journals show. Raises `NotAsExpected`."""

    def of(id: str) -> list[Attempt]:
        return [attempt for attempt in attempts if attempt.id == id]

    unfinished = [attempt.id for attempt in attempts if not attempt.end]
    expect(not unfinished, f"these handlers never ended: {unfinished}")
    for order in range(1, ORDERS + 1):
        for id, times in ((f"thumbnail-{order}", 1), (f"mail-{order}", 3 if order == BUSY_ORDER else 1)):
            expect(len(of(id)) == times, f"{id} ran {len(of(id))} times, not {times}")
    declined = [attempt.end for attempt in of(f"charge-{DECLINED_ORDER}")]
    expect(declined == ["failed", "completed"], f"charge-{DECLINED_ORDER} ended in {declined}")
    imports = [attempt.end for attempt in of("import-autumn")]
    expect(imports == ["failed", "canceled"], f"import-autumn ended in {imports}")
    steps = [attempt.type for attempt in of("order-1")]
    expect(steps == ["warehouse.reserve", "parcel.label"], f"order-1 ran {steps}")
    idle = set(WORKERS) - {attempt.worker for attempt in attempts}
    expect(not idle, f"nothing ran on {', '.join(sorted(idle))}")


def check_import(entries: list[Entry]) -> None:
    """The second attempt has to go on where the first one was."""
    first = next((entry for entry in entries if entry.event == "progress" and entry.attempt == 2), None)
    expect(first is not None and first.text.startswith("goes on"), "the import began anew after its failure")


async def run_night(console: Console) -> bool:
    """Start everything, do the night's work, print the report. True when all of it is as expected."""
    children: list[Child] = []
    started = time.monotonic()
    try:
        with unwrapped(), trio.fail_after(NIGHT_SECONDS_MAX), tempfile.TemporaryDirectory() as directory:
            bank = Path(directory)
            (bank / f"card-{DECLINED_ORDER}").touch()
            attempts = await _run_processes(console, bank, children)
    except (NotAsExpected, ChildFailed, ZapError, ExceptionGroup, trio.TooSlowError) as error:
        console.print(f"\nNOT AS EXPECTED: {_reason(error)}", style="bold red", markup=False)
        for child in children:
            console.print(f"\nthe last words of {child.name}:", markup=False)
            console.print("\n".join(child.log) or "(none)", markup=False)
        return False
    console.print("\nWhat ran, how long it waited for a worker and then took (median and maximum), and where:\n")
    console.print(summary_table(attempts))
    console.print("\nSome of it, one try at a time:\n")
    console.print(detail_table(attempts, _is_told))
    executions = len({attempt.id for attempt in attempts})
    console.print(
        f"\nAll as expected: {executions} tasks and workflows in {len(attempts)} attempts, in"
        f" {time.monotonic() - started:.1f} s with starting and stopping {len(children)} processes.",
        style="bold",
    )
    return True


def _is_told(attempt: Attempt) -> bool:
    """Whether the report shows it by itself: what was repeated, canceled, scheduled, or a part of something."""
    told = (f"mail-{BUSY_ORDER}", f"charge-{DECLINED_ORDER}", "import-autumn", "order-1")
    return attempt.id in told or attempt.type == "stock.check"


async def _run_processes(console: Console, bank: Path, children: list[Child]) -> list[Attempt]:
    """The server, the workers and the client of one night."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            open_child("the server", "zapserver.cli", "serve", "--zap-port", "0", "--http", "127.0.0.1:0")
        )
        children.append(server)
        ready = await server.first_line(READY_SECONDS_MAX)
        console.print(f"server        pid {server.pid}, {ready}", markup=False)
        address = ready.split("zap=")[1].split()[0]
        workers = []
        for name in WORKERS:
            environment = {WORKER_VARIABLE: name, BANK_VARIABLE: str(bank)}
            worker = await stack.enter_async_context(
                open_child(f"worker {name}", "zapserver.demo.worker", address, environment=environment)
            )
            children.append(worker)
            workers.append(worker)
        board = stack.enter_context(Board(console))
        nursery = await stack.enter_async_context(trio.open_nursery())
        for child in children:
            nursery.start_soon(child.run_on)
        async with open_client(address, identity="the shop") as client:
            night = Night(client, board, bank)
            for worker in workers:
                await nursery.start(_follow, worker, night.hear)
                console.print(f"{worker.name:<13} pid {worker.pid}, subscribed", markup=False)
            await night.run()
        # Workers first: what they still hold is answered while the server is there.
        for child in reversed(children):
            status = await child.end()
            expect(status == 0, f"{child.name} ended with status {status}")
    attempts = read_attempts(night.entries, night.submitted)
    check_attempts(attempts)
    check_import(night.entries)
    return attempts


async def _follow(
    worker: Child, hear: Callable[[Entry], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Pass on what the worker's handlers say; started once it has subscribed."""
    async for line in worker.lines():
        entry = read_entry(line)
        if entry.event == READY:
            task_status.started()
        else:
            hear(entry)


def _reason(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"the night was not over after {NIGHT_SECONDS_MAX:g} s"
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_reason(inner) for inner in error.exceptions)
    return str(error)
