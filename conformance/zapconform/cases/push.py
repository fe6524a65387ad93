"""Deliveries: one-way messages to subscribers, with the payload as it was sent."""

from __future__ import annotations

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import SHOULD, case, check, equal
from zapconform.peer import Push, same_json
from zapconform.trial import Trial, about

MEGABYTE = 1024 * 1024


@case(
    "push/plain-envelope", "A push is a bare message: no correlation header, flags opcode * 256, envelope status 200."
)
def plain_envelope(trial: Trial) -> None:
    worker = trial.peer()
    _, task = trial.held_workflow(worker, trial.name("queue"))
    check(wire.correlated(task.payload) is None, expected="no correlation header", actual=task.payload[:8].hex())
    equal("flags", expected=op.DELIVER_WORKFLOW << 8, actual=task.envelope.flags)
    check(task.envelope.status in (0, 200), expected="envelope status 200", actual=task.envelope.status)


@case("push/worker-echo-ignored", "Go's worker sends an empty envelope back for each push, one-way: it is ignored.")
def worker_echo_ignored(trial: Trial) -> None:
    worker = trial.peer()
    execution, task = trial.held_workflow(worker, trial.name("queue"))
    for opcode in (op.DELIVER_WORKFLOW, op.DELIVER_ACTIVITY, op.DELIVER_RESULT):
        worker.connection.send_frame(wire.response(opcode, 0, b""))
    worker.commands(task, [{"kind": 0, "result": "IjEi"}]).succeeded()
    equal("status", expected=2, actual=trial.describe(worker, execution.workflow_id)["status"])


@case("push/only-to-subscribers", "A connection that has not subscribed gets no deliveries.")
def only_to_subscribers(trial: Trial) -> None:
    worker, idle = trial.peer("worker"), trial.peer("idle")
    trial.held_workflow(worker, trial.name("queue"))
    idle.settle()
    check(not idle.pushes, expected="no pushes", actual=idle.pushes)


@case("push/to-one-worker", "A task goes to one of several subscribers, and to no other.")
def to_one_worker(trial: Trial) -> None:
    workers = [trial.peer(f"worker {n}") for n in range(4)]
    queue = trial.name("queue")
    for worker in workers:
        worker.subscribe_workflows(trial.namespace, queue)
    trial.start(workers[0], queue)
    holder, _ = trial.first_push(workers, op.DELIVER_WORKFLOW)
    for worker in workers:
        worker.no_push(op.DELIVER_WORKFLOW)
    check(holder in workers, expected="one of the workers", actual=holder.connection.label)


@case("push/kinds-kept-apart", "Workflow tasks go to 0xA0 subscribers and activity tasks to 0xA1 subscribers only.")
def kinds_kept_apart(trial: Trial) -> None:
    queue = trial.name("queue")
    workflows, activities = trial.peer("workflows"), trial.peer("activities")
    activities.subscribe_activities(trial.namespace, queue)
    execution, _ = trial.held_workflow(workflows, queue)
    activities.no_push(op.DELIVER_WORKFLOW)
    trial.schedule_activity(workflows, execution, queue)
    activities.push(op.DELIVER_ACTIVITY, about(execution))
    workflows.no_push(op.DELIVER_ACTIVITY)


@case("push/queues-kept-apart", "A subscriber gets the tasks of its own queue only.")
def queues_kept_apart(trial: Trial) -> None:
    first, second = trial.name("queue"), trial.name("queue")
    worker, other = trial.peer("worker"), trial.peer("other")
    other.subscribe_workflows(trial.namespace, second)
    trial.held_workflow(worker, first)
    other.no_push(op.DELIVER_WORKFLOW)


@case("push/many-queues-one-connection", "One connection may subscribe to many queues and gets the tasks of each.")
def many_queues_one_connection(trial: Trial) -> None:
    worker = trial.peer()
    queues = [trial.name("queue") for _ in range(20)]
    for queue in queues:
        worker.subscribe_workflows(trial.namespace, queue)
    for execution in [trial.start(worker, queue) for queue in queues]:
        worker.push(op.DELIVER_WORKFLOW, about(execution))


PAYLOAD = {
    "z": 1,
    "a": 2,
    "big": 2**63 + 1,
    "negative": -(2**63),
    "text": 'snow ☃ \U0001d11e "quoted" </script> \u2028 \x7f',
    "nested": [[], {}, [None, True, False], {"b": {"a": []}}],
    "float": 0.1,
    "": "empty key",
}


@case(
    "push/input-exact", "An input arrives with its numbers, its keys in their order and its text: JSON is not reworked."
)
def input_exact(trial: Trial) -> None:
    worker = trial.peer()
    _, task = trial.held_workflow(worker, trial.name("queue"), input=[PAYLOAD])
    same_json("the input", [PAYLOAD], task.body.get("input"))


@case(
    "push/number-text-kept",
    "A number keeps its digits: 1.0 and 1e2 and forty digits arrive as they were written.",
    severity=SHOULD,
)
def number_text_kept(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_workflows(trial.namespace, queue)
    numbers = "[1.0,1e2,1234567890123456789012345678901234567890,0.1000,-0.0]"
    workflow_id = trial.name("wf")
    trial.terminate_later({"workflow_id": workflow_id})
    head = wire.compact(
        {"namespace": trial.namespace, "workflow_id": workflow_id, "workflow_type": "W", "task_queue": queue}
    )
    worker.call(op.START, head[:-1] + b',"input":' + numbers.encode() + b"}").succeeded()
    equal("the input's text", expected=numbers, actual=worker.push(op.DELIVER_WORKFLOW).body.get("input"))


@case("push/large-input", "An input of a megabyte is delivered whole.")
def large_input(trial: Trial) -> None:
    deliver_large(trial, MEGABYTE)


@case("push/very-large-input", "An input of four megabytes is delivered whole.")
def very_large_input(trial: Trial) -> None:
    deliver_large(trial, 3_900_000)  # the line breaks are escaped: four million bytes on the wire


def deliver_large(trial: Trial, size: int) -> None:
    worker = trial.peer()
    block = "0123456789abcde\n"
    _, task = trial.held_workflow(worker, trial.name("queue"), input=[block * (size // len(block))])
    text = task.body.get("input")
    received = wire.parse_json(text.encode()) if isinstance(text, str) else text
    check(
        received == [block * (size // len(block))],
        expected=f"the input of {size} characters",
        actual=f"{len(text) if isinstance(text, str) else text} characters of another",
    )


@case(
    "push/stalled-worker-blocks-nobody",
    "A worker that stops reading while deliveries pile up for it holds up no other worker.",
    hostile=True,
)
def stalled_worker_blocks_nobody(trial: Trial) -> None:
    stalled, other, client = trial.peer("stalled"), trial.peer("other"), trial.peer("client")
    stalled_queue, other_queue = trial.name("queue"), trial.name("queue")
    stalled.subscribe_workflows(trial.namespace, stalled_queue)
    other.subscribe_workflows(trial.namespace, other_queue)
    for _ in range(16):  # more than any pair of socket buffers takes
        trial.start(client, stalled_queue, input=["x" * MEGABYTE])
    execution = trial.start(client, other_queue)
    other.push(op.DELIVER_WORKFLOW, about(execution))
    client.settle()


@case(
    "push/worker-that-vanishes-while-stalled",
    "A worker whose connection breaks while deliveries wait for it to read disturbs nobody, and loses none of them.",
    hostile=True,
)
def worker_that_vanishes_while_stalled(trial: Trial) -> None:
    client, queue = trial.peer("client"), trial.name("queue")
    waiting = set()
    for attempt in range(48):  # each with a little more to deliver: from what the sockets take to far beyond
        waiting.add(trial.start(client, queue, input=["x" * (MEGABYTE // 16)]).run_id)
        stalled = trial.peer("stalled", receive_bytes=4096)
        stalled.send_call(op.SUBSCRIBE_WORKFLOWS, {"namespace": trial.namespace, "task_queue": queue})
        client.settle()
        if attempt % 2:
            stalled.connection.reset()
        else:
            stalled.close()
    last = trial.peer("last")
    last.subscribe_workflows(trial.namespace, queue)
    delivered = {last.push(op.DELIVER_WORKFLOW).body.get("run_id") for _ in waiting}
    equal("the runs", expected=waiting, actual=delivered)


@case("push/unicode-names", "Types, queues and ids may be any text: Unicode, spaces and punctuation arrive unchanged.")
def unicode_names(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("очередь ☃ /|;")
    workflow_id = trial.name("id µ |/\\ \"'")
    _, task = trial.held_workflow(worker, queue, workflow_id=workflow_id, workflow_type="Tÿpe 𝄞")
    equal("workflow_id", expected=workflow_id, actual=task.body.get("workflow_id"))
    equal("workflow_type_name", expected="Tÿpe 𝄞", actual=task.body.get("workflow_type_name"))


@case("push/tokens-differ", "Every delivery has a token of its own.")
def tokens_differ(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_workflows(trial.namespace, queue)
    executions = [trial.start(worker, queue) for _ in range(20)]
    tasks: list[Push] = [worker.push(op.DELIVER_WORKFLOW, about(execution)) for execution in executions]
    equal("different tokens", expected=20, actual=len({task.token for task in tasks}))


@case("push/order-kept", "Tasks of one queue are delivered to one worker in the order in which they were started.")
def order_kept(trial: Trial) -> None:
    worker = trial.peer()
    queue = trial.name("queue")
    worker.subscribe_workflows(trial.namespace, queue)
    executions = [trial.start(worker, queue) for _ in range(50)]
    order = [worker.push(op.DELIVER_WORKFLOW).body.get("workflow_id") for _ in executions]
    equal("the order", expected=[execution.workflow_id for execution in executions], actual=order)


@case(
    "push/backlog-whole-and-in-order",
    "Everything that waited on a queue goes to its first subscriber, all of it and in order, not one task a subscribe.",
)
def backlog_whole_and_in_order(trial: Trial) -> None:
    client, worker = trial.peer("client"), trial.peer("worker")
    queue = trial.name("queue")
    executions = [trial.start(client, queue) for _ in range(50)]
    worker.subscribe_workflows(trial.namespace, queue)
    order = [worker.push(op.DELIVER_WORKFLOW).body.get("workflow_id") for _ in executions]
    equal("the order", expected=[execution.workflow_id for execution in executions], actual=order)


@case("push/round-robin", "Two idle workers of one queue share its tasks.")
def round_robin(trial: Trial) -> None:
    shares = shared_out(trial, 20)
    check(min(shares) > 0, expected="both workers to get some of 20 tasks", actual=shares)


@case("push/round-robin-even", "Two idle workers of one queue get the same share, one task in turn.", severity=SHOULD)
def round_robin_even(trial: Trial) -> None:
    equal("the shares of 20 tasks", expected=(10, 10), actual=shared_out(trial, 20))


def shared_out(trial: Trial, tasks: int) -> tuple[int, int]:
    first, second = trial.peer("first"), trial.peer("second")
    queue = trial.name("queue")
    for worker in (first, second):
        worker.subscribe_workflows(trial.namespace, queue)
    takers = []
    for _ in range(tasks):
        trial.start(first, queue)
        takers.append(trial.first_push([first, second], op.DELIVER_WORKFLOW)[0])
    return takers.count(first), takers.count(second)
