"""What was asked for at a start holds after the server was killed: timeouts, memos, attributes, delays, bounds."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers.go_session import Player
from tests.helpers.running_server import RunningServer, running_server

import zaptasks
from zaptasks import AsyncClient, open_client
from zaptasks.records import Started
from zapwire.client_link import open_link
from zapwire.envelope import Envelope, decode_envelope, encode_respond
from zapwire.failure import Failure, encode_failure
from zapwire.link import Link
from zapwire.link_handler import RefusingHandler
from zapwire.opcodes import Op

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@asynccontextmanager
async def client_of(server: RunningServer) -> AsyncIterator[AsyncClient]:
    with trio.fail_after(20):
        async with open_client(server.zap) as client:
            yield client


class BareWorker(RefusingHandler):
    """Gets deliveries and answers what the test says, also what no worker of ours would."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[dict[str, Any]](100)
        self.link: Link

    def on_push(self, link: Link, envelope: Envelope) -> None:
        if envelope.opcode in (Op.DELIVER_WORKFLOW_TASK, Op.DELIVER_ACTIVITY_TASK):
            self._send.send_nowait(json.loads(bytes(envelope.body)))

    async def subscribe(self, opcode: int, **more: object) -> None:
        await self.link.call(opcode, json.dumps({"task_queue": "default", **more}).encode(), timeout=10)

    async def delivery(self) -> dict[str, Any]:
        with trio.fail_after(10):
            return await self._receive.receive()

    async def answer(self, opcode: int, token: str, body: bytes) -> tuple[int, str]:
        message = encode_respond(opcode, token.encode(), body)
        answer = decode_envelope(await self.link.call_raw(message, timeout=10))
        return answer.status, answer.error


@asynccontextmanager
async def worker_of(server: RunningServer) -> AsyncIterator[BareWorker]:
    host, _, port = server.zap.rpartition(":")
    worker = BareWorker()
    async with open_link(host, int(port), node_id="bare", handler=worker) as worker.link:
        yield worker


async def test_timeouts_of_a_workflow_hold_and_its_memo_and_attributes_are_there(data: Path) -> None:
    with running_server(data=data) as server:
        async with client_of(server) as client:
            run = await client.start_workflow(
                "Order", id="run", run_timeout=1, memo={"by": "ada"}, search_attributes={"Customer": "c-7"}
            )
            whole = await client.start_workflow("Order", id="whole", execution_timeout=1)
            await client.start_workflow("Order", id="other", search_attributes={"Customer": "c-8"})
        server.kill()
    with running_server(data=data) as server:
        async with client_of(server) as client:
            (found,) = [each async for each in client.list("Customer = 'c-7'")]
            assert (found.workflow_id, found.memo) == ("run", {"by": "ada"})
            for handle in (run, whole):
                with pytest.raises(zaptasks.TaskTimedOut):
                    await client.get_handle(handle.workflow_id).result()
            (found,) = [each async for each in client.list("Customer = 'c-7' AND ExecutionStatus = TimedOut")]
            assert found.memo == {"by": "ada"}


async def test_the_time_that_a_workflow_task_may_take_holds(data: Path) -> None:
    start = {"workflow_type": "Order", "workflow_id": "order", "timeouts": {"workflow_task_ms": 300}}
    with running_server(data=data) as server:
        async with client_of(server) as client:
            await client.call(Op.START_WORKFLOW, start, Started)
        server.kill()
    with running_server(data=data) as server:
        async with client_of(server) as client, worker_of(server) as worker:
            await worker.subscribe(Op.SUBSCRIBE_WORKFLOW_TASKS, replays=True)
            late = await worker.delivery()
            again = await worker.delivery()
            status, text = await worker.answer(
                Op.RESPOND_WORKFLOW_TASK_COMPLETED, late["task_token"], b'{"v":1,"cmds":[]}'
            )
            assert status == 409, text
            done = b'{"v":1,"cmds":[{"kind":"complete","result":"done"}]}'
            assert (await worker.answer(Op.RESPOND_WORKFLOW_TASK_COMPLETED, again["task_token"], done))[0] == 200
            handle = client.get_handle("order")
            assert await handle.result() == "done"
            assert "WORKFLOW_TASK_TIMED_OUT" in [event.event_type async for event in handle.history()]


async def test_when_an_error_says_that_the_next_attempt_begins_holds(data: Path) -> None:
    """Neither at once nor after the policy's hour."""
    hourly = zaptasks.RetryPolicy(initial_interval=3_600, maximum_interval=3_600)
    with running_server(data=data) as server:
        async with client_of(server) as client, worker_of(server) as worker:
            task = await client.now("mail", retry_policy=hourly)
            await worker.subscribe(Op.SUBSCRIBE_ACTIVITY_TASKS)
            first = await worker.delivery()
            busy = encode_failure(Failure(message="busy", code="Busy", next_retry_ms=3_000))
            assert (await worker.answer(Op.RESPOND_ACTIVITY_TASK_FAILED, first["task_token"], busy))[0] == 200
            failed_at = trio.current_time()
        server.kill()
    with running_server(data=data) as server:
        async with client_of(server) as client, worker_of(server) as worker:
            await worker.subscribe(Op.SUBSCRIBE_ACTIVITY_TASKS)
            (waiting,) = await client.get_handle(task.workflow_id).explain()
            assert waiting.until is not None
            assert (await worker.delivery())["attempt"] == 2
            assert trio.current_time() - failed_at > 2.5


async def test_timers_of_a_run_are_bounded_also_those_of_before(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKSD_LIMITS", "timers-per-execution=2")

    def timers(*names: str) -> bytes:
        commands = [{"kind": "start-timer", "id": name, "fire_after_ms": 60_000} for name in names]
        return json.dumps({"v": 1, "cmds": commands}).encode()

    with running_server(data=data) as server:
        async with client_of(server) as client, worker_of(server) as worker:
            await client.start_workflow("Order", id="order")
            await worker.subscribe(Op.SUBSCRIBE_WORKFLOW_TASKS, replays=True)
            token = (await worker.delivery())["task_token"]
            assert await worker.answer(Op.RESPOND_WORKFLOW_TASK_COMPLETED, token, timers("1", "2")) == (200, "")
            await client.get_handle("order").signal("go")
        server.kill()
    with running_server(data=data) as server:
        async with client_of(server) as client, worker_of(server) as worker:
            await worker.subscribe(Op.SUBSCRIBE_WORKFLOW_TASKS, replays=True)
            token = (await worker.delivery())["task_token"]
            status, text = await worker.answer(Op.RESPOND_WORKFLOW_TASK_COMPLETED, token, timers("3"))
            assert (status, "(limit timers-per-execution)" in text) == (429, True)
            assert (await client.health()).refused == {"timers-per-execution": 1}
            again = (await worker.delivery())["task_token"]
            assert again != token, "the task failed with its answer, and goes out again"
            reasons = [waiting.reason for waiting in await client.get_handle("order").explain()]
            assert any("timers" in reason for reason in reasons), reasons


async def test_recorded_go_peers_are_served_from_a_data_directory(data: Path) -> None:
    for recording in ("go-sdk-client.jsonl", "go-sdk-worker.jsonl", "go-mini-client.jsonl"):
        with running_server(data=data) as server:
            host, _, port = server.zap.rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                player = Player(stream)
                with trio.fail_after(20):
                    await player.play(recording)
            server.kill()
        refused = {number: each.status for number, each in player.answers.items() if each.status not in (0, 200)}
        # A query that nobody can answer, and a workflow that does not exist.
        assert refused == ({9: 404, 14: 404} if recording == "go-sdk-client.jsonl" else {})
