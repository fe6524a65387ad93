"""Programs that run the same on trio and as a workflow: scopes, nurseries, and what tasks share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.helpers.differential import Log, Program, on_trio, on_workflow

from zaptasks.workflow.scopes import CancelStatus

PROGRAMS: list[Program] = []


def program(function: Program) -> Program:
    PROGRAMS.append(function)
    return function


async def nap(t: Any, log: Log, who: str, seconds: float, *, fail: str = "") -> str:
    log(who, "begins")
    try:
        await t.sleep(seconds)
    except BaseException as error:
        log(who, error)
        raise
    log(who, "slept")
    if fail:
        raise ValueError(fail)
    return who


# --- scopes ------------------------------------------------------------------------------------------------


@program
async def a_sleep(t: Any, log: Log) -> object:
    await t.sleep(1.5)
    await t.sleep(0)
    await t.sleep_until(t.current_time() + 2)
    await t.sleep_until(t.current_time() - 2)
    log("a", "done")
    return "done"


@program
async def a_scope_moves_on(t: Any, log: Log) -> object:
    with t.move_on_after(2) as scope:
        await nap(t, log, "a", 5)
    return scope.cancelled_caught, scope.cancel_called


@program
async def a_scope_is_left_in_time(t: Any, log: Log) -> object:
    with t.move_on_after(5) as scope:
        await nap(t, log, "a", 2)
    await t.sleep(10)
    return scope.cancelled_caught, scope.cancel_called


@program
async def a_scope_fails(t: Any, log: Log) -> object:
    with t.fail_after(2):
        await nap(t, log, "a", 5)
    return "not here"


@program
async def fail_at_and_move_on_at(t: Any, log: Log) -> object:
    now = t.current_time()
    with t.move_on_at(now + 1) as outer:
        with pytest.raises(t.TooSlowError), t.fail_at(now + 0.5):
            await t.sleep(3)
        log("a", "too slow")
        await t.sleep(3)
    return outer.cancelled_caught


@program
async def cancels_are_level_triggered(t: Any, log: Log) -> object:
    with t.CancelScope() as scope:
        scope.cancel()
        for _ in range(3):
            try:
                await t.sleep(1)
            except t.Cancelled as error:
                log("a", error)
        await t.checkpoint()
        log("a", "not here")
    return scope.cancelled_caught


@program
async def a_scope_canceled_before_it_is_entered(t: Any, log: Log) -> object:
    scope = t.CancelScope()
    scope.cancel()
    with scope:
        log("a", scope.cancel_called)
        await t.sleep(1)
        log("a", "not here")
    return scope.cancelled_caught


@program
async def a_deadline_that_has_passed(t: Any, log: Log) -> object:
    with t.move_on_at(t.current_time() - 1) as scope:
        await t.checkpoint()
        log("a", "not here")
    return scope.cancelled_caught


@program
async def a_scope_without_a_checkpoint_is_not_cancelled(t: Any, log: Log) -> object:
    with t.CancelScope() as scope:
        scope.cancel()
        log("a", "still here")
    return scope.cancelled_caught, scope.cancel_called


@program
async def the_outer_scope_wins(t: Any, log: Log) -> object:
    with t.move_on_after(1) as outer:
        with t.move_on_after(2) as inner:
            await nap(t, log, "a", 5)
        log("a", "not here")
    return outer.cancelled_caught, inner.cancelled_caught


@program
async def a_shield_keeps_cancels_out(t: Any, log: Log) -> object:
    with t.move_on_after(1) as outer:
        with t.CancelScope(shield=True):
            await nap(t, log, "a", 3)
        log("a", "shielded")
        await t.sleep(1)
        log("a", "not here")
    return outer.cancelled_caught


@program
async def a_shield_with_a_deadline(t: Any, log: Log) -> object:
    with t.move_on_after(1) as outer:
        with t.move_on_after(2, shield=True) as shield:
            await nap(t, log, "a", 9)
        log("a", shield.cancelled_caught)
        await t.checkpoint()
    return outer.cancelled_caught


@program
async def a_shield_that_is_lowered(t: Any, log: Log) -> object:
    async def lower(scope: Any) -> None:
        await t.sleep(2)
        scope.shield = False

    with t.move_on_after(1) as outer:
        async with t.open_nursery() as nursery:
            nursery.cancel_scope.shield = True
            nursery.start_soon(lower, nursery.cancel_scope)
            nursery.start_soon(nap, t, log, "a", 9)
    return outer.cancelled_caught


@program
async def a_deadline_that_moves(t: Any, log: Log) -> object:
    with t.move_on_after(1) as scope:
        scope.deadline += 2
        await nap(t, log, "a", 2)
        scope.deadline = t.current_time() + 0.5
        await nap(t, log, "b", 2)
    with t.move_on_after(1) as scope:
        scope.deadline = math.inf
        await nap(t, log, "c", 2)
    return t.current_effective_deadline() == math.inf


@program
async def relative_deadlines(t: Any, log: Log) -> object:
    scope = t.CancelScope(relative_deadline=2)
    await t.sleep(1)
    with scope:
        log("a", round(scope.relative_deadline, 3))
        await t.sleep(1)
        scope.relative_deadline = 3
        await t.sleep(9)
    return scope.cancelled_caught


@program
async def clean_up_under_a_shield(t: Any, log: Log) -> object:
    with t.move_on_after(1):
        try:
            await nap(t, log, "a", 5)
        finally:
            with t.move_on_after(3, shield=True):
                await nap(t, log, "clean", 2)
    return "left"


@program
async def a_cancel_that_turns_into_an_error(t: Any, log: Log) -> object:
    with t.move_on_after(1):
        try:
            await nap(t, log, "a", 5)
        except t.Cancelled:
            raise KeyError("instead") from None
    return "not here"


@program
async def a_scope_is_used_once(t: Any, log: Log) -> object:
    scope = t.CancelScope()
    with scope:
        pass
    with scope:
        pass
    return "not here"


# --- nurseries -----------------------------------------------------------------------------------------------


@program
async def a_nursery_waits_for_its_tasks(t: Any, log: Log) -> object:
    async with t.open_nursery() as nursery:
        for index in range(3):
            nursery.start_soon(nap, t, log, f"task {index}", index + 1)
        log("block", "over")
    return "left"


@program
async def a_failing_task_cancels_the_others(t: Any, log: Log) -> object:
    async with t.open_nursery() as nursery:
        nursery.start_soon(lambda: nap(t, log, "bad", 1, fail="bad"))
        nursery.start_soon(nap, t, log, "good", 5)
        await nap(t, log, "block", 9)
    return "not here"


@program
async def a_failing_block_cancels_its_tasks(t: Any, log: Log) -> object:
    async with t.open_nursery() as nursery:
        nursery.start_soon(nap, t, log, "good", 5)
        await nap(t, log, "block", 1, fail="block")
    return "not here"


@program
async def two_failures_leave_together(t: Any, log: Log) -> object:
    async def stubborn() -> None:
        try:
            await nap(t, log, "stubborn", 5)
        except t.Cancelled:
            raise KeyError("stubborn") from None

    async with t.open_nursery() as nursery:
        nursery.start_soon(stubborn)
        nursery.start_soon(lambda: nap(t, log, "bad", 1, fail="bad"))
    return "not here"


@program
async def nested_nurseries_nest_their_groups(t: Any, log: Log) -> object:
    async def inner() -> None:
        async with t.open_nursery() as nursery:
            nursery.start_soon(lambda: nap(t, log, "inner", 1, fail="inner"))
            nursery.start_soon(nap, t, log, "other", 3)

    try:
        async with t.open_nursery() as nursery:
            nursery.start_soon(inner)
            nursery.start_soon(nap, t, log, "outer", 3)
    except* ValueError as group:
        log("caught", group)
    return "went on"


@program
async def a_nursery_in_a_scope(t: Any, log: Log) -> object:
    with t.move_on_after(2) as scope:
        async with t.open_nursery() as nursery:
            nursery.start_soon(nap, t, log, "short", 1)
            nursery.start_soon(nap, t, log, "long", 5)
    return scope.cancelled_caught


@program
async def a_nursery_that_is_canceled_by_hand(t: Any, log: Log) -> object:
    async with t.open_nursery() as nursery:
        nursery.start_soon(nap, t, log, "a", 5)
        await t.sleep(1)
        nursery.cancel_scope.cancel()
    return nursery.cancel_scope.cancelled_caught


@program
async def a_task_started_in_a_canceled_nursery(t: Any, log: Log) -> object:
    async with t.open_nursery() as nursery:
        nursery.cancel_scope.cancel()
        nursery.start_soon(nap, t, log, "a", 5)
    return "left"


@program
async def a_closed_nursery_takes_no_more(t: Any, log: Log) -> object:
    async with t.open_nursery() as nursery:
        pass
    nursery.start_soon(nap, t, log, "a", 1)
    return "not here"


@program
async def start_waits_and_returns_a_value(t: Any, log: Log) -> object:
    async def server(port: int, *, task_status: Any) -> None:
        await t.sleep(1)
        task_status.started(port + 1)
        await nap(t, log, "server", 3)

    async with t.open_nursery() as nursery:
        log("block", await nursery.start(server, 80))
        await nap(t, log, "block", 1)
        nursery.cancel_scope.cancel()
    return "left"


@program
async def start_raises_what_came_before_started(t: Any, log: Log) -> object:
    async def bad(*, task_status: Any) -> None:
        await t.sleep(1)
        raise KeyError("bad")

    async with t.open_nursery() as nursery:
        nursery.start_soon(nap, t, log, "other", 2)
        try:
            await nursery.start(bad)
        except KeyError as error:
            log("block", error)
    return "left"


@program
async def start_of_a_task_that_never_says_so(t: Any, log: Log) -> object:
    async def silent(*, task_status: Any) -> None:
        await t.sleep(1)

    async with t.open_nursery() as nursery:
        await nursery.start(silent)
    return "not here"


@program
async def start_is_canceled_with_its_task(t: Any, log: Log) -> object:
    async def slow(*, task_status: Any) -> None:
        await nap(t, log, "slow", 9)

    async with t.open_nursery() as nursery:
        with t.move_on_after(1) as scope:
            await nursery.start(slow)
        log("block", scope.cancelled_caught)
    return "left"


@program
async def a_started_task_is_out_of_the_scope_of_its_start(t: Any, log: Log) -> object:
    async def server(*, task_status: Any) -> None:
        with t.CancelScope():
            task_status.started()
            await nap(t, log, "server", 3)

    async with t.open_nursery() as nursery:
        with t.move_on_after(1) as scope:
            await nursery.start(server)
            await t.sleep(5)
        log("block", scope.cancelled_caught)
    return "left"


@program
async def status_ignored(t: Any, log: Log) -> object:
    async def server(task_status: Any = t.TASK_STATUS_IGNORED) -> None:
        task_status.started("x")
        await nap(t, log, "server", 1)

    await server()
    async with t.open_nursery() as nursery:
        nursery.start_soon(server)
    return "left"


@program
async def a_task_that_is_no_async_function(t: Any, log: Log) -> object:
    try:
        async with t.open_nursery() as nursery:
            nursery.start_soon(lambda: 3)
    except* TypeError as group:
        log("refused", len(group.exceptions))
    return "left"


@program
async def tasks_start_tasks_elsewhere(t: Any, log: Log) -> object:
    async def starter(nursery: Any) -> None:
        await t.sleep(1)
        nursery.start_soon(nap, t, log, "b", 3)

    async with t.open_nursery() as outer:
        async with t.open_nursery() as inner:
            inner.start_soon(starter, outer)
        log("inner", "left")
    return "left"


# --- events, locks and so on ----------------------------------------------------------------------------------


@program
async def events(t: Any, log: Log) -> object:
    event = t.Event()

    async def waits(who: str) -> None:
        await event.wait()
        log(who, event.is_set())

    async with t.open_nursery() as nursery:
        nursery.start_soon(waits, "a")
        nursery.start_soon(waits, "b")
        with t.move_on_after(1):
            await event.wait()
        log("block", event.is_set())
        event.set()
    await event.wait()
    return "left"


@program
async def locks(t: Any, log: Log) -> object:
    lock = t.Lock()

    async def holds(who: str, delay: float) -> None:
        await t.sleep(delay)
        async with lock:
            log(who, "has it")
            await t.sleep(10)

    async def gives_up() -> None:
        await t.sleep(2)
        with t.move_on_after(3):
            await lock.acquire()
        log("gives up", lock.locked())

    async with t.open_nursery() as nursery:
        for index in range(3):
            nursery.start_soon(holds, f"task {index}", index + 1)
        nursery.start_soon(gives_up)
        await t.sleep(5)
        try:
            lock.acquire_nowait()
        except t.WouldBlock as error:
            log("block", error)
        try:
            lock.release()
        except RuntimeError as error:
            log("block", error)
    async with lock:
        await lock.acquire()
    return "not here"


@program
async def semaphores(t: Any, log: Log) -> object:
    semaphore = t.Semaphore(2, max_value=2)

    async def holds(index: int) -> None:
        await t.sleep(index)
        async with semaphore:
            log(f"task {index}", semaphore.value)
            await t.sleep(10)

    async with t.open_nursery() as nursery:
        for index in range(5):
            nursery.start_soon(holds, index)
    semaphore.release()
    return "not here"


@program
async def limiters(t: Any, log: Log) -> object:
    limiter = t.CapacityLimiter(1)

    async def holds(index: int) -> None:
        await t.sleep(index)
        async with limiter:
            log(f"task {index}", (limiter.borrowed_tokens, limiter.available_tokens))
            await t.sleep(10)

    async with t.open_nursery() as nursery:
        for index in range(5):
            nursery.start_soon(holds, index)
        await t.sleep(15.5)
        limiter.total_tokens = 3
    limiter.release()
    return "not here"


@program
async def conditions(t: Any, log: Log) -> object:
    condition = t.Condition()

    async def waits(index: int) -> None:
        await t.sleep(index)
        async with condition:
            await condition.wait()
            log(f"task {index}", "notified")
            await t.sleep(1)

    async def gives_up() -> None:
        await t.sleep(0.5)
        with t.move_on_after(4):
            async with condition:
                try:
                    await condition.wait()
                finally:
                    log("gives up", condition.locked())

    async with t.open_nursery() as nursery:
        for index in range(4):
            nursery.start_soon(waits, index)
        nursery.start_soon(gives_up)
        await t.sleep(10)
        async with condition:
            condition.notify()
        await t.sleep(10)
        async with condition:
            condition.notify_all()
    condition.notify()
    return "not here"


@program
async def channels(t: Any, log: Log) -> object:
    send, receive = t.open_memory_channel(1)

    async def produces() -> None:
        async with send:
            for number in range(4):
                await send.send(number)
                log("producer", number)

    async with t.open_nursery() as nursery:
        nursery.start_soon(produces)
        await t.sleep(1)
        async for number in receive:
            log("consumer", number)
            await t.sleep(1)
    return "left"


@program
async def channels_that_close(t: Any, log: Log) -> object:
    send, receive = t.open_memory_channel(0)
    other = send.clone()

    async def sends(who: str, end: Any) -> None:
        try:
            await end.send(who)
        except Exception as error:
            log(who, error.__class__.__name__)
        else:
            log(who, "sent")

    async with t.open_nursery() as nursery:
        nursery.start_soon(sends, "a", send)
        await t.sleep(1)
        nursery.start_soon(sends, "b", other)
        await t.sleep(1)
        send.close()
        await t.sleep(1)
        log("block", await receive.receive())
        with t.move_on_after(1):
            await receive.receive()
        nursery.start_soon(sends, "c", other)
        await t.sleep(1)
        receive.close()
    for attempt in (lambda: send.send_nowait(1), lambda: other.send_nowait(1), receive.receive_nowait, send.clone):
        try:
            attempt()
        except Exception as error:
            log("after", error.__class__.__name__)
    return "left"


@program
async def channels_that_end(t: Any, log: Log) -> object:
    send, receive = t.open_memory_channel(math.inf)
    twin = receive.clone()

    async def receives(who: str, end: Any) -> None:
        try:
            while True:
                log(who, await end.receive())
        except t.EndOfChannel as error:
            log(who, error)

    async with t.open_nursery() as nursery:
        nursery.start_soon(receives, "a", receive)
        await t.sleep(1)
        nursery.start_soon(receives, "b", twin)
        await t.sleep(1)
        for number in range(3):
            send.send_nowait(number)
            await t.sleep(1)
        await send.aclose()
    return "left"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_program_does_the_same_on_both(program: Program) -> None:
    expected = on_trio(program)
    assert on_workflow(program) == expected
    assert on_workflow(program, forgetful=True) == expected, "a replay differs"


def test_there_is_enough_to_compare() -> None:
    assert len(PROGRAMS) > 35


def test_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: shields that keep nothing out."""
    monkeypatch.setattr(
        CancelStatus, "sees_parents_cancel", property(lambda self: self.parent and self.parent.is_cancelled)
    )
    assert on_workflow(a_shield_keeps_cancels_out) != on_trio(a_shield_keeps_cancels_out)


# --- programs that nobody thought of -----------------------------------------------------------------------------

Node = tuple[Any, ...]
NODES_MAX = 24


def trees() -> st.SearchStrategy[Node]:
    leaves: st.SearchStrategy[Node] = st.sampled_from(
        [("sleep",), ("sleep",), ("sleep",), ("raise",), ("checkpoint",), ("cancel",)]
    )

    def grow(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        some = st.lists(nodes, min_size=1, max_size=3)
        return st.one_of(
            st.tuples(st.sampled_from(["sequence", "nursery", "nursery"]), some),
            st.tuples(st.sampled_from(["move on", "shield", "fail after", "catch", "move deadline"]), nodes),
            st.tuples(st.just("finally"), nodes, nodes),
        )

    return st.recursive(leaves, grow, max_leaves=12)


@dataclass
class Step:
    kind: str
    number: int
    span: float
    parts: list[Step]


def numbered(node: Node, spans: Iterator[float], numbers: Iterator[int]) -> Step:
    """The same tree, each node with a number and a span of its own."""
    number, span = next(numbers), next(spans)
    children = [child for part in node[1:] for child in (part if isinstance(part, list) else [part])]
    return Step(node[0], number, span, [numbered(child, spans, numbers) for child in children])


async def interpret(t: Any, log: Log, step: Step, scope: Any) -> None:
    who = f"{step.number} {step.kind}"
    log(who, "begins")
    try:
        await _interpret(t, log, step, scope, who)
    except BaseException as error:
        log(who, error)
        raise
    log(who, "over")


async def _interpret(t: Any, log: Log, step: Step, scope: Any, who: str) -> None:
    parts, span = step.parts, step.span
    match step.kind:
        case "sleep":
            await t.sleep(span)
        case "checkpoint":
            await t.checkpoint()
        case "raise":
            await t.sleep(span)
            raise ValueError(step.number)
        case "cancel":
            await t.sleep(span)
            if scope is not None:
                scope.cancel()
        case "sequence":
            for part in parts:
                await interpret(t, log, part, scope)
        case "nursery":
            async with t.open_nursery() as nursery:
                for part in parts[1:]:
                    nursery.start_soon(interpret, t, log, part, nursery.cancel_scope)
                await interpret(t, log, parts[0], nursery.cancel_scope)
        case "move on":
            with t.move_on_after(span) as inner:
                await interpret(t, log, parts[0], inner)
            log(who, (inner.cancelled_caught, inner.cancel_called))
        case "shield":
            with t.CancelScope(shield=True) as inner:
                await interpret(t, log, parts[0], inner)
        case "fail after":
            with t.fail_after(span):
                await interpret(t, log, parts[0], scope)
        case "move deadline":
            with t.CancelScope() as inner:
                inner.deadline = t.current_time() + span
                await interpret(t, log, parts[0], inner)
        case "catch":
            try:
                await interpret(t, log, parts[0], scope)
            except (Exception, BaseExceptionGroup) as error:
                if _has_cancels(t, error):
                    raise
                log(who, error)
        case "finally":
            try:
                await interpret(t, log, parts[0], scope)
            finally:
                await interpret(t, log, parts[1], scope)


def _has_cancels(t: Any, error: BaseException) -> bool:
    return isinstance(error, BaseExceptionGroup) and error.split(t.Cancelled)[0] is not None


def interpreted(tree: Node, order: list[int]) -> Program:
    """Every span is another power of two of milliseconds, so that nothing happens at one moment by chance."""
    step = numbered(tree, (2**exponent / 1000 for exponent in order), itertools.count())

    async def program(t: Any, log: Log) -> object:
        await interpret(t, log, step, None)
        return "over"

    return program


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees(), order=st.permutations(range(NODES_MAX)))
def test_generated_programs_do_the_same_on_both(tree: Node, order: list[int]) -> None:
    assume(_size(tree) <= NODES_MAX)
    program = interpreted(tree, order)
    expected = on_trio(program)
    assert on_workflow(program) == expected
    assert on_workflow(program, forgetful=True) == expected


def _size(node: Node) -> int:
    return 1 + sum(_size(child) for part in node[1:] for child in (part if isinstance(part, list) else [part]))
