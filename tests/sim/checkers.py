"""What each message is about: the checkers of `promises` are told by these of what enters and leaves the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from tests.sim.network import SimLink
from tests.sim.profile import Profile
from tests.sim.promises.cancels import Cancels
from tests.sim.promises.endings import Endings
from tests.sim.promises.headers import Headers
from tests.sim.promises.kept import NO_RESULT, Kept
from tests.sim.promises.leases import Held, Leases
from tests.sim.promises.patience import Patience
from tests.sim.promises.rates import Rates
from tests.sim.promises.results import Results
from tests.sim.promises.slots import Slots
from tests.sim.stories import Families, Library, Notes, Stories, Updates
from tests.sim.world import World

from zapserver.engine import Engine
from zapserver.engine.records import WORKFLOW_TASK_MS
from zapwire.envelope import decode_envelope, decode_respond, decode_submit_reply, decode_task_submit
from zapwire.opcodes import Op

_SUBMITS = (Op.TASK_SUBMIT, Op.TASK_SCHEDULE)
_RESPONDS = (
    Op.RESPOND_WORKFLOW_TASK_COMPLETED,
    Op.RESPOND_ACTIVITY_TASK_COMPLETED,
    Op.RESPOND_ACTIVITY_TASK_FAILED,
    Op.RECORD_ACTIVITY_TASK_HEARTBEAT,
    Op.HAND_BACK_TASK,
    Op.DETACH_TASK,
)
_KEEPS_LEASE = (Op.RECORD_ACTIVITY_TASK_HEARTBEAT, Op.DETACH_TASK)
_SUBSCRIBES = {Op.SUBSCRIBE_WORKFLOW_TASKS: "workflow", Op.SUBSCRIBE_ACTIVITY_TASKS: "activity"}

_decode = msgspec.json.decode


@dataclass(slots=True)
class _Call:
    opcode: int
    token: str = ""
    data: bytes = b""
    latest_token: str = ""
    at_ms: int = 0
    """The engine's time when it came."""
    was_settled: bool = False
    ends_lease: bool = False


class Checkers:
    """Those of one namespace. They know what each message is about."""

    def __init__(self, world: World, profile: Profile) -> None:
        self._world = world
        self._is_weak = profile.weak_rate > 0
        self.kept = Kept(world)
        self.results = Results(world)
        self.leases = Leases(world)
        self.endings = Endings(world)
        self.slots = Slots(world)
        self.cancels = Cancels(world, self.leases)
        self.patience = Patience(world, profile.delay_ms)
        self.headers = Headers(world)
        self.rates = Rates(world, profile)
        self.stories = Stories(world)
        self.families = Families(world)
        self.notes = Notes(world)
        self.updates = Updates(world)
        self._engine: Engine | None = None
        self._calls: dict[tuple[SimLink, int], _Call] = {}

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    # --- what enters and leaves ------------------------------------------------------------------------

    def called(self, link: SimLink, request_id: int, opcode: int, message: bytes) -> None:
        call = _Call(opcode)
        if opcode in _RESPONDS:
            scoped, data = decode_respond(message)
            call.token = bytes(scoped).decode().rpartition("|")[0]
            call.data = bytes(data)
            held = self.leases.by_token.get(call.token)
            if held is not None:
                call.latest_token = self.leases.latest[held.key].token
                call.at_ms = max(self._world.clock(), self.engine.now_ms)
                if opcode == Op.RESPOND_WORKFLOW_TASK_COMPLETED:
                    held.is_answered = True
                call.was_settled = held.is_settled
                if opcode == Op.DETACH_TASK:
                    held.is_detaching = True
                call.ends_lease = opcode not in _KEEPS_LEASE and not held.is_over
                if call.ends_lease:
                    self.leases.over(call.token, self.engine.now_ms)
        elif opcode in _SUBSCRIBES or opcode == Op.CANCEL_WORKFLOW:
            call.data = bytes(decode_envelope(message).body)
        self._calls[link, request_id] = call

    def answering(self, link: SimLink, request_id: int, message: bytes) -> None:
        call = self._calls.pop((link, request_id), None)
        if call is None:
            return
        if call.opcode in _SUBMITS:
            status, error = decode_submit_reply(message)[0], ""
        else:
            envelope = decode_envelope(message)
            status, error = envelope.status, envelope.error
        if status == 500:
            self._world.fail("server", f"0x{call.opcode:02X} of {link.node_id} was answered 500: {error}")
        if status not in (0, 200):
            self._answer_refused(call, status)
            return
        if call.opcode in _RESPONDS:
            self._answer_taken(call)
        elif call.opcode in _SUBSCRIBES:
            self.leases.subscribed(link, _SUBSCRIBES[Op(call.opcode)], _decode(call.data)["slots"])
            if call.opcode == Op.SUBSCRIBE_ACTIVITY_TASKS:
                self.rates.subscribed(link)
        elif call.opcode == Op.CANCEL_WORKFLOW:
            self.cancels.acknowledged(_decode(call.data)["run_id"])

    def _answer_taken(self, call: _Call) -> None:
        held = self.leases.by_token.get(call.token)
        if held is None:
            return
        is_completed = call.opcode == Op.RESPOND_ACTIVITY_TASK_COMPLETED
        self.leases.accepted(call.token, call.latest_token, is_last=is_completed)
        self.leases.taken_too_late(held, call.at_ms, was_settled=call.was_settled)
        match call.opcode:
            case Op.RECORD_ACTIVITY_TASK_HEARTBEAT:
                held.beat_ms = max(held.beat_ms, call.at_ms)
                self.kept.beaten(held.key, _decode(call.data)["n"])
            case Op.DETACH_TASK:
                held.is_detached = held.is_detaching = True
            case Op.RESPOND_ACTIVITY_TASK_COMPLETED:
                held.is_settled = True
                self.results.activity(held.key, _decode(call.data))
                self.kept.ended(held.run_id, held.key, held.attempt, _decode(call.data))
            case Op.RESPOND_ACTIVITY_TASK_FAILED | Op.HAND_BACK_TASK if held.kind == "activity":
                held.is_settled = True
                self.kept.ended(held.run_id, held.key, held.attempt, NO_RESULT)

    def _answer_refused(self, call: _Call, status: int) -> None:
        held = self.leases.by_token.get(call.token)
        if held is None:
            return
        if call.opcode == Op.DETACH_TASK and not held.is_detached:
            held.is_detaching = False
        if call.ends_lease and status in (429, 503, 507):
            self.leases.stands_again(held)

    def pushing(self, link: SimLink, opcode: int, body: bytes) -> None:
        push = _decode(body)
        about = push.get("activity_id") or push.get("run_id") or push.get("task_token")
        self._world.note("to", link.node_id, Op(opcode).name, about, push.get("attempt", ""))
        match opcode:
            case Op.DELIVER_ACTIVITY_TASK | Op.DELIVER_WORKFLOW_TASK:
                held = self._held(link, opcode, push)
                self.cancels.delivered(held)
                self.leases.delivered(held, self.engine)
                self._check_headers(held, push)
                if held.kind == "activity":
                    self.kept.delivered(held.key, push.get("heartbeat_details"))
                    self._count_on_rates(held)
            case Op.DELIVER_ACTIVITY_RESULT:
                outcome = _decode(push["result"]) if "result" in push else {"failure": push["failure"]}
                self.results.activity(push["activity_id"], outcome)
            case Op.DELIVER_ACTIVITY_CANCEL:
                known = self.leases.by_token.get(push["task_token"].rpartition("|")[0])
                if known is not None:
                    self.cancels.told(known, link)
            case Op.DELIVER_CANCEL_REQUEST:
                holder = self.leases.latest.get(push["run_id"])
                if holder is not None and holder.link is link:
                    holder.is_told_to_stop = True

    def _check_headers(self, held: Held, push: dict[str, Any]) -> None:
        """Its input says what it was started with. A worker that replays reads both in the first event."""
        if "history" not in push:
            self.headers.delivered(held.key, _decode(push["input"])["n"], push.get("headers"))
        elif push["previous_event_id"] == 0:
            first = push["history"][0]["attributes"]
            self.headers.delivered(held.key, first["input"]["n"], first.get("headers"))

    def _count_on_rates(self, held: Held) -> None:
        """Unless its lease is over: when it was decided is not known then."""
        activity = self.engine._state.activities.get(held.key)
        if activity is not None and not held.is_over:
            self.rates.delivered(held.link, activity.queue[1], held.started_ms)

    def _held(self, link: SimLink, opcode: int, push: dict[str, Any]) -> Held:
        state, now_ms = self.engine._state, self.engine.now_ms
        token = push["task_token"].rpartition("|")[0]
        kind = "activity" if opcode == Op.DELIVER_ACTIVITY_TASK else "workflow"
        task: Any
        if kind == "activity":
            task = state.activities.get(push["activity_id"])
        else:
            run = state.executions.get(push["run_id"])
            task = None if run is None else run.task
        # A lease can end while its delivery waits for the disk.
        lease = task.lease if task is not None and task.lease is not None and task.lease.token == token else None
        is_replay = "history" in push
        limit_ms = push.get("start_to_close_timeout_ms", 0)
        return Held(
            key=push["activity_id"] if kind == "activity" else push["run_id"],
            run_id=push["run_id"],
            token=token,
            attempt=push["attempt"],
            link=link,
            kind=kind,
            started_ms=now_ms if lease is None else lease.started_ms,
            beat_ms=now_ms if lease is None else lease.heartbeat_ms,
            start_to_close_ms=WORKFLOW_TASK_MS if is_replay else limit_ms,
            heartbeat_ms=push.get("heartbeat_timeout_ms", 0),
            is_over=lease is None,
            over_ms=now_ms,
            is_replayed=is_replay or push.get("activity_id", "").startswith(f"act-{push['run_id']}-"),
            has_updates="updates" in push,
            is_closed=lease is None and kind == "workflow" and not is_replay,
        )

    def parted(self, link: SimLink) -> None:
        self.leases.parted(link, self.engine.now_ms)
        self.rates.parted(link)

    # --- what happens to the server --------------------------------------------------------------------

    def crashed(self, *, is_power: bool) -> None:
        self.kept.weakened(is_power=is_power)
        if is_power and self._is_weak:
            self.leases.may_repeat = self.stories.may_change = True

    def store_failed(self) -> None:
        self.kept.memory_lost()

    def restarted(self, engine: Engine) -> None:
        self._engine = engine
        self._calls.clear()
        self.leases.restarted(engine.now_ms)
        self.rates.forgotten()
        self._look(engine)

    def rebuilt(self, engine: Engine) -> None:
        self._engine = engine
        self.leases.rebuilt(engine.now_ms)
        self.rates.forgotten()
        self._look(engine)

    def _look(self, engine: Engine) -> None:
        self.kept.check(engine, is_deep=False)
        self.results.check(engine)
        self.slots.check(engine, is_last=False)

    def stepped(self, *, is_serving: bool, is_disk_well: bool) -> None:
        """After every event."""
        self.patience.look(is_calm=is_serving and is_disk_well)
        if is_serving:
            self.cancels.look(self.engine)

    def check_end(self, engine: Engine) -> None:
        """Faults have stopped, and everything had time to end."""
        self.kept.check(engine, is_deep=True)
        self.results.check(engine)
        self.leases.check_attempts(engine)
        self.cancels.check(engine)
        self.endings.check(engine)
        self.slots.check(engine, is_last=True)
        self.headers.check(engine)
        library = Library(engine)
        self.stories.check(library)
        self.families.check(library)
        self.notes.check(library)
        self.updates.check(engine, library)


class _Scoped(msgspec.Struct):
    """What says in which namespace a message belongs."""

    namespace: str = ""
    task_token: str = ""
    activity_id: str = ""


_read_scope = msgspec.json.Decoder(_Scoped).decode


class Watchers:
    """The checkers of all namespaces. Each looks at what is its own."""

    def __init__(self, world: World, by_namespace: dict[str, Checkers]) -> None:
        self._world = world
        self._by_namespace = by_namespace

    def called(self, link: SimLink, request_id: int, opcode: int, message: bytes) -> None:
        if opcode in _RESPONDS:
            namespace = bytes(decode_respond(message)[0]).decode().rpartition("|")[2]
        elif opcode in _SUBMITS:
            namespace = _read_scope(bytes(decode_task_submit(message).options)).namespace
        else:
            namespace = _read_scope(decode_envelope(message).body).namespace
        self._by_namespace[namespace].called(link, request_id, opcode, message)

    def answering(self, link: SimLink, request_id: int, message: bytes) -> None:
        for checkers in self._by_namespace.values():  # one of them knows the call
            checkers.answering(link, request_id, message)

    def pushing(self, link: SimLink, opcode: int, body: bytes) -> None:
        self._world.count(f"push {Op(opcode).name.lower()}")
        scope = _read_scope(body)
        namespace = scope.namespace or scope.task_token.rpartition("|")[2]
        for name, checkers in self._by_namespace.items():
            if name == namespace or (not namespace and scope.activity_id in checkers.leases.latest):
                checkers.pushing(link, opcode, body)

    def parted(self, link: SimLink) -> None:
        for checkers in self._by_namespace.values():
            checkers.parted(link)
