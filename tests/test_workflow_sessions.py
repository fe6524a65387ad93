"""Sessions in a workflow's own code, on the engine in virtual time: what it asks for, and what ends it."""

from __future__ import annotations

import pytest
from tests.helpers.engine_driver import failure, value
from tests.helpers.workflow_world import ACTIVITIES, World

from zapserver.engine import commands as c
from zapserver.engine.effects import DeliverActivityCancel
from zaptasks import RetryPolicy, workflow
from zaptasks.workflow.sessions import SESSION

SIGNAL = f"{SESSION}/0/1"
QUEUE = "worker 5/own"


@pytest.fixture(params=[False, True], ids=["at hand", "replayed"])
def forgetful(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@workflow.defn
async def convert() -> object:
    try:
        async with workflow.open_session(task_queue="gpu", creation_timeout=60) as session:
            path = await session.execute_activity("download", "url", start_to_close=60)
            return await session.execute_activity("encode", path, start_to_close=600)
    except (workflow.SessionLost, workflow.SessionNotOpened) as error:
        return f"{type(error).__name__}: {error}"


def world_of(forgetful: bool) -> World:
    world = World(convert, forgetful=forgetful)
    world.d.subscribe(ACTIVITIES, queue="gpu", types=[SESSION], slots=1)
    world.d.subscribe(ACTIVITIES, queue=QUEUE)
    return world


def opened(world: World) -> c.Started:
    """A run in its session."""
    started = world.start()
    assert [task.activity_type for task in world.held] == [SESSION]
    assert value(world.held[0].input) == [SIGNAL]
    world.signal(started, SIGNAL, QUEUE)
    return started


def test_the_activities_go_to_the_queue_of_the_worker_that_has_the_place(forgetful: bool) -> None:
    world = world_of(forgetful)
    started = opened(world)
    place = world.held.pop(0)
    assert [task.activity_type for task in world.held] == ["download"]
    world.complete("/tmp/film")
    world.complete("/tmp/film.webm")
    assert world.result(started) == "/tmp/film.webm"
    queues = [event.get("taskQueue", str) for event in world.history(started) if "SCHEDULED" in event.event_type]
    assert queues == ["gpu", QUEUE, QUEUE]
    canceled = [effect for effect in world.d.effects if isinstance(effect, DeliverActivityCancel)]
    assert {effect.task_token for effect in canceled} == {place.task_token}, "the place is given back"


def test_no_place_within_the_time_is_an_error_that_says_what_was_waited_for(forgetful: bool) -> None:
    world = World(convert, forgetful=forgetful)
    started = world.start()
    world.advance(59.9)
    assert world.status(started) == "RUNNING"
    world.advance(0.2)
    assert world.result(started) == (
        "SessionNotOpened: no worker of task queue 'gpu' gave this session a place: schedule-to-start timeout of"
        " 60000 ms passed while no worker is subscribed to task queue 'gpu' for activities and tasks; a worker"
        " has as many as open_worker(sessions=...) says"
    )


def test_the_block_is_cancelled_at_once_when_the_worker_is_lost(forgetful: bool) -> None:
    world = world_of(forgetful)
    started = opened(world)
    world.d.lose(ACTIVITIES)
    world.settle()
    assert world.result(started) == (
        f"SessionLost: the session on '{QUEUE}' was lost: the worker 'worker 5' was lost during attempt 1:"
        " the line went dead"
    )
    assert not world.d.execution(started).open_activities


def test_an_activity_that_is_tried_once_fails_as_the_session_does(forgetful: bool) -> None:
    @workflow.defn(name="once")
    async def once() -> str:
        try:
            async with workflow.open_session(task_queue="gpu") as session:
                await session.execute_activity("download", retry_policy=RetryPolicy(maximum_attempts=1))
        except workflow.SessionLost:
            return "lost"
        return "not lost"

    world = World(once, forgetful=forgetful)
    world.d.subscribe(ACTIVITIES, queue="gpu", types=[SESSION])
    world.d.subscribe(ACTIVITIES, queue=QUEUE)
    started = opened(world)
    world.d.lose(ACTIVITIES)
    world.settle()
    assert world.result(started) == "lost"


def test_a_shield_does_not_wait_for_a_worker_that_is_lost(forgetful: bool) -> None:
    seen: list[str] = []

    @workflow.defn(name="shielded")
    async def shielded() -> str:
        try:
            async with workflow.open_session(task_queue="gpu") as session:
                with workflow.CancelScope(shield=True):
                    for name in ("upload", "tidy"):
                        try:
                            await session.execute_activity(name)
                        except workflow.SessionLost as error:
                            seen.append(f"{name}: {error}")
        except workflow.SessionLost:
            return "lost"
        return "not lost"

    world = World(shielded, forgetful=forgetful)
    world.d.subscribe(ACTIVITIES, queue="gpu", types=[SESSION])
    world.d.subscribe(ACTIVITIES, queue=QUEUE)
    started = opened(world)
    world.d.lose(ACTIVITIES)
    world.settle()
    assert world.status(started) == "COMPLETED"
    assert [line.partition(" was lost: ")[0] for line in seen[-2:]] == [
        f"upload: the session on '{QUEUE}'",
        f"tidy: the session on '{QUEUE}'",
    ]


def test_what_is_left_running_is_asked_to_stop_when_the_block_ends(forgetful: bool) -> None:
    @workflow.defn(name="leaves")
    async def leaves() -> None:
        async with workflow.open_session(task_queue="gpu") as session:
            session.start_activity("warm", on_cancel="abandon")
            await workflow.sleep(1)
        with pytest.raises(workflow.SessionLost, match="is over: its block has ended"):
            session.start_activity("cool")
        await workflow.sleep_forever()

    world = World(leaves, forgetful=forgetful)
    world.d.subscribe(ACTIVITIES, queue="gpu", types=[SESSION])
    world.d.subscribe(ACTIVITIES, queue=QUEUE)
    started = opened(world)
    place, warm = world.held
    world.advance(1)
    asked = {effect.task_token for effect in world.d.effects if isinstance(effect, DeliverActivityCancel)}
    assert asked == {place.task_token, warm.task_token}
    assert world.status(started) == "RUNNING"
    assert not world.reasons


def test_a_worker_that_leaves_ends_the_session_with_its_reason(forgetful: bool) -> None:
    world = world_of(forgetful)
    started = opened(world)
    world.complete("the worker 'w' leaves")
    world.complete("/tmp/film")
    assert "SessionLost" in world.result(started)
    assert "was lost: the worker 'w' leaves" in world.result(started)


@pytest.mark.parametrize(("queue", "is_lost"), [(QUEUE, False), ("worker 6/own", True)])
def test_a_place_that_goes_to_another_worker_is_lost_and_one_that_comes_back_is_not(
    queue: str, is_lost: bool, forgetful: bool
) -> None:
    """A server that restarts has the place in line again."""
    world = world_of(forgetful)
    started = opened(world)
    world.signal(started, SIGNAL, queue)
    _, download = world.held
    if is_lost:
        world.d.fail(download, failure("canceled", "CanceledError"))
        world.settle()
        assert (
            world.result(started) == f"SessionLost: the session on '{QUEUE}' was lost: its place went to another worker"
        )
    else:
        assert world.status(started) == "RUNNING"
        world.d.complete(download, "/tmp/film")
        world.settle()
        world.d.complete(world.held[-1], "done")
        world.settle()
        assert world.result(started) == "done"


def test_a_cancel_in_a_session_gives_the_place_back(forgetful: bool) -> None:
    world = world_of(forgetful)
    started = opened(world)
    place, download = world.held
    world.cancel(started)
    world.d.fail(download, failure("canceled", "CanceledError"))
    world.settle()
    assert world.status(started) == "CANCELED"
    tokens = [effect.task_token for effect in world.d.effects if isinstance(effect, DeliverActivityCancel)]
    assert place.task_token in tokens


def test_a_cancel_while_no_place_is_free_takes_the_session_out_of_line(forgetful: bool) -> None:
    world = World(convert, forgetful=forgetful)
    started = world.start()
    world.cancel(started)
    assert world.status(started) == "CANCELED"
    assert not world.d.engine._state.activities


def test_a_signal_that_no_worker_sent_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    world = world_of(forgetful=False)
    started = world.start()
    world.signal(started, SIGNAL, 17)
    world.signal(started, SIGNAL)
    assert [task.activity_type for task in world.held] == [SESSION]
    world.signal(started, SIGNAL, QUEUE)
    assert [task.activity_type for task in world.held] == [SESSION, "download"]
    assert not world.reasons
    assert caplog.text.count(f"a signal '{SIGNAL}' that no worker sent was dropped") == 2


def test_a_session_has_a_queue_of_its_own() -> None:
    @workflow.defn(name="wrong")
    async def wrong() -> str:
        async with workflow.open_session(task_queue="gpu") as session:
            with pytest.raises(
                TypeError,
                match=r"session\.execute_activity\(\) has no option 'task_queue'; its",
            ):
                await session.execute_activity("x", task_queue="other")  # type: ignore[call-overload]
            with pytest.raises(ValueError, match="creation_timeout"):
                workflow.open_session(creation_timeout=-1)
        return "done"

    world = World(wrong)
    world.d.subscribe(ACTIVITIES, queue="gpu", types=[SESSION])
    started = opened(world)
    assert world.result(started) == "done"
