"""What an activity raises, on its way to the workflow, and from there to the client: nothing of it gets lost."""

from __future__ import annotations

import os
from typing import Any

import pytest
from tests.helpers.workers import NO_RETRY, served

from zaptasks import (
    ActivityFailed,
    DataConverter,
    Encryption,
    RemoteError,
    TaskError,
    TaskFailed,
    WorkflowContext,
    activity,
    open_client,
    open_worker,
    workflow,
)
from zapwire.failure import Failure, decode_failure, encode_failure


@activity.defn
async def charge(card: str) -> None:
    def look_up() -> None:
        raise KeyError("vault")

    try:
        try:
            look_up()
        except KeyError as error:
            raise ValueError(f"no card {card}") from error
    except ValueError as error:
        raise TaskError("no funds", code="Payment", details=[{"left": 3}, "EUR"], non_retryable=True) from error


@activity.defn
async def clumsy() -> None:
    try:
        raise LookupError("first")
    except LookupError:
        raise RuntimeError("while handling it")  # noqa: B904 - the context has to travel too


@workflow.defn
class Again:
    """Raises what it got."""

    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(charge, "4111", start_to_close=10)


@workflow.defn
class Wrapped:
    """Raises an error of its own because of what it got."""

    @workflow.run
    async def run(self) -> None:
        try:
            await workflow.execute_activity(charge, "4111", start_to_close=10)
        except ActivityFailed as error:
            seen.append(error)
            raise TaskError("the order failed", code="Order") from error


@workflow.defn
class Local:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_local_activity(charge, "4111")


async def plain(ctx: WorkflowContext) -> None:
    await ctx.execute_activity(charge, "4111", start_to_close=10)


seen: list[ActivityFailed] = []


def chain(error: BaseException | None) -> list[tuple[str, str]]:
    found = []
    while error is not None:
        assert isinstance(error, RemoteError)
        found.append((error.type, error.message))
        error = error.__cause__
    return found


CHAIN = [("Payment", "no funds"), ("ValueError", "no card 4111"), ("KeyError", "'vault'")]


async def failed(client: Any, type: str) -> TaskFailed:
    handle = await client.start_workflow(type, retry_policy=NO_RETRY)
    with pytest.raises(TaskFailed) as caught:
        await handle.result()
    return caught.value


@pytest.mark.parametrize("type", ["Again", "Local", "plain"])
async def test_a_failure_that_a_workflow_raises_again_arrives_whole(type: str) -> None:
    workflows = [Again, Local, plain]
    async with served(activities=[charge], workflows=workflows) as (client, _):
        error = await failed(client, type)
    assert chain(error) == CHAIN
    assert (error.details, error.non_retryable) == ([{"left": 3}, "EUR"], True)
    assert "in charge" in error.stack, "where the activity raised it"
    cause = error.__cause__
    assert isinstance(cause, RemoteError)
    assert isinstance(cause.__cause__, RemoteError)
    assert "in look_up" in cause.__cause__.stack


async def test_the_stack_also_says_where_the_workflow_stood() -> None:
    async with served(activities=[charge], workflows=[Again]) as (client, _):
        error = await failed(client, "Again")
    first, _, again = error.stack.partition("It came from elsewhere, and was raised again here:")
    assert "in charge" in first
    assert "workflow.execute_activity(charge" in again


async def test_a_workflow_sees_all_of_it_and_may_give_it_a_meaning_of_its_own() -> None:
    seen.clear()
    async with served(activities=[charge], workflows=[Wrapped]) as (client, _):
        error = await failed(client, "Wrapped")
    [inside] = seen
    assert chain(inside) == CHAIN
    assert (inside.activity_type, inside.details, inside.non_retryable) == ("charge", [{"left": 3}, "EUR"], True)
    assert chain(error) == [("Order", "the order failed"), *CHAIN]
    assert isinstance(error.__cause__, RemoteError)
    assert error.__cause__.details == [{"left": 3}, "EUR"]


async def test_an_error_in_the_handling_of_another_brings_that_one_along() -> None:
    async with served(tasks=[clumsy]) as (client, _):
        handle = await client.now("clumsy", retry_policy=NO_RETRY)
        with pytest.raises(TaskFailed) as caught:
            await handle.result()
    assert chain(caught.value) == [("RuntimeError", "while handling it"), ("LookupError", "first")]


async def test_encrypted_it_arrives_whole_too() -> None:
    converter = DataConverter(codecs=[Encryption({"k": os.urandom(32)}, active="k")])
    async with (
        served() as (plain_client, _),
        open_client(str(plain_client.connector), converter=converter) as client,
        open_worker(client, "safe", activities=[charge], workflows=[Again]),
    ):
        handle = await client.start_workflow("Again", task_queue="safe", retry_policy=NO_RETRY)
        with pytest.raises(TaskFailed) as caught:
            await handle.result()
        assert chain(caught.value) == CHAIN
        assert caught.value.details == [{"left": 3}, "EUR"]
        hidden = (await plain_client.get_handle(handle.workflow_id).describe()).error
        assert hidden is not None
        assert "funds" not in str(hidden)


GO = (
    b'{"v":1,"p":{"message":"no funds","code":"Payment","nonRetryable":true,"details":[7],'
    b'"cause":{"message":"x","code":"C"}}}'
)
"""As Go's SDK writes it."""


def test_the_json_of_go_is_read_and_written() -> None:
    failure = decode_failure(GO)
    assert (failure.code, failure.message, failure.non_retryable) == ("Payment", "no funds", True)
    assert failure.cause == Failure(message="x", code="C")
    assert encode_failure(failure) == GO
