"""Tasks and workflows over ZAP: the client, the worker, and an engine for when there is no server.

client = zaptasks.Client(zap="127.0.0.1:9999")           # any application; blocking
async with zaptasks.open_client("127.0.0.1:9999") as c:  # trio
async with zaptasks.open_worker(c, tasks=[send]):        # runs the handlers
async with zaptasks.aio.open_client(...), zaptasks.aio.open_worker(...)  # the same two for asyncio
"""

from zapwire.errors import CallFailed, ConnectionLost, LocalProtocolError, NotSent, OutcomeUnknown, ZapError
from zapwire.failure import Failure

from . import activity, aio
from .activity_handle import ActivityTokenHandle
from .blocking import (
    BlockingActivityTokenHandle,
    BlockingExecutionHandle,
    BlockingTaskHandle,
    BlockingWorkflowHandle,
    Client,
    ServerCalls,
    default,
    set_default,
)
from .blocking.submission import Placement, Submission
from .client import AsyncClient, open_client
from .codecs import Codec, Compression, Encryption
from .connector import VERSION
from .context import CancelRequested, TaskContext, current_task
from .converters import DataConverter
from .errors import (
    ActivityFailed,
    ClientClosed,
    CodecError,
    ExecutionError,
    PayloadError,
    RemoteError,
    ServerBusy,
    TaskCanceled,
    TaskError,
    TaskFailed,
    TaskTerminated,
    TaskTimedOut,
    UpdateFailed,
    UpdateRejected,
)
from .exported_history import HistoryError, WorkflowHistory
from .handlers import task
from .handles import ExecutionHandle, TaskHandle, WorkflowHandle
from .headers import Headers
from .interceptors import Call, Interceptor, Proceed
from .local_engine import EngineStopped, LocalEngine, NoHandler, QueueFull
from .metrics import Metrics, MetricsHandler
from .options import Durability, IdConflictPolicy, IdReusePolicy, RetryPolicy, Seconds
from .output import OutputItem
from .plain_workflows import WorkflowContext
from .records import (
    Acknowledged,
    Every,
    ExecutionInfo,
    Health,
    HistoryEvent,
    NamespaceInfo,
    ScheduleInfo,
    ScheduleSpec,
    StartTask,
    StartWorkflow,
    Status,
    Waiting,
)
from .replayer import Replayed, Replayer
from .sorted_handlers import sort_handlers
from .spec import Cron, Interval, parse_spec
from .task_request import TaskOptions
from .worker import Worker, open_worker, run_worker
from .worker_options import WorkerOptions
from .workflow_start import StartOptions, WithStart

__version__ = VERSION

__all__ = [
    "Acknowledged",
    "ActivityFailed",
    "ActivityTokenHandle",
    "AsyncClient",
    "BlockingActivityTokenHandle",
    "BlockingExecutionHandle",
    "BlockingTaskHandle",
    "BlockingWorkflowHandle",
    "Call",
    "CallFailed",
    "CancelRequested",
    "Client",
    "ClientClosed",
    "Codec",
    "CodecError",
    "Compression",
    "ConnectionLost",
    "Cron",
    "DataConverter",
    "Durability",
    "Encryption",
    "EngineStopped",
    "Every",
    "ExecutionError",
    "ExecutionHandle",
    "ExecutionInfo",
    "Failure",
    "Headers",
    "Health",
    "HistoryError",
    "HistoryEvent",
    "IdConflictPolicy",
    "IdReusePolicy",
    "Interceptor",
    "Interval",
    "LocalEngine",
    "LocalProtocolError",
    "Metrics",
    "MetricsHandler",
    "NamespaceInfo",
    "NoHandler",
    "NotSent",
    "OutcomeUnknown",
    "OutputItem",
    "PayloadError",
    "Placement",
    "Proceed",
    "QueueFull",
    "RemoteError",
    "Replayed",
    "Replayer",
    "RetryPolicy",
    "ScheduleInfo",
    "ScheduleSpec",
    "Seconds",
    "ServerBusy",
    "ServerCalls",
    "StartOptions",
    "StartTask",
    "StartWorkflow",
    "Status",
    "Submission",
    "TaskCanceled",
    "TaskContext",
    "TaskError",
    "TaskFailed",
    "TaskHandle",
    "TaskOptions",
    "TaskTerminated",
    "TaskTimedOut",
    "UpdateFailed",
    "UpdateRejected",
    "Waiting",
    "WithStart",
    "Worker",
    "WorkerOptions",
    "WorkflowContext",
    "WorkflowHandle",
    "WorkflowHistory",
    "ZapError",
    "__version__",
    "activity",
    "aio",
    "current_task",
    "default",
    "open_client",
    "open_worker",
    "parse_spec",
    "run_worker",
    "set_default",
    "sort_handlers",
    "task",
]
