"""The client for any application: blocking, thread safe, with or without a server.

    client = zaptasks.Client(zap="127.0.0.1:9999")
    client.add("audit.archive", "0 3 * * *", archive)
    client.now("email.send", {"to": "ada@example.org"})
    client.start_workflow("Order", "tea").result(timeout=30)

A trio loop in a thread of its own holds the connections; a call hops there and back once, and blocks the thread that
makes it. In an asyncio or trio program call it from a worker thread, or use `open_client`.
"""

from .calls import ServerCalls
from .client import Client, default, set_default
from .handles import (
    BlockingActivityTokenHandle,
    BlockingExecutionHandle,
    BlockingTaskHandle,
    BlockingWorkflowHandle,
)

__all__ = [
    "BlockingActivityTokenHandle",
    "BlockingExecutionHandle",
    "BlockingTaskHandle",
    "BlockingWorkflowHandle",
    "Client",
    "ServerCalls",
    "default",
    "set_default",
]
