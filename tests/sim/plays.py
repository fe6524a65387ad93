"""What replayed workflows do: their commands as a pure function of the events, and the plans that clients draw.

A plan is a list of steps in the workflow's input, done one after the other:

    ["activity", type]            and wait for its end
    ["fan", count]                several at once
    ["timer", ms]
    ["race", type, ms]            an activity and a timer; whoever is later is canceled
    ["child", policy, waits, plan]
    ["tell", workflow_id, n]      a signal to another workflow
    ["stop", workflow_id]         a cancel of another workflow
    ["hear", count, ms]           wait for so many signals, at most so long
    ["mark"], ["upsert"]
    ["again", plan]               continue as new
    ["fail"]

A cancel leads to a clean-up step in the place of the rest.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from tests.sim.world import World

PLAY = "play"
RIDDLE = "riddle"
"""As a play; some workers do not know it."""
POLICIES = ("terminate", "cancel", "abandon")
HEARD = "note"
"""The name of the signals that plays wait for."""
STEP_TYPES = ("quick", "slow", "flaky", "later")
UPDATES = {"at once": 4, "later": 4, "reject": 2, "fail": 1, "silence": 1}
"""What a play does with an update that says so in its arguments, with their weights."""

Command: TypeAlias = dict[str, Any]
Event: TypeAlias = dict[str, Any]

_CLOSES = ("_COMPLETED", "_FAILED", "_TIMED_OUT", "_CANCELED", "_TERMINATED")
_RETRY = {"initial_interval_ms": 200, "maximum_interval_ms": 2_000, "maximum_attempts": 4}


def decide(events: list[Event], updates: list[dict[str, Any]]) -> list[Command]:
    """The answer to a workflow task: nothing but the history and the updates that came with it decides."""
    return _Play(events).commands(updates)


class _Play:
    def __init__(self, events: list[Event]) -> None:
        self._begun: set[str] = set()
        """Command ids that are in the history, as activity, timer, child, signal, cancel, marker or upsert."""
        self._closed: set[str] = set()
        self._failed: set[str] = set()
        self._open: dict[str, str] = {}
        """Activities and timers that go on, and the command that ends each."""
        self._accepted: dict[str, Any] = {}
        self._completed: set[str] = set()
        self._heard = 0
        self._is_canceled = False
        self._commands: list[Command] = []
        for event in events:
            self._see(event["eventType"], event["attributes"])

    def _see(self, kind: str, of: dict[str, Any]) -> None:
        match kind:
            case "WORKFLOW_EXECUTION_STARTED":
                self._workflow_type = of["workflowType"]
                self._input = of["input"]
            case "WORKFLOW_EXECUTION_SIGNALED":
                self._heard += of["signalName"] == HEARD
            case "WORKFLOW_EXECUTION_CANCEL_REQUESTED":
                self._is_canceled = True
            case "WORKFLOW_EXECUTION_UPDATE_ACCEPTED":
                self._accepted[of["updateId"]] = of["args"]
            case "WORKFLOW_EXECUTION_UPDATE_COMPLETED":
                self._completed.add(of["updateId"])
            case "ACTIVITY_TASK_SCHEDULED":
                self._begun.add(of["commandId"])
                self._open[of["commandId"]] = "cancel-activity"
            case "ACTIVITY_TASK_CANCEL_REQUESTED":
                self._open.pop(of["commandId"], None)
            case "TIMER_STARTED":
                self._begun.add(of["commandId"])
                self._open[of["commandId"]] = "cancel-timer"
            case "TIMER_FIRED" | "TIMER_CANCELED":
                self._close(of["commandId"])
            case "CHILD_WORKFLOW_START_FAILED":
                self._begun.add(of["commandId"])
                self._close(of["commandId"])
            case _ if kind.startswith("ACTIVITY_TASK_") and kind.endswith(_CLOSES):
                self._close(of["commandId"])
                if not kind.endswith("_COMPLETED"):
                    self._failed.add(of["commandId"])
            case _ if kind.startswith("CHILD_WORKFLOW_") and kind.endswith(_CLOSES):
                self._close(of["commandId"])
            case _ if "commandId" in of and not kind.startswith("ACTIVITY_TASK_"):
                self._begun.add(of["commandId"])

    def _close(self, command_id: str) -> None:
        self._closed.add(command_id)
        self._open.pop(command_id, None)

    # --- what to do ----------------------------------------------------------------------------------

    def commands(self, updates: list[dict[str, Any]]) -> list[Command]:
        for update in updates:
            self._answer(update)
        self._complete_later_ones()
        if self._is_canceled:
            self._clean_up()
        else:
            self._go_on()
        return self._commands

    def _go_on(self) -> None:
        for position, step in enumerate(self._input["plan"]):
            if not self._do(f"{position}", step):
                return
        if self._input["n"] % 2:  # a run may end with updates that go on; their callers are told
            for update_id in self._accepted:
                self._complete(update_id)
        self._add("complete", result={"n": self._input["n"], "failed": sorted(self._failed), "heard": self._heard})

    def _do(self, id: str, step: list[Any]) -> bool:
        """Whether the step is done and the next may begin."""
        match step:
            case ["activity", type]:
                return self._activity(id, type)
            case ["fan", count]:
                closed = [
                    self._activity(f"{id}.{number}", STEP_TYPES[number % len(STEP_TYPES)]) for number in range(count)
                ]
                return all(closed)
            case ["timer", ms]:
                return self._timer(id, ms)
            case ["race", type, ms]:
                return self._race(f"{id}.a", type, f"{id}.t", ms)
            case ["child", policy, waits, plan]:
                self._child(id, policy, plan)
                return not waits or id in self._closed
            case ["tell", workflow_id, number]:
                self._once(
                    "signal-external", id, workflow_id=workflow_id, signal_name=HEARD, input={"n": number, "by": "play"}
                )
            case ["stop", workflow_id]:
                self._once("cancel-external", id, workflow_id=workflow_id, reason="a play says so")
            case ["hear", count, ms]:
                return self._hear(id, count, ms)
            case ["mark"]:
                self._once("record-marker", id, name="mark", details={"n": self._input["n"]})
            case ["upsert"]:
                self._once("upsert", id, memo={"n": self._input["n"]}, search_attributes={"Step": id})
            case ["again", plan]:
                self._add("continue-as-new", input={"n": self._input["n"], "plan": plan})
                return False
            case ["fail"]:
                self._add("fail", failure={"v": 1, "p": {"message": "as planned", "code": "Planned"}})
                return False
            case _:
                raise AssertionError(step)
        return True

    def _activity(self, id: str, type: str) -> bool:
        self._once(
            "schedule-activity",
            id,
            type=type,
            input={"n": self._input["n"], "step": id},
            start_to_close_ms=15_000,
            retry_policy=_RETRY,
        )
        return id in self._closed

    def _timer(self, id: str, ms: int) -> bool:
        self._once("start-timer", id, fire_after_ms=ms)
        return id in self._closed

    def _race(self, activity_id: str, type: str, timer_id: str, ms: int) -> bool:
        if not any([self._activity(activity_id, type), self._timer(timer_id, ms)]):
            return False
        self._cancel(activity_id)
        self._cancel(timer_id)
        return True

    def _hear(self, id: str, count: int, ms: int) -> bool:
        if self._heard >= count:
            self._cancel(id)
            return True
        return self._timer(id, ms)

    def _child(self, id: str, policy: str, plan: list[Any]) -> None:
        number = self._input["n"]
        self._once(
            "start-child",
            id,
            type=PLAY,
            workflow_id=f"child-{number}-{id}" if number % 3 else "",
            input={"n": number, "plan": plan},
            parent_close_policy=policy,
        )

    def _clean_up(self) -> None:
        for id in list(self._open):
            if id != "clean" and not id.startswith("update-"):
                self._cancel(id)
        if self._activity("clean", "quick"):
            self._add("cancel", failure={"v": 1, "p": {"message": "cleaned up", "code": "CanceledError"}})

    # --- updates -------------------------------------------------------------------------------------

    def _answer(self, update: dict[str, Any]) -> None:
        update_id, args = update["update_id"], update["args"]
        match args["how"]:
            case "reject":
                self._add(
                    "reject-update", update_id=update_id, failure={"v": 1, "p": {"message": "no", "code": "Rejected"}}
                )
            case "silence":
                pass
            case how:
                self._add("accept-update", update_id=update_id)
                self._accepted[update_id] = args
                if how == "later":
                    self._timer(f"update-{update_id}", 400)
                else:
                    self._complete(update_id)

    def _complete_later_ones(self) -> None:
        for update_id in self._accepted:
            if f"update-{update_id}" in self._closed:
                self._complete(update_id)

    def _complete(self, update_id: str) -> None:
        if update_id in self._completed:
            return
        self._completed.add(update_id)
        args = self._accepted[update_id]
        if args["how"] == "fail":
            failure = {"v": 1, "p": {"message": f"no {args['n']}", "code": "Planned"}}
            self._add("complete-update", update_id=update_id, failure=failure)
        else:
            self._add("complete-update", update_id=update_id, result={"n": args["n"]})

    # --- commands ------------------------------------------------------------------------------------

    def _once(self, kind: str, id: str, **fields: Any) -> None:
        if id not in self._begun:
            self._begun.add(id)
            self._add(kind, id=id, **fields)

    def _cancel(self, id: str) -> None:
        kind = self._open.pop(id, None)
        if kind is not None:
            self._add(kind, id=id)

    def _add(self, kind: str, **fields: Any) -> None:
        self._commands.append({"kind": kind, **fields})


def draw_plan(world: World, others: list[str], *, depth: int = 0) -> list[list[Any]]:
    """Some steps. `others` are workflows that it may signal or cancel."""
    plan = [_draw_step(world, others, depth) for _ in range(world.between(1, 4 if depth == 0 else 2))]
    if depth < 2 and world.chance(0.3):
        plan += [["hear", 1, 5_000], ["again", draw_plan(world, others, depth=depth + 1)]]
    elif world.chance(0.08):
        plan.append(["fail"])
    return plan


def _draw_step(world: World, others: list[str], depth: int) -> list[Any]:
    random = world.random
    kinds = {"activity": 4, "fan": 2, "timer": 4, "race": 3, "hear": 5, "mark": 1, "upsert": 1}
    if depth < 3:
        kinds["child"] = 6
    if others:
        kinds |= {"tell": 3, "stop": 1}
    match random.choices(list(kinds), list(kinds.values()))[0]:
        case "activity":
            return ["activity", random.choice((*STEP_TYPES, "doomed"))]
        case "fan":
            return ["fan", world.between(2, 4)]
        case "timer":
            return ["timer", random.choice((0, 10, 1_000, 5_000, 20_000))]
        case "race":
            return ["race", random.choice(STEP_TYPES), random.choice((10, 500, 3_000))]
        case "hear":
            return ["hear", world.between(1, 3), random.choice((2_000, 10_000, 40_000))]
        case "child":
            return ["child", random.choice(POLICIES), world.chance(0.5), draw_plan(world, others, depth=depth + 1)]
        case "tell":
            return ["tell", random.choice(others), world.number()]
        case "stop":
            return ["stop", random.choice(others)]
        case kind:
            return [kind]
