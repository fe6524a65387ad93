"""What a name, a timeout and a failure may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from zapserver.engine import commands as c
from zapserver.engine.commands import ActivityTimeouts, Headers, WorkflowTimeouts
from zapserver.engine.errors import Invalid, TooLarge
from zapserver.engine.limits import Limits
from zapwire.body import PAYLOAD_DEPTH_MAX, unreadable
from zapwire.failure import (
    CAUSE_DEPTH_MAX,
    DECODE_ERROR,
    FAILURE_BYTES_MAX,
    Failure,
    decode_failure,
    encode_failure,
)

TIMEOUT_MS_MAX = 100 * 365 * 24 * 3_600_000
"""A hundred years: larger numbers are a mistake of units, and no clock can wait for them."""

TASK_MS_MAX = 600_000
"""A workflow task runs only the workflow's own code: one that needs ten minutes hangs."""


SEARCH_ATTRIBUTES_BYTES_MAX = 8 * 1024

FAILURE_DEPTH_MAX = PAYLOAD_DEPTH_MAX + CAUSE_DEPTH_MAX + 4
"""Details are payloads, and stand in a list of the last of the causes."""


def check_name(what: str, name: str, limits: Limits) -> None:
    """Refuse an empty, overlong or unprintable id, type, queue or signal name."""
    if not name:
        raise Invalid(f"{what} required")
    if len(name) > limits.id_chars_max:
        raise Invalid(f"{what} has {len(name)} characters; at most {limits.id_chars_max} are allowed")
    if not name.isprintable():
        raise Invalid(f"{what} {name[:80]!r} has control or unprintable characters")


_PAYLOADS: dict[type[msgspec.Struct], tuple[tuple[str, bool], ...]] = {
    c.StartTask: (("input", False), ("memo", True)),
    c.StartWorkflow: (("input", False), ("signal_input", False), ("memo", True)),
    c.UpdateExecution: (("args", False),),
    c.SignalExecution: (("input", False),),
    c.QueryExecution: (("args", False),),
    c.ScheduleActivity: (("input", False),),
    c.CompleteActivity: (("result", False),),
    c.HeartbeatActivity: (("details", True),),
    c.AnswerQuery: (("result", False),),
    c.WorkflowCommand: (("payload", False),),
    c.Action: (("input", False), ("memo", True)),
}
"""The fields of each command, or part of one, that hold a payload, and whether it must be a small one."""


def check_payloads(command: msgspec.Struct, limits: Limits) -> None:
    """Refuse a command with a payload that is too long for this namespace."""
    for part in _parts(command):
        check_payloads(part, limits)
    for name, is_small in _PAYLOADS.get(type(command), ()):
        payload = getattr(command, name)
        if payload is not None:
            bytes_max = limits.small_payload_bytes_max if is_small else limits.payload_bytes_max
            if len(payload) > bytes_max:
                raise too_large(name, len(payload), bytes_max, is_small=is_small)


def _parts(command: msgspec.Struct) -> Sequence[msgspec.Struct]:
    """What holds payloads of a command, beside its own fields."""
    match command:
        case c.StartWorkflow(update=c.UpdateExecution()):
            assert command.update is not None
            return (command.update,)
        case c.CompleteWorkflowTask():
            return command.commands
        case c.PutSchedule() | c.UpdateSchedule(action=c.Action()):
            assert command.action is not None
            return (command.action,)
    return ()


def too_large(what: str, size: int, bytes_max: int, *, is_small: bool) -> TooLarge:
    """The refusal of a payload of `size` bytes."""
    return TooLarge(
        f"the {what} has {size} bytes; at most {bytes_max} are allowed: keep it elsewhere and send where it is",
        limit="small-payload-bytes" if is_small else "payload-bytes",
    )


def check_headers(headers: Headers | None, limits: Limits) -> None:
    """Refuse headers that are no short, printable texts, or too long together. Raises `Invalid` and `TooLarge`."""
    if not headers:
        return
    size = len(msgspec.json.encode(headers))
    if size > limits.header_bytes_max:
        raise TooLarge(
            f"the headers have {size} bytes as JSON; at most {limits.header_bytes_max} are allowed: they are for ids"
            " and names, send other data in the input",
            limit="header-bytes",
        )
    for name, value in headers.items():
        check_name("header name", name, limits)
        if not value.isprintable():
            raise Invalid(f"header {name[:80]!r} is {value[:80]!r}, which has control or unprintable characters")


def check_request_id(request_id: str, limits: Limits) -> None:
    """None at all is fine; one that is given is kept as long as what it started."""
    if request_id:
        check_name("request id", request_id, limits)


def check_timeouts(timeouts: ActivityTimeouts | WorkflowTimeouts) -> None:
    for name in timeouts.__struct_fields__:
        value = getattr(timeouts, name)
        if not 0 <= value <= TIMEOUT_MS_MAX:
            raise Invalid(f"the timeout {name} is {value}; it must be 0 (none) to {TIMEOUT_MS_MAX} (100 years)")
    if isinstance(timeouts, WorkflowTimeouts) and timeouts.task_ms > TASK_MS_MAX:
        raise Invalid(f"the timeout task_ms is {timeouts.task_ms}; it must be 0 (default) to {TASK_MS_MAX} (10 min)")


def check_search_attributes(attributes: dict[str, Any] | None) -> None:
    """They are shown in every listing, a thousand executions at once."""
    if attributes:
        text = msgspec.json.encode(attributes)
        if len(text) > SEARCH_ATTRIBUTES_BYTES_MAX:
            raise Invalid(
                f"the search attributes have {len(text)} bytes; at most {SEARCH_ATTRIBUTES_BYTES_MAX} are allowed:"
                " keep large values in the memo or the input"
            )
        if reason := unreadable(text):
            raise Invalid(f"the value of a search attribute {reason}")


def storable_failure(failure: bytes) -> bytes:
    """The failure as it may be kept and embedded in answers.

    What cannot be read becomes the `DecodeError` as which everybody would read it, and one that is
    too long, or has details that cannot be read, keeps its message: a broken peer must not break
    those who look at its failures.
    """
    try:
        failure.decode()  # the JSON decoder looks only at the strings that it keeps
    except UnicodeDecodeError:
        failure = failure.decode(errors="replace").encode()
    read = decode_failure(failure)
    if unreadable(failure, FAILURE_DEPTH_MAX):
        read = Failure(
            message=read.message,
            code=read.code,
            non_retryable=read.non_retryable,
            next_retry_ms=read.next_retry_ms,
        )
        return encode_failure(read)
    if read.code == DECODE_ERROR or len(failure) > FAILURE_BYTES_MAX:
        return encode_failure(read)
    return failure
