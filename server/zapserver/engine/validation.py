"""What a name, a timeout and a failure may be."""

from __future__ import annotations

from typing import Any

import msgspec

from zapserver.engine.commands import ActivityTimeouts, WorkflowTimeouts
from zapserver.engine.errors import Invalid
from zapserver.engine.limits import Limits
from zapwire.failure import DECODE_ERROR, FAILURE_BYTES_MAX, decode_failure, encode_failure

TIMEOUT_MS_MAX = 100 * 365 * 24 * 3_600_000
"""A hundred years: larger numbers are a mistake of units, and no clock can wait for them."""

TASK_MS_MAX = 600_000
"""A workflow task runs only the workflow's own code: one that needs ten minutes hangs."""


SEARCH_ATTRIBUTES_BYTES_MAX = 8 * 1024


def check_name(what: str, name: str, limits: Limits) -> None:
    """Refuse an empty, overlong or unprintable id, type, queue or signal name."""
    if not name:
        raise Invalid(f"{what} required")
    if len(name) > limits.id_chars_max:
        raise Invalid(f"{what} has {len(name)} characters; at most {limits.id_chars_max} are allowed")
    if not name.isprintable():
        raise Invalid(f"{what} {name[:80]!r} has control or unprintable characters")


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
        size = len(msgspec.json.encode(attributes))
        if size > SEARCH_ATTRIBUTES_BYTES_MAX:
            raise Invalid(
                f"the search attributes have {size} bytes; at most {SEARCH_ATTRIBUTES_BYTES_MAX} are allowed:"
                " keep large values in the memo or the input"
            )


def storable_failure(failure: bytes) -> bytes:
    """The failure as it may be kept and embedded in answers.

    What cannot be read becomes the `DecodeError` as which everybody would read it, and one that is
    too long keeps its message: a broken peer must not break those who look at its failures.
    """
    try:
        failure.decode()  # the JSON decoder looks only at the strings that it keeps
    except UnicodeDecodeError:
        failure = failure.decode(errors="replace").encode()
    read = decode_failure(failure)
    if read.code == DECODE_ERROR or len(failure) > FAILURE_BYTES_MAX:
        return encode_failure(read)
    return failure
