"""Receipts: a peer that announces them finds in each acknowledgement how durable it is, and may ask for a level."""

from __future__ import annotations

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import Failed, case, check, equal
from zapconform.cases.http import SCHEDULES, WORKFLOWS, ask
from zapconform.peer import Json, Peer, Reply
from zapconform.trial import Trial

LEVELS = {"memory": 1, "written": 2, "synced": 3}


def reading_peer(trial: Trial) -> Peer:
    """A peer that reads receipts, and CBOR as every peer of ours does."""
    peer = trial.raw()
    bits = wire.CAPABILITY_RECEIPTS | wire.CAPABILITY_CBOR
    hello = peer.shake_hands(wire.extended_hello(trial.name("peer").encode(), capabilities=bits, details=b"\xa0"))
    check(bool(hello.capabilities & wire.CAPABILITY_RECEIPTS), expected="the receipts bit", actual=hello.capabilities)
    return peer


def start_body(trial: Trial, **more: str) -> Json:
    queue, workflow_id = trial.name("queue"), trial.name("wf")
    trial.terminate_later({"workflow_id": workflow_id})
    return {"namespace": trial.namespace, "workflow_id": workflow_id, "workflow_type": "C", "task_queue": queue, **more}


def submit_task(trial: Trial, peer: Peer, **options: str) -> Reply:
    workflow_id = trial.name("task")
    trial.terminate_later({"workflow_id": workflow_id})
    return trial.submit(
        peer, "job", 1, workflow_id=workflow_id, task_queue=trial.name("queue"), namespace=trial.namespace, **options
    )


def put_schedule(trial: Trial, peer: Peer, **options: str) -> Reply:
    name = trial.name("sched")
    trial.delete_later(name)
    message = wire.task_schedule(name, interval="1h", options=wire.compact({"namespace": trial.namespace, **options}))
    return peer.reply(peer.send_message(message, op.TASK_SCHEDULE))


def receipts(trial: Trial, peer: Peer, **asked: str) -> dict[str, int]:
    """One of each kind of acknowledgement."""
    start = peer.call(op.START, start_body(trial, **asked)).succeeded()
    submit = submit_task(trial, peer, **asked).succeeded()
    put = put_schedule(trial, peer, **asked).succeeded()
    return {"start": start.envelope.receipt, "submit": submit.envelope.receipt, "schedule": put.envelope.receipt}


@case(
    "call/receipt-given",
    "A peer that reads receipts finds 1 (in memory), 2 (written) or 3 (synced) in the answer to a start, a task and a"
    " schedule, the same in all three when it asks for nothing.",
    extension=True,
)
def receipt_given(trial: Trial) -> None:
    given = receipts(trial, reading_peer(trial))
    check(set(given.values()) in ({1}, {2}, {3}), expected="one receipt of 1, 2 or 3 in all", actual=given)


@case(
    "call/receipt-as-asked",
    "`durability` asks for a level: the receipt names that one, or the server's own where that is less.",
    extension=True,
)
def receipt_as_asked(trial: Trial) -> None:
    peer = reading_peer(trial)
    most = receipts(trial, peer)["start"]
    for level, number in LEVELS.items():
        expected = min(number, most)
        equal(
            f"the receipts where {level!r} was asked for",
            expected={"start": expected, "submit": expected, "schedule": expected},
            actual=receipts(trial, peer, durability=level),
        )


@case(
    "call/receipt-of-a-workers-answer",
    "What a worker answers is acknowledged with a receipt as well.",
    extension=True,
)
def receipt_of_a_workers_answer(trial: Trial) -> None:
    worker = reading_peer(trial)
    _, task = trial.held_task(worker, trial.name("queue"))
    reply = worker.complete(task).succeeded()
    check(reply.envelope.receipt in LEVELS.values(), expected="a receipt of 1, 2 or 3", actual=reply.envelope.receipt)


@case(
    "call/no-receipt-unasked",
    "A peer that has not announced receipts finds zero there, also when it asks for a level.",
    extension=True,
)
def no_receipt_unasked(trial: Trial) -> None:
    nothing = {"start": 0, "submit": 0, "schedule": 0}
    equal("the receipts of a v1 peer", expected=nothing, actual=receipts(trial, trial.peer()))
    equal("with a level asked for", expected=nothing, actual=receipts(trial, trial.peer(), durability="memory"))
    peer = trial.raw()
    name = trial.name("peer").encode()
    peer.shake_hands(wire.extended_hello(name, capabilities=wire.CAPABILITY_CBOR, details=b"\xa0"))
    equal("the receipts of a peer without the bit", expected=nothing, actual=receipts(trial, peer))


@case("call/receipt-not-in-refusals", "A refusal has no receipt: nothing was kept.", extension=True)
def receipt_not_in_refusals(trial: Trial) -> None:
    body = {"namespace": trial.namespace, "workflow_id": trial.name("none")}
    reply = reading_peer(trial).call(op.TERMINATE, body).refused(404)
    equal("the receipt of a refusal", expected=0, actual=reply.envelope.receipt)


@case(
    "errors/durability-unknown",
    "A `durability` that is no level is refused with 400, and nothing is started.",
    extension=True,
)
def durability_unknown(trial: Trial) -> None:
    peer = trial.peer()
    body = start_body(trial, durability="forever")
    reply = peer.call(op.START, body).refused(400)
    check("forever" in reply.envelope.error, expected="an error that names the value", actual=reply.envelope.error)
    peer.call(op.DESCRIBE, {"namespace": trial.namespace, "workflow_id": body["workflow_id"]}).refused(404)
    submit_task(trial, peer, durability="Forever").refused(400)
    put_schedule(trial, peer, durability="fsync").refused(400)


@case(
    "http/durability",
    "Over HTTP `durability` stands in the body of request and answer; what is no level is refused with 400.",
    extension=True,
    http=True,
)
def durability_over_http(trial: Trial) -> None:
    name = trial.name("sched")
    trial.delete_later(name)
    schedule = {
        "schedule_id": name,
        "schedule": {"spec": {"interval": [{"every": "1h"}]}, "action": {"start_workflow": {"workflow_type": "job"}}},
    }
    task = {"workflow_type": "job", "task_queue": trial.name("queue")}
    for path, body in ((WORKFLOWS, task), (SCHEDULES + name, schedule)):
        most = _level(trial, path, body)
        for level, number in LEVELS.items():
            reached = _level(trial, path, {**body, "durability": level})
            equal(f"the level where {level!r} was asked for", expected=min(number, most), actual=reached)
        answer = ask(trial, "POST", path, {**body, "durability": "forever"})
        equal("the status for an unknown level", expected=400, actual=answer.status)


def _level(trial: Trial, path: str, body: Json) -> int:
    answer = ask(trial, "POST", path, body)
    equal("the status", expected=200, actual=answer.status)
    found = answer.json()
    if isinstance(workflow_id := found.get("workflow_id"), str):
        trial.terminate_later({"workflow_id": workflow_id})
    level = found.get("durability")
    if level not in LEVELS:
        raise Failed(expected="a level under `durability`", actual=str(answer))
    return LEVELS[level]
