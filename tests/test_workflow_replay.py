"""Replay: the same history gives the same commands, and another program is told apart from what was recorded."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
import trio
from tests.helpers.workflow_world import World

from zapserver.engine import commands as ec
from zaptasks import workflow
from zaptasks.testing.pure_worker import read_events
from zaptasks.workflow import Run, WorkflowInfo, WorkflowTask, WorkflowTaskHandler, definition_of
from zaptasks.workflow import commands as c
from zaptasks.workflow.history import ANSWERED, UPDATE_ACCEPTED, Event

Main = Callable[..., Coroutine[Any, Any, object]]
HERE = __file__


def replayed(main: Main, history: list[Event]) -> list[c.Command]:
    """What another worker with this code answers to this history."""
    run = Run(definition_of(main), WorkflowInfo(workflow_id="w", run_id=RUN_ID, type="main"))
    try:
        return run.feed(history)
    finally:
        run.close()


RUN_ID = "00000003".ljust(32, "0")


def recorded(main: Main, *steps: float) -> list[Event]:
    """The history of a run of `main`, with time passing in between, and every activity but `slow` done at once."""
    main.__name__ = "main"
    world = World(main, charge=lambda *args: args, refund=lambda *args: args)
    started = world.start()
    for seconds in steps:
        world.advance(seconds)
    assert not world.reasons
    assert started.run_id == RUN_ID
    return world.history(started)


# --- the same program -----------------------------------------------------------------------------------------


@workflow.defn
class Busy:
    """A bit of everything."""

    def __init__(self) -> None:
        self.words: list[str] = []

    @workflow.run
    async def run(self) -> object:
        drawn = workflow.random().random()
        kept = workflow.side_effect(lambda: 7)
        if workflow.patched("new"):
            await workflow.execute_activity("charge", drawn)
        async with workflow.open_nursery() as nursery:
            nursery.start_soon(self.naps)
            nursery.start_soon(self.charges, 3)
            with workflow.move_on_after(5):
                await workflow.wait_condition(lambda: len(self.words) > 2)
        child = await workflow.execute_child_workflow("Leaf", 1)
        await workflow.external_workflow("leaf").signal("x", 1)
        workflow.upsert_memo({"kept": kept})
        with workflow.move_on_after(1):
            await workflow.execute_activity("slow", on_cancel="request")
        return [child, self.words, drawn]

    async def naps(self) -> None:
        for seconds in (1, 2, 3):
            await workflow.sleep(seconds)
            workflow.uuid4()

    async def charges(self, count: int) -> None:
        for number in range(count):
            await workflow.execute_activity("charge", number)
            await workflow.sleep(0.7)

    @workflow.signal
    async def word(self, word: str) -> None:
        await workflow.execute_activity("charge", word)
        self.words.append(word)

    @workflow.update
    async def say(self, word: str) -> int:
        await workflow.sleep(0.1)
        self.words.append(word)
        return len(self.words)


@workflow.defn
async def Leaf(n: int) -> int:
    await workflow.sleep(n)
    return n + 1


def busy_history() -> list[Event]:
    world = World(Busy, Leaf, charge=lambda x: x)
    world.start(100, type="Leaf", workflow_id="leaf")
    started = world.start()
    world.advance(1.2)
    world.signal(started, "word", "a")
    world.update(started, "say", "b")
    world.advance(2)
    world.signal(started, "word", "c")
    world.advance(60)
    world.result(started)
    assert started.run_id == BUSY_ID
    return world.history(started)


def answers_in(history: list[Event]) -> list[int]:
    return [index for index, event in enumerate(history) if event.event_type == ANSWERED]


def test_every_part_of_a_history_leads_to_what_was_recorded_next() -> None:
    history = busy_history()
    answers = answers_in(history)
    assert len(answers) > 12
    run = Run(definition_of(Busy), WorkflowInfo(workflow_id="w", run_id=BUSY_ID, type="Busy"))
    fed = 0
    for number, answer in enumerate(answers):
        seen = history[answer].get("seenEventId", int)
        accepted = updates_of(history, answer)
        stranger = Run(definition_of(Busy), WorkflowInfo(workflow_id="w", run_id=BUSY_ID, type="Busy"))
        by_stranger = stranger.feed(history[:seen], accepted)
        by_holder = run.feed(history[fed:seen], accepted)
        fed = seen
        assert by_stranger == by_holder, f"answer {number + 1}"
        until = answers[number + 1] if number + 1 < len(answers) else len(history)
        following = [event.event_type for event in history[answer + 1 : until] if event.command_id]
        assert len([x for x in by_holder if isinstance(x, c.ScheduleActivity)]) == following.count(
            "ACTIVITY_TASK_SCHEDULED"
        )
        assert len([x for x in by_holder if isinstance(x, c.StartTimer)]) == following.count("TIMER_STARTED")
        stranger.close()
    assert isinstance(run.end, c.Complete)
    assert replayed_busy(history) == [], "all of it is done already"


BUSY_ID = "00000005".ljust(32, "0")


def updates_of(history: list[Event], answer: int) -> list[Any]:
    """The updates that were accepted with an answer, as they came with its task."""
    found = []
    for event in history[answer + 1 :]:
        if event.event_type == ANSWERED:
            break
        if event.event_type == UPDATE_ACCEPTED:
            body = {"update_id": event.get("updateId", str), "name": event.get("name", str)}
            raw = msgspec.json.encode({**body, "args": msgspec.json.decode(event.attributes["args"])})
            found.append(msgspec.json.decode(raw, type=workflow.inbox.UpdateRequest))
    return found


def replayed_busy(history: list[Event]) -> list[c.Command]:
    run = Run(definition_of(Busy), WorkflowInfo(workflow_id="w", run_id=BUSY_ID, type="Busy"))
    try:
        return run.feed(history)
    finally:
        run.close()


@pytest.mark.parametrize("points", [(4,), (4, 2), (4, 5), (4, 2, 4), (1, 4)])
def test_a_reset_run_goes_on_with_the_same_numbers(points: tuple[int, ...]) -> None:
    """Also where what was drawn came into the history before an earlier reset, and that reset is not in it."""

    async def main() -> float:
        first = workflow.random().random()
        workflow.side_effect(lambda: first)
        await workflow.sleep(1 + first)
        return first + workflow.random().random()

    world = World(main)
    started = world.start()
    world.advance(2)
    result = world.result(started)
    for point in points:
        length = world.d.execution(started).history_length
        started = world.d.step(ec.ResetExecution(workflow_id="w", run_id=started.run_id, event_id=min(point, length)))
        world.settle()
        world.advance(2)
        assert not world.reasons
        assert world.result(started) == result


# --- another program --------------------------------------------------------------------------------------------


async def charge_twice() -> None:
    await workflow.execute_activity("charge", 1)
    await workflow.sleep(5)
    await workflow.execute_activity("refund", 2)
    await workflow.sleep(5)


async def changed_activity() -> None:
    await workflow.execute_activity("bill", 1)  # the line


async def activity_instead_of_timer() -> None:
    await workflow.execute_activity("charge", 1)
    await workflow.execute_activity("refund", 2)  # the line


async def one_more_in_the_middle() -> None:
    await workflow.execute_activity("charge", 1)
    await workflow.sleep(5)
    await workflow.execute_activity("log", 2)  # the line
    await workflow.execute_activity("refund", 2)


async def one_less() -> None:
    await workflow.execute_activity("charge", 1)
    await workflow.sleep(5)
    await workflow.wait_signal("never")


async def ends_early() -> None:
    await workflow.execute_activity("charge", 1)


async def a_new_look() -> None:
    await workflow.execute_activity("charge", 1)
    workflow.mutable_side_effect("limit", lambda: 1)  # the line


async def a_new_side_effect() -> None:
    await workflow.execute_activity("charge", 1)
    try:
        workflow.side_effect(lambda: 1)  # the line
    except BaseException:
        await workflow.sleep(5)  # what swallows everything does not get by either


@pytest.mark.parametrize(
    ("main", "texts"),
    [
        (changed_activity, ["at 0/1", "recorded: activity 'charge' (event 3)", "new:      activity 'bill'"]),
        (activity_instead_of_timer, ["at 0/2", "recorded: timer of 5 s", "new:      activity 'refund'"]),
        (one_more_in_the_middle, ["at 0/3", "recorded: activity 'refund'", "new:      activity 'log'"]),
        (one_less, ["at 0/3", "recorded: activity 'refund'", "new:      nothing"]),
        (ends_early, ["the workflow's end", "new:      the workflow completes"]),
        (a_new_side_effect, ["at 0/2", "recorded: timer of 5 s", "new:      side effect a_new_side_effect"]),
        (a_new_look, ["at 0/2", "recorded: timer of 5 s", "new:      mutable side effect 'limit'"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_mismatch_shows_line_recorded_and_new(main: Main, texts: list[str]) -> None:
    history = recorded(charge_twice, 6)
    with pytest.raises(workflow.NondeterminismError) as raised:
        replayed(main, history)
    text = str(raised.value)
    for part in texts:
        assert part in text
    marked = [number for number, line in enumerate(_source(main), main.__code__.co_firstlineno) if "# the line" in line]
    if marked:
        assert text.startswith(f"{HERE}:{marked[0]} in {main.__name__}: ")


def _source(main: Main) -> list[str]:
    import inspect

    return inspect.getsource(main).splitlines()


def test_the_same_program_with_other_spans_and_inputs_replays() -> None:
    async def main() -> None:
        await workflow.execute_activity("charge", 99, start_to_close=3)
        await workflow.sleep(500)
        await workflow.execute_activity("refund")
        await workflow.sleep(7)

    history = recorded(charge_twice, 6)
    assert replayed(main, history) == []


def test_a_changed_interleaving_replays() -> None:
    """The tasks do the same, each for itself, in another order than recorded."""

    def program(first: int, second: int) -> Main:
        async def main() -> None:
            async def task(number: int) -> None:
                for _ in range(number):
                    await workflow.checkpoint()
                await workflow.execute_activity("charge", number)
                await workflow.sleep(1)
                await workflow.execute_activity("charge", number)
                await workflow.sleep(50)

            async with workflow.open_nursery() as nursery:
                nursery.start_soon(task, first)
                nursery.start_soon(task, second)

        return main

    history = recorded(program(0, 5), 2)
    assert replayed(program(0, 5), history) == []
    assert replayed(program(5, 0), history) == []


def test_a_command_that_is_made_later_finds_its_outcome() -> None:
    """The new code waits for something else first: what came for its command in the meantime is kept for it."""

    def program(waits: bool) -> Main:
        async def main() -> None:
            async with workflow.open_nursery() as nursery:
                nursery.start_soon(nap)
                if waits:
                    await workflow.wait_signal("go")
                await workflow.execute_activity("charge", 1)
                await workflow.sleep(50)

        async def nap() -> None:
            await workflow.sleep(3)

        return main

    old = program(False)
    old.__name__ = "main"
    world = World(old, charge=lambda x: x)
    started = world.start()
    world.signal(started, "go")
    world.advance(4)
    assert replayed(program(True), world.history(started)) == []


def test_a_cancel_that_is_new_is_done_now() -> None:
    async def old() -> None:
        async with workflow.open_nursery() as nursery:
            nursery.start_soon(hold)
            await workflow.sleep(1)
            await workflow.sleep(100)

    async def new() -> None:
        async with workflow.open_nursery() as nursery:
            nursery.start_soon(hold)
            await workflow.sleep(1)
            nursery.cancel_scope.cancel()
            with workflow.CancelScope(shield=True):
                await workflow.sleep(100)

    async def hold() -> None:
        await workflow.execute_activity("slow")

    history = recorded(old, 2)
    assert replayed(new, history) == [c.CancelActivity(id="0.1/1")]
    with_cancel = recorded(new, 2)
    with pytest.raises(workflow.NondeterminismError, match=r"its cancel \(event"):
        replayed(old, with_cancel)


def test_local_activities_are_matched() -> None:
    async def old() -> None:
        await workflow.execute_local_activity(charge_locally)
        await workflow.sleep(1)

    async def more() -> None:
        await workflow.execute_local_activity(charge_locally)
        await workflow.execute_local_activity(charge_locally)  # one more
        await workflow.sleep(1)

    async def fewer() -> None:
        await workflow.sleep(1)

    history = recorded(old)
    assert replayed(old, history) == []
    with pytest.raises(workflow.NondeterminismError, match=r"recorded: timer of 1 s .*\n  new:      local activity"):
        replayed(more, history)
    with pytest.raises(workflow.NondeterminismError, match="recorded: marker 'local-activity'"):
        replayed(fewer, history)


def charge_locally() -> int:
    return 1


def test_patches() -> None:
    async def first() -> str:
        await workflow.sleep(1)
        await workflow.execute_activity("charge", "old")
        await workflow.sleep(1)
        return "old"

    async def second() -> str:
        await workflow.sleep(1)
        if workflow.patched("change"):
            await workflow.execute_activity("refund", "new")
        else:
            await workflow.execute_activity("charge", "old")
        await workflow.sleep(1)
        return "new" if workflow.patched("change") else "old"

    async def third() -> str:
        await workflow.sleep(1)
        workflow.deprecate_patch("change")
        await workflow.execute_activity("refund", "new")
        await workflow.sleep(1)
        return "new"

    async def fourth() -> str:
        await workflow.sleep(1)
        await workflow.execute_activity("refund", "new")
        await workflow.sleep(1)
        return "new"

    old, new = recorded(first, 1), recorded(second, 1)
    deprecated, bare = recorded(third, 1), recorded(fourth, 1)
    assert replayed(second, old) == replayed(second, new) == replayed(third, new) == []
    assert replayed(third, deprecated) == replayed(fourth, deprecated) == replayed(third, bare) == []
    with pytest.raises(workflow.NondeterminismError):
        replayed(third, old)
    with pytest.raises(workflow.NondeterminismError, match="marker 'patch'"):
        replayed(fourth, new)
    over = recorded(second, 5)
    assert replayed(second, over) == []
    assert old_result(second, recorded(first, 1)) == "old"


def old_result(main: Main, history: list[Event]) -> object:
    """How a run goes on that began before a patch: its first answer for the patch holds to the end."""
    run = Run(definition_of(main), WorkflowInfo(workflow_id="w", run_id=RUN_ID, type="main"))
    assert run.feed(history) == []
    last = history[-1]
    fired = {
        "eventId": last.event_id + 1,
        "eventTime": "2030-01-01T00:00:00Z",
        "eventType": "TIMER_FIRED",
        "attributes": {"commandId": "0/3"},
    }
    (end,) = run.feed([_event(fired)])
    assert isinstance(end, c.Complete)
    return msgspec.json.decode(end.result or b"null")


def _event(body: dict[str, object]) -> Event:
    return msgspec.json.decode(msgspec.json.encode(body), type=Event)


# --- what a workflow must not do ----------------------------------------------------------------------------------


async def sleeps_on_trio() -> None:
    await trio.sleep(1)  # the line


async def swallows_everything() -> None:
    try:
        await asyncio.sleep(0)  # the line
    except BaseException:
        await workflow.sleep(1)


async def waits_on_trio() -> None:
    await trio.Event().wait()  # the line


async def sleeps_on_asyncio() -> None:
    await asyncio.sleep(1)  # the line


async def yields_on_asyncio() -> None:
    await asyncio.sleep(0)  # the line


async def waits_for_a_future() -> None:
    future: asyncio.Future[None] = asyncio.Future(loop=LOOP[0])
    await future  # the line


LOOP: list[asyncio.AbstractEventLoop] = []


async def indirectly() -> None:
    async def helper() -> None:
        await trio.lowlevel.checkpoint()  # the line

    async with workflow.open_nursery() as nursery:
        nursery.start_soon(helper)


@pytest.mark.parametrize("inside_trio", [False, True])
@pytest.mark.parametrize(
    "main",
    [
        sleeps_on_trio,
        swallows_everything,
        waits_on_trio,
        sleeps_on_asyncio,
        yields_on_asyncio,
        waits_for_a_future,
        indirectly,
    ],
    ids=lambda main: main.__name__,
)
def test_foreign_awaits_are_refused_with_their_line(main: Main, inside_trio: bool) -> None:
    handler = WorkflowTaskHandler({"main": main})
    task = WorkflowTask(
        task_token="t",
        workflow_id="w",
        run_id="r",
        workflow_type_name="main",
        history=[
            _event({"eventId": 1, "eventTime": "2026-01-01T00:00:00Z", "eventType": "WORKFLOW_EXECUTION_STARTED"})
        ],
        last_event_id=1,
    )
    answers: list[list[c.Command]] = []

    async def worker() -> None:
        answers.append(handler.handle(task))
        await trio.lowlevel.checkpoint()  # the host is unharmed
        with trio.move_on_after(0):
            await trio.sleep(1)

    LOOP.append(asyncio.new_event_loop())
    try:
        if inside_trio:
            trio.run(worker)
        else:
            answers.append(handler.handle(task))
    finally:
        LOOP.pop().close()
    ((answer,),) = answers
    assert isinstance(answer, c.FailTask)
    marked = [number for number, line in enumerate(_source(main), main.__code__.co_firstlineno) if "# the line" in line]
    assert answer.reason.startswith(f"{HERE}:{marked[0]} in ")
    assert "cannot await" in answer.reason
    assert "workflow.sleep" in answer.reason
    assert not handler.has("r")


def test_a_fault_of_the_worker_fails_the_task_and_not_the_run() -> None:
    world = World(charge_twice)
    started = world.start()
    handler = WorkflowTaskHandler([changed_activity])
    history = world.history(started)
    task = WorkflowTask(
        task_token="t",
        workflow_id="w",
        run_id=RUN_ID,
        workflow_type_name="changed_activity",
        history=history,
        last_event_id=len(history),
    )
    (answer,) = handler.handle(task)
    assert isinstance(answer, c.FailTask)
    assert "recorded: activity 'charge'" in answer.reason
    (answer,) = handler.handle(msgspec.structs.replace(task, workflow_type_name="Other"))
    assert answer == c.UnknownType(reason="this worker has changed_activity")
    with pytest.raises(ValueError, match="needs the events 1 to 4, and has 2 to 4"):
        handler.handle(msgspec.structs.replace(task, history=history[1:]))


def test_a_run_that_was_canceled_before_a_worker_began_with_it_replays() -> None:
    async def main() -> None:
        await workflow.sleep(1)

    world = World(main)
    world.d.lose(1)
    started = world.start()
    world.cancel(started)
    assert world.status(started) == "CANCELED"
    run = Run(definition_of(main), WorkflowInfo(workflow_id="w", run_id=started.run_id, type="main"))
    run.replay(world.history(started))
    assert run.end is None


# --- the handler's cache -------------------------------------------------------------------------------------------


def test_a_run_that_was_forgotten_needs_its_whole_history() -> None:
    async def main() -> None:
        async for _ in workflow.signals("go"):
            pass

    world = World(main)
    world.worker.handler = WorkflowTaskHandler([main], runs_max=2)
    runs = [world.start(workflow_id=f"w{number}") for number in range(4)]
    assert [world.handler.has(run.run_id) for run in runs] == [False, False, True, True]
    for run in runs:
        world.signal(run, "go")
    assert not world.reasons
    world.lose_the_worker()
    world.signal(runs[0], "go")
    assert not world.reasons
    assert world.status(runs[0]) == "RUNNING"


def test_a_query_to_a_run_that_is_not_at_hand_replays_and_does_nothing() -> None:
    made: list[int] = []

    async def main() -> None:
        workflow.on_query("made", lambda: len(made))
        await workflow.sleep(1)
        workflow.side_effect(lambda: made.append(1))
        await workflow.sleep(1)

    main.__name__ = "main"
    world = World(main)
    started = world.start()
    world.d.lose(1)
    world.d.advance(1_000)
    history = world.history(started)
    assert history[-1].event_type == "TIMER_FIRED"
    task = WorkflowTask(
        task_token="", workflow_id="w", run_id=started.run_id, workflow_type_name="main", history=history
    )
    run = WorkflowTaskHandler([main]).replay_for_query(task)
    assert run.query("made") == b"0"
    run.close()
    assert made == []


# --- eviction -------------------------------------------------------------------------------------------------------


def test_an_evicted_run_does_nothing_any_more() -> None:
    trace: list[str] = []

    async def main() -> None:
        async with workflow.open_nursery() as nursery:
            nursery.start_soon(child)
            lock = workflow.Lock()
            async with lock:
                try:
                    await workflow.sleep_forever()
                finally:
                    trace.append("finally of main")
                    with workflow.CancelScope(shield=True):
                        await workflow.execute_activity("refund")
                    trace.append("not here")

    async def child() -> None:
        try:
            with workflow.move_on_after(10):
                await workflow.wait_signal("go")
        except BaseException as error:
            trace.append(type(error).__name__)
            try:
                workflow.start_activity("refund")
            except BaseException as refused:
                trace.append(str(refused))
            raise

    world = World(main)
    started = world.start()
    before = world.d.history(started)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        world.handler.evict_all()
        gc.collect()
    assert trace == [
        "GeneratorExit",
        "the run was evicted from this worker: its code can do nothing any more",
        "finally of main",
    ]
    assert world.d.history(started) == before
    world.signal(started, "go")
    assert not world.reasons


def test_code_that_never_gives_up_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    turns: list[int] = []

    async def main() -> None:
        while True:
            try:
                await workflow.sleep(1)
            except BaseException:
                turns.append(1)
                if len(turns) > 1_000:
                    return

    world = World(main)
    world.start()
    world.handler.evict_all()
    assert "awaited on after its run was evicted" in caplog.text
    assert 1 < len(turns) < 1_000
    gc.collect()


def test_histories_read_as_they_are_sent() -> None:
    world = World(charge_twice, charge=lambda x: x)
    started = world.start()
    events = world.d.events(started)
    assert [event.time_ms for event in read_events(events)] == [event.time_ms for event in events]
