"""Streamed output from a handler to a reader, over real connections."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from tests.helpers.sdk_servers import open_fake_server, open_real_server
from tests.helpers.workers import QUICK, at_fake, served

from zaptasks import (
    CallFailed,
    Compression,
    DataConverter,
    Encryption,
    OutputItem,
    PayloadError,
    activity,
    open_client,
    open_worker,
    workflow,
)
from zaptasks.emitter import BATCH_ITEMS_MAX, UNSENT_BYTES_MAX, Emitter
from zaptasks.output import OutputPage
from zapwire.handshake import Capability
from zapwire.opcodes import Op


class Word(msgspec.Struct):
    text: str


@activity.defn
async def speak(text: str) -> int:
    for word in text.split():
        activity.emit(Word(word))
    return len(text.split())


@activity.defn
def speak_in_thread(text: str) -> int:
    for word in text.split():
        activity.emit(Word(word))
    return len(text.split())


@workflow.defn
class Speech:
    @workflow.run
    async def run(self, parts: list[str]) -> None:
        await workflow.execute_activity(speak, parts[0], start_to_close=10)
        if parts[1:]:
            workflow.continue_as_new(parts[1:])


async def read(handle: Any, **more: Any) -> list[OutputItem[Any]]:
    return [item async for item in handle.output(**more)]


@pytest.mark.parametrize("handler", [speak, speak_in_thread])
async def test_a_reader_sees_every_item_in_order_and_the_end(handler: Callable[..., object]) -> None:
    async with served(tasks={"speak": handler}) as (client, _):
        handle = await client.now("speak", "to be or not")
        items = await read(handle, type=Word)
    assert [item.value for item in items] == [Word("to"), Word("be"), Word("or"), Word("not")]
    assert [item.number for item in items] == [1, 2, 3, 4]
    assert {(item.activity_type, item.attempt, item.is_after_gap) for item in items} == {("speak", 1, False)}


async def test_items_come_while_the_handler_runs() -> None:
    heard = trio.Event()

    async def work(payload: object) -> str:
        activity.emit("first")
        await heard.wait()
        activity.emit("second")
        return "done"

    async with served(tasks=[work]) as (client, _):
        handle = await client.now("work", 1)
        seen = []
        async for item in handle.output():
            seen.append(item.value)
            heard.set()
        assert seen == ["first", "second"]
        assert await handle.result() == "done"
        assert [item.value async for item in handle.output(after=1)] == ["second"]


async def test_a_reader_follows_a_workflow_over_its_runs() -> None:
    async with served(activities=[speak], workflows=[Speech]) as (client, _):
        handle = await client.start_workflow("Speech", ["a b", "c"])
        items = await read(handle)
    assert [item.value["text"] for item in items] == ["a", "b", "c"]
    assert [item.number for item in items] == [1, 2, 1]
    assert len({item.run_id for item in items}) == 2
    assert not any(item.is_after_gap for item in items)


async def test_the_server_sees_nothing_of_what_is_encrypted() -> None:
    converter = DataConverter(codecs=[Compression(), Encryption({"k": os.urandom(32)}, active="k")])
    async with open_real_server() as server, open_client(server.zap, converter=converter) as client:
        async with open_worker(client, tasks=[speak]):
            handle = await client.now("speak", "secret")
            assert [item.value for item in await read(handle)] == [{"text": "secret"}]
        async with open_client(server.zap) as stranger:
            page = await stranger.wait(Op.READ_OUTPUT, {"workflow_id": handle.workflow_id}, OutputPage)
            assert b"secret" not in bytes(page.items[0].item)
            assert b"aes-256-gcm" in bytes(page.items[0].item)


async def test_a_reader_outlives_its_connection() -> None:
    more = trio.Event()

    async def work(payload: object) -> None:
        if activity.info().attempt == 1:
            activity.emit("first")
            await trio.sleep_forever()
        activity.emit("second")

    async with (
        open_real_server() as server,
        open_client(server.zap, backoff=QUICK) as client,
        open_worker(client, tasks=[work]),
    ):
        handle = await client.now("work", 1)
        seen = []
        async for item in handle.output():
            seen.append((item.value, item.attempt, item.is_after_gap))
            if not more.is_set():
                more.set()
                server.drop_connections()
    assert seen == [("first", 1, False), ("second", 2, False)]


async def test_a_restart_of_the_server_loses_output_and_shows_it(tmp_path: Path) -> None:
    async def work(payload: object) -> None:
        if activity.info().attempt > 1:
            activity.emit("after")
            return
        activity.emit("before")
        await trio.sleep_forever()

    async with (
        open_real_server(data=str(tmp_path)) as server,
        open_client(server.zap) as client,
        open_worker(client, tasks=[work], shutdown_timeout=0),
    ):
        handle = await client.now("work", 1)
        item = await anext(handle.output())
        assert (item.number, item.value) == (1, "before")
    async with (
        open_real_server(data=str(tmp_path)) as server,
        open_client(server.zap) as client,
        open_worker(client, tasks=[work]),
    ):
        [item] = await read(client.get_handle(handle.workflow_id), after=item.number)
    assert (item.value, item.is_after_gap) == ("after", True)
    assert item.number > 1_000


async def test_an_item_that_cannot_be_sent_is_the_mistake_of_the_handler() -> None:
    said: list[str] = []

    async def work(payload: object) -> None:
        for item in (object(), "x" * 300_000):
            try:
                activity.emit(item)
            except PayloadError as error:
                said.append(str(error))

    async with served(tasks=[work]) as (client, _):
        assert await read(await client.now("work", 1)) == []
    assert len(said) == 2
    assert all("an item that 'work' emits" in text for text in said)


async def test_an_unknown_execution_is_a_404_and_a_bad_number_a_mistake() -> None:
    async with served(tasks=[speak]) as (client, _):
        with pytest.raises(CallFailed, match="workflow not found"):
            await read(client.get_handle("nobody"))
        with pytest.raises(ValueError, match="after is -1"):
            client.get_handle("nobody").output(after=-1)


async def test_a_go_server_gets_no_output_and_has_none() -> None:
    async with open_fake_server(capabilities=Capability(0)) as go, at_fake(go, tasks=[speak]):
        go.deliver("speak", "to be")
        assert (await go.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)).payload == 2
        assert go.pushes == []


async def test_the_last_items_leave_before_the_answer() -> None:
    async with open_fake_server() as fake, at_fake(fake, tasks=[speak]):
        fake.deliver("speak", "to be")
        await fake.call_of(Op.RESPOND_ACTIVITY_TASK_COMPLETED)
        assert fake.pushes == [(Op.EMIT_OUTPUT, {"task_token": "t-1", "items": [{"text": "to"}, {"text": "be"}]})]


class SlowLine:
    """A connection that takes nothing, and then everything."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.room = trio.Event()

    def push(self, opcode: int, body: bytes) -> None:
        self.bodies.append(msgspec.json.decode(body))

    async def wait_sent(self, size: int) -> None:
        await self.room.wait()


async def test_a_slow_connection_drops_the_oldest_and_says_how_many() -> None:
    line = SlowLine()
    emitter = Emitter("t", line)  # type: ignore[arg-type]
    assert emitter.add(b"0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(emitter.send)
        await trio.testing.wait_all_tasks_blocked()
        long = b'"' + b"x" * 9_998 + b'"'
        for _ in range(200):
            assert not emitter.add(long)
        line.room.set()
    kept = sum(len(body["items"]) for body in line.bodies[1:])
    assert kept == UNSENT_BYTES_MAX // 10_000
    assert [body.get("dropped", 0) for body in line.bodies[:3]] == [0, 200 - kept, 0]
    assert emitter.add(b"1")


async def test_batches_are_as_short_as_a_server_takes_them() -> None:
    line = SlowLine()
    emitter = Emitter("t", line)  # type: ignore[arg-type]
    for _ in range(2 * BATCH_ITEMS_MAX + 1):
        emitter.add(b"0")
    emitter.send_now()
    assert [len(body["items"]) for body in line.bodies] == [BATCH_ITEMS_MAX, BATCH_ITEMS_MAX, 1]
