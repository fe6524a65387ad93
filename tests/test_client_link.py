"""Connecting: what goes wrong at the start, and the link that comes back by itself."""

from __future__ import annotations

import random
from functools import partial

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs
from tests.helpers.link_peers import ECHO, HOLD, NOTE, Recorder, raw_server, served
from trio.testing import MockClock

from zapwire.client_link import Backoff, ReconnectingLink, open_link, open_reconnecting_link
from zapwire.envelope import encode_request
from zapwire.errors import CallFailed, ConnectionLost, NotSent, OutcomeUnknown
from zapwire.link import Link
from zapwire.listener import open_listener

QUICK = Backoff(seconds_min=0.001, seconds_max=0.01)


@pytest.fixture
def patient_clock() -> MockClock:
    """Time jumps once nothing has happened for 30 ms, which is long for loopback, even on a busy machine."""
    return MockClock(autojump_threshold=0.03)


async def free_port() -> int:
    """A port that nobody listens on now."""
    async with raw_server() as server:
        return server.port


async def test_nobody_listens() -> None:
    port = await free_port()
    with pytest.raises(ConnectionLost, match=f"no connection to 127.0.0.1:{port}"):
        async with open_link("127.0.0.1", port, node_id="client"):
            pass


async def test_a_connection_that_takes_too_long(patient_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("zapwire.client_link.connect_tcp", never)
    start = trio.current_time()
    with pytest.raises(ConnectionLost, match="within 3 s"):
        async with open_link("127.0.0.1", 1, node_id="client", connect_timeout=3):
            pass
    assert trio.current_time() - start == pytest.approx(3)


async def test_calls_wait_for_the_first_connection() -> None:
    port = await free_port()
    async with open_reconnecting_link("127.0.0.1", port, node_id="client", backoff=QUICK) as link:
        assert link.link is None
        with pytest.raises(NotSent, match="not connected"):
            link.send(NOTE, b"")
        with pytest.raises(NotSent, match=f"not connected to 127.0.0.1:{port} within 0.2 s: .*refused"):
            await link.call(ECHO, timeout=0.2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo, link)
            nursery.start_soon(echo, link)
            async with open_listener("127.0.0.1", port, Recorder(), node_id="server"):
                await echo(link)
                link.send(NOTE, b"")


async def echo(link: ReconnectingLink) -> None:
    assert (await link.call(ECHO, b"x", timeout=20)).body == b"x"


async def test_a_server_that_restarts() -> None:
    """Calls in flight fail at once; those made while it is away wait; afterwards everything goes on."""
    port = await free_port()
    async with open_reconnecting_link("127.0.0.1", port, node_id="client", backoff=QUICK) as link:
        for _ in range(3):
            recorder = Recorder()
            async with open_listener("127.0.0.1", port, recorder, node_id="server"):
                await echo(link)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lost_call, link)
                    await recorder.until(partial(getattr, recorder, "held"))
                    for server_link in recorder.links:
                        server_link.close("restart")
        assert link.attempts >= 3


def ended(recorder: Recorder, times: int) -> bool:
    return len(recorder.ends) == times


async def lost_call(link: ReconnectingLink) -> None:
    with pytest.raises(OutcomeUnknown):
        await link.call(HOLD)


async def test_on_connected_goes_before_other_calls_every_time() -> None:
    recorder = Recorder()
    subscribed = 0

    async def subscribe(link: Link) -> None:
        nonlocal subscribed
        await link.call(ECHO, b"subscribe")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert ("on_push", "client", (NOTE, b"other")) not in recorder.log[-3:]
        subscribed += 1

    async with (
        open_listener("127.0.0.1", 0, recorder, node_id="server") as listener,
        open_reconnecting_link(*listener.address, node_id="client", backoff=QUICK, on_connected=subscribe) as link,
    ):
        for number in (1, 2, 3):
            assert (await link.call(ECHO, b"other")).body == b"other"
            assert subscribed == number
            recorder.links[-1].close("again")
            await recorder.until(partial(ended, recorder, number))
            while link.link is not None:
                await trio.lowlevel.checkpoint()


async def test_an_on_connected_that_fails_is_tried_again() -> None:
    attempts = 0

    async def subscribe(link: Link) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise CallFailed(503, "not now")

    async with served() as (_, listener, _):
        with capture_logs() as lines:
            async with open_reconnecting_link(
                *listener.address, node_id="worker", backoff=QUICK, on_connected=subscribe
            ) as link:
                await echo(link)
        assert attempts == 3
        assert [line["event"] for line in lines].count("on_connected failed") == 2


async def test_an_on_connected_that_hangs_ends_with_its_connection() -> None:
    entered: list[Link] = []

    async def hang(link: Link) -> None:
        entered.append(link)
        if len(entered) == 1:
            await trio.sleep_forever()

    recorder = Recorder()
    async with (
        open_listener("127.0.0.1", 0, recorder, node_id="server") as listener,
        open_reconnecting_link(*listener.address, node_id="client", backoff=QUICK, on_connected=hang) as link,
    ):
        await recorder.until(lambda: recorder.links)
        while not entered:
            await trio.lowlevel.checkpoint()
        recorder.links[0].close("away")
        await echo(link)
        assert len(entered) == 2


async def test_attempts_are_spread_and_ever_rarer(patient_clock: MockClock) -> None:
    port = await free_port()
    backoff = Backoff(seconds_min=1, seconds_max=8)
    with capture_logs() as lines:
        async with open_reconnecting_link(
            "127.0.0.1", port, node_id="client", backoff=backoff, random_source=random.Random(1)
        ) as link:
            await trio.sleep(60)
            assert link.attempts > 8
    pauses = [line["retry_seconds"] for line in lines if line["event"] == "not connected"]
    source = random.Random(1)
    assert pauses[:7] == [source.uniform(0, bound) for bound in (1, 2, 4, 8, 8, 8, 8)]


async def test_a_server_that_drops_every_connection_is_not_hammered(patient_clock: MockClock) -> None:
    class Dropping(Recorder):
        def connected(self, link: Link) -> None:
            super().connected(link)
            link.close("no")

    recorder = Dropping()
    backoff = Backoff(seconds_min=1, seconds_max=64)
    async with (
        open_listener("127.0.0.1", 0, recorder, node_id="server") as listener,
        open_reconnecting_link(
            *listener.address, node_id="client", backoff=backoff, random_source=random.Random(2)
        ) as link,
    ):
        await trio.sleep(300)
        assert 8 < link.attempts < 40
        assert len(recorder.links) == link.attempts


async def test_after_a_connection_that_held_the_pauses_start_anew(patient_clock: MockClock) -> None:
    port = await free_port()
    backoff = Backoff(seconds_min=1, seconds_max=30)
    recorder = Recorder()
    async with open_reconnecting_link("127.0.0.1", port, node_id="client", backoff=backoff) as link:
        await trio.sleep(100)
        with capture_logs() as lines:
            async with open_listener("127.0.0.1", port, recorder, node_id="server"):
                await link.wait_connected()
                await trio.sleep(40)
            while link.link is not None:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert lines[-1]["reason"] == "the peer closed the connection"
        assert lines[-1]["retry_seconds"] <= 1


async def test_closing_ends_the_calls_that_wait() -> None:
    port = await free_port()
    async with (
        open_reconnecting_link("127.0.0.1", port, node_id="client", backoff=QUICK) as link,
        trio.open_nursery() as nursery,
    ):

        async def caller() -> None:
            with pytest.raises(NotSent, match="going home"):
                await link.call(ECHO)

        nursery.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()
        await link.aclose("going home")
        with pytest.raises(NotSent, match="going home"):
            await link.call(ECHO)


async def test_closing_a_connected_link_sends_what_waits() -> None:
    recorder = Recorder()
    async with open_listener("127.0.0.1", 0, recorder, node_id="server") as listener:
        async with open_reconnecting_link(*listener.address, node_id="client") as link:
            await link.wait_connected()
            link.send(NOTE, bytes(4 * 1024 * 1024))
        await recorder.until(lambda: recorder.ends)
        assert "on_push" in recorder.methods()
        assert len(recorder.links) == 1


async def test_binary_calls_wait_for_the_connection_too() -> None:
    async with served() as (_, listener, _), open_reconnecting_link(*listener.address, node_id="second") as link:
        assert await link.call_raw(message_of(ECHO), timeout=20)


def message_of(opcode: int) -> bytes:

    return encode_request(opcode, b"{}")


async def test_a_cancel_while_waiting_leaves_nothing_behind() -> None:
    port = await free_port()
    async with open_reconnecting_link("127.0.0.1", port, node_id="client", backoff=QUICK) as link:
        with trio.move_on_after(0.01):
            await link.call(ECHO)
        async with open_listener("127.0.0.1", port, Recorder(), node_id="server"):
            await echo(link)
            assert link.link is not None
            assert not link.link.connection.in_flight
