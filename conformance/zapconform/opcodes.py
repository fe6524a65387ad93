"""The numbers of the protocol, by name, and what may be said about every other number."""

from __future__ import annotations

TASK_SUBMIT = 0x50
TASK_SCHEDULE = 0x51
START = 0x60
SIGNAL = 0x61
CANCEL = 0x62
TERMINATE = 0x63
DESCRIBE = 0x64
LIST = 0x65
HISTORY = 0x66  # with `signal_name`: signal-with-start, as Go's SDK sends it
QUERY = 0x67
RESET = 0x68
SIGNAL_WITH_START = 0x69
SCHEDULE_ACTIVITY = 0x6B
CREATE_SCHEDULE = 0x70
DELETE_OR_LIST_SCHEDULES = 0x71
LIST_OR_DELETE_SCHEDULES = 0x72
PAUSE_SCHEDULE = 0x73
UPDATE_OR_UNPAUSE_SCHEDULE = 0x74
TRIGGER_SCHEDULE = 0x75
DESCRIBE_SCHEDULE = 0x76
REGISTER_NAMESPACE = 0x80
DESCRIBE_NAMESPACE = 0x81
LIST_NAMESPACES = 0x82
HEALTH = 0x90
SUBSCRIBE_WORKFLOWS = 0xA0
SUBSCRIBE_ACTIVITIES = 0xA1
COMPLETE_WORKFLOW_TASK = 0xA2
COMPLETE_ACTIVITY = 0xA3
FAIL_ACTIVITY = 0xA4
HEARTBEAT = 0xA5
UNSUBSCRIBE = 0xA6
DELIVER_WORKFLOW = 0xB0
DELIVER_ACTIVITY = 0xB1
DELIVER_RESULT = 0xB2
DELIVER_CANCEL = 0xB3
DELIVER_QUERY = 0xB4
ANSWER_QUERY = 0xC4

# Additions of zaptasks, served only where the longer handshake is.
AWAIT_EXECUTION = 0x91
ABANDON_CALL = 0x92
LIST_DEAD_LETTERS = 0x93
REQUEUE_DEAD_LETTER = 0x94
HAND_BACK_TASK = 0x95
EXPLAIN = 0x96
GRANT_CREDITS = 0x97
BACKFILL_SCHEDULE = 0x98
MATCHING_TIMES = 0x99
UPDATE = 0x9A
UPDATE_WITH_START = 0x9E
DELIVER_ACTIVITY_CANCEL = 0xB5

NAMES: dict[int, str] = {
    number: name.lower().replace("_", "-")
    for name, number in sorted(vars().copy().items())
    if name.isupper() and isinstance(number, int)
}

BINARY = frozenset({TASK_SUBMIT, TASK_SCHEDULE})
WORKER_ANSWERS = frozenset({COMPLETE_WORKFLOW_TASK, COMPLETE_ACTIVITY, FAIL_ACTIVITY, HEARTBEAT})
PUSHES = frozenset({DELIVER_WORKFLOW, DELIVER_ACTIVITY, DELIVER_RESULT, DELIVER_CANCEL, DELIVER_QUERY})

JSON_CALLS = frozenset(
    {*range(START, SIGNAL_WITH_START + 1), SCHEDULE_ACTIVITY}
    | set(range(CREATE_SCHEDULE, DESCRIBE_SCHEDULE + 1))
    | {REGISTER_NAMESPACE, DESCRIBE_NAMESPACE, LIST_NAMESPACES, HEALTH}
    | {SUBSCRIBE_WORKFLOWS, SUBSCRIBE_ACTIVITIES, UNSUBSCRIBE, ANSWER_QUERY}
)
"""Calls whose body is a JSON object in the envelope."""

CALLS = JSON_CALLS | BINARY | WORKER_ANSWERS
"""Every call of v1 that a server serves."""

FREE = frozenset({*range(0x91, 0xA0), *range(0xB5, 0xC4), *range(0xC5, 0xFF)})
"""Numbers that a server may use for additions of its own: it must answer, with whatever it likes."""

NOT_SERVED = frozenset(range(1, 0x100)) - CALLS - FREE - PUSHES
"""Numbers of v1 that nobody serves: retired, reserved or never given out."""


def name_of(opcode: int) -> str:
    return f"0x{opcode:02X} {NAMES[opcode]}" if opcode in NAMES else f"0x{opcode:02X}"
