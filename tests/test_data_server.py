"""Converters at work: what a server, its disk and its network get to see of encrypted data, and what peers read."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.helpers.sdk_servers import open_real_server
from tests.helpers.workers import AT_ONCE, NO_RETRY, QUICK

import zaptasks
from zaptasks import (
    AsyncClient,
    CallFailed,
    CodecError,
    Compression,
    DataConverter,
    Encryption,
    LocalEngine,
    StartTask,
    StartWorkflow,
    TaskError,
    TaskFailed,
    WithStart,
    WorkflowContext,
    current_task,
    open_client,
    open_worker,
)

OLD, NEW = bytes(range(32)), bytes(range(1, 33))
ENCRYPTED = DataConverter(codecs=[Compression(), Encryption({"old": OLD, "new": NEW}, "new")])
PLAIN = DataConverter()
MARKER = "sesame-4111-open"
"""What nobody but clients and workers may see."""


def traces(text: str) -> list[bytes]:
    """The bytes that give a text away: itself, and as base64 wherever in a base64 it begins."""
    shapes = [text.encode()]
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + text.encode())
        shapes.append(encoded[4 if before else 0 : -4])
    return shapes


def gives_away(data: bytes) -> bool:
    return any(trace in data for trace in traces(MARKER))


@dataclass
class Network:
    """A way to a server that keeps what passes."""

    address: str
    seen: bytearray


@asynccontextmanager
async def open_recording_network(server: str) -> AsyncIterator[Network]:
    seen = bytearray()
    host, _, port = server.rpartition(":")

    async def pass_on(source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for data in source:
                seen.extend(data)
                await target.send_all(data)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def serve(near: trio.SocketStream) -> None:
        async with near, await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as nursery:
            nursery.start_soon(pass_on, near, far)
            nursery.start_soon(pass_on, far, near)

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield Network(f"127.0.0.1:{listener.socket.getsockname()[1]}", seen)
        nursery.cancel_scope.cancel()


async def remember(value: dict[str, str]) -> object:
    task = current_task()
    if task.attempt == 1:
        task.heartbeat(MARKER)
        task.progress(0.5, MARKER)
        raise OSError(f"the first attempt with {MARKER}")
    return {"said": task.heartbeat_details, "got": value}


async def refuse(value: object) -> None:
    try:
        raise LookupError(f"no {MARKER} here")
    except LookupError as error:
        raise TaskError(f"refused {MARKER}", code="Refused", non_retryable=True, details=[MARKER]) from error


async def misread(value: int) -> None: ...


async def echo(value: str) -> str:
    return value


async def visit(ctx: WorkflowContext, value: str) -> str:
    def tell(what: str) -> str:
        if what == "fail":
            raise ValueError(f"cannot tell {MARKER}")
        return f"{what} {value}"

    ctx.on_query("tell", tell)
    if value == "wait":
        await trio.sleep_forever()
    result: str = await ctx.execute_activity("echo", value)
    try:
        await ctx.execute_activity("refuse", value)
    except zaptasks.ActivityFailed as error:
        return f"{result}, {error.message}"
    raise AssertionError("refuse did not")


async def use_everything(client: AsyncClient) -> None:
    """One of each call that carries data, with `MARKER` in it."""
    async with open_worker(client, tasks=[remember, refuse, misread], activities=[echo, refuse], workflows=[visit]):
        value = {"text": MARKER}
        handle = await client.now("remember", value, memo={"for": MARKER}, retry_policy=AT_ONCE, heartbeat_timeout=5)
        assert await handle.result() == {"said": [MARKER], "got": value}
        info = await handle.describe()
        assert (info.input, info.memo) == (value, {"for": MARKER})
        assert info.result == {"said": [MARKER], "got": value}
        events = [event async for event in handle.history()]
        assert events[0].attributes["input"] == value
        [retry] = [event for event in events if event.event_type == "ACTIVITY_TASK_RETRYING"]
        assert retry.attributes["failure"]["p"]["message"] == f"the first attempt with {MARKER}"

        handle = await client.now("refuse", value, retry_policy=AT_ONCE)
        with pytest.raises(TaskFailed) as caught:
            await handle.result()
        assert (caught.value.type, caught.value.message) == ("Refused", f"refused {MARKER}")
        assert caught.value.non_retryable
        assert caught.value.details == [MARKER]
        assert MARKER in caught.value.stack
        assert str(caught.value.__cause__) == f"no {MARKER} here (LookupError)"
        error = (await handle.describe()).error
        assert error is not None
        assert error.message == f"refused {MARKER}"
        [dead] = await client.dead_letters()
        assert dead.error is not None
        assert dead.error.message == f"refused {MARKER}"

        with pytest.raises(TaskFailed, match="Expected `int`, got `str`"):
            await (await client.now("misread", MARKER, retry_policy=AT_ONCE)).result()

        workflow = await client.start_workflow("visit", MARKER, memo={"for": MARKER})
        assert await workflow.result() == f"{MARKER}, refused {MARKER}"

        workflow = await client.signal_with_start("hello", MARKER, start=WithStart("visit", "wait", id="w"))
        await workflow.signal("hello", {"again": MARKER})
        assert await workflow.query("tell", MARKER) == f"{MARKER} wait"
        with pytest.raises(CallFailed, match=f"ValueError: cannot tell {MARKER}") as refused:
            await workflow.query("tell", "fail")
        assert refused.value.status == 400
        signals = [e.attributes["input"] async for e in workflow.history() if "SIGNALED" in e.event_type]
        assert signals == [MARKER, {"again": MARKER}]
        await workflow.terminate()

        made = await client.create_schedule("s", "1h", StartTask("misread", MARKER, memo={"for": MARKER}))
        assert (made.action.input, made.action.memo) == (MARKER, {"for": MARKER})
        await client.update_schedule("s", action=StartWorkflow("visit", [MARKER], memo={"for": MARKER}))
        run = await client.trigger_schedule("s")
        assert run is not None
        assert await run.result() == f"{MARKER}, refused {MARKER}"
        assert (await client.describe_schedule("s")).action.input == [MARKER]
        assert [schedule.action.input for schedule in await client.list_schedules()] == [[MARKER]]
        assert {"for": MARKER} in [info.memo async for info in client.list()]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


async def seen_by_the_server(data: Path, converter: DataConverter) -> tuple[bytes, bytes]:
    """What passed the network, and what the server's files hold while it runs and after it has ended."""
    async with open_real_server(data=str(data)) as server, open_recording_network(server.zap) as network:
        async with open_client(network.address, backoff=QUICK, converter=converter) as client:
            await use_everything(client)
        running = contents(data)
        assert any(name.endswith("-wal") for name in running), "what is not yet in the database itself was looked at"
        before = b"".join(running.values())
    files = before + b"".join(contents(data).values())
    return bytes(network.seen), files


async def test_the_server_its_disk_and_its_network_never_see_encrypted_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "zaptasks.worker")
    frames, files = await seen_by_the_server(tmp_path, ENCRYPTED)
    assert not gives_away(frames)
    assert not gives_away(files)
    for readable in (b"Refused", b"nonRetryable", b'\\"key\\":\\"new\\"'):
        assert readable in frames


async def test_without_encryption_the_same_search_finds_them(tmp_path: Path) -> None:
    frames, files = await seen_by_the_server(tmp_path, PLAIN)
    assert all(trace in frames for trace in traces(MARKER)[:1])
    assert MARKER.encode() in files
    assert any(trace in frames for trace in traces(MARKER)[1:]), "answers to queries and results of workflows"


async def test_a_worker_without_the_key_lets_another_one_try() -> None:
    other = DataConverter(codecs=[Encryption({"old": OLD}, "old")])
    async with open_real_server() as server, open_client(server.zap, converter=ENCRYPTED) as client:
        async with (
            open_client(server.zap, converter=other, identity="unknowing") as stranger,
            open_worker(stranger, tasks=[echo]),
        ):
            handle = await client.now("echo", MARKER, retry_policy=AT_ONCE)
            with pytest.raises(TaskFailed) as caught:
                await handle.result()
            assert caught.value.type == "CodecError"
            assert caught.value.message == "this payload is encrypted with key 'new', and the keys here are 'old'"
            assert not caught.value.non_retryable
        retried = await client.requeue_dead_letter(handle.workflow_id)
        async with open_worker(client, tasks=[echo]):
            assert await retried.result() == MARKER


async def test_heartbeat_details_that_cannot_be_read_fail_the_attempt_and_not_the_worker() -> None:
    said = trio.Event()

    async def beat() -> None:
        current_task().heartbeat(MARKER)
        said.set()
        await trio.sleep_forever()

    async def calm() -> str:
        return "calm"

    async with open_real_server() as server, open_client(server.zap, converter=ENCRYPTED) as client:
        async with open_worker(client, tasks=[beat], shutdown_timeout=0):
            handle = await client.now("beat", retry_policy=AT_ONCE, heartbeat_timeout=5)
            await said.wait()
        async with open_client(server.zap) as plain, open_worker(plain, tasks={"beat": calm, "calm": calm}):
            with pytest.raises(TaskFailed, match="and this client has no keys") as caught:
                await handle.result()
            assert caught.value.type == "CodecError"
            assert await (await plain.now("calm")).result() == "calm"


async def test_a_client_without_keys_sees_envelopes_and_is_told_when_it_asks_for_the_value() -> None:
    async with (
        open_real_server() as server,
        open_client(server.zap, converter=ENCRYPTED) as client,
        open_client(server.zap) as stranger,
        open_worker(client, tasks=[echo, refuse]),
    ):
        handle = await client.now("echo", MARKER, memo={"a": 1})
        await handle.result()
        seen = zaptasks.TaskHandle(stranger, handle.workflow_id)
        with pytest.raises(CodecError, match="is encrypted with key 'new', and this client has no keys"):
            await seen.result()
        info = await seen.describe()
        assert info.input["$zap"]["key"] == info.result["$zap"]["key"] == info.memo["$zap"]["key"] == "new"
        assert (await anext(aiter(stranger.list()))).memo.keys() == {"$zap"}
        failed = await client.now("refuse", 1, retry_policy=NO_RETRY)
        with pytest.raises(TaskFailed) as caught:
            await zaptasks.TaskHandle(stranger, failed.workflow_id).result()
        assert (caught.value.type, caught.value.details, caught.value.stack) == ("Refused", [], "")
        assert caught.value.message.startswith("encrypted: this payload is encrypted with key 'new'")


async def test_keys_are_changed_step_by_step_while_tasks_wait() -> None:
    def keyed(keys: dict[str, bytes], active: str) -> DataConverter:
        return DataConverter(codecs=[Encryption(keys, active)])

    async with open_real_server() as server:
        async with open_client(server.zap, converter=keyed({"old": OLD}, "old")) as client:
            first = (await client.now("echo", "sent before")).workflow_id
        async with open_client(server.zap, converter=keyed({"old": OLD, "new": NEW}, "new")) as client:
            second = (await client.now("echo", "sent after")).workflow_id
            async with open_worker(client, tasks=[echo]):
                assert await client.get_handle(first).result() == "sent before"
                assert await client.get_handle(second).result() == "sent after"
        async with open_client(server.zap, converter=keyed({"new": NEW}, "new")) as client:
            assert await client.get_handle(first).result() == "sent before", "the answer is encrypted with the new key"


async def test_a_workflow_that_starts_over_asks_for_the_same_activities_although_they_look_different() -> None:
    runs = 0

    async def twice(ctx: WorkflowContext, value: str) -> list[str]:
        nonlocal runs
        runs += 1
        first = await ctx.execute_activity("echo", value)
        if runs == 1:
            server.drop_connections()
            await trio.sleep_forever()
        return [first, await ctx.execute_activity("echo", "b")]

    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK, converter=ENCRYPTED) as client,
        open_worker(client, activities=[echo], workflows=[twice]),
    ):
        handle = await client.start_workflow("twice", "a")
        with trio.fail_after(10):
            assert await handle.result() == ["a", "b"]
        assert runs == 2


async def test_without_codecs_a_server_gets_the_json_and_nothing_else() -> None:
    async with (
        open_real_server() as server,
        open_recording_network(server.zap) as network,
        open_client(network.address) as client,
    ):
        await client.now("x", {"a": [1, None, "ü"]}, memo={"b": 1})
    assert '{"a":[1,null,"ü"]}'.encode() in network.seen
    assert b'"memo":{"b":1}' in network.seen
    assert b"$zap" not in network.seen


# --- the blocking client, HTTP and the local engine ---------------------------------------------------


@dataclass
class Mail:
    to: str


@pytest.mark.parametrize("way", ["zap", "http"])
async def test_the_blocking_client_sends_encrypted_payloads_over_both_ways(way: str) -> None:
    async with (
        open_real_server() as server,
        open_client(server.zap, converter=ENCRYPTED) as client,
        open_worker(client, tasks=[echo]),
    ):

        def submit() -> zaptasks.Submission:
            place: dict[str, Any] = {"zap": server.zap, "url": ""} if way == "zap" else {"zap": "", "url": server.url}
            with zaptasks.Client(**place, converter=ENCRYPTED) as blocking:
                return blocking.now("echo", MARKER)

        submission = await trio.to_thread.run_sync(submit)
        assert submission.placement.value == way
        assert await client.get_handle(submission.workflow_id).result() == MARKER
        async with open_client(server.zap) as stranger:
            assert (await stranger.get_handle(submission.workflow_id).describe()).input.keys() == {"$zap"}


class Counting:
    """A codec that counts, so that one can see that it was used."""

    name = "counting"

    def __init__(self) -> None:
        self.encoded: list[bytes] = []
        self.decoded = 0

    def encode(self, data: bytes) -> bytes:
        self.encoded.append(data)
        return data[::-1]

    def decode(self, data: bytes) -> bytes:
        self.decoded += 1
        return data[::-1]


def test_the_local_engine_uses_the_converter() -> None:
    codec = Counting()
    got: list[Mail] = []

    def send(mail: Mail) -> Mail:
        got.append(mail)
        return mail

    with LocalEngine(lambda type, payload: payload, converter=DataConverter(codecs=[codec])) as engine:
        engine.register("send", send)
        assert engine.now("send", Mail("ada")).result(10) == {"to": "ada"}
        assert engine.now("other", {"$zap": {}}).result(10) == {"$zap": {}}
    assert got == [Mail("ada")]
    assert codec.encoded == [b'{"to":"ada"}'] * 2 + [b'{"$zap":{}}'] * 2
    assert codec.decoded == 4, "two payloads and two results"


def test_a_blocking_client_without_a_server_uses_it_too() -> None:
    codec = Counting()
    got: list[object] = []
    with zaptasks.Client(
        zap="", handler=lambda type, payload: got.append(payload), converter=DataConverter(codecs=[codec])
    ) as client:
        client.now("x", {"a": 1})
    assert got == [{"a": 1}]
    assert codec.encoded[0] == b'{"a":1}'


class Broken:
    """A codec that fails when it is told to."""

    name = "broken"

    def __init__(self) -> None:
        self.is_broken = False

    def encode(self, data: bytes) -> bytes:
        if self.is_broken:
            raise RuntimeError(f"cannot encode {data!r}")
        return data[::-1]

    decode = encode


@pytest.mark.parametrize("breaks", ["before", "while"])
async def test_a_codec_that_fails_ends_a_task_and_not_its_worker(breaks: str) -> None:
    codec = Broken()

    async def work(value: str) -> str:
        codec.is_broken = breaks == "while" and value == MARKER
        return value

    async with (
        open_real_server() as server,
        open_recording_network(server.zap) as network,
        open_client(server.zap, converter=DataConverter(codecs=[Broken()])) as client,
        open_client(network.address, converter=DataConverter(codecs=[codec])) as breaking,
        open_worker(breaking, tasks=[work]),
    ):
        codec.is_broken = breaks == "before"
        with pytest.raises(TaskFailed, match="the codec 'broken' failed: RuntimeError") as caught:
            await (await client.now("work", MARKER, retry_policy=NO_RETRY)).result()
        assert caught.value.type == "CodecError"
        codec.is_broken = False
        assert await (await client.now("work", "fine")).result() == "fine"
        assert not gives_away(bytes(network.seen))


async def test_a_workflow_whose_input_cannot_be_read_fails_and_says_why() -> None:
    async with (
        open_real_server() as server,
        open_client(server.zap, converter=ENCRYPTED) as client,
        open_client(server.zap) as plain,
        open_worker(plain, workflows=[visit]),
    ):
        handle = await client.start_workflow("visit", MARKER)
        with pytest.raises(TaskFailed, match="and this client has no keys") as caught:
            await handle.result()
        assert caught.value.type == "CodecError"
