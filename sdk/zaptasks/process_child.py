"""What runs in a process of a worker: one function call after another, for as long as the worker is there.

The main thread calls the functions, a second one listens: for the next call, for cancels, and for the end of the
worker, at which this process ends too, whatever it is doing.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any, Final

import msgspec

from zapwire.failure import DECODE_ERROR, Failure, encode_failure

from .arguments import ArgumentsError, Parameters
from .context import CancelRequested, CompleteLater, TaskContext, as_current, said_before
from .converters import PLAIN
from .failures import failure_of, sole_error
from .metrics import Tags
from .process_messages import (
    Answer,
    Cancel,
    Canceled,
    Done,
    Emit,
    Failed,
    Frames,
    Heartbeat,
    Later,
    Log,
    Measure,
    Run,
    ToProcess,
    ToWorker,
    framed,
    read_to_process,
)

RECEIVE_BYTES: Final = 64 * 1024

LOGGED_CHARS_MAX: Final = 1_000_000
"""The rest of a longer line stays in the process: the worker reads each message whole."""


def serve(descriptor: int, log_level: int) -> None:
    """Call what the worker at the other end of this socket asks for. Never returns."""
    os.set_inheritable(descriptor, False)
    for number in (signal.SIGINT, signal.SIGTERM):
        # They may go to a whole group of processes. The worker decides what becomes of its own, and ends them by force.
        signal.signal(number, _leave_it_to_the_worker)
    worker = _Worker(socket.socket(fileno=descriptor))
    logging.getLogger().addHandler(_LogToWorker(worker))
    logging.getLogger().setLevel(log_level)
    threading.Thread(target=worker.listen, name="zaptasks-worker", daemon=True).start()
    own = os.getpid()
    while True:
        run, context = worker.calls.get()
        with as_current(context):
            answer = _answer(run)
        if os.getpid() != own:
            os._exit(0)  # the function has forked, and this is the copy: the attempt is not its to answer
        worker.send(answer)


def _leave_it_to_the_worker(*_: object) -> None:
    return None


class _Worker:
    """The other end."""

    def __init__(self, connection: socket.socket) -> None:
        self.calls: queue.SimpleQueue[tuple[Run, TaskContext]] = queue.SimpleQueue()
        self._connection = connection
        self._lock = threading.Lock()
        self._context: TaskContext | None = None
        self.call = 0

    def send(self, message: ToWorker) -> None:
        """From any thread."""
        data = framed(message)
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError:  # nobody is there, or the function has closed what it did not open
            os._exit(1)

    def listen(self) -> None:
        """Until the end of the worker, which is the end of this process, whatever its main thread is doing."""
        frames = Frames()
        try:
            while data := self._connection.recv(RECEIVE_BYTES):
                frames.feed(data)
                while (message := frames.next()) is not None:
                    self._told(read_to_process(message))
        except OSError:
            pass  # it has ended without a word
        except BaseException:
            traceback.print_exc()
        os._exit(0)

    def _told(self, message: ToProcess) -> None:
        match message:
            case Run():
                self.call = message.call
                self._context = self._context_of(message)
                self.calls.put((message, self._context))
            case Cancel() if self._context is not None and message.call == self.call:
                self._context._cancel(message.reason)

    def _context_of(self, run: Run) -> TaskContext:
        return TaskContext(
            id=run.id,
            type=run.type,
            attempt=run.attempt,
            maximum_attempts=run.maximum_attempts,
            namespace=run.namespace,
            task_queue=run.task_queue,
            workflow_id=run.workflow_id,
            run_id=run.run_id,
            scheduled_time=run.scheduled_time,
            start_to_close=run.start_to_close,
            heartbeat_timeout=run.heartbeat_timeout,
            heartbeat_details=said_before(msgspec.Raw(run.heartbeat_details)),
            send=lambda details: self.send(Heartbeat(run.call, details)),
            emit=lambda item: self.send(Emit(run.call, item)),
            task_token=run.task_token,
            headers=run.headers,
            metrics=_MetricsToWorker(self, run.call),
        )


class _MetricsToWorker:
    """To the worker's metrics handler."""

    def __init__(self, worker: _Worker, call: int) -> None:
        self._worker = worker
        self._call = call

    def counter(self, name: str, amount: float, tags: Tags, /) -> None:
        self._worker.send(Measure(self._call, "counter", name, amount, dict(tags)))

    def gauge(self, name: str, value: float, tags: Tags, /) -> None:
        self._worker.send(Measure(self._call, "gauge", name, value, dict(tags)))

    def timer(self, name: str, seconds: float, tags: Tags, /) -> None:
        self._worker.send(Measure(self._call, "timer", name, seconds, dict(tags)))


class _LogToWorker(logging.Handler):
    """So that what is logged here comes out where the worker's own log does."""

    def __init__(self, worker: _Worker) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)[:LOGGED_CHARS_MAX].encode(errors="backslashreplace").decode()
            self._worker.send(Log(self._worker.call, record.name, record.levelno, text))
        except Exception:  # as in every handler of `logging`: a line that cannot be logged fails nobody's work
            self.handleError(record)


def _answer(run: Run) -> Answer:
    try:
        function = _load(run.module, run.path)
        parameters = Parameters(function)
        args = parameters.from_payload(run.input) if run.is_task else parameters.from_array(run.input)
        return Done(run.call, PLAIN.encode(function(*args), f"the result of {run.type!r}"))
    except ArgumentsError as error:
        text = f"{run.type!r} cannot be called: {error}"
        return Failed(run.call, encode_failure(Failure(message=text, code=DECODE_ERROR, non_retryable=True)))
    except BaseException as error:  # SystemExit and the like end a task and not its process
        match sole_error(error):
            case CompleteLater():
                return Later(run.call)
            case CancelRequested():
                return Canceled(run.call)
        return Failed(run.call, encode_failure(failure_of(error)))


def _load(module: str, path: str) -> Callable[..., Any]:
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    function: Callable[..., Any] = found
    return function
