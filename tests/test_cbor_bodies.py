"""Clients and workers whose calls, answers and deliveries travel as CBOR."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
import trio
from tests.helpers.running_server import running_server
from tests.helpers.sdk_servers import Call, RealServer, open_fake_server, open_real_server
from tests.helpers.workers import NO_RETRY, QUICK

from zapserver import dispatch
from zaptasks import (
    AsyncClient,
    CallFailed,
    Client,
    StartTask,
    TaskFailed,
    WithStart,
    aio,
    open_client,
    open_worker,
    workflow,
)
from zapwire.body import (
    BIGNUM_BYTES_MAX,
    cbor_from_json,
    decode_cbor,
    encode_cbor,
    encode_json,
    json_from_cbor,
)
from zapwire.encodings import as_cbor, in_cbor, with_json
from zapwire.envelope import FLAG_CBOR, Envelope, decode_envelope, encode_request, encode_response
from zapwire.errors import BadBody, LocalProtocolError
from zapwire.handshake import Capability
from zapwire.link import Link
from zapwire.opcodes import Op

DATA = {"text": 'a "quoted" ä', "number": 12, "float": 0.1, "list": [None, True, {}], "bytes": b"\x00\xff"}


@workflow.defn
class Echo:
    def __init__(self) -> None:
        self.is_over = False

    @workflow.run
    async def run(self, data: Any) -> Any:
        await workflow.wait_condition(lambda: self.is_over)
        return await workflow.execute_activity(echo, data, start_to_close=10)

    @workflow.query
    def state(self, data: Any) -> Any:
        return data

    @workflow.update
    def finish(self, data: Any) -> Any:
        self.is_over = True
        return data


async def echo(data: Any) -> Any:
    return data


async def broken(data: Any) -> Any:
    raise ValueError("no such data")


class Traffic:
    """Which opcodes a server got and sent, by their encoding."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[bool, set[int]] = {False: set(), True: set()}
        self.pushes: dict[bool, set[int]] = {False: set(), True: set()}
        take, send = dispatch.Dispatcher.on_call, Link.send

        def on_call(dispatcher: Any, link: Any, request_id: int, envelope: Envelope, message: bytes) -> None:
            self.calls[bool(envelope.flags & FLAG_CBOR)].add(envelope.opcode)
            take(dispatcher, link, request_id, envelope, message)

        def write(link: Link, opcode: int, body: bytes, *, flags: int = 0) -> None:
            self.pushes[link.writes_cbor].add(opcode)
            send(link, opcode, body, flags=flags)

        monkeypatch.setattr(dispatch.Dispatcher, "on_call", on_call)
        monkeypatch.setattr(Link, "send", write)


@asynccontextmanager
async def both(bodies: Literal["json", "cbor"], **handlers: Any) -> AsyncIterator[tuple[RealServer, AsyncClient]]:
    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK, bodies=bodies) as client,
        open_worker(client, **handlers),
    ):
        yield server, client


@pytest.mark.parametrize("bodies", ["json", "cbor"])
async def test_everything_is_the_same_in_either(
    bodies: Literal["json", "cbor"], monkeypatch: pytest.MonkeyPatch
) -> None:
    traffic = Traffic(monkeypatch)
    expected = {**DATA, "bytes": base64.b64encode(b"\x00\xff").decode()}
    async with both(bodies, tasks=[echo, broken], workflows=[Echo], activities=[echo]) as (_, client):
        handle = await client.start_workflow(Echo, DATA, memo=DATA)
        assert await handle.query(Echo.state, DATA) == expected
        assert await handle.update(Echo.finish, DATA) == expected
        with trio.fail_after(10):
            types = [event.event_type async for event in handle.history(follow=True)]
        assert types[-1] == "WORKFLOW_EXECUTION_COMPLETED"
        assert await handle.result() == expected
        assert (await handle.describe()).memo == expected
        again, answer = await client.update_with_start(Echo.finish, 3, start=WithStart(Echo, DATA, id="e"))
        assert (answer, await again.result()) == (3, expected)
        task = await client.now("echo", DATA)
        assert await task.result() == expected
        with pytest.raises(TaskFailed, match="no such data"):
            await (await client.now("broken", 1, retry_policy=NO_RETRY)).result()
        with pytest.raises(CallFailed, match="404"):
            await client.get_handle("nobody").result()
        assert (await client.create_schedule("s", "1h", StartTask("echo", DATA))).id == "s"
    enveloped = {Op.START_WORKFLOW, Op.QUERY_WORKFLOW, Op.UPDATE_WORKFLOW, Op.AWAIT_EXECUTION, Op.CREATE_SCHEDULE}
    assert traffic.calls[bodies == "cbor"] >= enveloped
    assert not traffic.calls[bodies != "cbor"] & enveloped
    assert traffic.pushes[bodies == "cbor"] >= {Op.DELIVER_WORKFLOW_TASK, Op.DELIVER_ACTIVITY_TASK, Op.DELIVER_QUERY}
    assert not traffic.pushes[bodies != "cbor"]


async def test_answers_that_come_later_are_cbor_too_and_an_abandoned_call_is_forgotten() -> None:
    async with open_real_server() as server, open_client(server.zap, bodies="cbor") as client:
        link = client._link.link
        assert link is not None
        (peer,) = server.server.dispatcher._peers.values()
        handle = await client.start_workflow("nobody", id="o")
        with trio.move_on_after(0.05):
            await handle.result()
        await client.health()
        assert peer.cbor_calls == set()
        async with trio.open_nursery() as nursery:
            answers: list[Envelope] = []

            async def wait() -> None:
                body = encode_cbor({"workflow_id": "o"})
                answers.append(await link.call(Op.AWAIT_EXECUTION, body, flags=FLAG_CBOR))

            nursery.start_soon(wait)
            await trio.sleep(0.05)
            assert len(peer.cbor_calls) == 1
            await handle.terminate("enough")
        assert answers[0].flags & FLAG_CBOR
        assert decode_cbor(answers[0].body)["reason"] == "enough"
        assert peer.cbor_calls == set()


async def test_what_cbor_cannot_say_goes_as_json() -> None:
    huge = 10 ** (3 * BIGNUM_BYTES_MAX)
    async with both("cbor", workflows=[Echo], activities=[echo]) as (_, client):
        handle = await client.start_workflow(Echo, huge)
        assert await handle.update(Echo.finish, huge) == huge
        assert await handle.result() == huge


async def test_a_server_that_does_not_read_cbor_gets_json() -> None:
    async with (
        open_fake_server(capabilities=Capability.RECEIPTS) as fake,
        open_client(fake.zap, bodies="cbor") as client,
        open_worker(client, tasks=[echo]),
    ):
        fake.answers[Op.DESCRIBE_NAMESPACE] = lambda call: call.answer({"info": {"name": "x"}})
        assert (await client.describe_namespace()).name == "x"
        assert all(not decode_envelope(call.message).flags & FLAG_CBOR for call in fake.calls)
        fake.deliver("echo", 3)
        assert (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)).payload == 3


async def test_a_server_may_answer_in_json() -> None:
    def answer(call: Call) -> None:
        call.answer({"info": {"name": "x"}})

    async with (
        open_fake_server(capabilities=Capability.CBOR_BODIES) as fake,
        open_client(fake.zap, bodies="cbor") as client,
    ):
        fake.answers[Op.DESCRIBE_NAMESPACE] = answer
        assert (await client.describe_namespace()).name == "x"
        (call,) = fake.calls_of(Op.DESCRIBE_NAMESPACE)
        assert decode_envelope(call.message).flags & FLAG_CBOR


async def test_a_delivery_that_is_no_cbor_is_logged_and_the_worker_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        open_fake_server(capabilities=Capability.CBOR_BODIES) as fake,
        open_client(fake.zap, bodies="cbor") as client,
        open_worker(client, tasks=[echo]),
    ):
        fake.links[-1].send(Op.DELIVER_ACTIVITY_TASK, b"\xff\xff", flags=FLAG_CBOR)
        fake.deliver("echo", 3)
        assert (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)).payload == 3
    assert "cannot be read" in caplog.text


def test_it_is_asked_for_by_one_of_two_words() -> None:
    async def main(bodies: Any) -> None:
        async with open_client("127.0.0.1:1", bodies=bodies, wait=False):
            pass

    with pytest.raises(ValueError, match='bodies is \'xml\': it must be "json" or "cbor"'):
        trio.run(main, "xml")
    wrong: Any = "xml"
    with pytest.raises(ValueError, match="bodies is 'xml'"):
        Client(zap="127.0.0.1:1", bodies=wrong)


def test_the_other_clients_have_it_too() -> None:
    async def main(zap: str) -> None:
        async with aio.open_client(zap, bodies="cbor") as client, aio.open_worker(client, tasks=[echo]):
            assert await (await client.now("echo", 3)).result() == 3
            assert client._link.link is not None
            assert client._link.link.writes_cbor

    with running_server() as server:
        asyncio.run(main(server.zap))
        with Client(zap=server.zap, bodies="cbor") as client:
            client.start_workflow("nobody", DATA, id="o", memo=DATA)
            assert client.get_handle("o").describe().memo["text"] == DATA["text"]


# --- the encodings ---------------------------------------------------------------------------------------


def test_json_and_cbor_say_the_same() -> None:
    body = encode_json({"a": [1, -2, 0.5, "ä", None, True], "b": {}})
    assert json_from_cbor(cbor_from_json(body)) == body
    rich = {"at": datetime(2026, 1, 2, tzinfo=UTC), "data": b"\x00"}
    assert json.loads(json_from_cbor(encode_cbor(rich))) == {"at": "2026-01-02T00:00:00Z", "data": "AA=="}
    with pytest.raises(BadBody, match="NaN"):
        json_from_cbor(encode_cbor(float("nan")))
    with pytest.raises(LocalProtocolError, match="an integer of"):
        cbor_from_json(b"1" + b"0" * 3 * BIGNUM_BYTES_MAX)


def test_messages_change_their_encoding_and_nothing_else() -> None:
    answer = encode_response(200, b'{"a":1}', "", 0, 3)
    envelope = decode_envelope(in_cbor(answer))
    assert (envelope.status, envelope.receipt, envelope.flags) == (200, 3, FLAG_CBOR)
    assert with_json(envelope) == decode_envelope(answer)
    refusal = encode_response(404, b"", "not there")
    assert in_cbor(refusal) == refusal
    assert as_cbor(b"") == (b"", 0)
    plain = decode_envelope(encode_request(Op.HEALTH, b"{}"))
    assert with_json(plain) is plain
    with pytest.raises(BadBody):
        with_json(decode_envelope(encode_request(Op.HEALTH, b"\xff", FLAG_CBOR)))
