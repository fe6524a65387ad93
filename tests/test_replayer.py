"""Exported histories, replayed without a server: in code and by `zaptasks replay`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from tests.helpers.processes import zaptasks
from tests.helpers.sdk_servers import open_real_server
from tests.helpers.workers import QUICK
from tests.helpers.workflow_world import World

from zaptasks import (
    CodecError,
    DataConverter,
    Encryption,
    HistoryError,
    Replayer,
    WorkflowContext,
    WorkflowHistory,
    open_client,
    open_worker,
    workflow,
)
from zaptasks.exported_history import HISTORY_BYTES_MAX
from zaptasks.workflow import NondeterminismError, WorkflowTaskError
from zapwire.body import encode_cbor


@workflow.defn
class Order:
    @workflow.run
    async def run(self, item: str) -> str:
        await workflow.execute_activity("charge", item)
        await workflow.sleep(60)
        await workflow.wait_signal("approve")
        return "done"


@workflow.defn(name="Order")
async def audited(item: str) -> str:
    await workflow.execute_activity("charge", item)
    await workflow.execute_activity("audit", item, 7)  # the line
    return "done"


def history_of(target: object = Order, *steps: Callable[[World, Any], None]) -> WorkflowHistory:
    world = World(target, charge=lambda item: f"paid {item}")
    started = world.start("tea")
    for step in steps:
        step(world, started)
    return world.exported(started)


def a_minute(world: World, started: Any) -> None:
    world.advance(60)


def approve(world: World, started: Any) -> None:
    world.signal(started, "approve")


# --- code that fits, and code that does not -------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(), (a_minute,), (a_minute, approve), (approve,)])
@pytest.mark.parametrize("form", [WorkflowHistory.to_json, WorkflowHistory.to_cbor], ids=["json", "cbor"])
def test_the_code_that_made_a_history_fits_it(form: Callable[[WorkflowHistory], bytes], steps: Any) -> None:
    history = history_of(Order, *steps)
    data = form(history)
    assert WorkflowHistory.read(data) == history
    replayed = Replayer([Order]).replay(data)
    assert replayed.fits
    assert replayed.history == history
    assert replayed.next == ()


def test_what_came_after_the_last_answer_is_gone_through_as_well() -> None:
    history = history_of(Order)
    last = history.events[-1]
    fired = msgspec.structs.replace(
        last, event_id=last.event_id + 1, event_type="TIMER_FIRED", attributes={"commandId": msgspec.Raw(b'"0/2"')}
    )
    history = msgspec.structs.replace(history, events=[*history.events, fired])

    @workflow.defn(name="Order")
    async def goes_on(item: str) -> None:
        await workflow.execute_activity("charge", item)
        await workflow.sleep(60)
        await workflow.execute_activity("ship", item)

    @workflow.defn(name="Order")
    async def breaks(item: str) -> None:
        await workflow.execute_activity("charge", item)
        await workflow.sleep(60)
        await trio.sleep(1)

    assert Replayer([goes_on]).replay(history).next == ("activity 'ship'",)
    with pytest.raises(workflow.ForeignAwait, match="cannot await something of trio"):
        Replayer([breaks]).replay(history)


def test_a_mismatch_names_what_is_recorded_and_what_is_new() -> None:
    with pytest.raises(NondeterminismError) as caught:
        Replayer([audited]).replay(history_of())
    error = caught.value
    assert error.place == "0/2"
    assert error.recorded is not None
    assert (error.recorded.text, error.recorded.kind, error.recorded.event_id) == ("timer of 60 s", "start-timer", 7)
    assert error.new is not None
    assert (error.new.kind, error.new.name, error.new.input) == ("schedule-activity", "audit", b'["tea",7]')
    assert error.source is not None
    assert error.source == error.new.source
    line = Path(error.source.file).read_text().splitlines()[error.source.line - 1]
    assert line.endswith("# the line")
    (matched,) = error.matched
    assert (matched.text, matched.place, matched.event_id, matched.input) == ("activity 'charge'", "0/1", 3, b'["tea"]')
    assert matched.source is not None
    assert matched.source.line == error.source.line - 1


def test_only_the_last_commands_before_a_mismatch_are_told() -> None:
    @workflow.defn(name="Order")
    async def many(item: str) -> None:
        for number in range(20):
            await workflow.execute_activity("charge", number)

    @workflow.defn(name="Order")
    async def fewer(item: str) -> None:
        for number in range(15):
            await workflow.execute_activity("charge", number)
        await workflow.sleep_forever()

    with pytest.raises(NondeterminismError) as caught:
        Replayer([fewer]).replay(history_of(many))
    assert caught.value.place == "0/16"
    assert caught.value.new is None
    assert [step.place for step in caught.value.matched] == ["0/11", "0/12", "0/13", "0/14", "0/15"]


def test_a_run_that_is_over_has_to_come_to_the_same_end() -> None:
    @workflow.defn(name="Order")
    async def goes_on(item: str) -> None:
        await workflow.execute_activity("charge", item)
        await workflow.sleep(60)
        await workflow.sleep_forever()

    with pytest.raises(NondeterminismError, match="WORKFLOW_EXECUTION_COMPLETED") as caught:
        Replayer([goes_on]).replay(history_of(Order, a_minute, approve))
    assert caught.value.place == "the workflow's end"
    assert [step.text for step in caught.value.matched] == ["activity 'charge'", "timer of 60 s"]


def test_a_workflow_that_is_given_takes_the_place_of_the_type() -> None:
    history = history_of()
    with pytest.raises(HistoryError, match=r"workflow 'Order' .* of no type that is known here; these are: none"):
        Replayer([]).replay(history)
    assert Replayer([]).replay(history, workflow=Order).fits
    assert Replayer({"Order": Order, "Other": audited}).replay(history).fits


def test_many_are_replayed_and_each_tells_for_itself() -> None:
    good, bad = history_of(), msgspec.structs.replace(history_of(), workflow_type="Audited")
    first, second, third = Replayer({"Order": Order, "Audited": audited}).replay_all([good, bad, b"nonsense"])
    assert (first.fits, first.error) == (True, None)
    assert (second.fits, second.history) == (False, bad)
    assert isinstance(second.error, NondeterminismError)
    assert (third.fits, third.history) == (False, None)
    assert isinstance(third.error, HistoryError)


def test_code_that_leaves_the_program_ends_no_replay() -> None:
    @workflow.defn(name="Order")
    async def leaves(item: str) -> None:
        sys.exit(0)

    with pytest.raises(WorkflowTaskError, match=r"test_replayer\.py:\d+ in .*leaves: .* raised SystemExit"):
        Replayer([leaves]).replay(history_of())


# --- what is no history ----------------------------------------------------------------------------------------


def document(**changes: Any) -> bytes:
    return json.dumps({**json.loads(history_of().to_json()), **changes}).encode()


def events(change: Callable[[list[Any]], Any]) -> list[Any]:
    found = json.loads(history_of().to_json())["events"]
    change(found)
    return list(found)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "this is no history as"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\xa1", "CBOR body cannot be read"),
        (b"\xa1\x61", "CBOR body cannot be read"),
        (encode_cbor({"version": 1}), "missing required field `workflow_id`"),
        (encode_cbor({"version": 1, "workflow_id": b"x"}), "missing required field"),
        (document(version=2), "of version 2, and this code reads version 1"),
        (document(version="1"), r"Expected `int`, got `str` - at `\$.version`"),
        (document(events=[]), "begins with nothing"),
        (document(events=[{"eventId": 1}]), "missing required field `eventTime`"),
        (document(events=events(lambda items: items.pop(2))), "event 3 of workflow 'Order' .* has the id 4"),
        (document(events=events(lambda items: items.reverse())), "event 1 .* has the id"),
        (document(events=events(lambda items: items[0].update(eventType="X"))), "begins with X"),
        (document(events=events(lambda items: items[0].update(eventId=-1))), "has the id -1"),
        (
            document(events=events(lambda items: items[2]["attributes"].update(commandId=5))),
            "is broken: .*Expected `str`",
        ),
        (document(events=events(lambda items: items[2]["attributes"].pop("commandId"))), "no command id"),
        (document(events=events(lambda items: items[1]["attributes"].update(seenEventId="x"))), "is broken"),
        (b'{"version":1,"workflow_id":' + b"[" * 100_000, "nested more than 200 levels"),
        (encode_cbor({"version": 1})[:-1] + b"\x1b" + b"\xff" * 8, "of version 18446744073709551615"),
    ],
)
def test_what_cannot_be_a_history_is_refused_with_the_reason(data: bytes, text: str) -> None:
    with pytest.raises(HistoryError, match=text):
        Replayer([Order]).replay(data)


def test_every_cut_and_every_changed_byte_is_an_error_or_a_history() -> None:
    for data in (history_of(Order, a_minute).to_json(), history_of(Order, a_minute).to_cbor()):
        replayer = Replayer([Order])
        cuts = [data[:length] for length in range(0, len(data) - 4, 7)]
        assert not any(replayed.fits for replayed in replayer.replay_all(cuts))
        for position in range(0, len(data), 3):
            replayer.replay_all([data[:position] + bytes([data[position] ^ 0x15]) + data[position + 1 :]])


def test_a_file_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(HistoryError, match=f"at most {HISTORY_BYTES_MAX} are allowed"):
        WorkflowHistory.read(bytes(HISTORY_BYTES_MAX + 1))


def test_a_run_of_the_other_kind_of_worker_is_told_apart() -> None:
    history = history_of()
    scheduled = history.events[2]
    attributes = {name: value for name, value in scheduled.attributes.items() if name != "commandId"}
    changed = list(history.events)
    changed[2] = msgspec.structs.replace(scheduled, attributes=attributes)
    with pytest.raises(HistoryError, match="not run by a worker that replays: event 3 has no command id"):
        Replayer([Order]).replay(msgspec.structs.replace(history, events=changed))


# --- from a server -----------------------------------------------------------------------------------------------


async def test_a_history_is_exported_from_a_server_and_its_secrets_open_with_the_converter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zaptasks.handles.HISTORY_PAGE_EVENTS", 3)
    converter = DataConverter(codecs=[Encryption({"k": b"k" * 32}, active="k")])

    async def charge(card: str) -> str:
        return f"paid by {card}"

    @workflow.defn
    async def pay(card: str) -> str:
        paid = await workflow.execute_activity(charge, card, start_to_close=5)
        workflow.side_effect(lambda: card)
        if paid != "paid by 4111":
            raise ValueError(paid)
        return paid

    async def plain(ctx: WorkflowContext) -> object:
        return await ctx.execute_activity(charge, "x", start_to_close=5)

    async with (
        open_real_server() as server,
        open_client(server.zap, namespace="shop", converter=converter, backoff=QUICK) as client,
    ):
        await client.register_namespace("shop")
        async with open_worker(client, activities=[charge], workflows=[pay, plain]):
            handle = await client.start_workflow("pay", "4111", id="pay-1")
            assert await handle.result() == "paid by 4111"
            held = await client.start_workflow("plain")
            await held.result()
        history = await handle.export_history()
        by_id = await client.get_handle("pay-1").export_history()
        of_the_other_kind = await held.export_history()
    assert by_id == history
    assert (history.namespace, history.workflow_id, history.run_id) == ("shop", "pay-1", handle.run_id)
    assert history.workflow_type == "pay"
    assert b"4111" not in history.to_json()
    assert Replayer([pay], converter=converter).replay(history.to_cbor()).fits
    with pytest.raises(CodecError, match="encrypted with key 'k', and this client has no keys"):
        Replayer([pay]).replay(history)
    with pytest.raises(HistoryError, match="not run by a worker that replays"):
        Replayer({"plain": pay}).replay(of_the_other_kind)


# --- the command --------------------------------------------------------------------------------------------------

MODULE = """
import zaptasks
from zaptasks import workflow

@workflow.defn
class Order:
    @workflow.run
    async def run(self, item: str) -> str:
        await workflow.execute_activity("charge", item)
        await workflow.{call}
        await workflow.wait_signal("approve")
        return "done"

@zaptasks.task
def send(mail): ...

KEYS = zaptasks.DataConverter(codecs=[zaptasks.Compression()])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.py").write_text(MODULE.format(call="sleep(60)"))
    (tmp_path / "changed.py").write_text(MODULE.format(call='execute_activity("audit", item)'))
    histories = tmp_path / "histories"
    histories.mkdir()
    (histories / "open.json").write_bytes(history_of().to_json())
    (histories / "over.cbor").write_bytes(history_of(Order, a_minute, approve).to_cbor())
    (histories / "README.md").write_text("not a history")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_the_command_says_that_the_code_fits(folder: Path) -> None:
    done = zaptasks("replay", "histories", "good:Order", "--converter", "good:KEYS", cwd=folder)
    assert (done.status, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(line[0], line[-1]) for line in lines[1:]] == [
        ("histories/open.json", "yes"),
        ("histories/over.cbor", "yes"),
    ]


def test_the_command_shows_a_mismatch_side_by_side(folder: Path) -> None:
    done = zaptasks("replay", "histories/open.json", "changed", cwd=folder)
    assert done.status == 1
    assert "histories/open.json: workflow 'Order' (w, run" in done.stdout
    assert "changed.py:10 in Order.run: the code does not do what the history says that it did, at 0/2" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["RECORDED", "NEW"] in rows
    assert ["what", "timer", "of", "60", "s", "activity", "'audit'"] in rows
    assert ["kind", "start-timer", "schedule-activity"] in rows
    assert ["input", "-", '["tea"]'] in rows
    assert [">", "10", "await", 'workflow.execute_activity("audit",', "item)"] in rows
    assert any(row[:2] == ["3", "0/1"] and row[-1] == "Order.run" for row in rows), "what fits before it"


def test_the_command_tells_programs(folder: Path) -> None:
    (folder / "broken.json").write_bytes(b'{"version": 1}')
    done = zaptasks("replay", "histories", "broken.json", "changed:Order", "--json", cwd=folder)
    assert done.status == 1
    first, second, third = json.loads(done.stdout)
    assert (first["file"], first["fits"], first["events"]) == ("histories/open.json", False, 7)
    error = first["error"]
    assert (error["code"], error["place"], error["source"]["line"]) == ("nondeterminism", "0/2", 10)
    assert (error["recorded"]["text"], error["recorded"]["event_id"]) == ("timer of 60 s", 7)
    assert (error["new"]["name"], error["new"]["input"]) == ("audit", '["tea"]')
    assert [step["text"] for step in error["matched"]] == ["activity 'charge'"]
    assert second["error"]["code"] == "nondeterminism"
    assert (third["error"]["code"], third["workflow_type"]) == ("bad_history", "")


def test_the_command_says_where_code_is_that_does_not_come_to_an_end(folder: Path) -> None:
    code = MODULE.format(call="sleep(1)").replace("-> str:\n", "-> str:\n        while True: pass\n")
    (folder / "loops.py").write_text(code)
    start = "from zapserver.cli import replay; replay.HELD_SECONDS_MAX = 0.2; replay.replay(standalone_mode=False)"
    command = [sys.executable, "-c", start, "histories/open.json", "loops"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "the replay of histories/open.json has held its thread for" in process.stderr.readline()
            assert any("while True: pass" in line for line in process.stderr), "the stack"
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("histories", "nowhere:Order"), "there is no module 'nowhere'"),
        (("histories", "good:Nothing"), "good has no 'Nothing'"),
        (("histories", "good:send"), "holds no workflow"),
        (("empty", "good"), "the directory empty has no file that ends in .json or .cbor"),
        (("missing.json", "good"), "'missing.json' does not exist"),
        (("histories", "good", "--converter", "good:Order"), "not a zaptasks.DataConverter"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(folder: Path, args: tuple[str, ...], text: str) -> None:
    done = zaptasks("replay", *args, cwd=folder)
    assert done.status == 2
    assert text in done.stderr
