"""Histories that were recorded once, by older code and older servers: today's code has to fit all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.histories import record
from tests.histories import workflows as w

from zapserver.engine.records import EventType
from zaptasks import Replayer, WorkflowHistory, workflow
from zaptasks.workflow import NondeterminismError
from zaptasks.workflow.history import ANSWERED

FILES = sorted(record.FOLDER.glob("*.json"))
WORKFLOWS: list[Any] = [
    *(w.Order, w.Stops, w.Sleeper, w.Refuses, w.Family, w.Local, w.Counter, w.Pipeline, w.Patched, w.Draws, w.Survivor),
    w.Studio,
]


def read(name: str) -> WorkflowHistory:
    return WorkflowHistory.read((record.FOLDER / f"{name}.json").read_bytes())


def test_every_recording_is_there_and_together_they_have_every_kind_of_event() -> None:
    assert {path.stem for path in FILES} >= record.RECORDINGS.keys()
    kinds = {event.event_type for path in FILES for event in read(path.stem).events}
    assert {kind.value for kind in EventType} <= kinds


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_todays_code_fits(path: Path) -> None:
    history = WorkflowHistory.read(path.read_bytes())
    replayer = Replayer(WORKFLOWS)
    assert replayer.replay(history).fits
    assert replayer.replay(history.to_cbor()).fits


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_todays_code_fits_what_the_run_was_before_each_answer(path: Path) -> None:
    history = WorkflowHistory.read(path.read_bytes())
    answers = [number for number, event in enumerate(history.events) if event.event_type == ANSWERED]
    assert answers
    parts = [msgspec.structs.replace(history, events=history.events[:number]) for number in answers]
    assert [replayed.error for replayed in Replayer(WORKFLOWS).replay_all(parts)] == [None] * len(answers)


@workflow.defn
async def does_nothing(*args: object) -> None: ...


@workflow.defn
async def asks_for_something_else() -> None:
    await workflow.execute_activity("planted")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("planted", [does_nothing, asks_for_something_else], ids=["nothing", "something else"])
def test_another_workflow_does_not_fit(path: Path, planted: Any) -> None:
    with pytest.raises(NondeterminismError):
        Replayer([]).replay(path.read_bytes(), workflow=planted)


class Changed(w.Pipeline):
    """The last part of it is another."""

    async def semaphores(self) -> None:
        await workflow.execute_activity("echo", "in the place of what was", start_to_close=5)


def test_a_change_at_the_end_is_found() -> None:
    changed = workflow.defn(name="Pipeline")(Changed)
    with pytest.raises(NondeterminismError) as caught:
        Replayer([changed]).replay(read("pipeline"))
    error = caught.value
    assert error.new is not None
    assert error.source is not None
    assert error.new.name == "echo"
    assert (error.source.file, error.source.function) == (__file__, "Changed.semaphores")
    assert len(error.matched) == 5


def test_a_patch_that_is_taken_out_too_early_is_found() -> None:
    @workflow.defn(name="Patched")
    async def without() -> str:
        await workflow.execute_activity("echo", "new", start_to_close=5)
        await workflow.wait_signal("go")
        return "old"

    with pytest.raises(NondeterminismError, match="marker 'patch'"):
        Replayer([without]).replay(read("patched"))


def test_the_resets_of_a_run_name_the_seed_of_what_it_drew() -> None:
    history = read("draws_reset_twice")
    without = [event for event in history.events if event.event_type != "WORKFLOW_EXECUTION_RESET"]
    assert len(without) < len(history.events)
    renumbered = [msgspec.structs.replace(event, event_id=number) for number, event in enumerate(without, 1)]
    with pytest.raises(NondeterminismError):
        Replayer(WORKFLOWS).replay(msgspec.structs.replace(history, events=renumbered))


def test_what_was_recorded_is_never_written_again(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in FILES}
    assert record.main(["order"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert record.main([]) == 0
    assert record.main(["no-such"]) == 2
    assert {path: path.read_bytes() for path in sorted(record.FOLDER.glob("*.json"))} == before
