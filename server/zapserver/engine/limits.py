"""The bounds of a namespace, each with the reason for its value."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    id_chars_max: int = 1_000
    """Workflow ids, run ids, types, queue names: longer ones are a mistake, and they are kept."""

    open_executions_max: int = 1_000_000
    """About 3 KiB each in memory, with a small payload."""

    closed_executions_max: int = 100_000
    """How many closed executions the in-memory engine remembers; the oldest are forgotten first."""

    dead_letters_max: int = 10_000
    """Dead letters beside those: a hundred thousand successes must not push out what needs a person."""

    schedules_max: int = 10_000

    subscriptions_per_peer_max: int = 10_000
    """A subscription for each `add` of a process, with room to spare."""

    types_per_subscription_max: int = 1_000
    """Each costs an entry in the queue's index, and work whenever the worker becomes idle or busy."""

    waits_per_peer_max: int = 100_000
    """Calls of one connection that wait for an execution to close."""

    burst_bytes_max: int = 2 * 1024 * 1024
    """What a peer gets before it is known to have taken it. Escaped, and with one more payload of the largest kind,
    that is still less than a connection holds for a peer that does not read."""

    pending_queries_max: int = 4_096
    """As in Go's server; here the newest is refused, not the oldest forgotten."""

    slots_max: int = 10_000
    """Also what a peer gets that names no number: as good as unbounded, yet bounded."""

    history_events_max: int = 50_000
    """Past this many events signals, updates and activities are refused, a failed attempt is the last one, and a
    replaying worker can only end the run."""

    pending_updates_max: int = 100
    """Of one execution, not accepted yet: they wait in memory."""

    updates_max: int = 2_000
    """Accepted by one run: their ids are kept to know a second request."""

    signal_ids_max: int = 1_000
    """Request ids of signals that one execution remembers; the oldest are forgotten."""
