"""What a case gets: the target's address, fresh names, peers that are closed for it, and helpers that
do what many cases do first."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import Failed, TargetUnreachable, Unsupported, shown
from zapconform.connection import Connection, TrafficLog
from zapconform.peer import Json, Peer, Push, Reply, first_push


@dataclass(frozen=True)
class Execution:
    workflow_id: str
    run_id: str

    @property
    def key(self) -> Json:
        """The fields that name this run in a request."""
        return {"workflow_id": self.workflow_id, "run_id": self.run_id}


@dataclass
class Trial:
    """One run of one case."""

    address: tuple[str, int]
    http_url: str
    namespace: str
    timeout: float
    suffix: str
    """Unlike that of every other case and run: names made with it are new to the target."""
    random: random.Random
    log: TrafficLog = field(default_factory=TrafficLog)
    notes: list[str] = field(default_factory=list)
    """Where the target did what is acceptable but not preferred."""
    _peers: list[Peer] = field(default_factory=list)
    _tidy: list[Callable[[Peer], object]] = field(default_factory=list)
    _names: int = 0

    # --- names and peers -----------------------------------------------------------------------------

    def name(self, what: str) -> str:
        self._names += 1
        return f"zc-{what}-{self.suffix}-{self._names}"

    def raw(self, label: str = "", receive_bytes: int = 0) -> Peer:
        """A connection on which nothing has been said."""
        label = label or f"c{len(self._peers) + 1}"
        connection = Connection(self.address, self.log, label, self.timeout, receive_bytes)
        peer = Peer(connection)
        self._peers.append(peer)
        return peer

    def peer(self, label: str = "", node_id: str = "", receive_bytes: int = 0) -> Peer:
        """A connection that has shaken hands as a peer of v1 does."""
        peer = self.raw(label, receive_bytes)
        peer.shake_hands(wire.hello((node_id or self.name("peer")).encode()))
        return peer

    def any_peer(self) -> Peer:
        """The peer that is already there, or a new one: for a case that needs only one."""
        return self._peers[0] if self._peers else self.peer()

    def note(self, text: str) -> None:
        self.notes.append(text)

    # --- workflows ----------------------------------------------------------------------------------

    def start(self, peer: Peer, queue: str, *, opcode: int = op.START, **fields: Any) -> Execution:
        """Start a workflow; it is terminated when the case is over."""
        body = {
            "namespace": self.namespace,
            "workflow_id": self.name("wf"),
            "workflow_type": "Conform",
            "task_queue": queue,
            **fields,
        }
        answer = peer.call(opcode, body).ok()
        execution = Execution(text(answer, "workflow_id"), text(answer, "run_id"))
        self.terminate_later(execution.key)
        return execution

    def terminate_later(self, key: Json) -> None:
        """Leave no open execution behind on a server that has other things to do."""
        self._tidy.append(lambda peer: peer.call(op.TERMINATE, {"namespace": self.namespace, **key}))

    def terminate_queue_later(self, queue: str) -> None:
        """The same for whatever runs on this queue by then, as a schedule's last firing may."""

        def terminate_all(peer: Peer) -> None:
            query = f"TaskQueue = '{queue}'"
            listed = peer.call(op.LIST, {"namespace": self.namespace, "query": query, "page_size": 1000}).ok()
            for info in listed.get("executions", []):
                if info.get("task_queue") == queue and "close_time" not in info:
                    key = {"workflow_id": info.get("workflow_id"), "run_id": info.get("run_id")}
                    peer.call(op.TERMINATE, {"namespace": self.namespace, **key})

        self._tidy.append(terminate_all)

    def held_workflow(self, worker: Peer, queue: str, **fields: Any) -> tuple[Execution, Push]:
        """A workflow whose task this worker holds; it subscribes for that."""
        worker.subscribe_workflows(self.namespace, queue)
        execution = self.start(worker, queue, **fields)
        return execution, worker.push(op.DELIVER_WORKFLOW, about(execution))

    def held_activity(self, worker: Peer, queue: str, **fields: Any) -> tuple[Execution, Push, Push]:
        """A workflow and one activity of it, both held by this worker."""
        execution, task = self.held_workflow(worker, queue)
        worker.subscribe_activities(self.namespace, queue)
        activity_id = self.schedule_activity(worker, execution, queue, **fields)
        activity = worker.push(op.DELIVER_ACTIVITY, lambda body: body.get("activity_id") == activity_id)
        return execution, task, activity

    def schedule_activity(self, worker: Peer, execution: Execution, queue: str, **fields: Any) -> str:
        body = {
            "namespace": self.namespace,
            **execution.key,
            "task_queue": queue,
            "activity_type": "Step",
            "input": ["x"],
            **fields,
        }
        return text(worker.call(op.SCHEDULE_ACTIVITY, body).ok(), "activity_task_id")

    def describe(self, peer: Peer, workflow_id: str, run_id: str = "") -> Json:
        body = {"namespace": self.namespace, "workflow_id": workflow_id, "run_id": run_id}
        info = peer.call(op.DESCRIBE, body).ok().get("info")
        if not isinstance(info, dict):
            raise Failed(expected="an object under `info`", actual=shown(info))
        return info

    def history(self, peer: Peer, execution: Execution, **page: Any) -> Json:
        answer = peer.call(op.HISTORY, {"namespace": self.namespace, **execution.key, **page}).ok()
        if not isinstance(answer.get("events"), list):
            raise Failed(expected="a list under `events`", actual=shown(answer))
        return answer

    def status_becomes(self, peer: Peer, workflow_id: str, *statuses: int, seconds: float | None = None) -> Json:
        """Ask until the execution has one of these statuses; there is no push for it in v1."""
        deadline = time.monotonic() + (self.timeout if seconds is None else seconds)
        while (info := self.describe(peer, workflow_id)).get("status") not in statuses:
            if time.monotonic() > deadline:
                raise Failed(expected=f"status {' or '.join(map(str, statuses))}", actual=shown(info))
            time.sleep(0.02)  # a server that must be asked is asked fifty times a second
        return info

    # --- one-shot tasks -------------------------------------------------------------------------------

    def submit(self, peer: Peer, task_type: str, payload: object, **options: Any) -> Reply:
        """0x50, not yet judged. Options are the addition of zaptasks; without any the frame is Go's."""
        encoded = wire.compact(options) if options else b""
        message = wire.task_submit(task_type, wire.compact(payload), encoded)
        return peer.reply(peer.send_message(message, op.TASK_SUBMIT))

    def submitted(self, peer: Peer, task_type: str, payload: object, **options: Any) -> Execution:
        """0x50 that must be accepted, with the execution that its answer names."""
        answer = self.submit(peer, task_type, payload, **options).ok()
        execution = Execution(text(answer, "workflow_id"), text(answer, "run_id"))
        self.terminate_later(execution.key)
        return execution

    def held_task(self, worker: Peer, queue: str, **options: Any) -> tuple[Execution, Push]:
        """A one-shot task that this worker holds."""
        worker.subscribe_activities(self.namespace, queue)
        execution = self.submitted(worker, "job", {"n": 1}, task_queue=queue, **options)
        return execution, worker.push(op.DELIVER_ACTIVITY, about(execution))

    # --- schedules ---------------------------------------------------------------------------------------

    def create_schedule(self, peer: Peer, spec: Json, action: Json, **fields: Any) -> str:
        """0x70; the schedule is deleted when the case is over."""
        schedule_id = self.name("sched")
        self.delete_later(schedule_id)
        body = self.schedule_body(schedule_id, spec, action, **fields)
        peer.call(op.CREATE_SCHEDULE, body).succeeded()
        return schedule_id

    def schedule_body(self, schedule_id: str, spec: Json, action: Json, **fields: Any) -> Json:
        schedule = {"id": schedule_id, "spec": spec, "action": action, **fields}
        return {"namespace": self.namespace, "schedule_id": schedule_id, "schedule": schedule}

    def delete_later(self, schedule_id: str) -> None:
        body = {"namespace": self.namespace, "schedule_id": schedule_id}
        self._tidy.append(lambda peer: peer.call(op.LIST_OR_DELETE_SCHEDULES, body))

    # --- health and ending ---------------------------------------------------------------------------------

    def first_push(self, peers: list[Peer], opcode: int, seconds: float | None = None) -> tuple[Peer, Push]:
        return first_push(peers, opcode, self.timeout if seconds is None else seconds)

    def is_served(self, who: str) -> Peer:
        """Raise unless a fresh connection is served."""
        try:
            peer = self.peer(who)
            peer.settle()
        except (Failed, TargetUnreachable, Unsupported) as reason:
            raise Failed(expected="a fresh connection to be served", actual=str(reason)) from None
        return peer

    def close(self) -> None:
        """Close all connections, then undo on a fresh one what the case has left."""
        self.log.complete = True
        for peer in self._peers:
            peer.close()
        if not self._tidy:
            return
        try:
            self._undo(self.peer("tidy"))
        except (Failed, TargetUnreachable):
            return  # it is a courtesy: whoever does not answer here has failed already
        finally:
            for peer in self._peers:
                peer.close()

    def _undo(self, peer: Peer) -> None:
        for undo in reversed(self._tidy):
            with contextlib.suppress(Unsupported):
                undo(peer)


def about(execution: Execution) -> Callable[[Json], bool]:
    """Whether a push belongs to this execution."""
    return lambda body: body.get("workflow_id") == execution.workflow_id and body.get("run_id") == execution.run_id


def text(body: Json, key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise Failed(expected=f"a non-empty string under `{key}`", actual=shown(body))
    return value
