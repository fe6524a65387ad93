"""What can be a workflow, and what its author is told about what cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.helpers.workflow_world import World

from zaptasks import workflow
from zaptasks.workflow import WorkflowTaskHandler, definition_of
from zaptasks.workflow.definition import handler_name, workflow_name


def no_run() -> object:
    @workflow.defn
    class NoRun:
        pass

    return NoRun


def two_runs() -> object:
    @workflow.defn
    class TwoRuns:
        @workflow.run
        async def one(self) -> None: ...

        @workflow.run
        async def two(self) -> None: ...

    return TwoRuns


def plain_run() -> object:
    def run(self: object) -> None: ...

    return workflow.run(run)  # type: ignore[arg-type]


def async_query() -> object:
    async def ask(self: object) -> None: ...

    return workflow.query(ask)


def async_validator() -> object:
    @workflow.defn
    class Validates:
        @workflow.run
        async def run(self) -> None: ...

        @workflow.update
        def change(self) -> None: ...

        @change.validator  # type: ignore[arg-type]
        async def check(self) -> None: ...

    return Validates


def greedy_signal() -> object:
    @workflow.defn
    class Greedy:
        @workflow.run
        async def run(self) -> None: ...

        @workflow.signal
        def two(self, a: int, b: int) -> None: ...

    return Greedy


def same_name() -> object:
    @workflow.defn
    class Same:
        @workflow.run
        async def run(self) -> None: ...

        @workflow.signal(name="x")
        def one(self) -> None: ...

        @workflow.signal(name="x")
        def two(self) -> None: ...

    return Same


def needs_arguments() -> object:
    @workflow.defn
    class Needs:
        def __init__(self, x: int) -> None: ...

        @workflow.run
        async def run(self) -> None: ...

    return Needs


def no_coroutine() -> object:
    def plain() -> None: ...

    return workflow.defn(plain)  # type: ignore[type-var]


def reserved() -> object:
    def ask(self: object) -> None: ...

    return workflow.query(name="__stack_trace")(ask)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (no_run, "no method under @workflow.run"),
        (two_runs, "two methods under @workflow.run"),
        (plain_run, "must be `async def`"),
        (async_query, "must be a plain `def`"),
        (async_validator, "must be a plain `def`"),
        (greedy_signal, "a signal has one value"),
        (same_name, "with the name 'x'"),
        (needs_arguments, "cannot be made without arguments"),
        (no_coroutine, "a workflow is a class or an `async def` function"),
        (reserved, "are the server's"),
        (lambda: definition_of(3), "is no workflow"),
        (lambda: workflow_name(no_coroutine), "is no workflow"),
        (lambda: handler_name("signal", no_coroutine), "is no signal"),
    ],
)
def test_what_cannot_be_a_workflow_is_refused_at_once(make: Callable[[], Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text):
        make()


def test_names() -> None:
    @workflow.defn(name="Other")
    class Named:
        @workflow.run
        async def run(self) -> None: ...

        @workflow.signal(name="wake up")
        def wake(self) -> None: ...

    async def plain() -> None: ...

    assert (workflow_name(Named), workflow_name(Named.run), workflow_name(plain), workflow_name("x")) == (
        "Other",
        "Other",
        "plain",
        "x",
    )
    assert (handler_name("signal", Named.wake), handler_name("signal", "x")) == ("wake up", "x")
    assert WorkflowTaskHandler({"a": plain, "b": Named}).types == ["a", "b"]
    assert WorkflowTaskHandler([plain, Named]).types == ["Other", "plain"]
    with pytest.raises(ValueError, match="registered twice"):
        WorkflowTaskHandler([plain, workflow.defn(name="plain")(no_name)])


async def no_name() -> None: ...


def test_classes_inherit_their_methods() -> None:
    class Base:
        def __init__(self) -> None:
            self.words: list[str] = []

        @workflow.run
        async def run(self) -> list[str]:
            await workflow.wait_condition(lambda: len(self.words) > 1)
            return self.words

        @workflow.signal
        def word(self, word: str) -> None:
            self.words.append(word)

    @workflow.defn
    class Loud(Base):
        @workflow.signal
        def word(self, word: str) -> None:
            self.words.append(word.upper())

    assert workflow_name(Base.run) == "Loud"

    @workflow.defn
    class Quiet(Base):
        pass

    with pytest.raises(TypeError, match="belongs to: Loud, Quiet; give the name"):
        workflow_name(Base.run)
    world = World(Loud, Quiet)
    for name, words in (("Loud", ["A", "B"]), ("Quiet", ["a", "b"])):
        started = world.start(type=name, workflow_id=name)
        world.signal(started, "word", "a")
        world.signal(started, "word", "b")
        assert world.result(started) == words


def test_a_signal_handler_may_continue_as_new() -> None:
    @workflow.defn
    class Again:
        @workflow.run
        async def run(self, n: int = 0) -> None:
            await workflow.sleep_forever()

        @workflow.signal
        def again(self, n: int) -> None:
            workflow.continue_as_new(n)

    world = World(Again)
    started = world.start()
    world.signal(started, "again", 3)
    assert world.status(started) == "CONTINUED_AS_NEW"
    assert bytes(world.d.views.execution("w", "").input or b"") == b"[3]"


def test_a_coroutine_in_the_place_of_a_workflow_is_an_error_that_says_how_it_is_named() -> None:
    @workflow.defn
    async def greet(name: str) -> str:
        return name

    with pytest.raises(TypeError, match=r"greet\(...\) was called.*as in start_workflow\(.*greet, ...\)"):
        workflow_name(greet("ada"))
