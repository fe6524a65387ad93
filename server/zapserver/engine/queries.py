"""Questions to a running workflow: asked of the worker that holds it, answered once, bounded in time."""

from __future__ import annotations

import msgspec

from zapserver.engine.commands import AnswerQuery, Payload, PeerKey, QueryExecution, QueueKind
from zapserver.engine.effects import Answered, DeliverQuery
from zapserver.engine.errors import EngineError, LimitReached, NotFound, NoWorker, QueryFailed, QueryTimeout
from zapserver.engine.records import Execution, PendingQuery
from zapserver.engine.state import State
from zapserver.engine.validation import check_name

STACK_TRACE = "__stack_trace"
WORKFLOW_METADATA = "__workflow_metadata"

QUERY_MS_MAX = 60_000


def ask(s: State, execution: Execution, command: QueryExecution, now_ms: int) -> Payload | None:
    """The answer to a built-in query, or None: an `Answered` effect follows."""
    check_name("query type", command.query_type, s.limits)
    if command.query_type == WORKFLOW_METADATA:
        return Payload(msgspec.json.encode(_metadata(execution)))
    peer_key = _who_can_answer(s, execution)
    if peer_key is None:
        if command.query_type == STACK_TRACE:
            return Payload(b'{"stack":""}')
        raise NoWorker("no workers subscribed to task queue")
    if len(s.queries) >= s.limits.pending_queries_max:
        raise LimitReached(
            f"{len(s.queries)} queries wait for an answer already, as many as may: try again later",
            limit="pending-queries",
        )
    query = PendingQuery(
        token=s.new_id(),
        waiter=command.waiter,
        peer=peer_key,
        expires_ms=now_ms + max(0, min(command.timeout_ms, QUERY_MS_MAX)),
        query_type=command.query_type,
    )
    s.queries[query.token] = query
    s.peer(peer_key).queries[query.token] = query
    s.timers.update(query)
    s.effects.append(
        DeliverQuery(
            peer=peer_key,
            token=query.token,
            workflow_id=execution.workflow_id,
            run_id=execution.run_id,
            query_type=command.query_type,
            args=command.args,
        )
    )
    return None


def answer(s: State, command: AnswerQuery) -> None:
    query = s.queries.get(command.token)
    if query is None or query.peer != command.peer:
        raise NotFound("query token not found")
    error = QueryFailed(f"query failed: {command.error}") if command.error else None
    _settle(s, query, command.result, error)


def expire(s: State, query: PendingQuery) -> None:
    _settle(s, query, None, QueryTimeout(f"query timeout: the worker did not answer {query.query_type!r} in time"))


def worker_lost(s: State, query: PendingQuery) -> None:
    _settle(s, query, None, NoWorker(f"the worker that was asked {query.query_type!r} was lost before it answered"))


def abandon(s: State, query: PendingQuery) -> None:
    """The asking call is gone; an answer that still comes finds no token."""
    _remove(s, query)


def _settle(s: State, query: PendingQuery, result: Payload | None, error: EngineError | None) -> None:
    _remove(s, query)
    s.effects.append(Answered(waiter=query.waiter, result=result, error=error))


def _remove(s: State, query: PendingQuery) -> None:
    s.timers.remove(query)
    del s.queries[query.token]
    peer = s.peers.get(query.peer)
    if peer is not None:
        peer.queries.pop(query.token, None)


def _who_can_answer(s: State, execution: Execution) -> PeerKey | None:
    """The worker that holds the run or has it at hand; else any of its queue that could go on with it."""
    if execution.is_task:
        return None
    if execution.task is not None and execution.task.lease is not None:
        return execution.task.lease.peer
    cache = execution.cached_by
    if cache is not None and cache.peer in s.peers and cache.subscription_id in s.peers[cache.peer].subscriptions:
        return cache.peer
    queue = s.queues.get((QueueKind.WORKFLOW, execution.task_queue))
    able = [] if queue is None else queue.able(execution.type, execution.worker_kind)
    return able[0].peer if able else None


def _metadata(execution: Execution) -> dict[str, object]:
    return {
        "workflowType": execution.type,
        "status": execution.status.long_name,
        "historyLen": execution.history_length,
    }
