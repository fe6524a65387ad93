"""docs/go-sdk.md: every name of Go's SDK has a row, and every name of ours in it exists."""

from __future__ import annotations

import contextvars
import importlib
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zaptasks
from zaptasks import workflow

PAGE = (Path(__file__).parent.parent / "docs/go-sdk.md").read_text()

GO_NAMES = """
Dial HostPort Namespace Identity DialTimeout CallTimeout Transport ExecuteWorkflow SignalWorkflow
SignalWithStartWorkflow CancelWorkflow TerminateWorkflow DescribeWorkflow ListWorkflows GetWorkflow QueryWorkflow
EncodedValue RegisterNamespace DescribeNamespace ListNamespaces CreateSchedule CronExpressions Interval StartTime
EndTime Jitter Timezone WorkflowID WorkflowType TaskQueue Input Paused ListSchedules DeleteSchedule PauseSchedule
UnpauseSchedule UpdateSchedule TriggerSchedule DescribeSchedule Health CheckHealth Close ErrClosed ID
WorkflowExecutionTimeout WorkflowRunTimeout WorkflowTaskTimeout RetryPolicy CronSchedule Memo SearchAttributes
WorkflowRun GetID GetRunID Get GetWithOptions DisableFollowingRuns Status WorkflowExecutionInfo TransportOf
NamespaceOf IdentityOf NewWorkerTransport SubscribeEvents NewTransport NewClient New
MaxConcurrentActivityExecutionSize MaxConcurrentWorkflowTaskPollers MaxConcurrentWorkflowTaskExecutionSize
MaxConcurrentLocalActivityExecutionSize WorkerLocalActivitiesPerSecond WorkerActivitiesPerSecond
TaskQueueActivitiesPerSecond EnableSessionWorker Logger RegisterWorkflow RegisterWorkflowWithOptions Name
DisableAlreadyRegisteredCheck RegisterActivity RegisterActivityWithOptions Start Run Stop InterruptCh Context Deadline
Done Err Value Info Future IsReady ReadyCh ChildWorkflowFuture GetChildWorkflowExecution ReceiveChannel Channel
Selector Version ActivityOptions LocalActivityOptions MetricsHandler Counter Gauge Timer GetLogger GetInfo Now Sleep
NewTimer WithCancel WithValue WithActivityOptions ScheduleToStartTimeout StartToCloseTimeout ScheduleToCloseTimeout
HeartbeatTimeout WaitForCancellation ExecuteActivity WithLocalActivityOptions ExecuteLocalActivity
ExecuteChildWorkflow GetSignalChannel NewChannel NewBufferedChannel NewNamedChannel Send Receive ReceiveAsync
NewSelector AddFuture AddReceive AddDefault Select GetVersion SideEffect MutableSideEffect DefaultVersion
GetMetricsHandler UpsertSearchAttributes NewFuture Settle EncodePayload NewContextFromEnv NewStubEnv OnActivity
OnChildWorkflow Return SignalAsync AdvanceClock SetAutoAdvance Cancel SetInfo SetLogger SetMetricsHandler
UpsertedSearchAttributes SetQueryHandler workflow.Go Await Mutex WaitGroup TaskToken WorkflowExecution ActivityID
ActivityType Attempt ScheduledTime StartedTime RecordHeartbeat FromContext NewContext Scope Heartbeats Error Message
Code NonRetryable Details Cause ApplicationError CanceledError TimeoutError DecodeError Canceled Timeout NewError
NewErrorWithCause NewCanceledError NewTimeoutError AsError IsApplicationError IsCanceledError IsTimeoutError
InitialInterval BackoffCoefficient MaximumInterval MaximumAttempts NonRetryableErrorTypes Normalize ShouldRetry
NextInterval HasValue ErrNilPointer
""".split()  # noqa: SIM905 - two hundred lines of one word each
"""What `pkg/sdk` of Go exports, package by package: client, worker, workflow, what that lacks, activity, temporal and
converter."""

LACKING = (
    "continue-as-new",
    "updates",
    "memo",
    "child options",
    "signals to external workflows",
    "cancellation of a part",
    "sessions",
    "interceptors",
    "context propagators",
    "codecs",
    "completion of an activity from elsewhere",
    "heartbeat details",
    "build ids of workers",
    "replay",
)
"""What it has no name for."""

ROOTS: dict[str, Any] = {
    "zaptasks": zaptasks,
    "aio": zaptasks.aio,
    "activity": zaptasks.activity,
    "workflow": workflow,
    "client": zaptasks.AsyncClient,
    "handle": zaptasks.WorkflowHandle,
    "task": zaptasks.TaskContext,
    "error": zaptasks.RemoteError,
    "contextvars": contextvars,
}
"""What the first words of names stand for."""

NAME = re.compile(
    r"(zaptasks|aio|activity|workflow|testing|client|handle|task|error|contextvars)((?:\.\w+)+)(\(\w+=\))?"
)


def rows() -> list[tuple[str, str, str]]:
    """Go's names, ours, and the remark."""
    cells = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    found = [(row[0], row[1], row[2]) for row in cells if row[0].strip() != "Go"]
    assert len(found) > 80
    return found


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def our_names() -> Iterator[str]:
    for _, ours, remark in rows():
        yield from quoted(ours)
        yield from (name for name in quoted(remark) if NAME.fullmatch(name))


def exists(name: str) -> bool:
    """Whether it can be imported, or is a parameter or an attribute of what can."""
    match = NAME.fullmatch(name)
    assert match is not None, f"{name!r} begins with no word that the page explains"
    root, path, parameter = match.groups()
    try:
        found = importlib.import_module("zaptasks.testing") if root == "testing" else ROOTS[root]
    except ModuleNotFoundError:
        return False
    for part in path[1:].split("."):
        if not hasattr(found, part):
            return part in attributes_of(found)
        found = getattr(found, part)
    return parameter is None or parameter[1:-2] in parameters_of(found)


def attributes_of(target: Any) -> set[str]:
    """What instances of a class have: fields, and what `__init__` sets."""
    if not isinstance(target, type):
        return set()
    of_init = getattr(inspect.getattr_static(target, "__init__"), "__code__", None)
    return {*typing.get_type_hints(target), *(of_init.co_names if of_init is not None else ())}


def parameters_of(function: Any) -> set[str]:
    """The names of the parameters, options that are named in a TypedDict included."""
    known = set(inspect.signature(function).parameters)
    options = typing.get_type_hints(getattr(function, "__wrapped__", function)).get("options")
    return known | set(typing.get_type_hints(typing.get_args(options)[0]) if typing.get_args(options) else ())


def test_every_name_of_go_has_a_row() -> None:
    named = {name for go, _, _ in rows() for name in quoted(go)}
    words = {go.strip() for go, _, _ in rows()}
    assert [name for name in GO_NAMES if name not in named] == []
    assert named <= set(GO_NAMES), "a name of Go's that it has not"
    assert set(LACKING) <= words


def test_a_row_without_a_counterpart_says_why() -> None:
    for go, ours, remark in rows():
        assert quoted(ours) or remark.strip(), f"the row of {go.strip()} says nothing"


@pytest.mark.parametrize("name", sorted(set(our_names())))
def test_a_counterpart_exists(name: str) -> None:
    assert exists(name)


@pytest.mark.parametrize("name", ["workflow.side_effects", "client.start_workflow(idd=)", "zaptasks.RetryPolicy.first"])
def test_a_name_that_is_none_is_found(name: str) -> None:
    assert not exists(name)
