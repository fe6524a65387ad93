"""`zaptasks.activity`: methods, and what an activity's code may ask and say while it runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
from tests.helpers.sdk_servers import open_fake_server
from tests.helpers.workers import AT_ONCE, at_fake, served

import zaptasks
from zaptasks import activity, sort_handlers, workflow
from zaptasks.handlers import Kind, table
from zapwire.opcodes import Op


@dataclass
class Mail:
    to: str


class Mailer:
    """Its methods are activities, under names of which one is given and one is its own."""

    def __init__(self, host: str) -> None:
        self.host = host

    @activity.defn(name="mail.send")
    async def send(self, mail: Mail) -> str:
        return f"{self.host}: {mail.to}"

    @activity.defn
    def render(self, text: str) -> str:
        return f"{self.host}: {text}"

    @zaptasks.task
    async def clean(self) -> str:
        return self.host

    async def helper(self) -> None: ...


mailer = Mailer("mx")


@workflow.defn
class Campaign:
    @workflow.run
    async def run(self, to: str) -> list[str]:
        return [
            await workflow.execute_activity_method(Mailer.send, Mail(to), start_to_close=5),
            await workflow.execute_activity(mailer.send, Mail(to), start_to_close=5),
            await workflow.execute_activity_method(Mailer.render, to, start_to_close=5),
        ]


def test_an_object_stands_for_its_decorated_methods() -> None:
    assert set(table([mailer], Kind.ACTIVITY)) == {"mail.send", "render"}
    assert set(table([mailer], Kind.TASK)) == {"clean"}
    assert set(table([mailer, mailer.send], Kind.ACTIVITY)) == {"mail.send", "render"}
    found = sort_handlers([mailer])
    assert (set(found.tasks), set(found.activities)) == ({"clean"}, {"mail.send", "render"})


def test_a_method_without_its_object_is_refused_with_what_to_pass() -> None:
    with pytest.raises(TypeError, match=r"pass the method of an instance, such as Mailer\(\)\.send"):
        table([Mailer.send], Kind.ACTIVITY)
    with pytest.raises(TypeError, match="holds no activity: it is no function"):
        table([object()], Kind.ACTIVITY)


@pytest.mark.parametrize("activities", [[mailer], [mailer.send, mailer.render]])
async def test_a_workflow_names_methods_by_class_and_by_object(activities: list[object]) -> None:
    async with served(activities=activities, workflows=[Campaign]) as (client, _):
        handle = await client.start_workflow("Campaign", "ada")
        assert await handle.result() == ["mx: ada", "mx: ada", "mx: ada"]


async def test_the_functions_of_the_module_speak_for_the_attempt_that_runs(caplog: pytest.LogCaptureFixture) -> None:
    @activity.defn
    async def rows(path: str) -> list[object]:
        if activity.info().attempt == 1:
            activity.heartbeat(7, path)
            activity.progress(0.5, "half")
            raise OSError("the disk is away")
        activity.logger.warning("goes on")
        return [*activity.heartbeat_details(), activity.cancel_requested(), activity.cancel_reason()]

    caplog.set_level(logging.INFO, "zaptasks.task")
    async with served(tasks=[rows]) as (client, _):
        handle = await client.now("rows", "a.csv", retry_policy=AT_ONCE)
        assert await handle.result() == [7, "a.csv", False, ""]
    assert f"[rows {handle.workflow_id} attempt 2] goes on" in caplog.messages


@pytest.mark.parametrize(
    "ask",
    [
        activity.info,
        activity.heartbeat,
        activity.heartbeat_details,
        activity.cancel_reason,
        activity.complete_later,
        activity.raise_if_canceled,
    ],
)
def test_outside_of_a_handler_they_say_so(ask: object) -> None:
    assert callable(ask)
    with pytest.raises(RuntimeError, match="works inside a handler"):
        ask()


async def test_an_argument_of_another_type_is_named_and_not_retried() -> None:
    calls = []

    @activity.defn
    async def send(mail: Mail, times: int) -> None:
        calls.append(mail)

    async with open_fake_server() as fake, at_fake(fake, activities=[send]):
        fake.deliver("send", [{"to": "ada"}, "often"], kind="", token="t-1")
        failed = (await fake.call_of(Op.RESPOND_ACTIVITY_TASK_FAILED)).payload["p"]
    assert (failed["code"], failed["nonRetryable"], calls) == ("DecodeError", True, [])
    assert "argument 2 ('times') does not fit" in failed["message"]
