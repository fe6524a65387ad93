"""A hypothesis machine for workflows that replay: whatever their workers, clients and clocks can do to them.

`engine_machine` does a little of everything; here there is always a replaying worker, and most steps are answers to
tasks that it has, so that timers, children, updates and resets meet each other.
"""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from tests.helpers.engine_driver import failure, payload
from tests.helpers.engine_machine import (
    DECISIONS,
    IDS,
    LAST_DECISIONS,
    LIMITS,
    MOMENTS,
    PICKS,
    TIMES,
    TYPES,
    UPDATE_IDS,
    Machine,
    pick_one,
)

from zapserver.engine import commands as c
from zapserver.engine.retry import RetryPolicy

WORKERS = (1, 2)


class ReplayMachine(Machine):
    limits = msgspec.structs.replace(LIMITS, history_events_max=60, burst_bytes_max=20_000)

    @initialize(slots=st.integers(1, 3))
    def workers(self, slots: int) -> None:
        for peer in WORKERS:
            self.come(peer, slots)
        self.d.subscribe(3, queue="q", slots=slots)

    commands = 0

    def come(self, peer: int, slots: int) -> None:
        self.d.subscribe_replaying(peer, queue="q", slots=slots)

    @rule(
        type=TYPES,
        id=IDS,
        attempts=st.integers(0, 2),
        run_ms=TIMES,
        task_ms=st.sampled_from([0, 0, 0, 100]),
        cron=st.sampled_from([*[""] * 15, "@every 1m"]),
        conflict=st.sampled_from(list(c.IdConflict)),
        update_id=st.sampled_from([None, None, "", "u1", "u2"]),
        request=st.sampled_from(["", "", "r1", "r2"]),
    )
    def start(
        self,
        type: str,
        id: str,
        attempts: int,
        run_ms: int,
        task_ms: int,
        cron: str,
        conflict: c.IdConflict,
        update_id: str | None,
        request: str,
    ) -> None:
        self.waiters += 1
        self.attempt(
            c.StartWorkflow(
                type=type,
                task_queue="q",
                workflow_id=id,
                retry_policy=RetryPolicy(maximum_attempts=attempts) if attempts else None,
                timeouts=c.WorkflowTimeouts(run_ms=run_ms, task_ms=task_ms),
                cron_schedule=cron,
                id_conflict=conflict,
                request_id=request,
                update=None
                if update_id is None
                else c.UpdateExecution(workflow_id=id, name="set", update_id=update_id, waiter=self.waiters, peer=4),
            )
        )

    @rule(pick=PICKS, decisions=DECISIONS, last=LAST_DECISIONS, takes_updates=st.booleans())
    def decide(
        self, pick: int, decisions: list[c.TaskCommand], last: c.TaskCommand | None, takes_updates: bool
    ) -> None:
        """An answer to a task that is out; the parts that could not be are left out."""
        out = self.out()
        if not out:
            return
        token = pick_one(out, pick)
        run = next(run for run in self.d.runs()[::-1] if run.task_token == token)
        answer: list[c.TaskCommand] = [
            self.sensible(run.run_id, command, pick) if pick % 5 else command
            for command in decisions
            if getattr(command, "update_id", None) is None or pick % 5 == 0
        ]
        if takes_updates:
            ids = [update.update_id for update in run.updates]
            answer += [c.AcceptUpdateCommand(update_id=id) for id in ids]
            execution = self.d.views.execution(run.workflow_id, run.run_id)
            going_on = [id for id, update in execution.updates.items() if not update.completed_event_id]
            answer += [c.CompleteUpdateCommand(update_id=id, result=payload(3)) for id in (going_on + ids)[:1]]
        answer += [] if last is None else [last]
        self.attempt(c.CompleteWorkflowTask(token=token, commands=tuple(answer)))

    def sensible(self, run_id: str, command: c.TaskCommand, pick: int) -> c.TaskCommand:
        """A fresh id for what begins, and one that there is for what ends."""
        execution = self.d.views.execution("", run_id)
        match command:
            case c.CancelTimerCommand() if execution.timers:
                return c.CancelTimerCommand(id=pick_one(list(execution.timers), pick))
            case c.CancelActivityCommand() if execution.open_activities:
                activities = list(execution.open_activities.values())
                return c.CancelActivityCommand(id=pick_one(activities, pick).command_id)
            case c.AcceptUpdateCommand() | c.RejectUpdateCommand() | c.CompleteUpdateCommand():
                return command
            case c.WorkflowCommand() | c.ContinueAsNewCommand():
                return command
            case c.CompleteCommand() | c.FailCommand() | c.CancelCommand():
                return command
            case _:
                self.commands += 1
                return msgspec.structs.replace(command, id=str(self.commands))

    @rule(pick=PICKS, what=st.sampled_from(["fail", "return", "does not know", "late"]))
    def make_nothing_of_it(self, pick: int, what: str) -> None:
        token = pick_one([run.task_token for run in self.d.runs()] or [""], pick) if what == "late" else ""
        token = token or pick_one(self.out() or ["wf|none"], pick)
        commands: dict[str, c.Command[Any]] = {
            "fail": c.FailWorkflowTask(token=token, reason="it is broken"),
            "return": c.HandBackTask(token=token),
            "does not know": c.FailWorkflowTask(token=token, reason="", unknown_type=True),
            "late": c.CompleteWorkflowTask(token=token, commands=()),
        }
        self.attempt(commands[what])

    def out(self) -> list[str]:
        """The tokens of workflow tasks that workers have."""
        peers = self.d.engine._state.peers
        return [token for peer in WORKERS if peer in peers for token in peers[peer].leases]

    @rule(pick=PICKS, is_good=st.booleans(), delay=st.sampled_from([None, 0, 50, 10**18]))
    def do_an_activity(self, pick: int, is_good: bool, delay: int | None) -> None:
        peer = self.d.engine._state.peers.get(3)
        if peer is None or not peer.leases:
            return
        token = pick_one(list(peer.leases), pick)
        if is_good:
            self.attempt(c.CompleteActivity(token=token, result=payload(1)))
        else:
            data = failure()
            if delay is not None:
                data = data[:-1] + b',"nextRetryDelayMs":%d}' % delay
            self.attempt(c.FailActivity(token=token, failure=data))

    @rule(
        pick=PICKS,
        what=st.sampled_from(
            [
                "signal",
                "signal",
                "update",
                "update",
                "update",
                "cancel",
                "terminate",
                "reset",
                "reset",
                "follow",
                "ask",
                "watch",
            ]
        ),
        number=st.integers(1, 30),
        update_id=UPDATE_IDS,
        stage=st.sampled_from(list(c.UpdateStage)),
        peer=st.sampled_from([3, 4, 4]),
    )
    def to_an_execution(
        self, pick: int, what: str, number: int, update_id: str, stage: c.UpdateStage, peer: int
    ) -> None:
        if not self.executions():
            return
        execution = pick_one(self.executions(), pick // 30)
        id, run_id = execution.workflow_id, execution.run_id
        self.waiters += 1
        commands: dict[str, c.Command[Any]] = {
            "signal": c.SignalExecution(workflow_id=id, signal_name="go", request_id="r1" if pick % 2 else ""),
            "update": c.UpdateExecution(
                workflow_id=id, name="set", update_id=update_id, waiter=self.waiters, peer=peer, wait=stage
            ),
            "cancel": c.CancelExecution(workflow_id=id, run_id=run_id, reason="enough"),
            "terminate": c.TerminateExecution(workflow_id=id, run_id=run_id),
            "reset": c.ResetExecution(workflow_id=id, run_id=run_id, event_id=min(number, execution.history_length)),
            "follow": c.AwaitExecution(workflow_id=id, run_id=run_id, waiter=self.waiters, peer=peer, follow=True),
            "watch": c.AwaitEvents(
                workflow_id=id, run_id=run_id, waiter=self.waiters, peer=peer, after=execution.history_length - pick % 2
            ),
            "ask": c.QueryExecution(workflow_id=id, query_type="q", waiter=self.waiters, timeout_ms=1_000),
        }
        self.attempt(commands[what])

    @rule(pick=PICKS, peer=st.sampled_from([1, 2, 4]), what=st.sampled_from(["lose", "resume", "abandon"]))
    def connections(self, pick: int, peer: int, what: str) -> None:
        if what == "abandon":
            self.attempt(c.AbandonWait(waiter=self.waiters - pick % 4, peer=4))
        elif what == "resume":
            self.attempt(c.ResumePeer(peer=peer))
        elif pick % 3 == 0:
            self.d.lose(peer)
            if peer in WORKERS:
                self.come(peer, 1 + pick % 2)

    @rule(live=st.lists(st.sampled_from([1, 2, 3, 4]), unique=True))
    def the_server_or_its_store_fails(self, live: list[int]) -> None:
        """It goes on from what was kept. With `live` only the store failed, and these connections still stand."""
        self.d.restart(live)
        for peer in WORKERS:
            if peer not in live:
                self.come(peer, 2)
        if 3 not in live:
            self.d.subscribe(3, queue="q", slots=2)

    @rule(ms=MOMENTS, to_deadline=st.booleans())
    def time_passes(self, ms: int, to_deadline: bool) -> None:
        if to_deadline:
            due_ms = self.d.engine.next_deadline_ms()
            ms = 0 if due_ms is None else max(0, due_ms - self.d.now_ms)
        self.d.jump(ms)
