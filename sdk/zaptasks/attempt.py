"""One delivery in a worker: the handler runs, says that it is alive, is canceled, and its outcome is answered.

Why an attempt stops early decides what the server is told:

    cancel    the server asked for it     a CanceledError failure with the reason
    lose      its lease is over           nothing: the server gave the task to somebody else
    hand back this worker goes away       HandBackTask: another worker gets it, no attempt is charged

A handler that ends with `complete_later()` stops nothing: DetachTask leaves the attempt to whoever has its token.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import trio

from zapwire.errors import BadBody, ConnectionLost, ZapError
from zapwire.failure import DECODE_ERROR, NOT_FOUND_ERROR, Failure, decode_failure, encode_failure
from zapwire.opcodes import Op

from .arguments import ArgumentsError, result_reader
from .context import CancelRequested, CompleteLater, TaskContext, as_current, said_before
from .converters import PLAIN, DataConverter
from .deliveries import ActivityDelivery
from .emitter import Emitter
from .errors import CodecError, PayloadError
from .failures import canceled_failure, failure_of, sole_error, unreadable_failure
from .handlers import Handler
from .interceptors import Interceptor, call_through
from .line import LEASE_OVER, TOO_LARGE, Line
from .metrics import MetricsHandler, give
from .payloads import SMALL_PAYLOAD_BYTES_MAX, result_too_large
from .process_messages import Canceled, Done, Emit, Failed, Heartbeat, Later, Measure, Said
from .processes import HandlerFailed, ProcessPool, run_message

log = logging.getLogger("zaptasks.worker")

HEARTBEAT_SECONDS_MAX: Final = 1.0
"""The longest that a heartbeat's details stay unsent: progress is for people, and they look about that often."""
HEARTBEAT_SECONDS_MIN: Final = 0.05
HEARTBEATS_PER_TIMEOUT: Final = 3
"""So often within the heartbeat timeout, so that a single late one is not the end."""


class Attempt:
    """One attempt at a task or activity. `run` is its task; the other methods are called while it runs."""

    def __init__(
        self,
        delivery: ActivityDelivery,
        handler: Handler | None,
        *,
        line: Line,
        task_queue: str,
        nursery: trio.Nursery,
        limiter: trio.CapacityLimiter,
        processes: ProcessPool,
        interceptors: tuple[Interceptor, ...],
        converter: DataConverter,
        metrics: MetricsHandler,
    ) -> None:
        self.token: Final = delivery.task_token
        self._delivery = delivery
        self._handler = handler
        self._line = line
        self._nursery = nursery
        self._limiter = limiter
        self._processes = processes
        self._interceptors = interceptors
        self._metrics = metrics
        self._converter = converter
        self._unreadable: ZapError | None = None
        self._scope = trio.CancelScope()
        self._in_threads = 0
        self._is_lost = False
        self._is_over = False
        self._hand_back_reason: str | None = None
        self._thread = threading.get_ident()
        self._trio = trio.lowlevel.current_trio_token()
        self._said: bytes | None = None
        self._acknowledged: bytes | None = None
        self._beat_scope: trio.CancelScope | None = None
        self._emitter = Emitter(self.token, line)
        timeout_ms = delivery.heartbeat_timeout_ms
        self.context: Final = TaskContext(
            id=delivery.activity_id,
            type=delivery.activity_type_name,
            attempt=delivery.attempt,
            maximum_attempts=delivery.maximum_attempts,
            namespace=line.namespace,
            task_queue=task_queue,
            workflow_id=delivery.workflow_id,
            run_id=delivery.run_id,
            scheduled_time=_moment(delivery.scheduled_time_ms),
            start_to_close=delivery.start_to_close_timeout_ms / 1000 or None,
            heartbeat_timeout=timeout_ms / 1000 or None,
            heartbeat_details=self._said_before(),
            headers=delivery.headers,
            send=self._beat_from_anywhere,
            emit=self._emit_from_anywhere,
            task_token=delivery.task_token,
            converter=converter,
            metrics=metrics,
        )
        self._beat_seconds = HEARTBEAT_SECONDS_MAX
        if timeout_ms:
            often = timeout_ms / 1000 / HEARTBEATS_PER_TIMEOUT
            self._beat_seconds = max(min(often, HEARTBEAT_SECONDS_MAX), HEARTBEAT_SECONDS_MIN)

    def __str__(self) -> str:
        return f"{self.context.type!r} ({self.context.workflow_id}, attempt {self.context.attempt})"

    # --- stopping ------------------------------------------------------------------------------------

    def cancel(self, reason: str) -> None:
        """The server wants it to stop. A thread cannot be stopped: it can only ask `cancel_requested`."""
        self.context._cancel(reason)
        if not self._in_threads:
            self._scope.cancel()

    def lose(self, reason: str) -> None:
        """Its lease is over: the outcome is nobody's any more."""
        if not self._is_lost:
            self._is_lost = True
            self.cancel(reason)

    def hand_back(self, reason: str) -> None:
        """Stop it and return the task. A thread is left behind to end by itself."""
        self._hand_back_reason = reason
        self.context._cancel(reason)
        self._scope.cancel()

    # --- running -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the handler and answer. Raises nothing but `trio.Cancelled` and `KeyboardInterrupt`.

        Canceling it hands the task back.
        """
        with as_current(self.context):
            try:
                opcode, payload = await self._perform()
            except (trio.Cancelled, KeyboardInterrupt):
                await self._finish(Op.HAND_BACK_TASK, b"the worker was canceled")
                raise
            await self._finish(opcode, payload)

    async def _finish(self, opcode: int, payload: bytes) -> None:
        self._is_over = True
        if not self._is_lost:
            self._emitter.send_now()
        if self._beat_scope is not None:
            self._beat_scope.cancel()
        if opcode != Op.RESPOND_ACTIVITY_TASK_COMPLETED and self._said is not self._acknowledged and not self._is_lost:
            await self._send_heartbeat()  # the next attempt is to read the latest details
        if self._is_lost:
            log.info("the lease of %s ended before its handler did: its outcome is dropped", self)
        else:
            status = await self._line.answer(opcode, self.token, payload, what=self)
            if status == TOO_LARGE and opcode == Op.RESPOND_ACTIVITY_TASK_COMPLETED:
                opcode, payload = self._failed(failure_of(result_too_large(self.context.type)))
                await self._line.answer(opcode, self.token, payload, what=self)

    async def _perform(self) -> tuple[int, bytes]:
        """Call the handler: the opcode and the payload of the answer."""
        handler = self._handler
        if handler is None:
            text = f"this worker has no handler for {self.context.type!r}"
            return _failed(Failure(message=text, code=NOT_FOUND_ERROR, non_retryable=True))
        try:
            args = self._arguments(handler)
        except (CodecError, BadBody) as error:
            log.warning("%s cannot be run here: %s", self, error)
            return _failed(unreadable_failure(error))
        except ArgumentsError as error:
            text = f"{self.context.type!r} cannot be called: {error}"
            return self._failed(Failure(message=text, code=DECODE_ERROR, non_retryable=True))
        try:
            with self._scope:
                value = await call_through(self._interceptors, handler.name, self._call, *args)
                return Op.RESPOND_ACTIVITY_TASK_COMPLETED, self._converter.encode(
                    value, f"the result of {handler.name!r}"
                )
        except (trio.Cancelled, KeyboardInterrupt):
            raise
        except CancelRequested:
            pass
        except HandlerFailed as error:
            log.warning("handler of %s failed in its process: %s\n%s", self, error.failure, error.stack)
            if self._hand_back_reason is None:
                return self._failed(error.failure)
        except BaseException as error:  # SystemExit and the like end a task and not the worker
            if isinstance(error, BaseExceptionGroup) and error.subgroup(KeyboardInterrupt):
                raise
            if isinstance(sole_error(error), CompleteLater):
                return self._detached()
            if not self._is_lost:
                log.warning("handler of %s failed: %s", self, type(error).__name__, exc_info=error)
            if self._hand_back_reason is None:  # else it only failed to clean up
                return self._failed(failure_of(error))
        if self._hand_back_reason is not None:
            return Op.HAND_BACK_TASK, self._hand_back_reason.encode()
        return _failed(canceled_failure(self.context.cancel_reason))

    def _detached(self) -> tuple[int, bytes]:
        if self._line.is_ours:
            return Op.DETACH_TASK, b""
        text = "complete_later() needs a server of ours: this one keeps no lease that no worker holds"
        return _failed(Failure(message=text, code="NotSupported", non_retryable=True))

    async def _call(self, *args: Any) -> Any:
        handler = self._handler
        assert handler is not None, "a delivery without a handler is answered before"
        if handler.in_process:
            return await self._call_in_process(handler, args)
        if handler.is_async:
            return await handler.function(*args)
        call = functools.partial(handler.function, *args)
        self._in_threads += 1
        try:
            return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            self._in_threads -= 1

    async def _call_in_process(self, handler: Handler, args: tuple[object, ...]) -> Any:
        """The input travels as it came, unless an interceptor may have changed the arguments."""
        input, is_task = self._opened_input(), self._delivery.kind == "task"
        if self._interceptors:
            input, is_task = PLAIN.encode(list(args), f"the arguments of {handler.name!r}"), False
        answer = await self._processes.run(
            run_message(self.context, handler.function, input, is_task=is_task),
            self._hear,
            reason=lambda: self.context.cancel_reason,
            is_lost=lambda: self._is_lost,
        )
        match answer:
            case Done(result=result) if self._interceptors:
                return result_reader(handler.function)(result)
            case Done(result=result):
                return msgspec.Raw(result)
            case Failed(failure=data):
                raise HandlerFailed(decode_failure(data))
            case Later():
                raise CompleteLater
            case Canceled():
                raise CancelRequested(self.context.cancel_reason)

    def _hear(self, said: Said) -> None:
        """A process has no keys: what it says is encoded here."""
        try:
            match said:
                case Heartbeat(details=details):
                    self._beat_from_anywhere(self._converter.seal(details, "a heartbeat", SMALL_PAYLOAD_BYTES_MAX))
                case Emit(item=item):
                    self._emit_from_anywhere(self._converter.seal(item, "an item", SMALL_PAYLOAD_BYTES_MAX))
                case Measure(kind=kind, name=name, value=value, tags=tags):
                    give(getattr(self._metrics, kind), name, value, tags)
        except PayloadError as error:
            log.warning("something that %s said is dropped: %s", self, error)

    def _opened_input(self) -> str | bytes | None:
        input = self._delivery.input
        return None if input is None else self._converter.open(input)

    def _arguments(self, handler: Handler) -> tuple[object, ...]:
        """Decoded; a process does that for itself, unless an interceptor is to see them."""
        if self._unreadable is not None:
            raise self._unreadable
        opened = self._opened_input()
        if handler.in_process and not self._interceptors:
            return ()
        if self._delivery.kind == "task":
            return handler.parameters.from_payload(opened)
        return handler.parameters.from_array(opened)

    def _said_before(self) -> tuple[Any, ...]:
        """What the attempt before said; what cannot be read makes this attempt fail."""
        try:
            return said_before(self._delivery.heartbeat_details, self._converter)
        except (CodecError, BadBody) as error:
            self._unreadable = error
            return ()

    def _failed(self, failure: Failure) -> tuple[int, bytes]:
        """The answer for what a handler raised: its texts are data, and hidden where data is."""
        return Op.RESPOND_ACTIVITY_TASK_FAILED, self._converter.encode_failure(failure)

    # --- heartbeats ------------------------------------------------------------------------------------

    def _beat_from_anywhere(self, details: bytes) -> None:
        self._said = details
        self._on_loop(self._beat)

    def _on_loop(self, function: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            function()
            return
        with suppress(trio.RunFinishedError):  # a thread that was left behind: nobody listens any more
            self._trio.run_sync_soon(function)

    def _beat(self) -> None:
        if self._beat_scope is None and not self._is_lost:
            self._beat_scope = trio.CancelScope()
            self._nursery.start_soon(self._keep_beating, self._beat_scope)

    async def _keep_beating(self, scope: trio.CancelScope) -> None:
        """Send what was said, then gather for a while what is said next; ends when nothing was."""
        with scope:
            while self._said is not self._acknowledged and not self._is_lost:
                await self._send_heartbeat()
                await trio.sleep(self._beat_seconds)
            self._beat_scope = None

    def _emit_from_anywhere(self, item: bytes) -> None:
        if self._line.is_ours and not self._is_over and self._emitter.add(item):
            self._on_loop(self._start_emitting)

    def _start_emitting(self) -> None:
        if not self._is_over:
            self._nursery.start_soon(self._emitter.send)

    async def _send_heartbeat(self) -> None:
        details = self._said
        assert details is not None
        try:
            envelope = await self._line.respond(Op.RECORD_ACTIVITY_TASK_HEARTBEAT, self.token, details)
        except ConnectionLost:
            return  # the worker hears of it too, and gives up what it holds
        except ZapError as error:
            log.warning("a heartbeat of %s could not be sent: %s", self, error)
            return
        if self._line.note_status(envelope.status, envelope.error):
            return  # the next one is soon
        self._acknowledged = details
        if envelope.status in LEASE_OVER:
            self.lose(envelope.error)
        elif envelope.status == 200 and self._line.is_ours:
            self.cancel(self.context.cancel_reason or "the server asked for it")
        elif not envelope.ok:
            log.warning("the server refused a heartbeat of %s: %d %s", self, envelope.status, envelope.error)


def _failed(failure: Failure) -> tuple[int, bytes]:
    """The answer for what this worker has to say, in which there is nothing of the application."""
    return Op.RESPOND_ACTIVITY_TASK_FAILED, encode_failure(failure)


def _moment(time_ms: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC) if time_ms else None
    except (OverflowError, ValueError, OSError):  # a server whose clock is beyond all calendars
        return None
