"""Streamed output: what workers emit, and the calls that follow it."""

from __future__ import annotations

from zapserver.calls.context import DEFERRED, Call, Handler
from zapserver.engine.commands import AwaitExecution, Payload
from zapserver.namespaces import Namespace
from zapserver.outputs import Reader
from zapserver.requests import EmitRequest, ReadOutputRequest
from zapwire.opcodes import Op


def _read(call: Call, request: ReadOutputRequest) -> object:
    """The engine tells this call when the run closes, as it tells one that waits for nothing else."""
    namespace = call.namespace
    execution = namespace.engine.views.execution(request.workflow, request.run)
    reader = Reader(call.waiter, call.peer, execution.run_id, request.after)
    if not execution.status.is_open:
        return page(namespace, reader, is_closed=True, new_run_id=execution.new_run_id)
    if namespace.outputs.read(reader.run_id, reader.after):
        return page(namespace, reader)
    call.step(
        AwaitExecution(workflow_id=execution.workflow_id, run_id=execution.run_id, waiter=call.waiter, peer=call.peer)
    )
    namespace.outputs.wait(reader)
    return DEFERRED


def page(namespace: Namespace, reader: Reader, *, is_closed: bool = False, new_run_id: str = "") -> dict[str, object]:
    """The answer to a reader. `closed` says that nothing more will come: what is left goes with it or before it."""
    items = namespace.outputs.read(reader.run_id, reader.after)
    is_last = is_closed and not (items and namespace.outputs.read(reader.run_id, items[-1].number))
    shape: dict[str, object] = {"run_id": reader.run_id, "items": items, "closed": is_last}
    if is_last and new_run_id:
        shape["new_run_id"] = new_run_id
    return shape


def emit(namespace: Namespace, token: str, request: EmitRequest, now_ms: int) -> list[Reader]:
    """Keep what the holder of `token` emits; the readers that can be answered. Raises `StaleToken` and `NotFound`."""
    activity = namespace.engine.views.held_activity(token)
    items = [Payload(raw.copy()) for raw in request.items]  # cut loose from the frame that they came in
    return namespace.outputs.emit(activity, items, request.dropped, now_ms)


CALLS: dict[int, Handler] = {Op.READ_OUTPUT: Handler(ReadOutputRequest, _read)}
