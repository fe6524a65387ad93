"""What each opcode does: a request struct, and a function from request to answer.

The functions know engine commands and answer shapes, nothing of connections. `CALLS` is the table
that the dispatcher follows; the calls with binary layouts of their own stand in `BINARY_CALLS`.
"""

from zapserver.calls import executions, namespaces, outputs, schedules, tasks, workers
from zapserver.calls.context import DEFERRED as DEFERRED
from zapserver.calls.context import BinaryCall as BinaryCall
from zapserver.calls.context import Call as Call
from zapserver.calls.context import Handler as Handler

CALLS: dict[int, Handler] = {
    **executions.CALLS,
    **workers.CALLS,
    **schedules.CALLS,
    **namespaces.CALLS,
    **tasks.CALLS,
    **outputs.CALLS,
}

BINARY_CALLS: dict[int, BinaryCall] = {**tasks.BINARY_CALLS, **workers.BINARY_CALLS}
