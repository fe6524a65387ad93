"""The trio client when something is wrong: with what it is given, with the connection, or with the server."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import pytest
import trio
import trio.testing
import trustme
from tests.helpers.sdk_servers import Call, FakeServer, RealServer, open_fake_server, open_real_server

import zaptasks
from zaptasks import (
    AsyncClient,
    CallFailed,
    ClientClosed,
    NotSent,
    OutcomeUnknown,
    PayloadError,
    RetryPolicy,
    open_client,
    open_worker,
)
from zaptasks.connector import node_id, parse_address, parse_url
from zapwire.client_link import Backoff
from zapwire.envelope import encode_response, encode_submit_reply
from zapwire.handshake import NODE_ID_BYTES_MAX
from zapwire.opcodes import Op

QUICK = Backoff(seconds_min=0.01, seconds_max=0.02)
NO_RETRY = RetryPolicy(maximum_attempts=1)


@asynccontextmanager
async def client_of_real_server() -> AsyncIterator[tuple[AsyncClient, RealServer]]:
    async with open_real_server() as server, open_client(server.zap) as client:
        yield client, server


@asynccontextmanager
async def client_of(fake: FakeServer, timeout: float = 10.0) -> AsyncIterator[AsyncClient]:
    async with open_client(fake.zap, timeout=timeout, backoff=QUICK) as client:
        yield client


@dataclass
class Mail:
    to: str
    size: int


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "path", "reason"),
    [
        ({"items": [1, {"owner": object()}]}, "$.items[1].owner", "of type object"),
        ({"when": [math.nan]}, "$.when[0]", "NaN"),
        ([Mail("a", 1), {1, print}], "$[1][", "of type builtin_function_or_method"),
        ({"text": "\ud800"}, "$.text", "surrogate"),
        ("x" * (5 * 1024 * 1024), "$", "at most 4194304"),
    ],
)
async def test_a_payload_that_cannot_be_encoded_names_the_part_and_sends_nothing(
    payload: object, path: str, reason: str
) -> None:
    async with open_fake_server() as fake, client_of(fake) as client:
        with pytest.raises(PayloadError) as caught:
            await client.now("x", payload)
        assert caught.value.path.startswith(path)
        assert reason in str(caught.value)
        assert "the payload of 'x'" in str(caught.value)
        assert fake.calls_of(Op.TASK_SUBMIT) == []


async def test_a_memo_that_is_no_memo_is_refused() -> None:
    async with open_fake_server() as fake, client_of(fake) as client:
        with pytest.raises(PayloadError, match="at most 262144"):
            await client.now("x", memo={"all": "x" * 300_000})
        assert fake.calls_of(Op.TASK_SUBMIT) == []


async def test_a_payload_in_a_circle_is_an_error_and_no_endless_loop() -> None:
    circle: list[object] = []
    circle.append(circle)
    async with open_fake_server() as fake, client_of(fake) as client:
        with pytest.raises(PayloadError, match="circle"):
            await client.now("x", circle)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"start_to_close": -1}, "start_to_close is -1"),
        ({"heartbeat_timeout": math.nan}, "heartbeat_timeout is nan"),
        ({"schedule_to_close": timedelta(days=100_000)}, "schedule_to_close is"),
    ],
)
async def test_a_span_that_means_nothing_is_refused_before_anything_is_sent(
    options: dict[str, float], complaint: str
) -> None:
    async with open_fake_server() as fake, client_of(fake) as client:
        with pytest.raises(ValueError, match=complaint):
            await client.start_task("x", **options)  # type: ignore[arg-type]
        assert fake.calls_of(Op.TASK_SUBMIT) == []


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 1001])
async def test_a_task_type_that_is_no_name_is_refused(name: str) -> None:
    async with open_fake_server() as fake, client_of(fake) as client:
        with pytest.raises(ValueError, match="task name"):
            await client.now(name)


@pytest.mark.parametrize(
    "bad",
    [
        {"initial_interval": 0},
        {"backoff_coefficient": 0.5},
        {"backoff_coefficient": math.inf},
        {"maximum_interval": 0},
        {"maximum_attempts": -1},
        {"non_retryable_error_types": "ValueError"},
    ],
)
def test_a_retry_policy_that_means_nothing_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        RetryPolicy(**bad)  # type: ignore[arg-type]


def test_a_tiny_span_is_never_rounded_to_none() -> None:
    assert RetryPolicy(initial_interval=0.0001).to_wire()["initial_interval_ms"] == 1
    assert RetryPolicy(initial_interval=0.3).to_wire()["initial_interval_ms"] == 300


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tasks.example:1234", ("tasks.example", 1234)),
        ("tasks.example", ("tasks.example", 9999)),
        (":1234", ("127.0.0.1", 1234)),
        ("1234", ("127.0.0.1", 1234)),
        ("[::1]:1234", ("::1", 1234)),
        ("[::1]", ("::1", 9999)),
        ("::1", ("::1", 9999)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["host:0", "host:65536", "host:x", "http://host:80"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="no address of a ZAP server"):
        parse_address(text)


@pytest.mark.parametrize("text", ["host:80", "ftp://host", "http://", ""])
def test_what_is_no_url(text: str) -> None:
    with pytest.raises(ValueError, match="no URL of a server"):
        parse_url(text)


def test_a_node_id_fits_the_wire_whatever_the_identity_and_is_never_the_same() -> None:
    for identity in ("web", "ü" * 100, "a b\n", ""):
        assert 1 <= len(node_id(identity).encode()) <= NODE_ID_BYTES_MAX
        assert node_id(identity) != node_id(identity)


# --- when things go wrong -----------------------------------------------------------------------------


async def test_a_submit_whose_answer_is_lost_is_repeated_with_the_same_request_id() -> None:
    async with open_fake_server() as fake, client_of(fake) as client:

        def lose_the_first(call: Call) -> None:
            if len(fake.calls_of(Op.TASK_SUBMIT)) == 1:
                fake.drop_connections()
            else:
                call.started("w", "r")

        fake.answers[Op.TASK_SUBMIT] = lose_the_first
        handle = await client.now("x", {"n": 1})
        assert (handle.workflow_id, handle.run_id) == ("w", "r")
        first, second = fake.calls_of(Op.TASK_SUBMIT)
        assert first.options["request_id"] == second.options["request_id"] != ""


async def test_a_server_that_stays_silent_is_an_unknown_outcome_after_the_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_fake_server({Op.TASK_SUBMIT: lambda call: None}) as fake, client_of(fake, timeout=7) as client:
        start = trio.current_time()
        with pytest.raises(OutcomeUnknown):
            await client.now("x")
        assert trio.current_time() - start == pytest.approx(7, abs=0.1)


async def test_a_server_that_may_have_acted_and_stays_away_is_an_unknown_outcome(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        going = trio.Event()

        async def serve(*, task_status: trio.TaskStatus[FakeServer]) -> None:
            async with open_fake_server({Op.TASK_SUBMIT: lambda call: going.set()}) as fake:
                task_status.started(fake)
                await going.wait()

        fake: FakeServer = await nursery.start(serve)
        async with client_of(fake, timeout=3) as client:
            # Not NotSent, although no later attempt leaves: the first one did.
            with pytest.raises(OutcomeUnknown):
                await client.now("x")


async def test_a_signal_is_not_repeated_because_it_could_arrive_twice() -> None:
    async with open_fake_server() as fake, client_of(fake) as client:
        fake.answers[Op.SIGNAL_WORKFLOW] = lambda call: fake.drop_connections()
        with pytest.raises(OutcomeUnknown):
            await client.get_handle("w").signal("go")
        assert len(fake.calls_of(Op.SIGNAL_WORKFLOW)) == 1


async def test_a_wait_for_a_result_survives_the_loss_of_the_connection() -> None:
    async with open_fake_server() as fake, client_of(fake) as client:
        closed = {"workflow_id": "w", "run_id": "r", "status": 2, "result": [1, 2]}

        def lose_the_first_two(call: Call) -> None:
            if len(fake.calls_of(Op.AWAIT_EXECUTION)) <= 2:
                fake.drop_connections()
            else:
                call.answer(closed)

        fake.answers[Op.AWAIT_EXECUTION] = lose_the_first_two
        assert await client.get_handle("w", "r").result() == [1, 2]
        assert {(call.body["workflow_id"], call.body["run_id"]) for call in fake.calls_of(Op.AWAIT_EXECUTION)} == {
            ("w", "r")
        }


async def test_a_canceled_wait_tells_the_server_that_nobody_waits() -> None:
    async with open_fake_server({Op.AWAIT_EXECUTION: lambda call: None}) as fake, client_of(fake) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get_handle("w").result)
            waiting = await fake.call_of(Op.AWAIT_EXECUTION)
            nursery.cancel_scope.cancel()
        await fake.until(lambda: fake.pushes)
        assert fake.pushes == [(Op.ABANDON_CALL, {"request_id": waiting.request_id})]


async def test_a_run_that_continued_as_new_is_followed_to_its_result() -> None:
    async with open_fake_server() as fake, client_of(fake) as client:
        ends = {"r-1": {"status_name": "CONTINUED_AS_NEW"}, "": {"status": 2, "result": "done"}}
        fake.answers[Op.AWAIT_EXECUTION] = lambda call: call.answer(ends[call.body["run_id"]])
        assert await client.get_handle("w", "r-1").result() == "done"


async def test_a_client_that_vanishes_in_mid_call_disturbs_nobody() -> None:
    started = trio.Event()
    go_on = trio.Event()

    async def slow() -> str:
        started.set()
        await go_on.wait()
        return "done"

    async with client_of_real_server() as (client, server), open_worker(client, tasks=[slow]):
        with trio.CancelScope() as scope:
            async with open_client(server.zap) as other, trio.open_nursery() as nursery:
                handle = await other.now("slow")
                nursery.start_soon(handle.result)
                await started.wait()
                scope.cancel()
        go_on.set()
        assert await client.get_handle(handle.workflow_id, handle.run_id).result() == "done"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (encode_response(501, b"null", "opcode 0x50 is not served"), 501),
        (encode_response(429, b"", "too many calls"), 429),
        (encode_submit_reply(409, b'{"error":"open already","code":409}'), 409),
        (encode_submit_reply(500, b"not json"), 500),
    ],
)
async def test_a_refused_submit_is_a_refusal_in_whichever_layout_it_comes(answer: bytes, status: int) -> None:
    answers = {Op.TASK_SUBMIT: lambda call: call.answer_raw(answer)}
    async with open_fake_server(answers) as fake, client_of(fake) as client:
        with pytest.raises(CallFailed) as caught:
            await client.now("x")
        assert caught.value.status == status


async def test_an_answer_that_cannot_be_read_is_an_error_of_the_peer() -> None:
    answers = {Op.DESCRIBE_WORKFLOW: lambda call: call.answer([1])}
    async with open_fake_server(answers) as fake, client_of(fake) as client:
        with pytest.raises(zaptasks.ZapError, match="cannot be read"):
            await client.get_handle("w").describe()


async def test_no_server_is_told_when_the_client_opens(autojump_clock: trio.testing.MockClock) -> None:
    async with open_fake_server() as fake:
        nobody = fake.zap
    with pytest.raises(NotSent, match=nobody):
        async with open_client(nobody, timeout=2):
            raise AssertionError("there is no server to open a client of")


async def test_a_client_that_does_not_wait_connects_when_the_server_comes() -> None:
    async with open_fake_server() as fake:
        address = fake.zap
    async with open_client(address, wait=False, backoff=QUICK) as client:
        assert not client.is_connected
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.health)
            async with open_fake_server(port=int(address.rpartition(":")[2])) as fake:
                await fake.call_of(Op.HEALTH)


async def test_a_call_on_a_closed_client_says_so() -> None:
    async with open_fake_server() as fake, open_client(fake.zap) as client:
        pass
    with pytest.raises(ClientClosed):
        await client.health()


async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    async with open_fake_server() as fake:
        with pytest.raises(LookupError, match="mine") as caught:
            async with open_client(fake.zap):
                raise LookupError("mine")
    assert caught.value.__context__ is None


async def test_tls_when_it_is_given_a_context() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with open_real_server(ssl_context=server_context) as server:
        address = server.zap.replace("127.0.0.1", "localhost")
        async with open_client(address, ssl_context=client_context) as client:
            assert (await client.health()).status == "ok"


def test_the_version_told_in_the_handshake_is_the_one_installed() -> None:
    from importlib.metadata import version

    assert zaptasks.__version__ == version("zaptasks")


def test_every_public_name_is_there() -> None:
    assert sorted(set(zaptasks.__all__)) == sorted(zaptasks.__all__)
    assert [name for name in zaptasks.__all__ if not hasattr(zaptasks, name)] == []
