"""`Handlers`: a function for each opcode, plain or asynchronous."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.helpers.link_peers import ECHO, HOLD, NOTE, RAISE, neighbor

from zapwire.client_link import open_link
from zapwire.envelope import Envelope
from zapwire.errors import CallFailed
from zapwire.link import Link
from zapwire.link_handler import Handlers
from zapwire.listener import open_listener


async def test_asynchronous_handlers_run_at_once_and_answer_when_they_are_done() -> None:
    may_answer = trio.Event()

    async def slow(link: Link, envelope: Envelope) -> bytes:
        await may_answer.wait()
        return b"slow"

    handlers = Handlers({HOLD: slow, ECHO: lambda link, envelope: None})
    answers: list[bytes] = []

    async def caller(link: Link) -> None:
        answers.append(bytes((await link.call(HOLD)).body))

    async with (
        open_listener("127.0.0.1", 0, handlers, node_id="server") as listener,
        open_link(*listener.address, node_id="client") as link,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(caller, link)
        nursery.start_soon(caller, link)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await link.call(ECHO)).body == b"null"
        assert not answers
        may_answer.set()
    assert answers == [b"slow", b"slow"]


async def test_asynchronous_handlers_are_bounded() -> None:
    started = []

    async def forever(link: Link, envelope: Envelope) -> None:
        started.append(envelope)
        await trio.sleep_forever()

    handlers = Handlers({HOLD: forever}, tasks_max=2)
    async with (
        open_listener("127.0.0.1", 0, handlers, node_id="server") as listener,
        open_link(*listener.address, node_id="client") as link,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(link.call, HOLD)
        nursery.start_soon(link.call, HOLD)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(CallFailed, match="2 handlers are running"):
            await link.call(HOLD)
        assert len(started) == 2
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_connection_cancels_its_handlers() -> None:
    canceled = trio.Event()

    async def forever(link: Link, envelope: Envelope) -> None:
        try:
            await trio.sleep_forever()
        finally:
            canceled.set()

    handlers = Handlers({HOLD: forever, NOTE: forever, ECHO: lambda link, envelope: bytes(envelope.body)})
    async with open_listener("127.0.0.1", 0, handlers, node_id="server") as listener, neighbor(listener) as works:
        for start in ("call", "send"):
            canceled = trio.Event()
            async with open_link(*listener.address, node_id="client") as link, trio.open_nursery() as nursery:
                if start == "call":
                    nursery.start_soon(link.call, HOLD)
                else:
                    link.send(NOTE, b"")
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert not canceled.is_set()
                nursery.cancel_scope.cancel()
            await canceled.wait()
        await works()


@pytest.mark.parametrize("answer", [ValueError("boom"), "text", 7], ids=repr)
async def test_an_asynchronous_handler_that_fails_costs_its_call_only(answer: object) -> None:
    async def failing(link: Link, envelope: Envelope) -> bytes:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    handlers = Handlers({RAISE: failing, NOTE: failing, ECHO: lambda link, envelope: b"x"})
    async with (
        open_listener("127.0.0.1", 0, handlers, node_id="server") as listener,
        open_link(*listener.address, node_id="client") as link,
    ):
        with capture_logs() as lines:
            with pytest.raises(CallFailed, match="Error: ") as caught:
                await link.call(RAISE)
            assert caught.value.status == 500
            link.send(NOTE, b"")
            assert (await link.call(ECHO)).body == b"x"
        assert "call handler failed" in [line["event"] for line in lines]
