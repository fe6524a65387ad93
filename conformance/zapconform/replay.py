"""Replays a recorded session of a Go peer against the target, and judges each answer.

The frames are the recording's, but for what cannot be: tokens, run ids and subscription ids are the
ones that the target gave out in the recorded ones' place, and names get a suffix so that a replay
disturbs nobody. Judged is what wire.md rules and not what the recorded server answered: where that
server read an opcode differently from its own SDK, the right answer is another.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import Failed, Unsupported, shown
from zapconform.codec import Message, Unreadable, parse
from zapconform.peer import Json, Peer, Reply, call_message, first_push, payload_value
from zapconform.trial import Trial

NAMES = frozenset({"workflow_id", "workflowId", "task_queue", "taskQueue", "schedule_id", "scheduleId", "id", "name"})
"""Keys whose values are names that the recorded client chose."""

GIVEN_OUT = frozenset(
    {"workflow_id", "run_id", "task_token", "token", "activity_id", "activity_task_id", "subscription_id"}
)
"""Keys whose values the server chose, or repeats."""

COMPARED = frozenset(
    {
        "workflow_type_name",
        "activity_type_name",
        "input",
        "result",
        "failure",
        "start_to_close_timeout_ms",
        "heartbeat_timeout_ms",
        "query_type",
        "args",
    }
)
"""Keys of a push that must hold what the recorded push held."""

QUERY_SECONDS = 12.0
"""A server waits five seconds for a worker's answer to a query; a recorded Go worker never gives one."""

MOVED = 1 << 30
"""Added to the request id of an answer that goes out on another connection than the recorded one."""

CANCELING, CANCELED = 0, 4

NAMESPACE_OPCODES = frozenset({op.REGISTER_NAMESPACE, op.DESCRIBE_NAMESPACE})


@dataclass(frozen=True)
class Row:
    """One recorded frame."""

    number: int
    connection: int
    from_client: bool
    payload: bytes
    """Without its length prefix."""


def read_recording(path: Path) -> list[Row]:
    """Raises ValueError for a file that is no recording."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    rows = [_read_row(number, line) for number, line in lines if line.strip()]
    if not any(row.from_client for row in rows):
        raise ValueError("no frames from a client")
    return rows


def _read_row(number: int, line: str) -> Row:
    try:
        entry = json.loads(line)
        data = bytes.fromhex(entry["hex"])
        row = Row(entry.get("n", number), entry.get("conn", 1), entry["dir"] == "c2s", data[4:])
    except (KeyError, TypeError, AttributeError, ValueError) as reason:
        raise ValueError(f"line {number} is no recorded frame: {reason!r}") from None
    if len(data) < 4 or len(data) != 4 + int.from_bytes(data[:4], "little"):
        raise ValueError(f"line {number}: {len(data)} bytes are not one frame")
    return row


@dataclass
class Pending:
    """A call of the recording, with the request id that it has now."""

    row: Row
    peer: Peer
    request_id: int
    opcode: int
    body: Json


@dataclass
class Replay:
    trial: Trial
    peers: dict[int, Peer] = field(default_factory=dict)
    now: dict[str, str] = field(default_factory=dict)
    """What stands today for a recorded id or name."""
    holders: dict[str, Peer] = field(default_factory=dict)
    """Who was given the task of this recorded token: a server may choose another worker than the recorded one."""
    pending: dict[tuple[int, int], Pending] = field(default_factory=dict)
    workflows: dict[str, bool] = field(default_factory=dict)
    """Workflow ids that exist, and whether they exist only since a fault of the recorded server is mended."""
    schedules: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    judged: int = 0

    def run(self, rows: Iterable[Row]) -> None:
        for row in rows:
            try:
                if row.from_client:
                    self._send(row)
                else:
                    self._expect(row)
            except (Failed, Unsupported) as problem:
                self._problem(row, str(problem))
            if any(peer.connection.ended for peer in self.peers.values()):
                break
        for call in list(self.pending.values()):
            self._judge(call, recorded=None)  # the recorded server never answered these

    def _problem(self, row: Row, text: str) -> None:
        self.problems.append(f"frame {row.number}, {wire.describe(row.payload)[:80]}: {text}")

    # --- what the client sent ------------------------------------------------------------------------

    def _send(self, row: Row) -> None:
        header = wire.correlated(row.payload)
        if row.connection not in self.peers:
            recorded = wire.read_hello(row.payload).node_id.decode()
            self.peers[row.connection] = self.trial.peer(f"c{row.connection}", self._renamed(recorded)[-60:])
            return
        peer = self.peers[row.connection]
        if header is None:
            peer.connection.send_frame(row.payload)
            return
        request = parse(header.message)
        message, body = self._rewritten(request, header.message)
        request_id = header.request_id
        if request.opcode in op.WORKER_ANSWERS:
            holder = self.holders.get(request.root().text(0), peer)
            peer, request_id = holder, request_id + (0 if holder is peer else MOVED)
        peer.send_message(message, request.opcode, request_id)
        key = (row.connection, header.request_id)
        self.pending[key] = Pending(row, peer, request_id, request.opcode, body)

    def _rewritten(self, request: Message, original: bytes) -> tuple[bytes, Json]:
        """The request with today's ids and names, and its body (empty for a binary frame)."""
        root = request.root()
        match request.opcode:
            case op.TASK_SUBMIT:
                name = self._renamed(root.text(0))
                return wire.task_submit(name, root.bytes(8), root.bytes(16)), {"name": name}
            case op.TASK_SCHEDULE:
                name = self._renamed(root.text(0))
                self.trial.delete_later(name)
                message = wire.task_schedule(name, interval=root.text(16), cron=root.text(24), options=root.bytes(8))
                return message, {"name": name, "interval": root.text(16)}
            case opcode if opcode in op.WORKER_ANSWERS:
                token = root.text(0)
                return wire.worker_answer(opcode, self.now.get(token, token).encode(), root.bytes(8)), {}
        try:
            recorded = wire.parse_json(root.bytes(0) or b"{}")
        except ValueError:
            return original, {}
        body = self._today(recorded, request.opcode)
        if not isinstance(body, dict):
            return original, {}
        return (original if body == recorded else call_message(request.opcode, body)), body

    def _today(self, value: Any, opcode: int, key: str = "") -> Any:
        """A recorded body with today's values."""
        match value:
            case dict():
                return {name: self._today(item, opcode, name) for name, item in value.items()}
            case list():
                return [self._today(item, opcode, key) for item in value]
            case str() if key == "namespace" or (key == "name" and opcode in NAMESPACE_OPCODES):
                return self._namespace(value)
            case str() if value in self.now and key in GIVEN_OUT | NAMES:
                return self.now[value]
            case str() if key in NAMES and value:
                return self._renamed(value)
        return value

    def _namespace(self, recorded: str) -> str:
        """Namespaces cannot be deleted, so a replay's are the same ones in every run."""
        return self.trial.namespace if recorded in ("", "default") else f"zapconform-{recorded}"

    def _renamed(self, recorded: str) -> str:
        return self.now.setdefault(recorded, f"{recorded}-{self.trial.suffix}")

    # --- what the server should say --------------------------------------------------------------------

    def _expect(self, row: Row) -> None:
        if wire.is_hello(row.payload):
            return
        header = wire.correlated(row.payload)
        peer = self.peers[row.connection]
        if header is not None:
            call = self.pending.pop((row.connection, header.request_id), None)
            if call is None:
                raise Failed(expected="an answer to a recorded call", actual="an answer to none")
            self._judge(call, header.message)
            return
        try:
            envelope = wire.read_envelope(row.payload)
            recorded = wire.parse_json(envelope.body)
        except (Unreadable, ValueError):
            return
        if envelope.opcode in op.PUSHES and isinstance(recorded, dict):
            self._expect_push(peer, envelope.opcode, recorded)

    def _expect_push(self, peer: Peer, opcode: int, recorded: Json) -> None:
        self.judged += 1

        def same(body: Json) -> bool:
            ids = [k for k in ("workflow_id", "activity_id", "run_id") if self.now.get(str(recorded.get(k)))]
            return all(body.get(key) == self.now[recorded[key]] for key in ids)

        peers = [peer, *(other for other in self.peers.values() if other is not peer)]
        holder, push = first_push(peers, opcode, self.trial.timeout, same)
        for key in sorted(COMPARED & recorded.keys()):
            if payload_value(push.body.get(key)) != payload_value(recorded[key]):
                raise Failed(
                    expected=f"`{key}` {shown(recorded[key])} in {op.name_of(opcode)}", actual=shown(push.body)
                )
        self._learn(recorded, push.body)
        if token := recorded.get("task_token"):
            self.holders[token] = holder

    def _learn(self, recorded: object, today: object, key: str = "") -> None:
        """Remember which id of today stands for which recorded one."""
        if isinstance(recorded, dict) and isinstance(today, dict):
            for name, value in recorded.items():
                self._learn(value, today.get(name), name)
        elif key in GIVEN_OUT and isinstance(recorded, str) and isinstance(today, str):
            self.now.setdefault(recorded, today)

    def _judge(self, call: Pending, recorded: bytes | None) -> None:
        self.judged += 1
        try:
            self._judge_answer(call, recorded)
        except (Failed, Unsupported) as problem:
            self._problem(call.row, str(problem))

    def _judge_answer(self, call: Pending, recorded: bytes | None) -> None:
        seconds = max(QUERY_SECONDS, self.trial.timeout) if call.opcode == op.QUERY else None
        reply = call.peer.reply(call.request_id, seconds)
        if call.opcode in op.BINARY:
            judge_binary(self, call, reply)
            return
        if call.opcode in op.WORKER_ANSWERS:
            judge_worker_answer(call.opcode, reply, recorded)
            return
        was = wire.read_envelope(recorded) if recorded is not None else None
        match ruling(self, call, was):
            case Ruling.SUCCESS:
                body = reply.ok()
                note_effects(self, call, body)
                if was is not None and was.status in (0, 200):
                    self._learn(wire.parse_json(was.body or b"null"), body)
                judge_body(self, call, body, was)
            case Ruling.REFUSAL:
                reply.refused()
            case Ruling.NOT_SERVED:
                reply.refused(501)
            case Ruling.ANY:
                pass


# --- the rulings -----------------------------------------------------------------------------------------


def identifier(body: Json, what: str) -> str:
    return str(body.get(f"{what}_id") or body.get(f"{what}Id") or "")


def is_signal_with_start(call: Pending) -> bool:
    return call.opcode == op.SIGNAL_WITH_START or (
        call.opcode == op.HISTORY and bool(call.body.get("signal_name") or call.body.get("signalName"))
    )


class Ruling(enum.Enum):
    """What the answer to a call has to be."""

    SUCCESS = enum.auto()
    REFUSAL = enum.auto()
    NOT_SERVED = enum.auto()
    ANY = enum.auto()


def ruling(replay: Replay, call: Pending, was: wire.Envelope | None) -> Ruling:
    """What wire.md wants, given what the recorded server answered (None: nothing)."""
    if call.opcode not in op.CALLS:
        return Ruling.NOT_SERVED
    schedule, workflow = identifier(call.body, "schedule"), identifier(call.body, "workflow")
    succeeded = was is not None and was.status in (0, 200)
    match call.opcode:
        case _ if is_signal_with_start(call):
            wanted = bool(call.body.get("workflow_type"))
        case op.LIST_NAMESPACES:
            wanted = True
        case op.REGISTER_NAMESPACE:
            wanted = succeeded or bool(call.body.get("name"))
        case op.DESCRIBE_NAMESPACE:
            name = call.body.get("name") or call.body.get("namespace")
            wanted = succeeded or name == replay.trial.namespace or name in replay.namespaces
        case op.DELETE_OR_LIST_SCHEDULES | op.LIST_OR_DELETE_SCHEDULES:
            if schedule and schedule not in replay.schedules:
                return Ruling.ANY  # deleting nothing is a success to some and a 404 to others
            wanted = True
        case opcode if op.CREATE_SCHEDULE < opcode <= op.DESCRIBE_SCHEDULE:
            wanted = schedule in replay.schedules
        case opcode if op.SIGNAL <= opcode <= op.RESET and replay.workflows.get(workflow) and opcode != op.QUERY:
            wanted = True  # it exists here; the recorded server had not started it
        case _ if was is None:
            return Ruling.ANY
        case _:
            wanted = succeeded
    return Ruling.SUCCESS if wanted else Ruling.REFUSAL


def note_effects(replay: Replay, call: Pending, answer: Json) -> None:
    """Keep account of what exists now."""
    trial = replay.trial
    schedule = identifier(call.body, "schedule")
    if call.opcode == op.START or is_signal_with_start(call):
        workflow = str(answer.get("workflow_id"))
        replay.workflows.setdefault(workflow, call.opcode == op.HISTORY)
        trial.terminate_later({"workflow_id": workflow, "run_id": answer.get("run_id", "")})
    elif call.opcode == op.REGISTER_NAMESPACE:
        replay.namespaces.add(str(call.body.get("name")))
    elif call.opcode == op.CREATE_SCHEDULE:
        replay.schedules.add(schedule)
        trial.terminate_queue_later(call.body.get("schedule", {}).get("action", {}).get("task_queue", ""))
        trial.delete_later(schedule)
    elif call.opcode in (op.DELETE_OR_LIST_SCHEDULES, op.LIST_OR_DELETE_SCHEDULES) and schedule:
        replay.schedules.discard(schedule)
        replay.deleted.add(schedule)


def judge_binary(replay: Replay, call: Pending, reply: Reply) -> None:
    """0x50 and 0x51: a u32 status at 0 that says yes, but for an interval that never comes round."""
    interval = str(call.body.get("interval", ""))
    if interval.startswith("-") or (interval and not set(interval) & set("123456789")):
        reply.refused(400)
        return
    reply.succeeded()
    try:
        answer = wire.parse_json(reply.envelope.body or b"{}")
    except ValueError:
        return
    if isinstance(answer, dict) and answer.get("workflow_id"):
        replay.trial.terminate_later({"workflow_id": answer["workflow_id"]})


def judge_worker_answer(opcode: int, reply: Reply, recorded: bytes | None) -> None:
    was = wire.read_envelope(recorded).status if recorded is not None else 200
    if was not in (0, 200):
        reply.refused()
    elif opcode == op.HEARTBEAT:
        if reply.status != 0:
            raise Failed(expected="status 0 in the heartbeat's ack (Go reads byte 8 as a cancel)", actual=str(reply))
    else:
        reply.succeeded()


REQUIRED_KEYS: dict[int, tuple[str, ...]] = {
    op.START: ("workflow_id", "run_id"),
    op.SIGNAL: ("status",),
    op.CANCEL: ("workflow_id", "run_id", "status", "history_length"),
    op.TERMINATE: ("workflow_id", "run_id", "status", "history_length"),
    op.DESCRIBE: ("info",),
    op.LIST: ("executions",),
    op.HISTORY: ("events", "next_cursor"),
    op.QUERY: ("query_result", "result"),
    op.RESET: ("run_id", "status"),
    op.SCHEDULE_ACTIVITY: ("activity_task_id", "task_token"),
    op.CREATE_SCHEDULE: ("id", "spec", "action", "paused"),
    op.DESCRIBE_SCHEDULE: ("id", "spec", "action", "paused", "schedule", "info"),
    op.PAUSE_SCHEDULE: ("status",),
    op.DESCRIBE_NAMESPACE: ("namespaceInfo", "namespace"),
    op.LIST_NAMESPACES: ("namespaces",),
    op.HEALTH: ("service", "status", "namespace"),
    op.SUBSCRIBE_WORKFLOWS: ("subscription_id",),
    op.SUBSCRIBE_ACTIVITIES: ("subscription_id",),
    op.UNSUBSCRIBE: ("ok",),
    op.ANSWER_QUERY: ("ok",),
}


def judge_body(replay: Replay, call: Pending, body: Json, was: wire.Envelope | None) -> None:
    """A successful answer has the keys that its readers look for, and says what is so."""
    wanted: tuple[str, ...] = REQUIRED_KEYS.get(call.opcode, ())
    schedule = identifier(call.body, "schedule")
    if is_signal_with_start(call):
        wanted = ("workflow_id", "run_id")
    elif call.opcode in (op.DELETE_OR_LIST_SCHEDULES, op.LIST_OR_DELETE_SCHEDULES):
        wanted = ("status",) if schedule else ("schedules",)
    missing = [key for key in wanted if key not in body]
    if missing:
        raise Failed(expected=f"{', '.join(missing)} in the answer to {op.name_of(call.opcode)}", actual=shown(body))
    if "schedules" in wanted:
        judge_schedules(replay, body)
    if call.opcode == op.DESCRIBE and was is not None and was.status in (0, 200):
        judge_info(body, wire.parse_json(was.body))


def judge_schedules(replay: Replay, body: Json) -> None:
    listed = {entry.get("id") for entry in body["schedules"]}
    if not replay.schedules <= listed or replay.deleted & listed:
        raise Failed(
            expected=f"schedules {sorted(replay.schedules)} and not {sorted(replay.deleted)}", actual=shown(body)
        )


def judge_info(body: Json, was: Json) -> None:
    """Status and type are as recorded; lengths and times may differ, and what is CANCELING may be CANCELED already."""
    recorded, info = was["info"], body["info"]
    statuses = {recorded.get("status")} | ({CANCELED} if recorded.get("status") == CANCELING else set())
    if info.get("status") not in statuses or info.get("workflow_type") != recorded.get("workflow_type"):
        raise Failed(expected=f"status {recorded.get('status')} of {recorded.get('workflow_type')}", actual=shown(body))


def replay_recording(trial: Trial, rows: list[Row]) -> None:
    """The body of a recording's case."""
    replay = Replay(trial)
    replay.run(rows)
    if not replay.judged:
        raise Failed(expected="a recording with answers or pushes to judge", actual="none")
    if replay.problems:
        raise Failed(expected=f"all of {replay.judged} answers as ruled", actual="\n".join(replay.problems))
