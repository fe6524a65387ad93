"""The one registry of opcodes. Dispatch, documentation, `inspect` and conformance read it.

An opcode is the upper 8 bits of a message's flags. Everything that the Go system ever used or set aside stays
as it was; what is ours comes from the free ranges. Both rules, and that no number or name occurs twice, are
checked when this module is imported.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@enum.unique
class Op(enum.IntEnum):
    """Every opcode's number."""

    TASK_SUBMIT = 0x50
    TASK_SCHEDULE = 0x51

    START_WORKFLOW = 0x60
    SIGNAL_WORKFLOW = 0x61
    CANCEL_WORKFLOW = 0x62
    TERMINATE_WORKFLOW = 0x63
    DESCRIBE_WORKFLOW = 0x64
    LIST_WORKFLOWS = 0x65
    GET_WORKFLOW_HISTORY = 0x66
    QUERY_WORKFLOW = 0x67
    RESET_WORKFLOW = 0x68
    SIGNAL_WITH_START = 0x69
    SCHEDULE_ACTIVITY = 0x6B
    WAIT_ACTIVITY_RESULT = 0x6C
    START_CHILD_WORKFLOW = 0x6D

    CREATE_SCHEDULE = 0x70
    DELETE_SCHEDULE = 0x71
    LIST_SCHEDULES = 0x72
    PAUSE_SCHEDULE = 0x73
    UNPAUSE_SCHEDULE = 0x74
    TRIGGER_SCHEDULE = 0x75
    DESCRIBE_SCHEDULE = 0x76

    REGISTER_NAMESPACE = 0x80
    DESCRIBE_NAMESPACE = 0x81
    LIST_NAMESPACES = 0x82

    HEALTH = 0x90
    AWAIT_EXECUTION = 0x91
    ABANDON_CALL = 0x92
    LIST_DEAD_LETTERS = 0x93
    REQUEUE_DEAD_LETTER = 0x94
    HAND_BACK_TASK = 0x95
    EXPLAIN = 0x96
    GRANT_CREDITS = 0x97
    BACKFILL_SCHEDULE = 0x98
    MATCHING_TIMES = 0x99
    UPDATE_WORKFLOW = 0x9A
    UPDATE_WITH_START = 0x9E

    SUBSCRIBE_WORKFLOW_TASKS = 0xA0
    SUBSCRIBE_ACTIVITY_TASKS = 0xA1
    RESPOND_WORKFLOW_TASK_COMPLETED = 0xA2
    RESPOND_ACTIVITY_TASK_COMPLETED = 0xA3
    RESPOND_ACTIVITY_TASK_FAILED = 0xA4
    RECORD_ACTIVITY_TASK_HEARTBEAT = 0xA5
    UNSUBSCRIBE_TASKS = 0xA6

    DELIVER_WORKFLOW_TASK = 0xB0
    DELIVER_ACTIVITY_TASK = 0xB1
    DELIVER_ACTIVITY_RESULT = 0xB2
    DELIVER_CANCEL_REQUEST = 0xB3
    DELIVER_QUERY = 0xB4
    DELIVER_ACTIVITY_CANCEL = 0xB5

    RESPOND_QUERY = 0xC4

    ERROR = 0xFF


class Direction(enum.StrEnum):
    """Who sends the message that carries the opcode. Answers to calls carry none."""

    TO_SERVER = "client->server"
    TO_WORKER = "server->worker"


class Kind(enum.StrEnum):
    """Whether the sender waits for an answer."""

    CALL = "call"
    ONE_WAY = "one-way"


class Layout(enum.StrEnum):
    """The root object of the message; `layouts` declares each of them."""

    ENVELOPE = "envelope"  # answered with an envelope
    RESPOND = "respond"  # answered with an envelope that has no body
    SUBMIT = "submit"  # answered with a submit reply
    SCHEDULE = "schedule"  # answered with a submit reply


@dataclass(frozen=True, slots=True)
class Opcode:
    """What the registry knows of one opcode.

    `request` and `response` name the fields of the bodies; a `?` marks those that may be absent. `since` is `v1`
    for what the Go system defines and our version for what we added. `served` says that this version's server
    answers it, or sends it where it is the sender.
    """

    op: Op
    direction: Direction
    kind: Kind
    layout: Layout
    request: tuple[str, ...]
    response: tuple[str, ...]
    since: str
    served: bool
    note: str

    @property
    def number(self) -> int:
        """The number, 1 to 255."""
        return int(self.op)

    @property
    def name(self) -> str:
        """The name as written in documents, such as `StartWorkflow`."""
        return self.op.name.title().replace("_", "")


V1: Final = "v1"
OURS: Final = "0.1"

FREE_RANGES: Final = (range(0x91, 0xA0), range(0xB5, 0xC0), range(0xC0, 0xC4), range(0xC5, 0xFF))
"""Where new opcodes may come from. Every other number belongs to the Go system, used or not."""


def _call(op: Op, request: str, response: str, note: str = "", *, since: str = V1, served: bool = True) -> Opcode:
    fields = tuple(request.split()), tuple(response.split())
    return Opcode(op, Direction.TO_SERVER, Kind.CALL, Layout.ENVELOPE, *fields, since, served, note)


def _respond(op: Op, payload: str, note: str = "", *, since: str = V1) -> Opcode:
    fields = ("task_token", payload), ("status", "error?")
    return Opcode(op, Direction.TO_SERVER, Kind.CALL, Layout.RESPOND, *fields, since, True, note)


def _one_way(op: Op, request: str, note: str = "", *, since: str = V1) -> Opcode:
    fields = tuple(request.split())
    return Opcode(op, Direction.TO_SERVER, Kind.ONE_WAY, Layout.ENVELOPE, fields, (), since, True, note)


def _push(op: Op, request: str, note: str = "", *, since: str = V1) -> Opcode:
    fields = tuple(request.split())
    return Opcode(op, Direction.TO_WORKER, Kind.ONE_WAY, Layout.ENVELOPE, fields, (), since, True, note)


_RUN: Final = "namespace? workflow_id run_id?"
_INFO: Final = "workflow_id run_id workflow_type status history_length task_queue start_time? close_time?"
_SIGNAL: Final = "signal_name signal_input? "
_PAGE: Final = "page_size? next_page_token?"
_START: Final = "namespace? workflow_type task_queue? workflow_id? run_id? input? "
_START_MORE: Final = (
    "request_id? retry_policy? timeouts? memo? search_attributes? cron_schedule? identity? id_reuse_policy?"
    " id_conflict_policy? headers? eager_subscription?"
)
_UPDATE: Final = "update_name update_id? args? wait?"
_UPDATED: Final = "workflow_id run_id update_id stage result? failure?"
_SCHEDULE: Final = "id spec action paused schedule info"
_SUBSCRIBE: Final = "namespace? task_queue identity? sdk_name? sdk_version? build_id? slots? types?"
_STARTS_NOTE: Final = (
    "id_reuse_policy and what follows it are ours: headers is an object of texts, eager_subscription names a worker of"
    " the starter's own, which gets the first workflow task if it has a slot free"
)

OPCODES: Final = (
    Opcode(
        Op.TASK_SUBMIT,
        Direction.TO_SERVER,
        Kind.CALL,
        Layout.SUBMIT,
        ("task_type", "payload?", "options?"),
        ("status", "body?"),
        V1,
        True,
        "the Now client's; options are ours",
    ),
    Opcode(
        Op.TASK_SCHEDULE,
        Direction.TO_SERVER,
        Kind.CALL,
        Layout.SCHEDULE,
        ("name", "interval?", "cron?", "options?"),
        ("status", "body?"),
        V1,
        True,
        "the Add client's; options are ours",
    ),
    _call(Op.START_WORKFLOW, _START + _START_MORE, "workflow_id run_id", _STARTS_NOTE),
    _call(
        Op.SIGNAL_WORKFLOW,
        _RUN + " signal_name input? identity? request_id?",
        "status",
        "request_id is ours: a second signal with it is taken for the same",
    ),
    _call(Op.CANCEL_WORKFLOW, _RUN + " reason? identity?", _INFO),
    _call(Op.TERMINATE_WORKFLOW, _RUN + " reason? identity?", _INFO),
    _call(Op.DESCRIBE_WORKFLOW, _RUN, "info"),
    _call(Op.LIST_WORKFLOWS, "namespace? query? " + _PAGE, "executions next_page_token?"),
    _call(
        Op.GET_WORKFLOW_HISTORY,
        _RUN + " after_event_id? page_size? reverse? signal_name? wait?",
        "events next_cursor run_id? is_open?",
        "with signal_name it is signal-with-start, fields and all; wait, and what it brings, is ours: answered once"
        " there is an event past after_event_id, or the run is closed",
    ),
    _call(Op.QUERY_WORKFLOW, _RUN + " query_type args? query_args?", "query_result result"),
    _call(Op.RESET_WORKFLOW, _RUN + " event_id? reason? identity?", _INFO),
    _call(Op.SIGNAL_WITH_START, _START + _SIGNAL + _START_MORE, "workflow_id run_id", _STARTS_NOTE),
    _call(
        Op.SCHEDULE_ACTIVITY,
        _RUN + " task_queue? activity_type input? start_to_close_ms? heartbeat_ms? schedule_to_start_ms?"
        " schedule_to_close_ms? retry_policy?",
        "activity_task_id task_token",
    ),
    _call(Op.WAIT_ACTIVITY_RESULT, "", "", "retired by the Go system; the result is pushed", served=False),
    _call(Op.START_CHILD_WORKFLOW, "", "", "never served by the Go system", served=False),
    _call(Op.CREATE_SCHEDULE, "namespace? schedule_id schedule", _SCHEDULE),
    _call(Op.DELETE_SCHEDULE, "namespace? schedule_id? " + _PAGE, "status", "without schedule_id it lists"),
    _call(Op.LIST_SCHEDULES, "namespace? schedule_id? " + _PAGE, "schedules", "with schedule_id it deletes"),
    _call(Op.PAUSE_SCHEDULE, "namespace? schedule_id paused? note?", "status"),
    _call(Op.UNPAUSE_SCHEDULE, "namespace? schedule_id schedule?", "status", "with schedule it updates"),
    _call(
        Op.TRIGGER_SCHEDULE, "namespace? schedule_id overlap_policy? request_id?", "status workflow_id? run_id? reason?"
    ),
    _call(Op.DESCRIBE_SCHEDULE, "namespace? schedule_id", _SCHEDULE),
    _call(
        Op.REGISTER_NAMESPACE, "name? namespaceInfo? description? owner_email? retention_ms?", "namespaceInfo namespace"
    ),
    _call(Op.DESCRIBE_NAMESPACE, "name? namespace?", "namespaceInfo config namespace"),
    _call(Op.LIST_NAMESPACES, _PAGE, "namespaces next_page_token?"),
    _call(
        Op.HEALTH,
        "",
        "service status namespace durability? store? queued_bytes? refused?",
        "what follows namespace is ours",
    ),
    _call(
        Op.AWAIT_EXECUTION,
        _RUN + " follow?",
        "workflow_id run_id status status_name result? failure? reason? new_run_id?",
        "answered when the execution closes; with follow, when the last run of its chain does",
        since=OURS,
    ),
    _one_way(Op.ABANDON_CALL, "request_id", "its sender no longer waits for that call's answer", since=OURS),
    _call(Op.LIST_DEAD_LETTERS, "namespace? page_size?", "dead_letters", since=OURS),
    _call(Op.REQUEUE_DEAD_LETTER, _RUN, "workflow_id run_id", since=OURS),
    _respond(Op.HAND_BACK_TASK, "reason?", "a draining worker returns a task; no attempt is charged", since=OURS),
    _call(Op.EXPLAIN, _RUN, "info waits_for", "what an open execution waits for", since=OURS),
    _one_way(Op.GRANT_CREDITS, "subscription_id slots", "changes a subscription's slots", since=OURS),
    _call(
        Op.BACKFILL_SCHEDULE,
        "namespace? schedule_id start_time_ms end_time_ms overlap_policy? request_id?",
        "status slots",
        "acts on the slots of a range of the past",
        since=OURS,
    ),
    _call(
        Op.MATCHING_TIMES,
        "namespace? schedule_id? schedule? start_time_ms? end_time_ms?",
        "matching_times",
        "of a schedule, or of the spec in `schedule`",
        since=OURS,
    ),
    _call(
        Op.UPDATE_WORKFLOW,
        _RUN + " " + _UPDATE,
        _UPDATED,
        "answered when the workflow accepted it, or completed it, as wait says; a rejection is status 400",
        since=OURS,
    ),
    _call(
        Op.UPDATE_WITH_START,
        _START + _UPDATE + " " + _START_MORE,
        _UPDATED,
        "starts the workflow if it is not open (id_conflict_policy is use-existing by default), then as UpdateWorkflow",
        since=OURS,
    ),
    _call(
        Op.SUBSCRIBE_WORKFLOW_TASKS,
        _SUBSCRIBE + " replays?",
        "subscription_id",
        "build_id, slots, types and replays are ours",
    ),
    _call(
        Op.SUBSCRIBE_ACTIVITY_TASKS,
        _SUBSCRIBE + " per_second? queue_per_second?",
        "subscription_id",
        "build_id, slots, types and what follows are ours: deliveries a second, to this connection's subscriptions that"
        " state a rate, and to all workers of the queue, of whose rates the smallest counts",
    ),
    _respond(
        Op.RESPOND_WORKFLOW_TASK_COMPLETED,
        "commands?",
        "kinds that are names are ours, for workers that subscribed with replays",
    ),
    _respond(Op.RESPOND_ACTIVITY_TASK_COMPLETED, "result?"),
    _respond(Op.RESPOND_ACTIVITY_TASK_FAILED, "failure?"),
    _respond(
        Op.RECORD_ACTIVITY_TASK_HEARTBEAT, "details?", "status 0: go on; 200: the Go SDK reads it as cancel requested"
    ),
    _call(Op.UNSUBSCRIBE_TASKS, "subscription_id", "ok"),
    _push(
        Op.DELIVER_WORKFLOW_TASK,
        "task_token workflow_id run_id workflow_type_name input? attempt? history? previous_event_id? last_event_id?"
        " next_event_id? task_timeout_ms? updates? headers?",
        "attempt and what follows it are ours; a worker that replays gets the history, without input and headers",
    ),
    _push(
        Op.DELIVER_ACTIVITY_TASK,
        "task_token workflow_id run_id activity_id activity_type_name input? scheduled_time_ms"
        " start_to_close_timeout_ms? heartbeat_timeout_ms? attempt? maximum_attempts? kind? heartbeat_details?"
        " headers?",
        "attempt and what follows it are ours",
    ),
    _push(Op.DELIVER_ACTIVITY_RESULT, "activity_id result? failure?"),
    _push(Op.DELIVER_CANCEL_REQUEST, _RUN + " reason? identity?"),
    _push(Op.DELIVER_QUERY, "token " + _RUN + " query_type args?", "args are base64; answered by 0xC4"),
    _push(Op.DELIVER_ACTIVITY_CANCEL, "task_token reason?", since=OURS),
    _call(Op.RESPOND_QUERY, "token result? error?", "ok"),
    _call(Op.ERROR, "", "", "set aside by the Go system and never used", served=False),
)

by_number: Final[Mapping[int, Opcode]] = MappingProxyType({opcode.number: opcode for opcode in OPCODES})
by_name: Final[Mapping[str, Opcode]] = MappingProxyType({opcode.name: opcode for opcode in OPCODES})


def describe(number: int) -> str:
    """A number for eyes: `0x60 StartWorkflow`, or `0x6A unknown`."""
    opcode = by_number.get(number)
    return f"0x{number:02X} {opcode.name if opcode else 'unknown'}"


def opcode_table() -> list[tuple[str, str, str, str, str, str, str, str, str]]:
    """One row of text for each opcode, by number.

    The columns: number, name, direction, kind, request, response, since, served, note.
    """
    return [
        (
            f"0x{opcode.number:02X}",
            opcode.name,
            opcode.direction,
            opcode.kind,
            " ".join(opcode.request),
            " ".join(opcode.response),
            opcode.since,
            "yes" if opcode.served else "no",
            opcode.note,
        )
        for opcode in OPCODES
    ]


def check_registry(opcodes: tuple[Opcode, ...]) -> None:
    """Raise `ValueError` for a number or name used twice, an opcode left out, or a number from the wrong range."""
    numbers = [opcode.number for opcode in opcodes]
    names = [opcode.name for opcode in opcodes]
    if numbers != sorted(set(numbers)) or len(set(names)) != len(names):
        raise ValueError("opcodes must be listed once each, in the order of their numbers")
    missing = set(Op) - {opcode.op for opcode in opcodes}
    if missing:
        raise ValueError(f"opcodes without a row: {sorted(op.name for op in missing)}")
    for opcode in opcodes:
        free = any(opcode.number in numbers for numbers in FREE_RANGES)
        if free == (opcode.since == V1):
            belongs = "a free range" if free else "the Go system"
            raise ValueError(f"{describe(opcode.number)} since {opcode.since}: its number belongs to {belongs}")


check_registry(OPCODES)
