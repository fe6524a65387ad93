"""A worker of the Go kind as a process of its own, over raw frames and a blocking socket: to be killed with kill -9.

    python -m tests.helpers.go_worker ADDRESS --activities runs.log
    python -m tests.helpers.go_worker ADDRESS --workflow '[["charge", 1], ["ship", 2]]' --stop-at 'result 1'

It does what Go's SDK does and no more: it holds its workflow task and runs the workflow from the top, one activity
after the other; it keeps nothing; it never connects again. A workflow is a list of activities with their input; its
result is the list of theirs, and an activity that fails, or a call that is refused, fails it.

It prints what it does, a line for each step. At the step `--stop-at` it waits for a line on its stdin, or for its end.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zapwire.envelope import Envelope, decode_envelope, encode_push, encode_request, encode_respond
from zapwire.frame import FrameDecoder, call_frame, frame, split_call
from zapwire.handshake import Hello, encode_hello
from zapwire.opcodes import Op

QUEUE = "greetings"
RESPONSE = 2
FAIL = 1
COMPLETE = 0


class ActivityError(Exception):
    """An activity failed, or the server refused to schedule it."""


class GoWorker:
    def __init__(
        self, address: str, plan: list[tuple[str, object]], runs: Path | None, stop_at: str, attempts: int
    ) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._decoder = FrameDecoder()
        self._frames: Iterator[bytes] = iter(())
        self._request_id = 0
        self._plan = plan
        self._runs = runs
        self._stop_at = stop_at
        self._retries = {"retry_policy": {"maximum_attempts": attempts}} if attempts else {}
        self._inbox: list[Envelope] = []

    def run(self) -> None:
        self._socket.sendall(frame(encode_hello(Hello(f"go-worker-{os.getpid()}"))))
        self._next_frame()
        if self._plan:
            self._call(Op.SUBSCRIBE_WORKFLOW_TASKS, {"task_queue": QUEUE, "identity": "go"})
        if self._runs is not None:
            self._call(Op.SUBSCRIBE_ACTIVITY_TASKS, {"task_queue": QUEUE, "identity": "go"})
        self._did("ready")
        while True:
            self._handle(self._next_push())

    # --- what is pushed --------------------------------------------------------------------------------

    def _handle(self, push: Envelope) -> None:
        body = json.loads(bytes(push.body))
        self._socket.sendall(frame(encode_push(push.opcode, b"")))  # as Go's SDK answers every push
        if push.opcode == Op.DELIVER_WORKFLOW_TASK:
            self._did("task")
            self._workflow_task(body)
        elif push.opcode == Op.DELIVER_ACTIVITY_TASK:
            self._activity(body)

    def _activity(self, body: dict[str, Any]) -> None:
        assert self._runs is not None
        with self._runs.open("a") as file:
            print(f"{body['activity_type_name']} {body['input']}", file=file, flush=True)
        self._did(f"running {body['activity_type_name']}")
        result = json.dumps(f"{body['activity_type_name']} is done").encode()
        self._respond(Op.RESPOND_ACTIVITY_TASK_COMPLETED, body["task_token"], result)

    # --- the workflow ----------------------------------------------------------------------------------

    def _workflow_task(self, task: dict[str, Any]) -> None:
        try:
            results = [self._execute(task, number, name, input) for number, (name, input) in enumerate(self._plan, 1)]
        except ActivityError as error:
            failure = {"v": 1, "p": {"message": str(error), "code": "ActivityError"}}
            command = {"kind": FAIL, "failure": base64.b64encode(json.dumps(failure).encode()).decode()}
        else:
            command = {"kind": COMPLETE, "result": base64.b64encode(json.dumps(results).encode()).decode()}
        self._respond(
            Op.RESPOND_WORKFLOW_TASK_COMPLETED, task["task_token"], json.dumps({"v": 1, "cmds": [command]}).encode()
        )
        self._did("answered")

    def _execute(self, task: dict[str, Any], number: int, name: str, input: object) -> object:
        answer = self._call(
            Op.SCHEDULE_ACTIVITY,
            {
                "workflow_id": task["workflow_id"],
                "run_id": task["run_id"],
                "task_queue": QUEUE,
                "activity_type": name,
                "input": base64.b64encode(json.dumps(input).encode()).decode(),
                "start_to_close_ms": 5000,
                **self._retries,
            },
        )
        if answer.status != 200:
            raise ActivityError(answer.error)
        self._did(f"asked {number}")
        result = self._result_of(json.loads(bytes(answer.body))["activity_task_id"])
        self._did(f"result {number}")
        if result.get("failure"):
            raise ActivityError(result["failure"])
        return json.loads(result["result"])

    def _result_of(self, activity_id: str) -> dict[str, Any]:
        while True:
            push = self._next_push()
            if push.opcode != Op.DELIVER_ACTIVITY_RESULT:
                self._handle(push)
                continue
            body: dict[str, Any] = json.loads(bytes(push.body))
            if body["activity_id"] == activity_id:
                return body

    # --- frames ------------------------------------------------------------------------------------------

    def _call(self, opcode: int, body: dict[str, Any]) -> Envelope:
        message = encode_request(opcode, json.dumps({"namespace": "default", **body}).encode())
        return self._ask(message)

    def _respond(self, opcode: int, token: str, data: bytes) -> None:
        self._ask(encode_respond(opcode, token.encode(), data))

    def _ask(self, message: bytes) -> Envelope:
        """A call, and its answer; what is pushed meanwhile waits."""
        self._request_id += 1
        self._socket.sendall(call_frame(self._request_id, 1, message))
        while True:
            kind, request_id, answer = split_call(self._next_frame())
            if kind != RESPONSE:
                self._inbox.append(decode_envelope(answer))
            elif request_id == self._request_id:
                return decode_envelope(answer)

    def _next_push(self) -> Envelope:
        if self._inbox:
            return self._inbox.pop(0)
        return decode_envelope(split_call(self._next_frame())[2])

    def _next_frame(self) -> bytes:
        while True:
            for payload in self._frames:
                return payload
            data = self._socket.recv(65536)
            if not data:
                sys.exit("the server is gone")
            self._frames = iter(self._decoder.feed(data))

    def _did(self, step: str) -> None:
        print(step, flush=True)
        if step == self._stop_at:
            sys.stdin.readline()


# --- in a test -----------------------------------------------------------------------------------------------


class Process:
    """A worker that runs somewhere else."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def until(self, step: str) -> None:
        """Wait until it did this."""
        assert self._process.stdout is not None
        done = []
        for line in self._process.stdout:
            done.append(line.strip())
            if done[-1] == step:
                return
        raise AssertionError(f"the worker ended without {step!r}; it did: {done}")

    def go_on(self) -> None:
        """From where it was made to stop."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.kill()
        self._process.wait(10)


@contextmanager
def go_worker(
    address: str,
    plan: Sequence[tuple[str, object]] = (),
    *,
    runs: Path | None = None,
    stop_at: str = "",
    attempts: int = 0,
) -> Iterator[Process]:
    """Start one and wait until it has subscribed; it is killed at the end of the block."""
    command = [sys.executable, "-m", "tests.helpers.go_worker", address, "--stop-at", stop_at]
    command += ["--attempts", str(attempts)]
    command += ["--workflow", json.dumps(plan)] if plan else []
    command += ["--activities", str(runs)] if runs is not None else []
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            worker = Process(process)
            worker.until("ready")
            yield worker
        finally:
            process.kill()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--workflow", type=json.loads, default=[])
    parser.add_argument("--activities", type=Path)
    parser.add_argument("--stop-at", default="")
    parser.add_argument("--attempts", type=int, default=0, help="maximum_attempts of activities; 0 names no policy")
    of = parser.parse_args()
    GoWorker(of.address, of.workflow, of.activities, of.stop_at, of.attempts).run()


if __name__ == "__main__":
    main()
