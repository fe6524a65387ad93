"""A dispatcher whose store fails under it: what its connections hold lives on, as the simulation found it did not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
import trio
import trio.testing
from tests.helpers.dispatching import FakeLink
from tests.helpers.engine_driver import Driver, every, payload

from zapserver.dispatch import Dispatcher
from zapserver.engine import commands as c
from zapserver.engine.tables import Table
from zapserver.http import make_app
from zapserver.namespaces import Namespace, Namespaces
from zapserver.store import Batch, DiskFull, Durability, MemoryStore, StoreError, Unavailable
from zapserver.store.memory import Medium
from zapwire.envelope import decode_envelope, encode_request, encode_task_submit
from zapwire.opcodes import Op

OnDone = Callable[[StoreError | None], None]


class HandWriter:
    """A `Writer` whose commits wait until the test says how they end."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._waiting: list[tuple[Batch, OnDone]] = []

    def submit(self, batch: Batch, on_done: OnDone, durability: Durability = Durability.SYNCED) -> None:
        self._waiting.append((batch, on_done))

    def recover(self, on_done: OnDone) -> None:
        on_done(None)

    def end(self, error: StoreError | None = None) -> None:
        """All commits so far succeed, or fail."""
        waiting, self._waiting = self._waiting, []
        for batch, on_done in waiting:
            if error is None:
                self._store.commit(batch)
            on_done(error)


class Server:
    def __init__(self, medium: Medium | None = None) -> None:
        self.medium = medium or Medium()
        store = MemoryStore(Table, self.medium)
        self.writer = HandWriter(store)
        namespaces = Namespaces(now_ms=1_000_000, open_store=lambda name: (store, self.writer))
        self.namespace: Namespace = namespaces.get("")
        self.dispatcher = Dispatcher(namespaces, clock=lambda: 1_000_000)
        self.dispatcher.on_store_failure = lambda namespace: None
        self._last = 0

    def connect(self, node_id: str) -> Any:
        link: Any = FakeLink(node_id)
        self.dispatcher.connected(link)
        return link

    def send(self, link: Any, message: bytes) -> int:
        self._last += 1
        link.owe(self._last)
        self.dispatcher.on_call(link, self._last, decode_envelope(message), message)
        self.dispatcher.batch_end(link)
        return self._last

    def mend(self) -> None:
        self.namespace.journal.recover(lambda error: self.dispatcher.rebuild(self.namespace))
        self.writer.end()


def subscribe(slots: int, queue: str = "default") -> bytes:
    body = {"task_queue": queue, "slots": slots}
    return encode_request(Op.SUBSCRIBE_ACTIVITY_TASKS, json.dumps(body).encode())


def test_a_subscription_that_outlives_a_failed_commit_is_acknowledged() -> None:
    """Else the worker subscribes again, and gets twice as much as it has slots for."""
    server = Server()
    client, worker = server.connect("client"), server.connect("worker")
    server.send(client, encode_task_submit("email", b"1"))
    server.send(client, encode_task_submit("email", b"2"))
    server.writer.end()
    call = server.send(worker, subscribe(1))
    assert call not in worker.replies, "the delivery that comes with it waits for the disk"
    server.writer.end(DiskFull("full"))
    assert decode_envelope(worker.replies[call]).status == 200
    server.mend()
    assert [opcode for opcode, _ in worker.pushes] == [Op.DELIVER_ACTIVITY_TASK]


def test_a_store_that_cannot_be_read_after_it_took_a_commit_has_failed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the engine from before is kept, or who waits for what would be forgotten."""
    server = Server()
    client, worker = server.connect("client"), server.connect("worker")
    server.send(worker, subscribe(1))
    server.writer.end()
    server.send(client, encode_task_submit("email", b"1"))
    server.writer.end(DiskFull("full"))
    failed: list[Namespace] = []
    server.dispatcher.on_store_failure = failed.append
    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "scan", _cannot_read)
        with pytest.raises(Unavailable):
            server.mend()
    assert failed == [server.namespace]
    assert isinstance(server.namespace.journal.failure, Unavailable)
    server.mend()
    server.send(client, encode_task_submit("email", b"2"))
    server.writer.end()
    assert [opcode for opcode, _ in worker.pushes] == [Op.DELIVER_ACTIVITY_TASK]


def _cannot_read(*arguments: object, **more: object) -> None:
    raise Unavailable("a sector is gone")


def test_a_namespace_whose_description_is_damaged_is_served_and_keeps_everything() -> None:
    server = Server()
    server.writer.end()
    batch = Batch()
    batch.put(Table.META, ("namespace",), b"[")
    MemoryStore(Table, server.medium).commit(batch)
    again = Server(server.medium)
    [damage] = again.namespace.damaged
    assert "its closed executions are kept" in str(damage)
    assert again.namespace.about.retention_ms > 10**12
    again.dispatcher.namespaces.register("default", 1_000_000, retention_ms=5_000)
    again.namespace.journal.flush()
    again.writer.end()
    mended = Server(server.medium).namespace
    assert (mended.damaged, mended.about.retention_ms) == ([], 5_000)


async def test_http_says_that_an_id_is_in_use_only_when_that_is_on_the_disk(nursery: trio.Nursery) -> None:
    """Else a crash takes the task of which somebody has heard that it exists."""
    server = Server()
    server.writer.end()
    answers: list[int] = []

    async def post(http: httpx2.AsyncClient) -> None:
        body = {"workflow_type": "email", "workflow_id": "a"}
        answers.append((await http.post("/api/v1/namespaces/default/workflows", json=body)).status_code)

    transport = httpx2.ASGITransport(app=make_app(server.dispatcher))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
        for _ in range(2):
            nursery.start_soon(post, http)
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert answers == []
        server.writer.end()
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert sorted(answers) == [200, 409]


async def test_http_acknowledges_nothing_that_the_writer_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.writer.end()

    def refuse(*arguments: object) -> None:
        raise DiskFull("full")

    monkeypatch.setattr(server.writer, "submit", refuse)
    transport = httpx2.ASGITransport(app=make_app(server.dispatcher))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
        answer = await http.post("/api/v1/namespaces/default/workflows", json={"workflow_type": "email"})
    assert answer.status_code == 507


async def test_http_counts_a_store_queue_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    monkeypatch.setattr(server.namespace.journal, "_queue_bytes_max", -1)
    transport = httpx2.ASGITransport(app=make_app(server.dispatcher))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as http:
        answer = await http.post("/api/v1/namespaces/default/workflows", json={"workflow_type": "email"})
    assert answer.status_code == 429
    assert server.dispatcher.namespaces.refused == {"store-queue": 1}


def test_a_store_that_fails_right_after_a_restart_gives_nobody_the_leases_of_others() -> None:
    """The first connection of each process is not the same one: a run was held by a worker that never heard of it."""
    first = Server()
    client, worker = first.connect("client"), first.connect("worker")
    first.send(worker, subscribe(1))
    first.send(client, encode_task_submit("email", b"1"))
    first.writer.end()
    assert [opcode for opcode, _ in worker.pushes] == [Op.DELIVER_ACTIVITY_TASK]

    second = Server(first.medium)
    client, worker = second.connect("client"), second.connect("worker")
    second.send(client, encode_task_submit("other", b"2"))
    second.send(worker, subscribe(1, "elsewhere"))
    second.writer.end(DiskFull("full"))
    second.mend()
    second.send(worker, subscribe(2))
    second.writer.end()
    assert [(opcode, push["activity_type_name"]) for opcode, push in worker.pushes] == [
        (Op.DELIVER_ACTIVITY_TASK, "email")
    ]


def test_a_lease_is_not_silent_because_the_store_was_sick() -> None:
    """Heartbeats are refused meanwhile: the worker gets another heartbeat timeout to be heard."""
    d = Driver()
    d.subscribe(1)
    d.submit(timeouts=c.ActivityTimeouts(heartbeat_ms=2_000))
    token = d.task(1).task_token
    d.now_ms += 5_000  # nothing is stepped while the store takes nothing
    d.restart(live=[1])
    d.advance(1_500)
    d.step(c.HeartbeatActivity(token=token, details=None))
    d.step(c.CompleteActivity(token=token, result=payload(1)))


@pytest.mark.parametrize(("input", "memo"), [(payload({"n": 1}), None), (None, payload([1])), (None, None)])
def test_a_schedule_with_a_payload_is_there_after_a_restart(input: c.Payload | None, memo: c.Payload | None) -> None:
    d = Driver()
    action = c.Action(type="report", task_queue="default", is_task=True, input=input, memo=memo)
    d.step(c.PutSchedule(schedule_id="nightly", spec=every(60_000), action=action))
    d.restart()
    assert d.views.schedule("nightly").action == action
