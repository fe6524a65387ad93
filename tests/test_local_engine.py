"""The engine in the process: tasks in threads, schedules on clocks that a test moves by hand."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import trio

from zaptasks import local_engine
from zaptasks.context import current_task
from zaptasks.errors import PayloadError
from zaptasks.local_engine import EngineStopped, LocalEngine, NoHandler, QueueFull
from zaptasks.local_schedule import CLOCK_BACK_SECONDS_MAX, CLOCK_CHECK_SECONDS_MAX, LocalTime
from zaptasks.spec import parse_spec
from zapwire.errors import ZapError

SOON = 10.0  # seconds that no wait in a passing test comes near
BERLIN = ZoneInfo("Europe/Berlin")


class ManualClock:
    """Stands still until `advance`, which returns when the engine's timer has acted and waits again."""

    def __init__(self, start: datetime = datetime(2026, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)) -> None:
        self._monotonic = 5000.0
        self._wall = start.timestamp()
        self._timer: threading.Condition | None = None
        self._settled = threading.Event()

    def monotonic(self) -> float:
        return self._monotonic

    def time(self) -> float:
        return self._wall

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        self._timer = changed
        self._settled.set()
        changed.wait()

    def advance(self, seconds: float, *, wall: float | None = None) -> None:
        """Let `seconds` pass, of which the wall clock shows `wall`."""
        assert self._settled.wait(SOON)
        assert self._timer is not None
        with self._timer:
            self._monotonic += seconds
            self._wall += seconds if wall is None else wall
            self._settled.clear()
            self._timer.notify()
        assert self._settled.wait(SOON)

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, which wakes nobody."""
        self._wall += seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def engine(clock: ManualClock) -> Iterator[LocalEngine]:
    made = LocalEngine(zone=UTC, clock=clock)
    yield made
    assert not made.stop(SOON)


class Gate:
    """A handler that says when it runs, and ends when it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.runs = 0

    def __call__(self, payload: Any = None) -> Any:
        self.runs += 1
        self.entered.release()
        assert self.opened.wait(SOON)
        return payload

    def wait_for_run(self) -> None:
        assert self.entered.acquire(timeout=SOON)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


# ------------------------------------------------------------------------------------------ tasks


def test_a_task_runs_in_another_thread_with_its_payload_as_it_would_arrive() -> None:
    seen: list[object] = []

    def handler(task_type: str, payload: Any) -> object:
        seen.append((task_type, payload, threading.current_thread() is threading.main_thread()))
        return {"at": (1, 2)}

    with LocalEngine(handler) as engine:
        result = engine.now("email.send", {"to": ("a", "b"), "when": datetime(2026, 1, 1, tzinfo=UTC)}).result(SOON)
        assert engine.now("email.send").result(SOON) == {"at": [1, 2]}
    assert seen[0] == ("email.send", {"to": ["a", "b"], "when": "2026-01-01T00:00:00Z"}, False)
    assert seen[1] == ("email.send", None, False)
    assert result == {"at": [1, 2]}


@dataclass
class Mail:
    to: str
    copies: int = 1


def test_a_registered_function_gets_the_type_that_it_asks_for(engine: LocalEngine) -> None:
    def send(mail: Mail) -> str:
        return mail.to * mail.copies

    engine.register("email.send", send)
    assert engine.now("email.send", {"to": "ab", "copies": 2}).result(SOON) == "abab"
    engine.register("email.send", lambda mail: "another")
    assert engine.now("email.send", {}).result(SOON) == "another"


def test_the_default_handler_takes_what_no_function_is_registered_for() -> None:
    with LocalEngine(lambda task_type, payload: f"default {task_type}") as engine:
        engine.register("mine", lambda payload: "registered")
        assert engine.now("mine").result(SOON) == "registered"
        assert engine.now("other").result(SOON) == "default other"


def test_a_task_without_a_handler_is_an_error_at_once(engine: LocalEngine) -> None:
    engine.register("b", print)
    engine.register("a", print)
    with pytest.raises(NoHandler, match=r"nothing handles tasks of type 'c'.*registered: 'a', 'b'") as caught:
        engine.now("c")
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, ZapError)


def test_what_json_cannot_carry_is_refused_before_anything_runs(engine: LocalEngine, gate: Gate) -> None:
    engine.register("t", gate)
    with pytest.raises(PayloadError, match=r"the payload of 't'.*object"):
        engine.now("t", {"x": object()}, request_id="r")
    gate.opened.set()
    assert engine.now("t", 5, request_id="r").result(SOON) == 5  # the refused call used up no request id
    assert gate.runs == 1


def test_a_result_that_json_cannot_carry_fails_the_task(engine: LocalEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine.register("t", lambda payload: object())
    with pytest.raises(PayloadError, match="the result of 't'"):
        engine.now("t").result(SOON)
    assert "task t failed" in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("no such mailbox"), SystemExit(3)])
def test_a_handler_that_raises_fails_its_task_and_nothing_else(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(payload: object) -> None:
        raise error

    with LocalEngine(threads=1) as engine:
        engine.register("bad", fail)
        engine.register("good", lambda payload: payload)
        assert engine.now("bad").exception(SOON) is error
        assert engine.now("good", 1).result(SOON) == 1
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.ERROR, f"task bad failed: {error!r}")
    ]


def test_an_async_handler_gets_a_trio_loop_and_the_current_task(engine: LocalEngine) -> None:
    async def handler(payload: int) -> list[object]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 0)
        current_task().heartbeat("half way")
        return [payload, current_task().type, current_task().attempt]

    engine.register("t", handler)
    assert engine.now("t", 7).result(SOON) == [7, "t", 1]


def test_current_task_ends_with_the_task(engine: LocalEngine) -> None:
    engine.register("t", lambda payload: current_task().id)
    assert engine.now("t", request_id="r-1").result(SOON) == "r-1"
    assert engine.now("t").result(SOON) != engine.now("t").result(SOON)
    with pytest.raises(RuntimeError, match="no current task"):
        current_task()


def test_a_handler_may_submit_tasks(engine: LocalEngine) -> None:
    engine.register("inner", lambda payload: payload + 1)
    engine.register("outer", lambda payload: engine.now("inner", payload).result(SOON) * 10)
    assert engine.now("outer", 1).result(SOON) == 20


def test_the_caller_never_waits_and_threads_are_bounded(gate: Gate) -> None:
    engine = LocalEngine(threads=2)
    engine.register("t", gate)
    futures = [engine.now("t", n) for n in range(5)]
    gate.wait_for_run()
    gate.wait_for_run()
    assert not engine.wait_idle(timeout=0)
    assert gate.runs == 2
    gate.opened.set()
    assert [future.result(SOON) for future in futures] == [0, 1, 2, 3, 4]
    assert not engine.stop()


def test_a_full_queue_refuses_and_accepts_again(gate: Gate) -> None:
    engine = LocalEngine(threads=1, queue=2)
    engine.register("t", gate)
    engine.now("t")
    gate.wait_for_run()
    engine.now("t")
    engine.now("t")
    with pytest.raises(QueueFull, match="2 tasks wait already, at most 2 may: 't'"):
        engine.now("t", request_id="r")
    gate.opened.set()
    assert engine.wait_idle(SOON)
    assert engine.now("t", 1, request_id="r").result(SOON) == 1
    assert gate.runs == 4
    assert not engine.stop()


def test_a_request_id_runs_once_whoever_repeats_it(engine: LocalEngine, gate: Gate) -> None:
    engine.register("t", gate)
    futures: list[object] = []
    start = threading.Barrier(8)

    def submit() -> None:
        start.wait(SOON)
        futures.append(engine.now("t", 1, request_id="same"))

    submitters = [threading.Thread(target=submit) for _ in range(8)]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join(SOON)
    gate.opened.set()
    assert len(futures) == 8
    assert len(set(map(id, futures))) == 1
    assert engine.wait_idle(SOON)
    assert engine.now("t", 2, request_id="same").result(SOON) == 1  # after its end, too
    assert gate.runs == 1


def test_request_ids_take_bounded_memory_and_unfinished_ones_are_kept(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_engine, "REQUEST_IDS_MAX", 3)
    engine = LocalEngine(lambda task_type, payload: payload, threads=2, queue=1)
    engine.register("slow", gate)
    slow = engine.now("slow", request_id="slow")
    gate.wait_for_run()
    runs: list[int] = []
    engine.register("t", runs.append)
    for number in range(20):
        engine.now("t", number, request_id=f"r{number}").result(SOON)
        assert engine.wait_idle(0) is False
    assert engine.now("slow", request_id="slow") is slow
    engine.now("t", 99, request_id="r19").result(SOON)  # remembered
    engine.now("t", 100, request_id="r0").result(SOON)  # forgotten
    assert runs == [*range(20), 100]
    gate.opened.set()
    assert not engine.stop()


def test_a_cancelled_future_does_not_run(gate: Gate) -> None:
    engine = LocalEngine(threads=1)
    engine.register("t", gate)
    engine.now("t")
    gate.wait_for_run()
    assert engine.now("t").cancel()
    gate.opened.set()
    assert not engine.stop()
    assert gate.runs == 1


def test_no_thread_before_there_is_work() -> None:
    before = threading.active_count()
    with LocalEngine():
        assert threading.active_count() == before


@pytest.mark.parametrize("sizes", [{"threads": 0}, {"queue": 0}])
def test_sizes_of_nothing_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LocalEngine(**sizes)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------- schedules


class Runs:
    """A scheduled function that counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


Moves = Callable[..., int]


@pytest.fixture
def after(engine: LocalEngine, clock: ManualClock) -> Callable[[Runs], Moves]:
    """`after(runs)(seconds)`: how often it had run in all when that time had passed and all was done."""

    def of(runs: Runs) -> Moves:
        def moved(seconds: float, *, wall: float | None = None) -> int:
            clock.advance(seconds, wall=wall)
            assert engine.wait_idle(SOON)
            return runs.count

        return moved

    return of


After = Callable[[Runs], Moves]


def test_a_period_fires_first_after_one_period(engine: LocalEngine, after: After) -> None:
    runs = Runs()
    engine.add("poll", "30s", runs)
    passed = after(runs)
    assert [passed(29.9), passed(0.1), passed(29.9), passed(0.1), passed(30)] == [0, 1, 1, 2, 3]


def test_periods_that_were_missed_fire_once_and_keep_their_grid(engine: LocalEngine, after: After) -> None:
    runs = Runs()
    engine.add("poll", "30s", runs)
    passed = after(runs)
    assert [passed(95), passed(24.9), passed(0.1)] == [1, 1, 2]


def test_a_period_does_not_care_about_the_wall_clock(engine: LocalEngine, after: After) -> None:
    runs = Runs()
    engine.add("poll", "1m", runs)
    passed = after(runs)
    assert [passed(59, wall=86_400), passed(1, wall=-86_400 * 30)] == [0, 1]


def test_runs_never_overlap_and_never_pile_up(
    engine: LocalEngine, clock: ManualClock, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zaptasks.local")
    engine.add("slow", "10s", gate)
    clock.advance(10)
    gate.wait_for_run()
    for _ in range(5):
        clock.advance(10)
    assert gate.runs == 1
    gate.opened.set()
    assert engine.wait_idle(SOON)
    assert gate.runs == 1
    clock.advance(10)
    gate.wait_for_run()
    assert engine.wait_idle(SOON)
    assert gate.runs == 2
    assert "schedule slow: 5 firings skipped" in caplog.text


def test_cron_is_read_in_the_engine_s_zone_unless_it_names_one(clock: ManualClock) -> None:
    engine = LocalEngine(zone=BERLIN, clock=clock)  # 14:00 in Berlin
    here, tokyo, minutely = Runs(), Runs(), Runs()
    engine.add("here", "30 14 * * *", here)
    engine.add("tokyo", "CRON_TZ=Asia/Tokyo 0 22 * * *", tokyo)  # 15:00 in Berlin
    engine.add("every", "@every 90s", minutely)
    counts = []
    for _ in range(240):  # half a minute each
        clock.advance(30)
        assert engine.wait_idle(SOON)
        counts.append((here.count, tokyo.count))
    assert counts[58:60] == [(0, 0), (1, 0)]
    assert counts[118:120] == [(1, 0), (1, 1)]
    assert counts[-1] == (1, 1)
    assert minutely.count == 80  # all of them on the second: what is seen 0.25 s late does not add up
    assert not engine.stop()


def test_adding_a_name_again_replaces_it(engine: LocalEngine, after: After) -> None:
    old, new = Runs(), Runs()
    engine.add("job", "10s", old)
    passed = after(old)
    passed(9)
    engine.add("job", "20s", new)
    assert passed(19) == 0
    assert new.count == 0
    passed(1)
    assert (old.count, new.count) == (0, 1)


def test_a_bad_spec_leaves_the_earlier_schedule_alone(engine: LocalEngine, after: After) -> None:
    runs = Runs()
    engine.add("job", "10s", runs)
    for bad in ("", "0s", "-5s", "0 0 30 2 *", "soon"):
        with pytest.raises(ValueError):
            engine.add("job", bad, Runs())
    assert after(runs)(10) == 1


def test_removing_ends_the_firings(engine: LocalEngine, after: After) -> None:
    runs = Runs()
    engine.add("job", parse_spec("10s"), runs)
    passed = after(runs)
    passed(10)
    assert engine.remove("job") is True
    assert engine.remove("job") is False
    assert passed(100) == 1


def test_what_a_scheduled_function_raises_is_logged_and_it_runs_again(
    engine: LocalEngine, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Runs()

    async def fail() -> None:
        runs()
        raise KeyError(runs.count)

    engine.add("job", "10s", fail)
    for _ in range(3):
        clock.advance(10)
        assert engine.wait_idle(SOON)
    assert [record.getMessage() for record in caplog.records] == [
        f"schedule job: a run failed: KeyError({number})" for number in (1, 2, 3)
    ]


def test_a_wall_clock_set_forward_fires_once_soon(engine: LocalEngine, clock: ManualClock, after: After) -> None:
    runs = Runs()
    engine.add("hourly", "0 * * * *", runs)
    passed = after(runs)
    assert passed(10) == 0
    clock.set_wall(5 * 3600)
    assert passed(CLOCK_CHECK_SECONDS_MAX) == 1  # noticed: five firings were passed over, and are one
    assert passed(1800) == 1
    assert passed(1800) == 2


def test_a_wall_clock_set_back_a_little_repeats_nothing(engine: LocalEngine, after: After) -> None:
    runs = Runs()
    engine.add("hourly", "0 * * * *", runs)
    passed = after(runs)
    assert passed(3600) == 1
    assert passed(CLOCK_CHECK_SECONDS_MAX, wall=-600) == 1  # noticed, ten minutes before the hour again
    assert passed(1200) == 1  # past the same hour again
    assert passed(3000) == 2


def test_a_wall_clock_set_back_a_lot_had_been_wrong(engine: LocalEngine, after: After) -> None:
    runs = Runs()
    engine.add("hourly", "0 * * * *", runs)
    passed = after(runs)
    assert [passed(3600) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert passed(CLOCK_CHECK_SECONDS_MAX, wall=-(CLOCK_BACK_SECONDS_MAX + 1800)) == 6
    assert passed(1800) == 7  # the next full hour, not the one three and a half hours later


def test_a_full_queue_skips_firings_and_keeps_the_schedule(clock: ManualClock, gate: Gate) -> None:
    engine = LocalEngine(threads=1, queue=1, clock=clock)
    runs = Runs()
    engine.register("t", gate)
    engine.add("job", "10s", runs)
    engine.now("t")
    gate.wait_for_run()
    engine.now("t")
    clock.advance(10)
    gate.opened.set()
    assert engine.wait_idle(SOON)
    assert runs.count == 0
    clock.advance(10)
    assert engine.wait_idle(SOON)
    assert runs.count == 1
    assert not engine.stop()


def test_a_schedule_at_the_end_of_the_calendar_ends(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock(datetime(9999, 12, 30, 12, tzinfo=UTC))
    engine = LocalEngine(zone=UTC, clock=clock)
    others = Runs()
    engine.add("last", "0 13 30 12 *", Runs())
    engine.add("other", "1h", others)
    for _ in range(3):
        clock.advance(3600)
        assert engine.wait_idle(SOON)
    assert "schedule last ends" in caplog.text
    assert others.count == 3
    assert not engine.stop()


def test_adding_a_name_for_ever_takes_bounded_memory(engine: LocalEngine) -> None:
    for _ in range(5000):
        engine.add("job", "24h", Runs())
    assert len(engine._agenda) < 200


def test_a_schedule_on_the_real_clocks() -> None:
    ran = threading.Semaphore(0)
    with LocalEngine() as engine:
        began = time.monotonic()
        engine.add("tick", "20ms", ran.release)
        for _ in range(3):
            assert ran.acquire(timeout=SOON)
        assert time.monotonic() - began >= 0.059


@pytest.mark.parametrize(
    ("instant", "shown"),
    [
        ("2026-10-25T00:30:00+00:00", "2026-10-25T02:30:00+02:00"),
        ("2026-10-25T01:30:00+00:00", "2026-10-25T02:30:00+01:00"),
        ("2026-03-29T01:00:00+00:00", "2026-03-29T03:00:00+02:00"),
    ],
)
def test_local_time_knows_the_changes_of_season(monkeypatch: pytest.MonkeyPatch, instant: str, shown: str) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        here = datetime.fromisoformat(instant).astimezone(LocalTime())
        assert here.isoformat() == shown
        assert here.astimezone(UTC) == datetime.fromisoformat(instant)
        assert here.tzname() in ("CET", "CEST")
        later = parse_spec("30 2 * * *").next_after(here).isoformat()
        in_berlin = parse_spec("30 2 * * *").next_after(datetime.fromisoformat(instant).astimezone(BERLIN))
        assert later == in_berlin.isoformat()
    finally:
        monkeypatch.undo()
        time.tzset()


def test_local_time_of_a_moment_is_the_system_s() -> None:
    now = datetime.now(UTC)
    assert now.astimezone(LocalTime()).utcoffset() == now.astimezone().utcoffset()
    assert now.astimezone(LocalTime()) - now == timedelta(0)


# ------------------------------------------------------------------------------------------ its end


def test_stop_lets_accepted_work_finish_and_takes_no_more(gate: Gate) -> None:
    engine = LocalEngine(threads=1)
    engine.register("t", gate)
    futures = [engine.now("t", n) for n in range(3)]
    gate.wait_for_run()
    left: list[object] = []
    stopper = threading.Thread(target=lambda: left.append(engine.stop(SOON)))
    stopper.start()
    stopped = False
    while not stopped:  # the stopper needs a moment; one request id fills no queue meanwhile
        try:
            engine.now("t", request_id="until the stop is under way")
        except EngineStopped:
            stopped = True
    with pytest.raises(EngineStopped, match="make a new one"):
        engine.add("job", "1s", Runs())
    gate.opened.set()
    stopper.join(SOON)
    assert [bool(item) for item in left] == [False]
    assert [future.result(0) for future in futures] == [0, 1, 2]


def test_stop_says_what_it_leaves_and_may_be_repeated(gate: Gate) -> None:
    engine = LocalEngine(threads=1)
    engine.register("slow", gate)
    engine.register("waiting", gate)
    running = engine.now("slow", 1)
    gate.wait_for_run()
    waiting = engine.now("waiting")
    left = engine.stop(timeout=0)
    assert (left.running, left.dropped) == (("slow",), ("waiting",))
    with pytest.raises(CancelledError):
        waiting.result(0)
    left = engine.stop(timeout=0)
    assert (left.running, left.dropped) == (("slow",), ())
    gate.opened.set()
    assert not engine.stop(SOON)
    assert running.result(0) == 1
    assert gate.runs == 1


def test_stop_ends_schedules_and_threads(clock: ManualClock) -> None:
    before = set(threading.enumerate())
    engine = LocalEngine(clock=clock)
    runs = Runs()
    engine.add("job", "10s", runs)
    clock.advance(10)
    assert engine.wait_idle(SOON)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    assert all(thread.daemon for thread in started)
    engine.stop()
    for thread in started:
        thread.join(SOON)
        assert not thread.is_alive()
    assert runs.count == 1


def test_a_handler_that_stops_its_engine_does_not_wait_for_itself(engine: LocalEngine) -> None:
    engine.register("quit", lambda payload: bool(engine.stop(SOON)))
    assert engine.now("quit").result(SOON) is False


def test_leaving_a_with_block_waits_and_warns_of_what_is_left(
    gate: Gate, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalEngine(lambda task_type, payload: payload) as engine:
        future = engine.now("t", 1)
    assert future.done()
    monkeypatch.setattr(LocalEngine.stop, "__defaults__", (0.0,))
    with LocalEngine() as engine:
        engine.register("slow", gate)
        engine.now("slow")
        gate.wait_for_run()
    assert "stopped with work left: running ('slow',)" in caplog.text


def test_the_interpreter_ends_at_once_and_silently_whatever_runs() -> None:
    program = textwrap.dedent(
        """
        import threading, time, trio
        from zaptasks.local_engine import LocalEngine

        entered = threading.Semaphore(0)

        def block(payload):
            entered.release()
            time.sleep(600)

        async def sleep(payload):
            entered.release()
            await trio.sleep_forever()

        def busy(payload):
            entered.release()
            while True:
                pass

        engine = LocalEngine(threads=4)
        for task_type, handler in (("block", block), ("sleep", sleep), ("busy", busy)):
            engine.register(task_type, handler)
            engine.now(task_type)
        engine.add("tick", "1ms", entered.release)
        engine.add("cron", "* * * * *", entered.release)
        for _ in range(20):
            entered.acquire()
        engine.now("block"); engine.now("block")
        print("main ends")
        """
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        env={"PYTHONPATH": f"{root / 'zap'}:{root / 'sdk'}"},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "main ends\n", "")
