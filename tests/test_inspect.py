"""`zaptasks inspect`: what was captured, in whichever form, is shown as frames, and damage with its place."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from zapserver.captures import BadLine, Chunk, read_capture
from zapserver.cli.inspect import inspect
from zapserver.dissect import Dissector, Frame, Kind
from zapserver.inspect import dissect_capture, json_line, run_proxy, text_lines
from zapserver.settings import Address
from zapwire.body import encode_cbor, encode_json
from zapwire.envelope import (
    FLAG_CBOR,
    encode_push,
    encode_request,
    encode_response,
    encode_submit_reply,
    encode_task_submit,
)
from zapwire.frame import KIND_REQUEST, KIND_RESPONSE, call_frame, frame
from zapwire.handshake import Capability, Hello, encode_hello
from zapwire.opcodes import Op

HELLO = frame(encode_hello(Hello("tasks-sdk")))
HEALTH = call_frame(1, KIND_REQUEST, encode_request(Op.HEALTH, b"{}"))
HEALTHY = call_frame(1, KIND_RESPONSE, encode_response(200, b'{"status":"ok"}'))
SUBMIT = call_frame(2, KIND_REQUEST, encode_task_submit("email.send", b'{"to":"ada"}'))
SUBMITTED = call_frame(2, KIND_RESPONSE, encode_submit_reply(200, b'{"run_id":"r1"}'))
PUSH = frame(encode_push(Op.DELIVER_CANCEL_REQUEST, b'{"workflow_id":"w1"}'))


def dissect(data: bytes, direction: str = "c2s") -> list[Frame]:
    dissector = Dissector()
    return [*dissector.feed(direction, data), *dissector.finish()]


# --- frames -------------------------------------------------------------------------------------------


def test_every_kind_of_frame_is_named_with_its_opcode_status_and_body() -> None:
    dissector = Dissector()
    asked = list(dissector.feed("c2s", HELLO + HEALTH + SUBMIT))
    answered = list(dissector.feed("s2c", HELLO + HEALTHY + PUSH + SUBMITTED))
    assert [(f.kind, f.request_id, f.name, f.status, f.body) for f in asked] == [
        (Kind.HANDSHAKE, None, "", None, b""),
        (Kind.REQUEST, 1, "Health", 0, b"{}"),
        (Kind.REQUEST, 2, "TaskSubmit", None, b'{"to":"ada"}'),
    ]
    assert [(f.kind, f.request_id, f.name, f.status, f.body) for f in answered] == [
        (Kind.HANDSHAKE, None, "", None, b""),
        (Kind.RESPONSE, 1, "Health", 200, b'{"status":"ok"}'),
        (Kind.ONE_WAY, None, "DeliverCancelRequest", 200, b'{"workflow_id":"w1"}'),
        (Kind.RESPONSE, 2, "TaskSubmit", 200, b'{"run_id":"r1"}'),
    ]
    assert asked[0].texts == (("node_id", "tasks-sdk"),)
    assert asked[2].texts == (("task_type", "email.send"),)
    assert [f.damage for f in asked + answered] == [None] * 7


def test_a_stream_reads_the_same_however_it_was_torn() -> None:
    data = HELLO + HEALTH + SUBMIT
    whole = dissect(data)
    dissector = Dissector()
    one_by_one = [f for index in range(len(data)) for f in dissector.feed("c2s", data[index : index + 1])]
    assert one_by_one == whole
    assert [f.offset for f in whole] == [0, len(HELLO), len(HELLO) + len(HEALTH)]
    assert list(dissector.finish()) == []


def test_an_unknown_opcode_and_an_answer_without_its_call_are_shown_as_such() -> None:
    unknown, unseen = dissect(call_frame(1, KIND_REQUEST, encode_request(0xEE, b"{}")) + HEALTHY[:4] + HEALTHY[4:])
    assert (unknown.opcode, unknown.name, unknown.damage) == (0xEE, "", None)
    # Both stand in one direction, so the answer cannot be to that call.
    assert (unseen.kind, unseen.opcode) == (Kind.RESPONSE, 0)
    assert "to an unseen call" in next(text_lines(unseen))


def test_our_handshake_shows_capabilities_and_details() -> None:
    hello = Hello("worker-7", Capability.CBOR_BODIES | Capability.GOODBYE, {"sdk": "zaptasks"})
    [shown] = dissect(frame(encode_hello(hello)))
    assert dict(shown.texts) == {"node_id": "worker-7", "capabilities": "CBOR_BODIES|GOODBYE", "sdk": "zaptasks"}


def test_a_cbor_body_is_shown_as_json() -> None:
    body = encode_cbor({"raw": b"\x00\x01", "n": 3})
    [shown] = dissect(frame(encode_push(Op.DELIVER_QUERY, body, FLAG_CBOR)))
    assert shown.is_cbor
    assert '{"raw":"AAE=","n":3}' in next(text_lines(shown))


def test_verbose_rows_lie_where_they_say() -> None:
    data = HELLO + SUBMIT
    for shown in dissect(data):
        rows = {row.name: row for row in shown.rows}
        assert int.from_bytes(data[rows["length"].offset :][:4], "little") == int(rows["length"].value)
        assert data[rows["magic"].offset :][:4] == b"ZAP\x00"
        assert data[rows["opcode"].offset] == int(rows["opcode"].value, 16)
    assert rows["task_type"].offset == len(HELLO) + 4 + 8 + 16
    assert rows["request_id"].value == "2"


# --- damage -------------------------------------------------------------------------------------------


def broken_message(damage: Callable[[bytearray], None]) -> bytes:
    message = bytearray(encode_request(Op.HEALTH, b"{}"))
    damage(message)
    return call_frame(9, KIND_REQUEST, bytes(message))


def set_version(message: bytearray) -> None:
    message[4] = 9


def set_body_pointer(message: bytearray) -> None:
    message[16:20] = (5000).to_bytes(4, "little")


def set_opcode_zero(message: bytearray) -> None:
    message[7] = 0


@pytest.mark.parametrize(
    ("data", "offset", "reason"),
    [
        pytest.param(broken_message(set_version), 12, "version 9", id="version"),
        pytest.param(broken_message(set_body_pointer), 28, "body points at bytes 5016 to 5018 of 42", id="pointer"),
        pytest.param(broken_message(set_opcode_zero), 12, "opcode 0 is never used", id="opcode 0"),
        pytest.param(frame(encode_push(Op.DELIVER_QUERY, b"{nope")), 44, "JSON", id="body"),
        pytest.param(frame(encode_push(Op.DELIVER_QUERY, b"\xff", FLAG_CBOR)), 44, "CBOR", id="cbor body"),
        pytest.param(frame(b"short"), 4, "5 bytes", id="short message"),
    ],
)
def test_a_damaged_message_costs_only_itself(data: bytes, offset: int, reason: str) -> None:
    before, damaged, after = dissect(HEALTH + data + PUSH)
    assert before.damage is None
    assert damaged.damage is not None
    assert damaged.damage.offset == len(HEALTH) + offset
    assert reason in damaged.damage.reason
    assert after.name == "DeliverCancelRequest"
    assert after.damage is None


def test_a_bad_length_prefix_costs_the_rest_of_its_direction_only() -> None:
    dissector = Dissector()
    good, lost = dissector.feed("c2s", HEALTH + b"\xff\xff\xff\x7f" + HEALTH)
    assert good.damage is None
    assert lost.damage is not None
    assert lost.damage.offset == len(HEALTH)
    assert "2147483647 bytes" in lost.damage.reason
    assert "10485760" in lost.damage.reason
    [more] = dissector.feed("c2s", HEALTH)
    assert more.kind is Kind.BROKEN
    [answer] = dissector.feed("s2c", HEALTHY)
    assert answer.name == "Health"


def test_a_torn_end_says_how_much_is_missing() -> None:
    whole, torn = dissect(HEALTH + SUBMIT[:-3])
    assert whole.damage is None
    assert torn.damage is not None
    assert torn.damage.offset == len(HEALTH)
    assert f"{len(SUBMIT) - 3} bytes of {len(SUBMIT)}" in torn.damage.reason


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    for item in [*dissect_capture(data), *dissect(HEALTH + data), *dissect(frame(data)), *dissect(frame(HELLO + data))]:
        list(text_lines(item, verbose=True))
        json.loads(json_line(item, 1, verbose=True))


@given(st.integers(0, len(SUBMIT) - 1), st.integers(0, 255))
def test_no_flipped_byte_makes_it_fail(index: int, value: int) -> None:
    data = bytearray(SUBMIT)
    data[index] = value
    for item in dissect(bytes(data) + HEALTH):
        list(text_lines(item, verbose=True))
        json.loads(json_line(item, 1, verbose=True))


def test_what_a_peer_sends_cannot_reach_the_terminal_raw() -> None:
    body = '{"a":"\x1b[31mred\u202e"}'.encode()
    refused = call_frame(1, KIND_RESPONSE, encode_response(400, b"null", "bad \x1b]0;title\x07 name"))
    for shown in dissect(frame(encode_push(Op.DELIVER_QUERY, body)) + refused):
        text = "\n".join(text_lines(shown, verbose=True))
        assert text.replace("\n", "").isprintable()
        assert "\\x1b" in text


# --- files --------------------------------------------------------------------------------------------

TOOLS = [["xxd"], ["xxd", "-p"], ["xxd", "-a"], ["hexdump"], ["hexdump", "-C"], ["od", "-A", "x", "-t", "x1"]]


@pytest.mark.parametrize("tool", TOOLS, ids=" ".join)
def test_a_dump_reads_as_the_bytes_that_were_dumped(tool: list[str], tmp_path: Path) -> None:
    if shutil.which(tool[0]) is None:
        pytest.skip(f"{tool[0]} is not installed")
    data = HELLO + HEALTH + b"odd"  # the zeros of a hello are what dumps print as "*"
    path = tmp_path / "capture"
    path.write_bytes(data)
    dump = subprocess.run([*tool, str(path)], capture_output=True, check=True).stdout
    assert list(read_capture(dump)) == [Chunk(data)]


# As the tools above print them, so that their forms are read where the tools are missing.
XXD = b"00000000: 5a41 5000 0100 0090 1000 0000 2a00 0000  ZAP.........*...\n00000010: 1800 0000  ....\n"
HEXDUMP = b"0000000 415a 0050 0001 9000 0010 0000 002a 0000\n0000010 0018 0000\n0000014\n"
HEXDUMP_C = b"00000000  5a 41 50 00 01 00 00 90  10 00 00 00 2a 00 00 00  |ZAP.........*...|\n*\n00000020\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(XXD, "5a415000010000901000 00002a00000018000000", id="xxd"),
        pytest.param(HEXDUMP, "5a41500001000090100000002a00000018000000", id="words"),
        pytest.param(HEXDUMP_C, "5a41500001000090100000002a000000" * 2, id="repeated line"),
        pytest.param(b"\n 0x5a 0x41|50:00 ,01\n", "5a41500001", id="plain digits"),
        pytest.param(b"50000000\n5a415000\n", "500000005a415000", id="eight digits a line"),
    ],
)
def test_the_forms_of_a_hex_dump(text: bytes, expected: str) -> None:
    assert list(read_capture(text)) == [Chunk(bytes.fromhex(expected))]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        pytest.param(b"5a41\n5xx0", 2, "'x' is no hexadecimal digit", id="no digit"),
        pytest.param(b"5a4", 1, "3 hexadecimal digits", id="half a byte"),
        pytest.param(XXD.replace(b"00000010", b"00000020"), 2, "offset 0x20 where 0x10 comes next", id="gap"),
        pytest.param(XXD + b"and so on\n", 3, "'and so on' is no line", id="foreign line"),
        pytest.param(b"", 1, "nothing in it", id="empty"),
        pytest.param(b'{"hex": "5a"}\n{"hex": 5}\n', 2, "not a line of a recording", id="recording"),
        pytest.param(b'{"hex": "5a"}\n{"hex": "5"}\n', 2, "a byte takes two", id="recording, half a byte"),
        pytest.param(b'{"hex": "5a", "dir": "up"}\n', 1, "direction 'up'", id="direction"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(text: bytes, line: int, reason: str) -> None:
    [bad] = [item for item in read_capture(text) if isinstance(item, BadLine)]
    assert bad.line == line
    assert reason in bad.reason


def test_a_dump_cannot_ask_for_any_amount_of_memory() -> None:
    [chunk, bad] = read_capture(b"0000000 0000 0000\n*\nfffffffffff\n")
    assert isinstance(chunk, Chunk)
    assert len(chunk.data) <= 64 * 1024 * 1024
    assert isinstance(bad, BadLine)


def test_a_message_without_its_length_prefix_is_read_too() -> None:
    for bare in (HEALTH[4:], encode_request(Op.HEALTH, b"{}")):
        [shown] = dissect_capture(bare.hex().encode())
        assert isinstance(shown, Frame)
        assert shown.name == "Health"
        assert shown.damage is None


# --- the command --------------------------------------------------------------------------------------


def recording(*lines: tuple[str, bytes]) -> str:
    return "".join(json.dumps({"conn": 1, "dir": way, "hex": data.hex()}) + "\n" for way, data in lines)


def run_inspect(tmp_path: Path, content: str | bytes, *options: str) -> tuple[int, str]:
    path = tmp_path / "capture"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = CliRunner().invoke(inspect, [str(path), *options])
    return result.exit_code, result.output


def test_the_command_prints_a_line_a_frame_and_exits_0(tmp_path: Path) -> None:
    code, output = run_inspect(tmp_path, recording(("c2s", HELLO), ("c2s", HEALTH), ("s2c", HEALTHY)))
    assert code == 0
    hello, request, response = output.splitlines()
    assert "handshake" in hello
    assert "node_id=tasks-sdk" in hello
    assert request.split() == ["84", "1", "c2s", "#1", "request", "0x90", "Health", "{}"]
    assert response.split() == ["0", "1", "s2c", "#1", "response", "200", "0x90", "Health", '{"status":"ok"}']


def test_damage_is_shown_and_makes_the_exit_status_1(tmp_path: Path) -> None:
    code, output = run_inspect(tmp_path, HEALTH + SUBMIT[:20])
    assert code == 1
    assert f"! offset {len(HEALTH)}: the stream ends inside a frame: 20 bytes of {len(SUBMIT)}" in output


def test_a_long_body_is_cut_unless_everything_is_asked_for(tmp_path: Path) -> None:
    body = encode_json({"text": "x" * 500})
    content = frame(encode_push(Op.DELIVER_QUERY, body))
    assert "x" * 500 not in run_inspect(tmp_path, content)[1]
    assert f"... ({len(body)} characters)" in run_inspect(tmp_path, content)[1]
    assert "x" * 500 in run_inspect(tmp_path, content, "--verbose")[1]


def test_json_output_can_be_inspected_again(tmp_path: Path) -> None:
    content = recording(("c2s", HELLO), ("c2s", HEALTH), ("s2c", HEALTHY), ("c2s", SUBMIT[:30]))
    code, first = run_inspect(tmp_path, content, "--json")
    assert code == 1
    again, second = run_inspect(tmp_path, first, "--json")
    assert (again, second) == (1, first)
    documents = [json.loads(line) for line in first.splitlines()]
    assert documents[1]["body"] == {}
    assert documents[2]["name"] == "Health"
    assert documents[3]["problem"]["reason"].startswith("the stream ends inside a frame")


@pytest.mark.parametrize("options", [[], ["--listen", ":0"], ["--to", ":1"], ["--listen", "nowhere", "--to", ":1"]])
def test_what_makes_no_sense_is_a_usage_error(options: list[str]) -> None:
    result = CliRunner().invoke(inspect, options)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# --- live ---------------------------------------------------------------------------------------------


async def test_the_proxy_shows_frames_and_passes_every_byte_on_unchanged(nursery: trio.Nursery) -> None:
    received = bytearray()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            while data := await stream.receive_some():
                received.extend(data)
            await stream.send_all(HELLO + HEALTHY)

    [upstream] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, [upstream])
    to = Address(*upstream.socket.getsockname())
    frames: list[Frame] = []
    told: list[str] = []
    bound = await nursery.start(run_proxy, Address("127.0.0.1", 0), to, frames.append, told.append)
    assert isinstance(bound, Address)
    garbage = b"\xff\xff\xff\xffthese bytes are no frame"
    async with await trio.open_tcp_stream(bound.host, bound.port) as client:
        await client.send_all(HELLO + HEALTH + garbage)
        await client.send_eof()
        answer = bytearray()
        while data := await client.receive_some():
            answer += data
    assert bytes(received) == HELLO + HEALTH + garbage
    assert bytes(answer) == HELLO + HEALTHY
    assert [(f.direction, f.kind) for f in frames] == [
        ("c2s", Kind.HANDSHAKE),
        ("c2s", Kind.REQUEST),
        ("c2s", Kind.BROKEN),
        ("s2c", Kind.HANDSHAKE),
        ("s2c", Kind.RESPONSE),
    ]
    assert frames[4].name == "Health"
    assert told[0] == f"listening on {bound}, passing on to {to}"


async def test_the_proxy_says_so_when_nobody_is_there_and_goes_on(nursery: trio.Nursery) -> None:
    told: list[str] = []
    unreachable = Address("127.0.0.1", 1)
    bound = await nursery.start(run_proxy, Address("127.0.0.1", 0), unreachable, lambda frame: None, told.append)
    assert isinstance(bound, Address)
    for _ in range(2):
        async with await trio.open_tcp_stream(bound.host, bound.port) as client:
            assert await client.receive_some() == b""
    assert ["cannot be reached" in line for line in told] == [False, True, True]
