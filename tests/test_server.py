"""`open_server`: both protocols on one engine, a timer that never polls, a clean start and a clean end."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

import httpx2
import pytest
import trio
import trustme
from trio.testing import MockClock, wait_all_tasks_blocked

from zapserver import http_host
from zapserver.engine.commands import StartTask
from zapserver.server import StartError, open_server
from zapserver.settings import Address, Settings, SettingsError, parse_address
from zapserver.timer import CLOCK_CHECK_SECONDS_MAX, Timer
from zaptasks.client import open_client
from zaptasks.errors import TaskTimedOut
from zaptasks.worker import open_worker
from zapwire.tcp import bind_tcp

ANY_PORT = Address("127.0.0.1", 0)
LOCAL = Settings(zap=ANY_PORT, http=ANY_PORT)


async def test_zap_and_http_serve_one_engine() -> None:
    async with open_server(LOCAL) as server, open_client(str(server.zap_address)) as client:
        assert (await client.health()).service == "tasks"
        await client.start_task("email.send", {"to": "ada"}, id="mail-1")
        async with httpx2.AsyncClient(base_url=f"http://{server.http_address}") as http:
            answer = (await http.get("/v1/tasks/health")).json()
    assert answer["counts"]["open_executions"] == 1


async def test_what_is_due_happens_by_itself() -> None:
    async with open_server(LOCAL) as server, open_client(str(server.zap_address)) as client:
        handle = await client.start_task("nobody.serves", schedule_to_start=0.05)
        with trio.fail_after(5), pytest.raises(TaskTimedOut):
            await handle.result()


async def test_a_worker_takes_a_backlog_larger_than_any_outbox() -> None:
    async with open_server(LOCAL) as server, open_client(str(server.zap_address)) as client:
        for _ in range(30):  # 30 MB; a connection is closed when 16 MiB wait for its peer
            await client.start_task("big", "x" * 1_000_000)
        arrived: list[int] = []
        everything = trio.Event()

        async def big(payload: str) -> None:
            arrived.append(len(payload))
            if len(arrived) == 30:
                everything.set()

        async with open_worker(client, tasks={"big": big}, slots=100):
            with trio.fail_after(30):
                await everything.wait()
        assert arrived == [1_000_000] * 30


async def test_zap_over_tls_when_given_a_context() -> None:
    authority = trustme.CA()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    async with (
        open_server(LOCAL, ssl_context=server_side) as server,
        open_client(str(server.zap_address), ssl_context=client_side) as client,
    ):
        assert (await client.health()).status == "ok"


@pytest.mark.parametrize("protocol", ["zap", "http"])
async def test_a_port_in_use_is_named_and_leaves_nothing_open(protocol: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as free:
        busy = Address(*taken.getsockname())
        other = Address(*free.getsockname())
        free.close()
        zap, http = (busy, other) if protocol == "zap" else (other, busy)
        expected = f"{protocol.upper()} address {busy} cannot be had: Address already in use"
        with pytest.raises(StartError) as refused:
            async with open_server(Settings(zap=zap, http=http)):
                pytest.fail("it started")
        assert str(refused.value) == expected
        socket.create_server((other.host, other.port)).close()


async def test_a_host_that_nobody_knows_is_named() -> None:
    nowhere = Address("no-such-host.invalid", 0)
    for settings in (
        Settings(zap=nowhere, http=ANY_PORT, allow_anonymous=True),
        Settings(zap=ANY_PORT, http=nowhere, allow_anonymous=True),
    ):
        with pytest.raises(StartError, match=r"address no-such-host.invalid:0 cannot be had"):
            async with open_server(settings):
                pytest.fail("it started")


async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_server(LOCAL):
            raise LookupError("mine")


async def test_the_end_of_the_block_answers_what_is_in_hand_and_takes_nothing_new() -> None:
    body = b'{"workflow_type": "email.send"}'
    head = (
        b"POST /api/v1/namespaces/default/workflows HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    answer = bytearray()
    sent_head, is_draining = trio.Event(), trio.Event()

    async def post(address: Address) -> None:
        async with await trio.open_tcp_stream(address.host, address.port) as stream:
            await stream.send_all(head + body[:10])
            sent_head.set()
            await is_draining.wait()
            await stream.send_all(body[10:])
            async for data in stream:
                answer.extend(data)

    async with trio.open_nursery() as nursery, open_server(LOCAL) as server:
        nursery.start_soon(post, server.http_address)
        await sent_head.wait()
        # The request's head has to be in the server's hands before it stops listening.
        async with httpx2.AsyncClient(base_url=f"http://{server.http_address}") as http:
            await http.get("/healthz")
        nursery.start_soon(_refuses, server.http_address, is_draining)
        nursery.start_soon(_refuses, server.zap_address, trio.Event())
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"run_id"' in answer


async def _refuses(address: Address, refused: trio.Event) -> None:
    while True:
        try:
            stream = await trio.open_tcp_stream(address.host, address.port)
        except OSError:
            refused.set()
            return
        await stream.aclose()


async def test_a_client_that_never_reads_does_not_keep_the_server_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("this system cannot cut off a peer that does not read")
    monkeypatch.setattr(http_host, "UNREAD_MS_MAX", 200)
    monkeypatch.setattr(http_host, "DRAIN_SECONDS_MAX", 0.1)

    async def bind_with_little_room(host: str, port: int, *, backlog: int) -> list[socket.socket]:
        sockets = await bind_tcp(host, port, backlog=backlog)
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return sockets

    monkeypatch.setattr(http_host, "bind_tcp", bind_with_little_room)
    with trio.fail_after(20):
        async with open_server(LOCAL) as server:
            deaf = trio.socket.socket()
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            await deaf.connect((server.http_address.host, server.http_address.port))
            # As much as the server takes, which is no more once it waits to be read.
            with trio.move_on_after(0.5), suppress(OSError):
                while True:
                    await deaf.send(b"GET /v1/tasks/health HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
        deaf.close()


# --- the timer ----------------------------------------------------------------------------------------


class Deadlines:
    """A dispatcher that only has deadlines, on a clock that the test may set."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self.ticks: list[int] = []
        self.ahead_ms = 0
        self.on_deadline_moved: Callable[[], None] = lambda: None

    def clock(self) -> int:
        return int(trio.current_time() * 1000) + self.ahead_ms

    def next_deadline_ms(self) -> int | None:
        return min(self.pending, default=None)

    def tick(self) -> None:
        now_ms = self.clock()
        self.ticks.append(now_ms)
        self.pending = [deadline for deadline in self.pending if deadline > now_ms]

    def add(self, deadline_ms: int) -> None:
        self.pending.append(deadline_ms)
        self.on_deadline_moved()


@pytest.fixture
async def deadlines(nursery: trio.Nursery) -> Deadlines:
    deadlines = Deadlines()
    nursery.start_soon(Timer(deadlines).run)  # type: ignore[arg-type]
    await wait_all_tasks_blocked()
    return deadlines


async def test_the_timer_sleeps_exactly_until_each_deadline(deadlines: Deadlines, autojump_clock: MockClock) -> None:
    start = deadlines.clock()
    deadlines.add(start + 5_000)
    deadlines.add(start + 2_000)  # earlier: the sleep is cut short
    deadlines.add(start + 7_000)  # later: nothing changes
    await trio.sleep(60)
    assert deadlines.ticks == [start + 2_000, start + 5_000, start + 7_000]


async def test_the_timer_does_nothing_while_there_is_no_deadline(
    deadlines: Deadlines, autojump_clock: MockClock
) -> None:
    await trio.sleep(80_000)
    assert deadlines.ticks == []


async def test_a_deadline_of_the_past_is_due_at_once(deadlines: Deadlines, autojump_clock: MockClock) -> None:
    deadlines.add(deadlines.clock() - 1)
    await wait_all_tasks_blocked()
    assert len(deadlines.ticks) == 1


async def test_a_clock_that_was_set_forward_is_noticed(deadlines: Deadlines, autojump_clock: MockClock) -> None:
    deadlines.add(deadlines.clock() + 3_600_000)
    deadlines.ahead_ms = 3_600_000
    await trio.sleep(CLOCK_CHECK_SECONDS_MAX + 0.001)
    assert deadlines.pending == []


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9999", "127.0.0.1:9999"),
        (":7243", "127.0.0.1:7243"),
        (" 0.0.0.0:0 ", "0.0.0.0:0"),
        ("localhost:1", "localhost:1"),
        ("[::1]:65535", "[::1]:65535"),
    ],
)
def test_addresses_as_people_write_them(text: str, expected: str) -> None:
    assert str(parse_address(text)) == expected


@pytest.mark.parametrize("text", ["", "x", "1.2.3.4", "::1:80", "127.0.0.1:", "h:99999", "h:-1", "a:b:1", "٣:٣"])
def test_what_is_no_address_is_refused_with_what_would_be(text: str) -> None:
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:9999|0 \(any free one\) to 65535"):
        parse_address(text)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"data": ""}, ":memory: to keep nothing"),
        ({"zap": Address("0.0.0.0", 0)}, "--allow-anonymous"),
        ({"http": Address("", 0)}, "--allow-anonymous"),
        ({"http": Address("example.org", 0)}, "--allow-anonymous"),
        ({"namespace": "../etc"}, "A-Z a-z 0-9"),
        ({"node_id": ""}, "1 to 60 bytes"),
        ({"node_id": "x" * 61}, "1 to 60 bytes"),
        ({"node_id": "tab\t"}, "printable ASCII"),
        ({"require_identity": True}, "unset them"),
        ({"jwks_url": "https://example.org/keys"}, "unset them"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_advice(change: dict[str, object], advice: str) -> None:
    with pytest.raises(SettingsError, match=advice.replace(".", r"\.")):
        Settings(**change)  # type: ignore[arg-type]


def test_loopback_needs_no_permission_and_the_network_does() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        Settings(zap=Address(host, 0), http=Address(host, 0))
    Settings(zap=Address("0.0.0.0", 0), allow_anonymous=True)


def test_the_dispatcher_of_an_embedded_server_takes_commands_directly() -> None:
    async def main() -> str:
        async with open_server(LOCAL) as server:
            return server.dispatcher.submit(
                StartTask(type="email.send", workflow_id="mail-1"), server.dispatcher.namespaces.get("")
            ).workflow_id

    assert trio.run(main) == "mail-1"
