"""The bounds of a namespace, each with its unit and the reason for its value.

`zaptasks limits` prints them and `zaptasks serve --limit` sets them; the refusals of a bound carry its name as
`LimitReached.limit`. The name of a bound is that of its field, without `_max`: see `limit_name`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

PAYLOAD_BYTES_MAX = 4 * 1024 * 1024
"""The longest payload. It travels to workers as a JSON string, up to twice as long, and must fit a frame of 10 MiB."""

SMALL_PAYLOAD_BYTES_MAX = 256 * 1024
"""The longest heartbeat detail or memo: they travel beside a payload."""

HEADER_BYTES_MAX = 4 * 1024
"""The longest headers of an execution, all of them together, as JSON."""

LimitName: TypeAlias = str


def limit(unit: str, why: str, *, least: int = 1, most: int | None = None) -> msgspec.Meta:
    """What is known of a bound beside its default: its unit, why it is what it is, and what it can be set to."""
    return msgspec.Meta(ge=least, le=most, description=why, extra={"unit": unit})


def limit_name(field: str) -> LimitName:
    """The name of a bound to people: `open-executions` for the field `open_executions_max`."""
    return field.removesuffix("_max").replace("_", "-")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one namespace may hold. A refusal at a bound has status 429, for payloads 413."""

    id_chars_max: Annotated[
        int,
        limit(
            "characters",
            "Workflow ids, run ids, types, queue names: longer ones are a mistake, and they are kept; it can only be"
            " set lower.",
            most=1_000,
        ),
    ] = 1_000

    payload_bytes_max: Annotated[
        int,
        limit(
            "bytes",
            "On its way to a worker a payload may double, and must fit a frame of 10 MiB; it can only be set lower.",
            most=PAYLOAD_BYTES_MAX,
        ),
    ] = PAYLOAD_BYTES_MAX

    small_payload_bytes_max: Annotated[
        int,
        limit(
            "bytes",
            "Memos and heartbeat details travel beside a payload; it can only be set lower.",
            most=SMALL_PAYLOAD_BYTES_MAX,
        ),
    ] = SMALL_PAYLOAD_BYTES_MAX

    header_bytes_max: Annotated[
        int,
        limit(
            "bytes of JSON",
            "All headers of an execution: they stand in its record and travel with each of its tasks; it can only be"
            " set lower.",
            most=HEADER_BYTES_MAX,
        ),
    ] = HEADER_BYTES_MAX

    actions_per_second: Annotated[
        int,
        limit(
            "actions a second",
            "Starts, signals, triggers, resets and requeues; 0 is unlimited. A second's worth may come at once.",
            least=0,
            most=1_000_000,
        ),
    ] = 0

    open_executions_max: Annotated[int, limit("executions", "About 3 KiB each in memory, with a small payload.")] = (
        1_000_000
    )

    closed_executions_max: Annotated[
        int,
        limit(
            "executions",
            "How many closed ones are kept, the latest; 0 leaves it to the retention time, or in memory to 100,000;"
            " nothing is refused.",
            least=0,
        ),
    ] = 0

    dead_letters_max: Annotated[
        int,
        limit(
            "executions",
            "Remembered beside the closed ones, so that successes do not push out what needs a person;"
            " nothing is refused.",
        ),
    ] = 10_000

    history_events_max: Annotated[
        int,
        limit(
            "events",
            "A replay reads all of them. Past it signals and activities are refused, and a failed attempt is the last.",
        ),
    ] = 50_000

    history_bytes_max: Annotated[
        int, limit("bytes", "As history-events: what a worker has to read before it can go on with a run.")
    ] = 50 * 1024 * 1024

    pending_activities_max: Annotated[
        int, limit("activities of an execution", "A workflow that fans out wider is better split into children.")
    ] = 2_000

    pending_children_max: Annotated[
        int, limit("children of an execution", "They stand in its record, which is written again with every change.")
    ] = 2_000

    signals_per_execution_max: Annotated[
        int, limit("signals of an execution", "A workflow that lives on signals is to continue as a new run in time.")
    ] = 10_000

    timers_per_execution_max: Annotated[
        int, limit("timers of an execution", "As pending-activities: each is an entry in the heap of deadlines.")
    ] = 2_000

    pending_updates_max: Annotated[int, limit("updates of an execution", "Not accepted yet: they wait in memory.")] = (
        100
    )

    updates_max: Annotated[
        int, limit("updates of an execution", "Accepted: their ids are kept to know a second request.")
    ] = 2_000

    signal_ids_max: Annotated[
        int,
        limit(
            "request ids of an execution",
            "Of signals, and as many of starts that found it open; the oldest are forgotten, nothing is refused.",
        ),
    ] = 1_000

    queue_backlog_max: Annotated[
        int,
        limit("waiting tasks of a queue", "Workers that are this far behind do not catch up: the caller has to know."),
    ] = 1_000_000

    schedules_max: Annotated[int, limit("schedules", "A clock that jumps meets all of them at once.")] = 10_000

    buffered_runs_max: Annotated[
        int,
        limit(
            "runs of a schedule",
            "They wait for an open one, and are written whole when one joins or leaves. One more is dropped, and"
            " counted by its schedule; nothing is refused.",
        ),
    ] = 1_000

    schedule_slots_per_step_max: Annotated[
        int,
        limit("slots", "What one schedule catches up on at once, 0.05 to 0.5 ms each; nothing is refused."),
    ] = 100

    backfill_slots_max: Annotated[int, limit("slots of a backfill", "A longer range is several of them.")] = 1_000

    backfills_max: Annotated[int, limit("backfills of a schedule", "That are not finished.")] = 10

    subscriptions_per_peer_max: Annotated[
        int, limit("subscriptions of a connection", "One for each `add` of a process, with room to spare.")
    ] = 10_000

    types_per_subscription_max: Annotated[
        int,
        limit(
            "types of a subscription",
            "Each costs an entry in the queue's index, and work whenever the worker becomes idle or busy.",
        ),
    ] = 1_000

    waits_per_peer_max: Annotated[
        int, limit("waiting calls of a connection", "Each waits for an execution to close and costs an entry or two.")
    ] = 100_000

    pending_queries_max: Annotated[
        int, limit("queries", "As in Go's server; here the newest is refused, not the oldest forgotten.")
    ] = 4_096

    slots_max: Annotated[
        int,
        limit("tasks of a subscription", "Also what a peer gets that names no number: as good as unbounded."),
    ] = 10_000

    burst_bytes_max: Annotated[
        int,
        limit(
            "bytes",
            "What a peer gets before it is known to have taken it; escaped, and with one more payload of the largest"
            " kind, that is less than a connection holds for a peer that does not read. Nothing is refused.",
            most=2 * 1024 * 1024,
        ),
    ] = 2 * 1024 * 1024
