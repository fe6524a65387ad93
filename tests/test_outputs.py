"""The server's side of streamed output: numbers, bounds, readers that wait, and what a hostile peer may try."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.helpers.dispatching import DispatchedServer, FakeLink, answer
from tests.helpers.engine_driver import Driver, payload, value
from trio.testing import MockClock

from zapserver.engine import Limits
from zapserver.engine.records import Activity
from zapserver.outputs import KEPT_MS, NUMBERS_PER_MS, PAGE_BYTES_MAX, Outputs, Reader
from zapserver.sweeping import Sweeper
from zapwire.errors import ConnectionLost
from zapwire.opcodes import Op

ROOM = Limits(output_bytes_max=10_000, output_total_bytes_max=30_000)
LONG = "x" * 1_000


class World:
    """Some running activities, and the output of their namespace."""

    def __init__(self, limits: Limits = ROOM) -> None:
        self.d = Driver()
        self.d.subscribe(1)
        self.out = Outputs(limits, self.d.now_ms)

    def activity(self) -> Activity:
        self.d.submit()
        return self.d.engine.views.held_activity(self.d.task().task_token)

    def emit(self, activity: Activity, *items: object, dropped: int = 0) -> list[Reader]:
        return self.out.emit(activity, [payload(item) for item in items], dropped, self.d.now_ms)

    def numbers(self, activity: Activity, after: int = 0) -> list[int]:
        return [item.number for item in self.out.read(activity.execution.run_id, after)]


# --- numbers -------------------------------------------------------------------------------------------


def test_items_are_numbered_from_one_and_read_from_anywhere() -> None:
    w = World()
    one, other = w.activity(), w.activity()
    w.emit(one, "a", "b")
    w.emit(other, "x")
    w.emit(one, "c")
    assert (w.numbers(one), w.numbers(one, after=1), w.numbers(one, after=3)) == ([1, 2, 3], [2, 3], [])
    assert w.numbers(other) == [1]
    [last] = w.out.read(one.execution.run_id, 2)
    assert (last.activity_type, last.attempt, value(last.item)) == ("email", 1, "c")


def test_what_was_dropped_leaves_a_gap() -> None:
    w = World()
    one = w.activity()
    w.emit(one, "a")
    w.emit(one, "b", dropped=3)
    w.emit(one, "y" * 300_000, "c")
    assert w.numbers(one) == [1, 5, 7]


def test_numbers_go_on_after_a_restart_and_leave_a_gap() -> None:
    w = World()
    one = w.activity()
    w.emit(one, *range(10))
    w.d.now_ms += 5
    w.out = Outputs(ROOM, w.d.now_ms)
    w.emit(one, "again")
    [number] = w.numbers(one)
    assert number == 5 * NUMBERS_PER_MS + 1
    later = w.activity()
    w.emit(later, "first")
    assert w.numbers(later) == [1]


# --- bounds --------------------------------------------------------------------------------------------


def test_an_execution_keeps_its_newest_items() -> None:
    w = World()
    one = w.activity()
    for _ in range(30):
        w.emit(one, LONG)
    numbers = w.numbers(one)
    assert numbers == list(range(31 - len(numbers), 31))
    assert 5 <= len(numbers) <= 10
    assert w.out.bytes <= ROOM.output_bytes_max


def test_all_together_keep_within_a_bound_and_the_silent_ones_lose_first() -> None:
    w = World()
    silent = w.activity()
    w.emit(silent, LONG, LONG)
    others = [w.activity() for _ in range(6)]
    for other in others:
        for _ in range(7):
            w.emit(other, LONG)
            assert w.out.bytes <= ROOM.output_total_bytes_max
    assert w.numbers(silent) == []
    assert len(w.numbers(others[-1])) == 7
    w.d.now_ms += 3
    w.emit(silent, "still there")
    [number] = w.numbers(silent)
    assert number > 2, "a number was used twice"


def test_the_last_item_is_kept_whatever_the_bounds_say() -> None:
    w = World(Limits(output_bytes_max=10, output_total_bytes_max=10))
    one = w.activity()
    w.emit(one, LONG, LONG)
    assert w.numbers(one) == [2]


def test_a_page_ends_at_its_bound() -> None:
    w = World(Limits())
    one = w.activity()
    w.emit(one, *["y" * 250_000] * 8)
    first = w.out.read(one.execution.run_id, 0)
    kept = [item.number for item in first]
    assert sum(item.size for item in first) <= PAGE_BYTES_MAX
    assert kept == list(range(kept[0], kept[-1] + 1))
    assert w.numbers(one, kept[-1]) == list(range(kept[-1] + 1, 9))


def test_what_is_closed_is_kept_for_a_while() -> None:
    w = World()
    one, other = w.activity(), w.activity()
    w.emit(one, "a")
    w.emit(other, "x")
    w.d.complete(w.d.tasks()[0])
    is_open, now_ms = w.d.engine.views.is_open, w.d.now_ms
    for passed_ms in (0, KEPT_MS - 1):
        w.out.sweep(is_open, now_ms + passed_ms)
        assert w.numbers(one) == [1]
    w.out.sweep(is_open, now_ms + KEPT_MS)
    assert (w.numbers(one), w.numbers(other)) == ([], [1])
    w.d.complete(w.d.tasks()[1])
    w.out.sweep(is_open, now_ms)
    w.out.sweep(is_open, now_ms + KEPT_MS)
    assert w.out.bytes == 0


async def test_the_sweeper_forgets_output_that_was_kept_long_enough(autojump_clock: MockClock) -> None:
    server = Wire()
    server.emit("a")
    server.respond(server.worker, Op.RESPOND_ACTIVITY_TASK_COMPLETED, server.token, b"1")
    sweeper = Sweeper(server.dispatcher)
    for passed_ms, there in ((0, 1), (KEPT_MS - 1, 1), (1, 0)):
        server.now_ms += passed_ms
        await sweeper.sweep(server.dispatcher.namespaces.get(""))
        assert len(server.read()[1]["items"]) == there


# --- readers -------------------------------------------------------------------------------------------


def test_readers_wait_for_news_of_their_run() -> None:
    w = World()
    one, other = w.activity(), w.activity()
    run_id = one.execution.run_id
    first, second = Reader("w1", 9, run_id, 0), Reader("w2", 8, run_id, 0)
    for reader in (first, second, Reader("w3", 8, other.execution.run_id, 0)):
        w.out.wait(reader)
    assert w.emit(one, dropped=5) == []
    assert {reader.waiter for reader in w.emit(one, "a")} == {"w1", "w2"}
    assert w.emit(one, "b") == []
    w.out.forget_peer(8)
    assert w.out.forget("w3") is None
    assert w.emit(other, "x") == []


# --- over the wire -------------------------------------------------------------------------------------


class Wire(DispatchedServer):
    """A worker that runs one task, and a client that reads."""

    def __init__(self) -> None:
        super().__init__()
        self.worker, self.client = self.connect("worker"), self.connect("client")
        self.subscribe(self.worker)
        self.started: dict[str, Any] = self.submit(self.client, "import")[1]
        self.token = str(self.worker.pushes[0][1]["task_token"])

    def emit(self, *items: object, **more: object) -> None:
        self.push(self.worker, Op.EMIT_OUTPUT, {"task_token": self.token, "items": list(items), **more})

    def read(self, after: int = 0, link: FakeLink | None = None) -> tuple[int, Any, str]:
        return self.call(link or self.client, Op.READ_OUTPUT, {**self.started, "after": after})

    def begin_to_read(self, after: int = 0) -> int:
        with pytest.raises(KeyError):
            self.read(after)
        return self._request_id

    @property
    def waits(self) -> int:
        engine = self.dispatcher.namespaces.get("").engine
        return sum(len(peer.waiting) for peer in engine._state.peers.values())


def test_a_reader_gets_what_is_there_and_waits_for_more() -> None:
    server = Wire()
    server.emit({"n": 1}, [2])
    status, page, _ = server.read()
    assert (status, page["closed"], page["run_id"]) == (200, False, server.started["run_id"])
    assert [(item["number"], item["item"], item["attempt"]) for item in page["items"]] == [
        (1, {"n": 1}, 1),
        (2, [2], 1),
    ]
    waiting = server.begin_to_read(after=2)
    server.emit("three")
    page = answer(server.client, waiting)[1]
    assert [item["item"] for item in page["items"]] == ["three"]
    assert server.waits == 0


def test_a_reader_is_told_of_the_end_with_what_is_left() -> None:
    server = Wire()
    waiting = server.begin_to_read()
    server.respond(server.worker, Op.RESPOND_ACTIVITY_TASK_COMPLETED, server.token, b"1")
    assert answer(server.client, waiting)[1] == {"run_id": server.started["run_id"], "items": [], "closed": True}
    assert server.read()[1]["closed"]


def test_output_can_be_read_after_the_end_page_by_page() -> None:
    server = Wire()
    for _ in range(4):
        server.emit("y" * 250_000)
    server.emit("last")
    server.respond(server.worker, Op.RESPOND_ACTIVITY_TASK_COMPLETED, server.token, b"1")
    seen, after, closed = [], 0, False
    while not closed:
        page = server.read(after)[1]
        seen += [item["number"] for item in page["items"]]
        after, closed = seen[-1], page["closed"]
    assert seen == list(range(seen[0], 6))


def test_a_reader_that_gives_up_or_loses_its_connection_leaves_nothing() -> None:
    server = Wire()
    waiting = server.begin_to_read()
    server.push(server.client, Op.ABANDON_CALL, {"request_id": waiting})
    assert answer(server.client, waiting)[0] == 499
    server.begin_to_read()
    server.dispatcher.disconnected(server.client, ConnectionLost("gone"))  # type: ignore[arg-type]
    assert server.waits == 0
    assert server.dispatcher.namespaces.get("").outputs._readers == {}
    server.emit("nobody")


def test_output_of_an_old_attempt_is_dropped() -> None:
    server = Wire()
    old = server.token
    server.dispatcher.disconnected(server.worker, ConnectionLost("gone"))  # type: ignore[arg-type]
    server.worker = server.connect("another")
    server.subscribe(server.worker)
    server.emit("late")
    server.token = server.worker.pushes[0][1]["task_token"]
    server.emit("present")
    items = server.read()[1]["items"]
    assert old != server.token
    assert [(item["item"], item["attempt"], item["number"]) for item in items] == [("present", 2, 1)]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"items":1}',
        b'{"task_token":"x","items":["a"]}',
        b'{"task_token":"act|a|1|b|ghost","items":["a"]}',
        b'{"task_token":"\\ud800","items":["a"]}',
        b"GOOD,-1",
        b"GOOD,1000000001",
        b"GOOD,many",
    ],
)
def test_a_message_that_means_nothing_changes_nothing(body: bytes) -> None:
    server = Wire()
    if body.startswith(b"GOOD,"):
        dropped = body.partition(b",")[2].decode()
        items: list[object] = [1] * 1_001 if dropped == "many" else [1]
        body = json.dumps(
            {"task_token": server.token, "items": items, "dropped": 0 if dropped == "many" else int(dropped)}
        ).encode()
    server.push(server.worker, Op.EMIT_OUTPUT, body)
    server.emit("good")
    assert [item["number"] for item in server.read()[1]["items"]] == [1]


@pytest.mark.parametrize(
    ("body", "status"), [({"workflow_id": "none"}, 404), ({"after": -1}, 400), ({"after": "x"}, 400)]
)
def test_a_reader_that_asks_for_nothing_is_refused(body: dict[str, object], status: int) -> None:
    server = Wire()
    assert server.call(server.client, Op.READ_OUTPUT, {**server.started, "run_id": "", **body})[0] == status
