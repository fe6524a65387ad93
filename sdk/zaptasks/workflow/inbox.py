"""What others send to a run: signals and updates, the handlers that take them, and what waits until somebody does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from zaptasks.arguments import ArgumentsError
from zaptasks.failures import canceled_failure, failure_of
from zaptasks.payloads import encode_payload

from . import commands as c
from .channels import MemoryReceiveChannel, MemorySendChannel, open_memory_channel
from .definition import Bound
from .endings import ContinueAsNew, raw_failure
from .errors import Cancelled
from .scheduler import current_task
from .steps import Step

if TYPE_CHECKING:
    from .execution import Run

log = logging.getLogger("zaptasks.workflow")


class UpdateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An update that came with a task and is to be accepted or rejected."""

    update_id: str
    name: str
    args: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def payload(self) -> bytes | None:
        return None if bytes(self.args) == b"null" else bytes(self.args)


class Inbox:
    """The signals and updates of one run, and its handlers of them and of queries."""

    def __init__(self, run: Run) -> None:
        definition = run.definition
        self.handlers: Final[dict[str, dict[str, Bound]]] = {
            "signal": dict(definition.signals),
            "query": dict(definition.queries),
            "update": dict(definition.updates),
        }
        self.running = 0
        """Signal and update handlers that have begun and not ended."""
        self.completed_updates: Final[set[str]] = set()
        """In the history."""
        self._run = run
        self._signals = 0
        self._updates = 0
        self._watched: dict[str, Callable[[bytes | None], None]] = {}
        self._buffered: dict[str, list[bytes | None]] = {}
        self._channels: dict[str, tuple[MemorySendChannel[bytes | None], MemoryReceiveChannel[bytes | None]]] = {}

    # --- signals ---------------------------------------------------------------------------------------------

    def signal(self, name: str, payload: bytes | None) -> None:
        """A signal has come: to its handler, its channel, or whoever asks for it later."""
        self._signals += 1
        watching = self._watched.get(name)
        if watching is not None:
            watching(payload)
            return
        bound = self.handlers["signal"].get(name)
        if bound is not None:
            self._start_signal(bound, f"s{self._signals}", payload)
        elif name in self._channels:
            self._channels[name][0].send_nowait(payload)
        else:
            self._buffered.setdefault(name, []).append(payload)

    def _start_signal(self, bound: Bound, path: str, payload: bytes | None) -> None:
        try:
            args = bound.parameters.from_payload(payload)
        except ArgumentsError as error:
            # A sender's mistake is not the workflow's: it must not end for it.
            log.error("a signal %r to %s was dropped: %s", bound.name, self._run.info.workflow_id, error)
            return
        self.running += 1
        self._run.spawn(path, self._handle_signal, bound, args, name=f"signal {bound.name!r}")

    async def _handle_signal(self, bound: Bound, args: tuple[object, ...]) -> None:
        try:
            if bound.is_method and self._run.instance is None:
                return  # the workflow failed before it had begun
            value = bound.call(self._run.instance, args)
            if bound.is_async:
                await value
        finally:
            self.running -= 1

    def watch_signal(self, name: str, told: Callable[[bytes | None], None]) -> None:
        """Call `told` with the value of each signal of this name, before any code runs, those that came before
        included. For signals of our own workers."""
        self._watched[name] = told
        for payload in self._buffered.pop(name, ()):
            told(payload)

    def unwatch_signal(self, name: str) -> None:
        """Drop the signals of this name that still come."""
        self._watched[name] = lambda payload: None

    def add_handler(self, kind: str, bound: Bound) -> None:
        """A handler that the running code brings: it gets what came before as well."""
        self.handlers[kind][bound.name] = bound
        if kind == "signal":
            task = current_task()
            for payload in self._buffered.pop(bound.name, ()):
                self._start_signal(bound, task.next_child_path(), payload)

    def channel(self, name: str) -> MemoryReceiveChannel[bytes | None]:
        """The values of signals of this name, those from before included."""
        if name in self.handlers["signal"]:
            raise RuntimeError(f"signal {name!r} has a handler already, which gets its values")
        if name not in self._channels:
            self._channels[name] = open_memory_channel[bytes | None](math.inf)
            for payload in self._buffered.pop(name, ()):
                self._channels[name][0].send_nowait(payload)
        return self._channels[name][1]

    # --- updates ---------------------------------------------------------------------------------------------

    def refusals(self, requests: Sequence[UpdateRequest]) -> list[c.RejectUpdate]:
        """What is said against the updates if all of them are refused, else nothing."""
        refusals = [refusal for request in requests if (refusal := self._refusal(request)) is not None]
        return refusals if len(refusals) == len(requests) else []

    def _refusal(self, request: UpdateRequest) -> c.RejectUpdate | None:
        """What the workflow and the validator say against an update; None if they take it."""
        try:
            if self._run.end is not None or (self._run.definition.cls is not None and self._run.instance is None):
                raise RuntimeError(f"the workflow {self._run.info.type!r} has just ended")
            bound = self.handlers["update"].get(request.name)
            if bound is None:
                known = ", ".join(sorted(self.handlers["update"])) or "none"
                raise LookupError(
                    f"the workflow {self._run.info.type!r} takes no update {request.name!r}; it has: {known}"
                )
            args = bound.parameters.from_array(request.payload)
            self._run.scheduler.look(f"the validator of {request.name!r}", bound.validate, self._run.instance, args)
        except Exception as error:
            return c.RejectUpdate(update_id=request.update_id, failure=raw_failure(failure_of(error)))
        return None

    def answer(self, request: UpdateRequest) -> None:
        """Let the validator see an update, and take it or refuse it."""
        refusal = self._refusal(request)
        if refusal is not None:
            self._run.say(refusal)
        else:
            self._run.say(c.AcceptUpdate(update_id=request.update_id))
            self.start_update(request.update_id, request.name, request.payload)

    def start_update(self, update_id: str, name: str, args: bytes | None) -> None:
        """Have the handler of an accepted update run."""
        bound = self.handlers["update"].get(name)
        if self._run.end is not None or bound is None:
            what = "nothing takes an update of that name" if bound is None else "the workflow has ended"
            was = Step(text=f"accepted update {name!r}", kind="accept-update", name=name)
            raise self._run.matching.mismatch(f"update {update_id!r}", was, Step(text=what))
        self._updates += 1
        self.running += 1
        self._run.spawn(
            f"u{self._updates}",
            self._handle_update,
            bound,
            update_id,
            bound.parameters.from_array(args),
            name=f"update {name!r}",
        )

    async def _handle_update(self, bound: Bound, update_id: str, args: tuple[object, ...]) -> None:
        try:
            value = bound.call(self._run.instance, args)
            if bound.is_async:
                value = await value
            payload = encode_payload(value, f"the result of update {bound.name!r}")
        except Cancelled as cancelled:
            self._complete_update(
                c.CompleteUpdate(update_id=update_id, failure=raw_failure(canceled_failure(cancelled.reason)))
            )
            raise
        except (Exception, ContinueAsNew) as error:
            failure = raw_failure(failure_of(error))
            self._complete_update(c.CompleteUpdate(update_id=update_id, failure=failure))
        else:
            self._complete_update(c.CompleteUpdate(update_id=update_id, result=msgspec.Raw(payload)))
        finally:
            self.running -= 1

    def _complete_update(self, command: c.CompleteUpdate) -> None:
        if command.update_id in self.completed_updates:
            return
        if self._run.is_replaying:
            self._run.matching.completed_unrecorded(command)
        else:
            self._run.say(command)
