"""What else a workflow asks for: values that must not change in a replay, and words about itself."""

from __future__ import annotations

import logging
import operator
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, Generic, NoReturn, TypeVar, cast, overload
from uuid import UUID

import msgspec

from zaptasks.metrics import Metrics, Source
from zaptasks.options import Seconds, workflow_timeouts
from zaptasks.payloads import encode_arguments, encode_memo, encode_payload

from . import commands as c
from .channels import MemoryReceiveChannel
from .definition import Bound, workflow_name
from .endings import ContinueAsNew
from .errors import EndOfChannel
from .execution import Run, WorkflowInfo, current_run
from .markers import check_marker_id
from .scheduler import current_task, task_or_none

T = TypeVar("T")

MUTABLE_SIDE_EFFECT: Final = "mutable-side-effect"
"""How the names of the markers begin that keep values of `mutable_side_effect`."""


def info() -> WorkflowInfo:
    """Who this run is."""
    return current_run().info


def now() -> datetime:
    """The time of the newest event that the run has seen, in UTC. The same in a replay."""
    return datetime.fromtimestamp(current_run().now_ms / 1000, UTC)


def random() -> Random:
    """A generator of random numbers that gives the same ones in a replay; each task has its own."""
    return current_run().random_of(current_task())


def uuid4() -> UUID:
    """A random UUID that is the same in a replay."""
    return UUID(int=random().getrandbits(128), version=4)


def is_replaying() -> bool:
    """Whether the running code has run before. For what must not be done twice; never for what decides anything."""
    return current_run().is_replaying


@overload
def side_effect(function: Callable[[], T], /) -> T: ...
@overload
def side_effect(function: Callable[[], object], /, *, type: type[T]) -> T: ...
def side_effect(function: Callable[[], Any], /, *, type: Any = Any) -> Any:
    """Call `function` once and keep what it returns: a replay gets that and does not call it again.

    For something small and quick that cannot fail, such as reading a setting. The value goes through JSON; `type` says
    what it is read as.
    """
    name = getattr(function, "__qualname__", repr(function))
    details = current_run().markers.marker("side-effect", function, f"side effect {name}")
    return msgspec.json.decode(details, type=type)


@overload
def mutable_side_effect(
    id: str, function: Callable[[], T], /, *, same: Callable[[T, T], object] = operator.eq
) -> T: ...
@overload
def mutable_side_effect(
    id: str, function: Callable[[], object], /, *, type: type[T], same: Callable[[T, T], object] = operator.eq
) -> T: ...
def mutable_side_effect(
    id: str, function: Callable[[], Any], /, *, type: Any = Any, same: Callable[[Any, Any], object] = operator.eq
) -> Any:
    """Like `side_effect`, for what is looked at again and again and seldom changes, such as a limit in a setting.

    The value is kept only where `same(last, new)` is false, so a look that finds nothing new leaves no event. A replay
    gets what was found then. `id` names what is looked at: the last value is that of the same id in this run. Both
    values that `same` gets have been through JSON, as `type`.
    """
    check_marker_id("the id of the mutable side effect", id)
    what = f"mutable side effect {id!r}"

    def changed(last: bytes | None) -> bytes | None:
        new = encode_payload(function(), f"the value of {what}")
        if last is not None and same(msgspec.json.decode(last, type=type), msgspec.json.decode(new, type=type)):
            return None
        return new

    details = current_run().markers.changing_marker(f"{MUTABLE_SIDE_EFFECT}/{id}", changed, what)
    return msgspec.json.decode(details, type=type)


def patched(patch_id: str) -> bool:
    """Whether to run changed code: True in new runs and from here on, False where a replayed run went the old way.

    The first answer for a patch holds for the whole run.
    """
    return current_run().markers.patched(patch_id, is_deprecated=False)


def deprecate_patch(patch_id: str) -> None:
    """In the place of `patched`, once no run that went the old way is open: only the new code is left.

    When no run is open that began while `patched` was there, this can go as well.
    """
    current_run().markers.patched(patch_id, is_deprecated=True)


def upsert_search_attributes(attributes: Mapping[str, object]) -> None:
    """Change what lists can ask about: the attributes named; None takes one away."""
    _upsert(None, attributes)


def upsert_memo(memo: Mapping[str, object]) -> None:
    """Replace the memo."""
    _upsert(memo, None)


def _upsert(memo: Mapping[str, object] | None, attributes: Mapping[str, object] | None) -> None:
    command = c.Upsert(
        id=current_task().next_command_id(),
        memo=encode_memo(memo),
        search_attributes=None if attributes is None else dict(attributes),
    )
    current_run().add(command)


def continue_as_new(
    *args: object,
    workflow: object = None,
    task_queue: str = "",
    execution_timeout: Seconds | None = None,
    run_timeout: Seconds | None = None,
    task_timeout: Seconds | None = None,
    memo: Mapping[str, object] | None = None,
    search_attributes: Mapping[str, object] | None = None,
) -> NoReturn:
    """End this run and begin another of the same id with `args`: for workflows that would grow without end.

    It leaves as an exception, through `finally` blocks. What is not given stays as it was. Signals that this run did
    not see go to the next one. Handlers that still run are waited for; what they change is not in `args`: wait for
    `all_handlers_finished` before; a warning in the log says where this was forgotten.
    """
    current_task().check_may_change("continue as new")
    name = "" if workflow is None else workflow_name(workflow)
    raise ContinueAsNew(
        c.ContinueAsNew(
            type=name,
            task_queue=task_queue,
            input=encode_arguments(args, f"the arguments of workflow {name or info().type!r}"),
            timeouts=workflow_timeouts(execution_timeout, run_timeout, task_timeout) or None,
            memo=encode_memo(memo),
            search_attributes=None if search_attributes is None else dict(search_attributes),
        )
    )


def all_handlers_finished() -> bool:
    """Whether no signal or update handler runs now: `await workflow.wait_condition(workflow.all_handlers_finished)`.

    Not for handlers themselves, which would wait for their own end.
    """
    return current_run().inbox.running == 0


# --- signals, queries and updates of plain functions ------------------------------------------------------


class SignalChannel(Generic[T]):
    """The values of the signals of one name, in order: `async for value in workflow.signals("name")`."""

    def __init__(self, channel: MemoryReceiveChannel[bytes | None], decoder: msgspec.json.Decoder[Any]) -> None:
        self._channel = channel
        self._decoder = decoder

    async def receive(self) -> T:
        """The next value; raises `msgspec.ValidationError` for one of another type."""
        return self._decode(await self._channel.receive())

    def receive_nowait(self) -> T:
        """The next value, or `WouldBlock`."""
        return self._decode(self._channel.receive_nowait())

    def _decode(self, payload: bytes | None) -> T:
        return cast(T, self._decoder.decode(payload or b"null"))

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            return await self.receive()
        except EndOfChannel:
            raise StopAsyncIteration from None


@overload
def signals(name: str) -> SignalChannel[Any]: ...
@overload
def signals(name: str, type: type[T]) -> SignalChannel[T]: ...
def signals(name: str, type: Any = Any) -> SignalChannel[Any]:
    """The signals of this name as a channel, those that came before included. Each value goes to one receiver."""
    current_task().check_may_change("take signals")
    return SignalChannel(current_run().inbox.channel(name), msgspec.json.Decoder(type))


@overload
async def wait_signal(name: str) -> Any: ...
@overload
async def wait_signal(name: str, type: type[T]) -> T: ...
async def wait_signal(name: str, type: Any = Any) -> Any:
    """The value of the next signal of this name that nobody took yet."""
    return await signals(name, type).receive()


def on_signal(name: str, function: Callable[..., object]) -> None:
    """Call `function`, async or not, with the value of each signal of this name, those that came before included."""
    _add("signal", name, function)


def on_query(name: str, function: Callable[..., object]) -> None:
    """Answer queries of this name with `function(*args)`, a plain `def` that only looks."""
    _add("query", name, function)


def on_update(name: str, function: Callable[..., object], *, validator: Callable[..., object] | None = None) -> None:
    """Answer updates of this name with `function(*args)`, async or not; `validator` sees them first and may refuse."""
    _add("update", name, function).validator = validator


def _add(kind: str, name: str, function: Callable[..., object]) -> Bound:
    current_task().check_may_change(f"set a {kind} handler")
    bound = Bound(name, function, is_method=False)
    if kind == "query" and bound.is_async:
        raise TypeError(f"query {name!r} is {function!r}: a query only looks, so it must be a plain `def`")
    current_run().inbox.add_handler(kind, bound)
    return bound


# --- logging ----------------------------------------------------------------------------------------------


class _WorkflowLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs under `zaptasks.workflow`, with the type and id of the run before every message; silent in a replay.

    The records have the run's `headers`, for formatters and filters.
    """

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        run = _run_or_none()
        return (run is None or not (run.is_replaying or run.is_closed)) and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        run = _run_or_none()
        if run is None:
            return msg, kwargs
        kwargs["extra"] = {"headers": run.info.headers, **(kwargs.get("extra") or {})}
        return f"{run.info.type} {run.info.workflow_id}: {msg}", kwargs


def _run_or_none() -> Run | None:
    task = task_or_none()
    return None if task is None else cast(Run, task.scheduler.host)


def _metrics_of_run() -> Source | None:
    run = current_run()
    if run.is_replaying or run.is_closed:
        return None
    of = run.info
    return run.metrics, {"namespace": of.namespace, "task_queue": of.task_queue, "workflow_type": of.type}


metrics = Metrics(_metrics_of_run)
"""What the workflow counts and measures: for the worker's metrics handler, silent in a replay."""

logger = _WorkflowLogger(logging.getLogger("zaptasks.workflow"), {})
