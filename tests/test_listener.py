"""The listener: who may connect, who replaces whom, what happens when the system has nothing left."""

from __future__ import annotations

import errno
import socket

import pytest
import trio
from structlog.testing import capture_logs
from tests.helpers.link_peers import ECHO, HOLD, NOTE, Recorder, neighbor, served

import zapwire.tcp
from zapwire.client_link import open_link
from zapwire.errors import BadHandshake, ConnectionLost, LocalProtocolError, OutcomeUnknown
from zapwire.listener import open_listener


async def test_the_newest_connection_of_a_node_wins() -> None:
    async with served() as (old, listener, recorder), trio.open_nursery() as nursery:

        async def caller() -> None:
            with pytest.raises(OutcomeUnknown):
                await old.call(HOLD)

        nursery.start_soon(caller)
        await recorder.until(lambda: recorder.held)
        recorder.log.clear()
        async with open_link(*listener.address, node_id="client") as new:
            assert (await new.call(ECHO, b"x")).body == b"x"
            assert recorder.methods()[:2] == ["disconnected", "connected"]
            assert "a newer connection of client took its place" in str(recorder.ends[0])
            assert listener.links["client"].open
            assert listener.connections == 1


async def test_port_0_is_a_free_port_and_every_address_of_a_name_is_served() -> None:
    async with open_listener("localhost", 0, Recorder(), node_id="server") as listener:
        host, port = listener.address
        assert port > 0
        async with open_link(host, port, node_id="client") as link:
            assert (await link.call(ECHO, b"x")).body == b"x"


async def test_a_port_in_use_is_an_error_of_the_caller() -> None:
    async with open_listener("127.0.0.1", 0, Recorder(), node_id="server") as listener:
        with pytest.raises(OSError, match="in use"):
            async with open_listener(*listener.address, Recorder(), node_id="other"):
                pass


@pytest.mark.parametrize("node_id", ["", "x" * 61, "a\tb"])
async def test_our_own_bad_node_id_is_an_error_of_the_caller(node_id: str) -> None:
    with pytest.raises(LocalProtocolError, match="node id"):
        async with open_listener("127.0.0.1", 0, Recorder(), node_id=node_id):
            pass
    with pytest.raises(LocalProtocolError, match="node id"):
        async with open_link("127.0.0.1", 1, node_id=node_id):
            pass


async def test_connections_are_bounded() -> None:
    recorder = Recorder()
    async with open_listener("127.0.0.1", 0, recorder, node_id="server", connections_max=2) as listener:
        async with neighbor(listener) as works, open_link(*listener.address, node_id="second"):
            with pytest.raises((BadHandshake, ConnectionLost)):
                async with open_link(*listener.address, node_id="third"):
                    pass
            assert (listener.connections, listener.refused) == (2, {"connections": 1})
            await works()
        await recorder.until(lambda: len(recorder.ends) == 2)
        async with open_link(*listener.address, node_id="third") as link:
            assert (await link.call(ECHO, b"x")).body == b"x"


class FlakySocket(socket.socket):
    """A listening socket whose accept fails as it does in a process without free descriptors."""

    errors: list[int]

    def accept(self) -> tuple[socket.socket, object]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, errno.errorcode[number])
        return super().accept()


def flaky(monkeypatch: pytest.MonkeyPatch, errors: list[int]) -> None:
    bind = zapwire.tcp.bind_tcp

    async def bind_flaky(host: str, port: int) -> list[socket.socket]:
        sockets: list[socket.socket] = []
        for sock in await bind(host, port):
            wrapped = FlakySocket(fileno=sock.detach())
            wrapped.errors = errors
            wrapped.setblocking(False)
            sockets.append(wrapped)
        return sockets

    monkeypatch.setattr("zapwire.listener.bind_tcp", bind_flaky)


async def test_a_server_out_of_descriptors_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [errno.EMFILE, errno.ECONNABORTED, errno.ENFILE]
    flaky(monkeypatch, errors)
    with capture_logs() as lines:
        async with served() as (link, _, _):
            assert (await link.call(ECHO, b"x")).body == b"x"
    assert not errors
    assert [line["event"] for line in lines] == ["cannot accept connections"] * 2


async def test_a_listening_socket_that_broke_is_told_to_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    flaky(monkeypatch, [errno.EINVAL])

    async def serve_somebody() -> None:
        async with open_listener("127.0.0.1", 0, Recorder(), node_id="server") as listener:
            await trio.open_tcp_stream(*listener.address)
            await trio.sleep_forever()

    with pytest.raises(OSError, match="EINVAL"):
        await serve_somebody()


async def test_closing_the_listener_sends_what_waits_and_ends_every_connection() -> None:
    body = bytes(4 * 1024 * 1024)
    at_client = Recorder()
    at_server = Recorder()
    async with (
        open_listener("127.0.0.1", 0, at_server, node_id="server") as listener,
        open_link(*listener.address, node_id="client", handler=at_client),
    ):
        await at_server.until(lambda: at_server.links)
        at_server.links[0].send(NOTE, body)
        await listener.aclose("maintenance")
        await at_client.until(lambda: at_client.ends)
        await at_server.until(lambda: at_server.ends)
        assert str(at_server.ends[0]) == "maintenance"
        with pytest.raises(ConnectionLost):
            async with open_link(*listener.address, node_id="late"):
                pass
    assert ("on_push", "server", (NOTE, body)) in at_client.log
