"""Workflows against the real engine: what they ask for happens, and what happens reaches them.

Each test runs twice: with the run at hand all the time, and evicted after every step, so that everything is replayed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import pytest
from tests.helpers.engine_driver import START_MS, payload, value
from tests.helpers.workflow_world import World

from zapserver.engine import commands as c
from zapserver.engine.effects import UpdateAnswered, UpdateRejected
from zaptasks import Replayer, TaskError, workflow


@pytest.fixture(params=[False, True], ids=["at hand", "replayed"])
def forgetful(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def charge(item: str, n: int = 1) -> str:
    return f"paid {item} {n}"


@dataclass
class Mail:
    to: str
    count: int = 1


async def send(mail: Mail) -> Mail:
    raise NotImplementedError


# --- activities and timers ---------------------------------------------------------------------------------


def test_a_workflow_with_an_activity_and_a_timer(forgetful: bool) -> None:
    @workflow.defn
    async def buy(item: str) -> str:
        paid = await workflow.execute_activity(charge, item, 2, start_to_close=10)
        await workflow.sleep(60)
        return paid + " and sent"

    world = World(buy, forgetful=forgetful, charge=charge)
    started = world.start("book")
    assert world.status(started) == "RUNNING"
    world.advance(59.999)
    assert world.status(started) == "RUNNING"
    world.advance(0.001)
    assert world.result(started) == "paid book 2 and sent"


def test_arguments_and_results_have_their_types(forgetful: bool) -> None:
    @workflow.defn
    async def mailing(mail: Mail) -> Mail:
        sent = await workflow.execute_activity(send, mail)
        assert isinstance(sent, Mail)
        plain = await workflow.execute_activity("send", mail)
        assert plain == {"to": "you", "count": 8}
        return sent

    world = World(mailing, forgetful=forgetful, send=lambda mail: {"to": mail["to"], "count": mail["count"] + 1})
    assert world.result(world.start({"to": "you", "count": 7})) == {"to": "you", "count": 8}


def test_a_failed_activity_raises(forgetful: bool) -> None:
    @workflow.defn
    async def buy() -> str:
        try:
            await workflow.execute_activity("charge")
        except workflow.ActivityFailed as error:
            raise TaskError(f"{error.type}: {error.message}", code="Payment") from error
        return "not here"

    def broke() -> None:
        raise ValueError("no funds")

    world = World(buy, forgetful=forgetful, charge=broke)
    started = world.start()
    failure = world.d.failure(started)
    assert (failure["code"], failure["message"]) == ("Payment", "ValueError: no funds")
    assert failure["cause"]["code"] == "ValueError"  # type: ignore[index]


def test_a_result_of_another_type_is_an_error(forgetful: bool) -> None:
    @workflow.defn
    async def mailing() -> None:
        await workflow.execute_activity(send, Mail("you"))

    world = World(mailing, forgetful=forgetful, send=lambda mail: 7)
    started = world.start()
    assert "does not fit its type" in str(world.d.failure(started)["message"])


def test_activities_side_by_side(forgetful: bool) -> None:
    @workflow.defn
    async def three() -> list[str]:
        results: dict[str, str] = {}

        async def one(item: str) -> None:
            results[item] = await workflow.execute_activity(charge, item)

        async with workflow.open_nursery() as nursery:
            for item in "abc":
                nursery.start_soon(one, item)
        return [results[item] for item in "abc"]

    world = World(three, forgetful=forgetful, charge=charge)
    started = world.start()
    assert world.result(started) == ["paid a 1", "paid b 1", "paid c 1"]
    ids = [command.id for answer in world.answers for command in answer if hasattr(command, "id")]
    assert ids == ["0.1/1", "0.2/1", "0.3/1"]


def test_a_handle_is_waited_for_later_and_by_many(forgetful: bool) -> None:
    @workflow.defn
    async def later() -> object:
        handle = workflow.start_activity(charge, "x")
        was_done = handle.is_done
        await workflow.sleep(10)
        return [was_done, handle.is_done, await handle.result(), await handle.result()]

    world = World(later, forgetful=forgetful, charge=charge)
    started = world.start()
    world.advance(10)
    assert world.result(started) == [False, True, "paid x 1", "paid x 1"]


@pytest.mark.parametrize("on_cancel", ["wait", "request", "abandon"])
def test_a_cancel_reaches_activities(forgetful: bool, on_cancel: workflow.OnCancel) -> None:
    @workflow.defn
    async def impatient() -> object:
        with workflow.move_on_after(5) as scope:
            await workflow.execute_activity("slow", on_cancel=on_cancel)
        left = workflow.current_time()
        await workflow.sleep(100)
        return scope.cancelled_caught, left - workflow.info().start_time.timestamp()

    world = World(impatient, forgetful=forgetful)
    started = world.start()
    world.advance(5)
    stops = world.d.stops(5)
    assert len(stops) == (0 if on_cancel == "abandon" else 1)
    world.advance(5)
    if on_cancel == "wait":
        world.d.fail(world.held[0], b'{"v":1,"p":{"message":"stopped","code":"CanceledError"}}')
        world.settle()
    world.advance(100)
    assert world.result(started) == [True, 10 if on_cancel == "wait" else 5]


def test_an_activity_that_ends_well_although_it_was_to_stop(forgetful: bool) -> None:
    @workflow.defn
    async def impatient() -> object:
        with workflow.move_on_after(5) as scope:
            result = await workflow.execute_activity("slow")
        return result, scope.cancelled_caught

    world = World(impatient, forgetful=forgetful)
    started = world.start()
    world.advance(5)
    world.complete("done after all")
    assert world.result(started) == ["done after all", False]


def test_an_unused_timer_is_never_started(forgetful: bool) -> None:
    @workflow.defn
    async def quick() -> str:
        with workflow.move_on_after(5):
            await workflow.checkpoint()
        with workflow.fail_after(1_000):
            return await workflow.execute_activity(charge, "x")

    world = World(quick, forgetful=forgetful, charge=charge)
    started = world.start()
    assert world.result(started) == "paid x 1"
    assert world.d.history(started).count("TIMER_STARTED") == 1
    assert world.d.engine.next_deadline_ms() is None


def test_local_activities_run_once_and_are_kept(forgetful: bool) -> None:
    calls: list[int] = []

    def double(n: int) -> int:
        calls.append(n)
        return 2 * n

    def fails() -> None:
        raise ValueError("not here")

    @workflow.defn
    async def local() -> object:
        results: list[int] = []

        async def one(n: int) -> None:
            results.append(await workflow.execute_local_activity(double, n))
            await workflow.sleep(n)
            results.append(await workflow.execute_local_activity(double, 10 * n))

        async with workflow.open_nursery() as nursery:
            nursery.start_soon(one, 2)
            nursery.start_soon(one, 1)
        try:
            await workflow.execute_local_activity(fails)
        except workflow.ActivityFailed as error:
            return [*results, error.type]
        return "not here"

    world = World(local, forgetful=forgetful)
    started = world.start()
    world.advance(5)
    assert world.result(started) == [4, 2, 20, 40, "ValueError"]
    assert calls == [2, 1, 10, 20]


# --- signals -----------------------------------------------------------------------------------------------


@workflow.defn
class Basket:
    def __init__(self) -> None:
        self.items: list[str] = []
        self.is_paid = False

    @workflow.run
    async def run(self, owner: str = "nobody") -> str:
        await workflow.wait_condition(lambda: self.is_paid)
        return f"{owner}: {', '.join(self.items)}"

    @workflow.signal
    def add(self, item: str) -> None:
        self.items.append(item)

    @workflow.signal(name="pay")
    async def paid(self) -> None:
        await workflow.execute_activity(charge, "basket")
        self.is_paid = True

    @workflow.query
    def count(self, times: int = 1) -> int:
        return len(self.items) * times

    @workflow.query
    def meddle(self) -> None:
        workflow.start_activity(charge, "in a query")

    @workflow.update
    async def rename(self, old: str, new: str) -> list[str]:
        await workflow.sleep(1)
        self.items[self.items.index(old)] = new
        return self.items

    @rename.validator
    def check_rename(self, old: str, new: str) -> None:
        if old not in self.items:
            raise ValueError(f"no {old}")

    @workflow.update
    def clear(self) -> int:
        count = len(self.items)
        self.items.clear()
        return count


def test_signals_reach_their_methods_in_order(forgetful: bool) -> None:
    world = World(Basket, forgetful=forgetful, charge=charge)
    started = world.start("me")
    for item in "abc":
        world.signal(started, "add", item)
    world.signal(started, "pay")
    assert world.result(started) == "me: a, b, c"


def test_a_signal_that_does_not_fit_is_dropped(forgetful: bool, caplog: pytest.LogCaptureFixture) -> None:
    world = World(Basket, forgetful=forgetful, charge=charge)
    started = world.start()
    world.signal(started, "add", {"no": "text"})
    world.signal(started, "pay")
    assert world.result(started) == "nobody: "
    assert "a signal 'add' to w was dropped" in caplog.text


def test_signals_that_nobody_takes_yet_wait(forgetful: bool) -> None:
    @workflow.defn
    async def listener() -> object:
        await workflow.sleep(10)
        first = await workflow.wait_signal("word", str)
        rest = []
        with workflow.move_on_after(5):
            async for word in workflow.signals("word", str):
                rest.append(word)
        seen: list[object] = []
        workflow.on_signal("other", seen.append)
        await workflow.wait_condition(lambda: len(seen) == 3)
        return first, rest, seen

    world = World(listener, forgetful=forgetful)
    started = world.start()
    for word in ("a", "b"):
        world.signal(started, "word", word)
        world.signal(started, "other", word)
    world.advance(10)
    world.signal(started, "word", "c")
    world.advance(10)
    world.signal(started, "other", 3)
    assert world.result(started) == ["a", ["b", "c"], ["a", "b", 3]]


def test_a_failing_signal_handler_fails_the_workflow(forgetful: bool) -> None:
    @workflow.defn
    async def fragile() -> None:
        def bad() -> None:
            raise KeyError("bad signal")

        workflow.on_signal("bad", bad)
        await workflow.sleep_forever()

    world = World(fragile, forgetful=forgetful)
    started = world.start()
    world.signal(started, "bad")
    assert world.d.failure(started)["code"] == "KeyError"


def test_the_run_ends_when_its_handlers_have(forgetful: bool) -> None:
    @workflow.defn
    async def polite() -> str:
        async def handler() -> None:
            await workflow.sleep(10)

        workflow.on_signal("go", handler)
        await workflow.sleep(5)
        return "done"

    world = World(polite, forgetful=forgetful)
    started = world.start()
    world.signal(started, "go")
    world.advance(9)
    assert world.status(started) == "RUNNING"
    world.advance(1)
    assert world.result(started) == "done"


# --- queries and updates ----------------------------------------------------------------------------------


def test_queries_look_and_change_nothing() -> None:
    world = World(Basket, charge=charge)
    started = world.start()
    world.signal(started, "add", "a")
    assert world.query(started, "count") == 1
    assert world.query(started, "count", 3) == 3
    before = world.d.history(started)
    for name, text in (("meddle", "may only look"), ("nothing", "it has: count, meddle"), ("count", "does not fit")):
        with pytest.raises(Exception, match=text):
            world.query(started, name, *(["x"] if name == "count" else []))
    assert world.d.history(started) == before
    assert "wait_condition" not in world.query(started, "__stack_trace")["stack"]
    assert "Basket.run" in world.query(started, "__stack_trace")["stack"]


def test_updates_change_and_answer(forgetful: bool) -> None:
    world = World(Basket, forgetful=forgetful, charge=charge)
    started = world.start()
    world.signal(started, "add", "a")
    rejected = world.update(started, "rename", "x", "y")
    assert isinstance(rejected, UpdateRejected)
    assert b"no x" in bytes(rejected.failure)
    assert "UPDATE_ACCEPTED" not in world.d.history(started), "a rejected update leaves nothing"
    assert world.update(started, "rename", "a", "b", id="u") is None
    world.advance(1)
    answered = world.update(started, "rename", "a", "b", id="u")
    assert isinstance(answered, UpdateAnswered)
    assert answered.result == payload(["b"])
    assert bytes(world.update(started, "clear").result) == b"1"
    assert b"takes no update 'nothing'; it has: clear, rename" in bytes(world.update(started, "nothing").failure)
    assert b"does not fit" in bytes(world.update(started, "rename", 1, 2).failure)
    world.signal(started, "pay")
    assert world.result(started) == "nobody: "


@pytest.mark.parametrize("is_lost", [False, True], ids=["one worker", "workers come and go"])
def test_rejected_updates_leave_the_run_where_it_was(forgetful: bool, is_lost: bool) -> None:
    @workflow.defn
    async def picky() -> list[float]:
        times: list[float] = []

        async def note(number: int) -> None:
            await workflow.sleep(1)
            times.append(workflow.current_time())

        def check(number: int) -> None:
            if number < 0:
                raise ValueError("negative")

        workflow.on_update("note", note, validator=check)
        async for _ in workflow.signals("note"):
            times.append(workflow.current_time())
            if len(times) == 5:
                break
            await workflow.execute_activity("charge", "x")
        return times

    world = World(picky, forgetful=forgetful, charge=charge)
    started = world.start()
    for number in range(4):
        before = world.d.history(started)
        for _ in range(2):
            world.advance(0.3)
            assert isinstance(world.update(started, "note", -1), UpdateRejected)
            if is_lost:
                world.lose_the_worker()
        assert world.d.history(started) == before
        if number == 1:
            world.update(started, "note", 1)
            assert isinstance(world.update(started, "note", -1), UpdateRejected)
            world.advance(1)
        world.signal(started, "note")
    assert [round(time - START_MS / 1000, 1) for time in world.result(started)] == [0.6, 2.2, 2.2, 2.8, 3.4]
    assert not world.reasons
    assert Replayer([picky]).replay(world.exported(started)).fits


def test_a_failing_update_is_its_callers_affair(forgetful: bool) -> None:
    @workflow.defn
    async def service() -> str:
        async def divide(a: int, b: int) -> float:
            await workflow.checkpoint()
            return a / b

        workflow.on_update("divide", divide, validator=lambda a, b: workflow.sleep(a) if a < 0 else None)
        workflow.on_query("twice", lambda n: 2 * n)
        await workflow.wait_signal("end")
        return "ended"

    world = World(service, forgetful=forgetful)
    started = world.start()
    assert bytes(world.update(started, "divide", 1, 2).result) == b"0.5"
    assert b"ZeroDivisionError" in bytes(world.update(started, "divide", 1, 0).failure)
    world.signal(started, "end")
    assert world.result(started) == "ended"


def test_a_condition_holds_when_its_waiter_goes_on(forgetful: bool) -> None:
    @workflow.defn
    async def turns() -> list[str]:
        busy = False
        log: list[str] = []

        async def take(name: str) -> None:
            nonlocal busy
            await workflow.wait_condition(lambda: not busy)
            assert not busy
            busy = True
            await workflow.sleep(1)
            log.append(name)
            busy = False

        async with workflow.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(take, name)
        with pytest.raises(workflow.TooSlowError):
            await workflow.wait_condition(lambda: busy, timeout=3)
        with pytest.raises(workflow.ReadOnlyError):
            await workflow.wait_condition(lambda: workflow.patched("x"))
        return log

    world = World(turns, forgetful=forgetful)
    started = world.start()
    world.advance(10)
    assert world.result(started) == ["a", "b", "c"]


# --- cancel, end, continue ---------------------------------------------------------------------------------


def test_a_cancel_ends_the_run_with_its_reason(forgetful: bool) -> None:
    @workflow.defn
    async def saga() -> None:
        try:
            await workflow.sleep_forever()
        except workflow.Cancelled as cancelled:
            with workflow.CancelScope(shield=True):
                await workflow.execute_activity("refund", cancelled.reason)
            raise

    refunds: list[str] = []
    world = World(saga, forgetful=forgetful, refund=refunds.append)
    started = world.start()
    world.cancel(started)
    assert world.status(started) == "CANCELED"
    assert world.d.execution(started).close_reason == "enough"
    assert refunds == ["enough"]


def test_a_run_may_complete_in_spite_of_a_cancel(forgetful: bool) -> None:
    @workflow.defn
    async def stubborn() -> str:
        try:
            await workflow.sleep_forever()
        except workflow.Cancelled:
            return "cleaned up"

    world = World(stubborn, forgetful=forgetful)
    started = world.start()
    world.cancel(started)
    assert world.result(started) == "cleaned up"


def test_failures_of_two_tasks_leave_as_a_group(forgetful: bool) -> None:
    @workflow.defn
    async def two() -> None:
        async def bad(text: str) -> None:
            try:
                await workflow.sleep(1)
            finally:
                raise ValueError(text)

        async with workflow.open_nursery() as nursery:
            nursery.start_soon(bad, "a")
            nursery.start_soon(bad, "b")

    world = World(two, forgetful=forgetful)
    started = world.start()
    world.advance(1)
    assert world.d.failure(started)["code"] == "ExceptionGroup"


def test_what_a_server_would_refuse_is_an_error_where_it_is_asked_for(forgetful: bool) -> None:
    @workflow.defn
    async def greedy(what: str) -> None:
        async def deeper() -> None:
            async with workflow.open_nursery() as nursery:
                nursery.start_soon(deeper)

        if what == "deep":
            await deeper()
        elif what == "many":
            for number in range(10_000):
                workflow.start_activity("slow", number)
        else:
            await workflow.sleep(1e12)

    world = World(greedy, forgetful=forgetful)
    failure = world.d.failure(world.start("deep", workflow_id="deep"))
    assert failure["code"] == "RuntimeError"
    assert "nested too deep" in str(failure["message"])
    assert world.status(world.start("long", workflow_id="long")) == "RUNNING"
    assert not world.reasons
    world.start("many", workflow_id="many")
    assert f"{__file__}:" in world.reasons[0]
    assert "more than 9,900 commands without waiting for anything" in world.reasons[0]


def test_a_class_that_cannot_be_made_fails_its_run(forgetful: bool) -> None:
    @workflow.defn
    class Broken:
        def __init__(self) -> None:
            raise KeyError("broken")

        @workflow.run
        async def run(self) -> None: ...

        @workflow.signal
        def hello(self) -> None:
            self.nothing()  # type: ignore[attr-defined]

    world = World(Broken, forgetful=forgetful)
    start = c.StartWorkflow(type="Broken", workflow_id="w", signal_name="hello")
    started = world.d.step(start)
    world.settle()
    assert world.d.failure(started)["code"] == "KeyError"


def test_input_that_does_not_fit_fails_the_run() -> None:
    world = World(Basket)
    started = world.start(7)
    assert world.d.failure(started)["code"] == "DecodeError"


def test_continue_as_new_after_the_handlers_loses_nothing_that_they_change(forgetful: bool) -> None:
    @workflow.defn
    class Account:
        def __init__(self) -> None:
            self.added = 0

        @workflow.run
        async def run(self, balance: int) -> int:
            await workflow.wait_condition(lambda: self.added > 0)
            await workflow.wait_condition(workflow.all_handlers_finished)
            if balance + self.added < 30:
                workflow.continue_as_new(balance + self.added)
            return balance + self.added

        @workflow.update
        async def deposit(self, amount: int) -> None:
            self.added += 1
            await workflow.sleep(1)
            self.added += amount - 1

    world = World(Account, forgetful=forgetful)
    started = world.start(0)
    for _ in range(3):
        world.update(started, "deposit", 5)
    world.advance(1)
    for _ in range(3):
        world.update(started, "deposit", 5)
    world.advance(1)
    assert value(world.d.views.execution("w", "").result) == 30


def test_continue_as_new_beside_running_handlers_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    @workflow.defn
    class Hasty:
        @workflow.run
        async def run(self, n: int) -> int:
            if n == 0:
                await workflow.sleep(1)
                workflow.continue_as_new(1)
            return n

        @workflow.signal
        async def slow(self) -> None:
            await workflow.sleep(2)

    world = World(Hasty, forgetful=True)
    started = world.start(0)
    world.signal(started, "slow")
    world.advance(3)
    assert value(world.d.views.execution("w", "").result) == 1
    (record,) = caplog.records
    assert "1 of its handlers run" in record.message


def test_continue_as_new(forgetful: bool) -> None:
    @workflow.defn
    async def countdown(n: int) -> str:
        words = workflow.signals("word", str)
        if n == 0:
            return await words.receive()
        await workflow.sleep(1)
        async with workflow.open_nursery():
            workflow.continue_as_new(n - 1, memo={"n": n})
        return "not here"  # for type checkers, which know that a nursery can end its block

    world = World(countdown, forgetful=forgetful)
    started = world.start(2)
    world.advance(5)
    assert world.status(started) == "CONTINUED_AS_NEW"
    last = world.d.views.execution("w", "")
    assert (last.status.name, value(last.memo)) == ("RUNNING", {"n": 1})
    world.signal(type(started)(workflow_id="w", run_id=last.run_id), "word", "end")
    assert value(world.d.views.execution("w", "").result) == "end"


# --- children and others -----------------------------------------------------------------------------------


@workflow.defn
class Parent:
    @workflow.run
    async def run(self, child_id: str = "") -> object:
        with workflow.move_on_after(100) as scope:
            result = await workflow.execute_child_workflow(Basket.run, "child", id=child_id)
            return [result, scope.cancelled_caught]
        return "gave up"


def test_a_child_and_its_result(forgetful: bool) -> None:
    world = World(Parent, Basket, forgetful=forgetful, charge=charge)
    started = world.start("c")
    child = world.d.views.execution("c", "")
    handle = type(started)(workflow_id="c", run_id=child.run_id)
    world.signal(handle, "add", "x")
    world.signal(handle, "pay")
    assert world.result(started) == ["child: x", False]


def test_a_child_is_canceled_with_the_scope_that_waits_for_it(forgetful: bool) -> None:
    world = World(Parent, Basket, forgetful=forgetful)
    started = world.start("c")
    world.advance(100)
    assert world.result(started) == "gave up"
    assert world.d.views.execution("c", "").status.name == "CANCELED"


def test_a_child_that_cannot_start(forgetful: bool) -> None:
    world = World(Parent, Basket, forgetful=forgetful)
    world.start(type="Basket", workflow_id="c")
    started = world.start("c")
    assert world.d.failure(started)["code"] == "Conflict"


def test_a_parent_and_its_child_talk(forgetful: bool) -> None:
    @workflow.defn
    async def boss() -> object:
        child = await workflow.start_child_workflow(Basket.run, "c", parent_close_policy="abandon")
        assert child.workflow_id.startswith("basket-")
        await child.signal(Basket.add, "x")
        await child.signal("pay")
        result = await child.result()
        try:
            await workflow.external_workflow("nobody").signal("hello")
        except workflow.ExternalFailed as error:
            return [result, error.type]
        return "not here"

    world = World(boss, Basket, forgetful=forgetful, charge=charge)
    assert world.result(world.start()) == ["c: x", "NotFound"]


def test_another_execution_is_canceled(forgetful: bool) -> None:
    @workflow.defn
    async def killer() -> str:
        await workflow.external_workflow("victim").cancel("no more")
        return "done"

    world = World(killer, Basket, forgetful=forgetful)
    victim = world.start(type="Basket", workflow_id="victim")
    assert world.result(world.start()) == "done"
    assert (world.status(victim), world.d.execution(victim).close_reason) == ("CANCELED", "no more")


def test_a_failed_child_says_why(forgetful: bool) -> None:
    @workflow.defn
    async def child() -> None:
        raise TaskError("no luck", code="Luck")

    @workflow.defn
    async def parent() -> str:
        try:
            await workflow.execute_child_workflow(child)
        except workflow.ChildFailed as error:
            return f"{error.workflow_type} {error.type} {error.message}"
        return "not here"

    world = World(parent, child, forgetful=forgetful)
    assert world.result(world.start()) == "child Luck no luck"


# --- values that stay ---------------------------------------------------------------------------------------


def test_values_stay_the_same_in_a_replay(forgetful: bool) -> None:
    calls: list[int] = []

    def ask() -> tuple[int, int]:
        calls.append(1)
        return 1, 2

    @workflow.defn
    async def drawn() -> object:
        before = [workflow.random().random(), str(workflow.uuid4())]
        seen = workflow.side_effect(ask)
        typed = workflow.side_effect(lambda: Mail("x"), type=Mail)
        workflow.upsert_memo({"step": 1})
        workflow.upsert_search_attributes({"step": "two"})
        await workflow.sleep(1)
        assert isinstance(typed, Mail)
        return [*before, workflow.random().random(), seen, workflow.now().isoformat()]

    results = []
    for _ in range(2):
        world = World(drawn, forgetful=forgetful)
        started = world.start()
        world.advance(1)
        results.append(world.result(started))
        assert world.d.execution(started).search_attributes == {"step": "two"}
    assert calls == [1, 1], "once for each run"
    first = results[0]
    assert results[1] == first
    assert first[0] != first[2]
    assert UUID(first[1]).version == 4
    assert first[3] == [1, 2]
    assert datetime.fromisoformat(first[4]) == datetime.fromtimestamp(START_MS / 1000 + 1, UTC)


def test_a_value_that_is_looked_at_often_is_kept_where_it_changed(forgetful: bool) -> None:
    limits = iter([1, 1, 2, 2, 1])
    asked: list[int] = []

    def ask() -> int:
        asked.append(next(limits))
        return asked[-1]

    @workflow.defn
    async def follows() -> list[int]:
        seen = []
        for _ in range(5):
            seen.append(workflow.mutable_side_effect("limit", ask))
            await workflow.sleep(1)
        return seen

    world = World(follows, forgetful=forgetful)
    started = world.start()
    world.advance(5)
    assert world.result(started) == [1, 1, 2, 2, 1]
    assert asked == [1, 1, 2, 2, 1], "a replay asks nobody"
    markers = [event.get("name", str) for event in world.history(started) if event.event_type == "MARKER_RECORDED"]
    assert markers == ["mutable-side-effect/limit"] * 3


def test_what_counts_as_a_change_is_the_callers_choice_and_ids_are_apart() -> None:
    mails = [Mail("a"), Mail("b"), Mail("A")]

    @workflow.defn
    async def follows() -> list[str]:
        def same(last: Mail, new: Mail) -> bool:
            return last.to.lower() == new.to.lower()

        seen = []
        left = iter(mails)
        for _ in mails:
            seen.append(workflow.mutable_side_effect("mail", lambda: next(left), type=Mail, same=same).to)
            seen.append(workflow.mutable_side_effect("copy", lambda: Mail("x"), type=Mail).to)
        with pytest.raises(ValueError, match="the id of the mutable side effect '': it must be 1 to 200"):
            workflow.mutable_side_effect("", lambda: 1)
        return seen

    world = World(follows)
    started = world.start()
    assert world.result(started) == ["a", "x", "b", "x", "A", "x"]
    mails[1] = Mail("A")
    assert world.result(world.start()) == ["a", "x", "a", "x", "a", "x"]
    names = [event.get("name", str) for event in world.history(started) if event.event_type == "MARKER_RECORDED"]
    assert names.count("mutable-side-effect/copy") == 1


def test_each_task_draws_its_own_numbers() -> None:
    drawn: dict[str, float] = {}

    def flow(names: str) -> object:
        async def main() -> None:
            async def draw(name: str) -> None:
                await workflow.sleep(ord(name) - 96)
                drawn[name] = workflow.random().random()

            async with workflow.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(draw, name)

        return main

    for names in ("ab", "ba"):
        world = World(flow(names))
        world.start()
        world.advance(5)
        if names == "ab":
            first = dict(drawn)
    assert drawn == {"a": first["b"], "b": first["a"]}, "by the place in the tree, not by the order of events"


def test_the_logger_is_silent_in_a_replay(caplog: pytest.LogCaptureFixture) -> None:
    @workflow.defn
    async def chatty() -> bool:
        workflow.logger.info("began")
        was_replayed = workflow.is_replaying()
        await workflow.sleep(1)
        workflow.logger.info("woke")
        return was_replayed

    caplog.set_level(logging.INFO)
    world = World(chatty, forgetful=True)
    started = world.start()
    world.advance(1)
    assert world.result(started) is True
    assert [record.getMessage() for record in caplog.records if record.name == "zaptasks.workflow"] == [
        "chatty w: began",
        "chatty w: woke",
    ]


def test_info(forgetful: bool) -> None:
    @workflow.defn
    async def child() -> list[str]:
        about = workflow.info()
        return [about.parent_workflow_id, about.type, about.task_queue, str(about.attempt)]

    @workflow.defn(name="Head")
    async def head() -> list[str]:
        return [workflow.info().workflow_id, *await workflow.execute_child_workflow(child)]

    world = World(head, child, forgetful=forgetful)
    assert world.result(world.start()) == ["w", "w", "child", "default", "1"]


def test_the_api_says_where_it_works() -> None:
    with pytest.raises(workflow.NotInWorkflow, match="only in the code of a workflow"):
        workflow.now()
    with pytest.raises(workflow.NotInWorkflow):
        workflow.start_activity(charge, "x")
