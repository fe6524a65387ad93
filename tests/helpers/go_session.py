"""Plays a recorded session of a Go peer against a live server.

A recording holds ids that only its own server knew: run ids, task tokens, subscription ids. The
player learns what each became in the live answers and pushes, and writes the live ones into what it
sends. So the calls are the Go peer's, byte for byte but for those ids.
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from zapwire.envelope import decode_envelope, decode_respond, decode_submit_reply, encode_request, encode_respond
from zapwire.frame import FrameDecoder, call_frame, frame, split_call
from zapwire.opcodes import Op

VECTORS = Path(__file__).parents[2] / "conformance" / "zapconform" / "vectors"
LEARNED = ("run_id", "task_token", "subscription_id", "activity_id", "activity_task_id")
RESPONDS = range(Op.RESPOND_WORKFLOW_TASK_COMPLETED, Op.RECORD_ACTIVITY_TASK_HEARTBEAT + 1)


@dataclass
class Answer:
    """What the live server answered, beside what the Go server had."""

    opcode: int
    status: int
    body: Any
    error: str
    recorded: dict[str, Any] = field(default_factory=dict)


class Player:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.answers: dict[int, Answer] = {}
        self.pushes: dict[int, deque[dict[str, Any]]] = defaultdict(deque)
        self.pushed: list[int] = []
        self._live: dict[str, str] = {}
        self._decoder = FrameDecoder()
        self._opcodes: dict[int, int] = {}
        self._shook_hands = False

    async def play(self, name: str) -> None:
        """Send every frame of the recording and wait for each answer and push that it has."""
        lines = (VECTORS / name).read_text().splitlines()
        assert lines, f"{name} is empty"
        for line in lines:
            recorded = json.loads(line)
            reading, payload = recorded["decoded"], bytes.fromhex(recorded["hex"])[4:]
            if recorded["dir"] == "c2s":
                await self._send(reading, payload)
            elif reading["kind"] == "handshake":
                while not self._shook_hands:
                    await self._receive()
            elif reading["kind"] == "response":
                answer = await self.answer(reading["req_id"])
                answer.recorded = reading
                self._learn(reading.get("body"), answer.body)
            else:
                opcode = int(reading["opcode"], 16)
                while not self.pushes[opcode]:
                    await self._receive()
                self._learn(reading["body"], self.pushes[opcode].popleft())

    async def answer(self, request_id: int) -> Answer:
        while request_id not in self.answers:
            await self._receive()
        return self.answers[request_id]

    async def _send(self, reading: dict[str, Any], payload: bytes) -> None:
        kind, request_id, message = split_call(payload)
        if reading["kind"] != "request":
            await self.stream.send_all(frame(payload))
            return
        opcode = int(reading["opcode"], 16)
        self._opcodes[request_id] = opcode
        if opcode in RESPONDS:
            token, data = decode_respond(message)
            message = encode_respond(opcode, self._translate(bytes(token)), self._translate(bytes(data)))
        elif opcode not in (Op.TASK_SUBMIT, Op.TASK_SCHEDULE):
            message = encode_request(opcode, self._translate(bytes(decode_envelope(message).body)))
        await self.stream.send_all(call_frame(request_id, kind, message))

    def _translate(self, data: bytes) -> bytes:
        for recorded, live in sorted(self._live.items(), key=lambda pair: -len(pair[0])):  # a token holds a run id
            data = data.replace(recorded.encode(), live.encode())
        return data

    def _learn(self, recorded: Any, live: Any) -> None:
        if isinstance(recorded, dict) and isinstance(live, dict):
            for key in LEARNED:
                if recorded.get(key) and live.get(key):
                    self._live[recorded[key]] = live[key]

    async def _receive(self) -> None:
        with trio.fail_after(5):
            data = await self.stream.receive_some()
        assert data, "the server closed the connection"
        for payload in self._decoder.feed(data):
            if not self._shook_hands:
                (length,) = struct.unpack_from("<I", payload, 76)
                assert 1 <= length <= 60
                self._shook_hands = True
                continue
            kind, request_id, message = split_call(payload)
            if kind == 2:
                self.answers[request_id] = self._read_answer(self._opcodes[request_id], bytes(message))
            else:
                envelope = decode_envelope(message)
                self.pushed.append(envelope.opcode)
                self.pushes[envelope.opcode].append(json.loads(bytes(envelope.body)))

    def _read_answer(self, opcode: int, message: bytes) -> Answer:
        if opcode in (Op.TASK_SUBMIT, Op.TASK_SCHEDULE):
            status, body = decode_submit_reply(message)
            return Answer(opcode, status, json.loads(bytes(body)), "")
        envelope = decode_envelope(message)
        return Answer(
            opcode, envelope.status, json.loads(bytes(envelope.body)) if len(envelope.body) else None, envelope.error
        )
