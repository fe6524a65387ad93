"""What a workflow is started with: what type checkers see of it, and the request that it becomes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Generic, TypedDict, TypeVar, TypeVarTuple, Unpack, overload

from .converters import DataConverter
from .headers import Headers, HeaderSource, headers_of_start
from .options import (
    Durability,
    IdConflictPolicy,
    IdReusePolicy,
    RetryPolicy,
    Seconds,
    asked,
    check_options,
    id_policies,
    present,
    workflow_timeouts,
)
from .payloads import SMALL_PAYLOAD_BYTES_MAX, encode_optional
from .plain_workflows import WorkflowContext
from .workflow.definition import AnyRun, WorkflowClass, workflow_name

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class RunOptions(TypedDict, total=False):
    """What a workflow may be started with, beside its id."""

    task_queue: str
    """Whose workers run it; by default "default"."""
    request_id: str
    """Names this start: the same one again starts nothing new. By default one of the client's own, for its repeats."""
    retry_policy: RetryPolicy | None
    """Without one, a run that fails is not followed by another."""
    execution_timeout: Seconds | None
    """How long it may take, with all the runs that follow."""
    run_timeout: Seconds | None
    """How long one run may take."""
    task_timeout: Seconds | None
    """How long a worker may take for one workflow task, its local activities included: 10 seconds if not given, 10
    minutes at most."""
    cron_schedule: str
    """When it runs, again and again, each time after its last end."""
    memo: Mapping[str, object] | None
    search_attributes: Mapping[str, object] | None
    headers: Headers | None
    """Texts that its activities, children and later runs have too; one that is open already keeps its own."""
    id_reuse_policy: IdReusePolicy | None
    """By default "allow-duplicate"."""
    id_conflict_policy: IdConflictPolicy | None
    """By default "fail"; where a signal or an update comes along, "use-existing"."""
    durability: Durability | None


class StartOptions(RunOptions, total=False):
    """What a workflow may be started with."""

    id: str
    """By default one of its own."""


class WithStart(Generic[R]):
    """A workflow that is started if it is not open: what goes with a signal or an update.

    `WithStart(Order.run, "tea", 450, id="order-17", task_queue="orders")` takes what `start_workflow` takes, and needs
    the id.
    """

    @overload
    def __init__(self, workflow: AnyRun[*Ts, R], /, *args: *Ts, id: str, **options: Unpack[RunOptions]) -> None: ...
    @overload
    def __init__(
        self, workflow: WorkflowClass[*Ts, R], /, *args: *Ts, id: str, **options: Unpack[RunOptions]
    ) -> None: ...
    @overload
    def __init__(
        self,
        workflow: Callable[[WorkflowContext, Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        id: str,
        **options: Unpack[RunOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        workflow: Callable[[Unpack[Ts]], Coroutine[Any, Any, R]],
        /,
        *args: *Ts,
        id: str,
        **options: Unpack[RunOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: WithStart[Any], workflow: str, /, *args: object, id: str, **options: Unpack[RunOptions]
    ) -> None: ...
    def __init__(self, workflow: Any, /, *args: *Ts, id: str, **options: Unpack[RunOptions]) -> None:
        check_options(options, RunOptions, "WithStart")
        if not id:
            raise ValueError("WithStart needs an id: without one there is nothing that could be open already")
        self.workflow: Final = workflow
        self.args: Final = args
        self.id: Final = id
        self.options: Final = options


def start_request(
    converter: DataConverter,
    identity: str,
    header_source: HeaderSource | None,
    workflow: object,
    args: tuple[object, ...],
    *,
    id: str = "",
    task_queue: str = "default",
    request_id: str = "",
    retry_policy: RetryPolicy | None = None,
    execution_timeout: Seconds | None = None,
    run_timeout: Seconds | None = None,
    task_timeout: Seconds | None = None,
    cron_schedule: str = "",
    memo: Mapping[str, object] | None = None,
    search_attributes: Mapping[str, object] | None = None,
    headers: Headers | None = None,
    id_reuse_policy: IdReusePolicy | None = None,
    id_conflict_policy: IdConflictPolicy | None = None,
    durability: Durability | None = None,
) -> dict[str, object]:
    """The body of a start, checked and encoded. Raises `PayloadError`, `TypeError` and `ValueError`."""
    type = workflow_name(workflow)
    return present(
        workflow_type=type,
        workflow_id=id or f"{type}-{uuid.uuid4().hex}",
        task_queue=task_queue,
        input=converter.encode_arguments(args, f"the arguments of {type!r}"),
        request_id=request_id or uuid.uuid4().hex,
        retry_policy=None if retry_policy is None else retry_policy.to_wire(),
        timeouts=workflow_timeouts(execution_timeout, run_timeout, task_timeout),
        cron_schedule=cron_schedule,
        memo=converter.encode_optional(memo, f"the memo of {type!r}", SMALL_PAYLOAD_BYTES_MAX),
        search_attributes=encode_optional(search_attributes, f"the search attributes of {type!r}"),
        headers=headers_of_start(header_source, headers),
        identity=identity,
        **id_policies(id_reuse_policy, id_conflict_policy),
        **asked(durability),
    )
