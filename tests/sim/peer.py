"""The client's end of a connection, and the process around it that crashes and starts again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from tests.sim.checkers import Checkers
from tests.sim.network import Cable
from tests.sim.profile import Profile
from tests.sim.server import SimServer
from tests.sim.world import Timer, World

from zapwire.connection import Connection, Ended, HelloReceived, PushReceived, ReplyReceived, Role
from zapwire.envelope import decode_envelope, decode_submit_reply, encode_request, submit_receipt
from zapwire.handshake import Capability, Hello
from zapwire.opcodes import Op

CALL_MS_MAX = 20_000
"""How long a caller waits, unless it waits for an execution to end."""
RECONNECT_MS = (200, 1_500)
RESTART_MS = (600, 5_000)
"""A process that is started again. Longer than what the old one sent is on its way."""

_WAITS = (Op.AWAIT_EXECUTION, Op.UPDATE_WORKFLOW, Op.UPDATE_WITH_START)
"""Calls that are answered when something has happened."""

_decode = msgspec.json.decode


@dataclass(slots=True)
class Answer:
    """`status` is None when the outcome is unknown: no answer came, or none ever will."""

    status: int | None
    body: Any = None
    error: str = ""
    receipt: int = 0

    @property
    def ok(self) -> bool:
        return self.status in (0, 200)

    @property
    def may_pass(self) -> bool:
        """Worth another try: busy, sick, or unknown."""
        return self.status in (None, 429, 503, 507)


OnAnswer = Callable[[Answer], None]


def _nowhere(token: str, heartbeat_ms: int) -> None:
    raise AssertionError(f"nobody takes the token {token}")


@dataclass(slots=True)
class _Pending:
    opcode: int
    sent_ms: int
    on_answer: OnAnswer
    timer: Timer | None = None
    waits: bool = False
    request_id: int = -1
    namespace: str = ""


@dataclass(slots=True)
class Surroundings:
    """What every peer knows."""

    world: World
    profile: Profile
    server: SimServer
    checkers: dict[str, Checkers]
    """By namespace."""
    is_calm: bool = False
    """Faults have stopped: everybody is kind from now on."""
    leave_token: Callable[[str, int], None] = _nowhere
    """Where workers leave the tokens of what they detach, with the heartbeat timeout in milliseconds."""


class Peer:
    """A process with one connection. Whatever it planned is forgotten when it crashes."""

    def __init__(self, around: Surroundings, name: str, namespace: str) -> None:
        self.around = around
        self.world = around.world
        self.name = name
        self.namespace = namespace
        """Where it works; what a call says goes before."""
        self.is_alive = False
        self.cable: Cable | None = None
        self._life = 0
        self._machine: Connection[_Pending] | None = None
        self._is_open = False

    # --- the process ---------------------------------------------------------------------------------

    def start(self) -> None:
        if not self.is_alive:
            self.is_alive = True
            self._connect()

    def crash(self) -> None:
        if not self.is_alive:
            return
        self.is_alive = False
        self._life += 1
        cable = self._hang_up()
        if cable is not None:
            cable.to_client.cut()
            cable.to_server.end()
        self.forget()
        self.world.after(self.world.between(*RESTART_MS), self.start)

    def later(self, ms: int, action: Callable[[], None]) -> Timer:
        """Do it in `ms`, unless the process has crashed."""
        life = self._life

        def unless_crashed() -> None:
            if self._life == life:
                action()

        return self.world.after(ms, unless_crashed)

    # --- the connection ------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self._is_open

    def _connect(self) -> None:
        if self.cable is not None:
            return
        link = self.around.server.accept()
        if link is None:
            self.later(self.world.between(*RECONNECT_MS), self._connect)
            return
        cable = self.cable = link.cable
        self._machine = Connection(Role.CLIENT, Hello(self.name, Capability.RECEIPTS))
        cable.to_client.receive = lambda data: self._receive(cable, data)
        cable.to_server.send(self._machine.hello_frame())

    def _receive(self, cable: Cable, data: bytes) -> None:
        if cable is not self.cable:
            return
        assert self._machine is not None
        if not data:
            self.world.count("connections lost")
            unanswered = list(self._machine.take_in_flight().values())
            self._hang_up()
            cable.to_server.end()
            self.disconnected()
            for pending in unanswered:
                self._answer(pending, Answer(None))
            self.later(self.world.between(*RECONNECT_MS), self._connect)
            return
        for event in self._machine.receive_data(data):
            match event:
                case HelloReceived():
                    self._is_open = True
                    self.connected()
                case ReplyReceived():
                    self._answer(event.caller, self._read(event.caller, event.message))
                case PushReceived():
                    self.pushed(event.envelope.opcode, _decode(event.envelope.body))
                case Ended():
                    self.world.fail("wire", f"the stream to {self.name} broke: {event.error}")
                case _:
                    self.world.fail("wire", f"{self.name} got {event!r}")

    def _hang_up(self) -> Cable | None:
        cable, self.cable = self.cable, None
        self._machine = None
        self._is_open = False
        return cable

    # --- calls ---------------------------------------------------------------------------------------

    @property
    def checkers(self) -> Checkers:
        return self.around.checkers[self.namespace]

    def call(self, opcode: int, body: dict[str, Any], on_answer: OnAnswer) -> None:
        body = {"namespace": self.namespace, **body}
        message = encode_request(opcode, msgspec.json.encode(body))
        waits = body.get("wait") is True
        self.call_raw(opcode, message, on_answer, namespace=body["namespace"], waits=waits)

    def call_raw(
        self, opcode: int, message: bytes, on_answer: OnAnswer, *, namespace: str = "", waits: bool = False
    ) -> None:
        """`on_answer` is called once, unless this process crashes first."""
        if not self._is_open:
            self.later(0, lambda: on_answer(Answer(None)))
            return
        assert self._machine is not None
        assert self.cable is not None
        waits = waits or opcode in _WAITS
        pending = _Pending(opcode, self.world.now_ms, on_answer, namespace=namespace or self.namespace, waits=waits)
        pending.request_id, frame = self._machine.call_raw(message, pending)
        self.world.count(f"call {Op(opcode).name.lower()}")
        self.world.note(self.name, "calls", Op(opcode).name, pending.request_id)
        if opcode != Op.AWAIT_EXECUTION:
            machine = self._machine
            pending.timer = self.later(CALL_MS_MAX, lambda: self._give_up(machine, pending))
        self.cable.to_server.send(frame)

    def abandon_waits(self) -> None:
        """Nobody waits for executions to end any more."""
        assert self._machine is not None
        for pending in list(self._machine.in_flight.values()):
            if pending.opcode == Op.AWAIT_EXECUTION:
                self._give_up(self._machine, pending)

    def _give_up(self, machine: Connection[_Pending], pending: _Pending) -> None:
        if machine is not self._machine or pending.request_id not in machine.in_flight:
            return
        if not pending.waits:
            self._tell_patience(pending, is_answered=False)
        self.world.count("calls given up")
        machine.abandon(pending.request_id)
        assert self.cable is not None
        self.cable.to_server.send(
            machine.push(Op.ABANDON_CALL, msgspec.json.encode({"request_id": pending.request_id}))
        )
        pending.on_answer(Answer(None))

    def _answer(self, pending: _Pending, answer: Answer) -> None:
        if pending.timer is not None:
            pending.timer.cancel()
        if answer.status is not None and not pending.waits:
            self._tell_patience(pending, is_answered=True)
        self.world.count(f"answer {answer.status or 'unknown' if answer.status != 0 else 0}")
        self.world.note(self.name, "hears", Op(pending.opcode).name, pending.request_id, answer.status, answer.error)
        pending.on_answer(answer)

    def _tell_patience(self, pending: _Pending, *, is_answered: bool) -> None:
        cable = self.cable
        if cable is not None and not cable.is_cut and not cable.to_client.is_stalled:
            self.around.checkers[pending.namespace].patience.waited(
                Op(pending.opcode).name, self.name, pending.sent_ms, cable.calm_since_ms, is_answered=is_answered
            )

    @staticmethod
    def _read(pending: _Pending, message: bytes) -> Answer:
        if pending.opcode in (Op.TASK_SUBMIT, Op.TASK_SCHEDULE):
            status, body = decode_submit_reply(message)
            read = _decode(body) if body else None
            error = "" if status == 200 or read is None else str(read.get("error", ""))
            return Answer(status, read, error, submit_receipt(message))
        envelope = decode_envelope(message)
        return Answer(
            envelope.status, _decode(envelope.body) if envelope.body else None, envelope.error, envelope.receipt
        )

    # --- for those who are one -------------------------------------------------------------------------

    def connected(self) -> None:
        """The connection is open."""

    def disconnected(self) -> None:
        """It is over. Calls without an answer get theirs next."""

    def pushed(self, opcode: int, body: Any) -> None:
        """A one-way message."""

    def forget(self) -> None:
        """The process has crashed."""
