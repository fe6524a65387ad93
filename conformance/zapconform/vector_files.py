"""Files of vectors: recognized by what is in them, checked without a server or turned into cases.

- a recording (`*.jsonl`, a frame a line): its client's frames are replayed against the target;
- messages (`build` and `read`): programs of builder calls with their bytes, and bytes with readings;
- schedule rules (`duration` and `cron`): what 0x51 and 0x70 must accept and refuse;
- HTTP samples (a list of requests with answers).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zapconform import opcodes as op
from zapconform import wire
from zapconform.case import Case, Failed, Severity, check
from zapconform.cases.http import ask
from zapconform.codec import Field, Object, Unreadable, Writer, parse
from zapconform.replay import read_recording, replay_recording
from zapconform.trial import Trial

BUILT_IN = Path(__file__).parent / "vectors"
BUILT_IN_RECORDINGS = ("go-sdk-client", "go-sdk-worker", "go-mini-client")

SHORTEST_INTERVAL_NS = 10**9
"""Shorter intervals are not sent: they would fire before they can be deleted."""

LONGEST_INTERVAL_NS = 365 * 24 * 3600 * 10**9
"""A server may refuse intervals above a year as a mistake of units."""


def cases_of(path: Path) -> list[Case]:
    """The cases that a file makes; ValueError when nothing in it is recognized."""
    if path.suffix == ".jsonl":
        return [recording_case(path, path.name)]
    content = json.loads(path.read_text(encoding="utf-8"))
    match content:
        case {"build": list(builds), "read": list(reads)}:
            return [
                _offline(
                    f"{path.name}:build", "The kit's writer gives the bytes of every build vector.", builds, build
                ),
                _offline(f"{path.name}:read", "The kit's reader reads every read vector as ruled.", reads, read),
            ]
        case {"duration": list(durations), "cron": list(crons)}:
            return [
                _case(
                    f"{path.name}:duration",
                    "0x51 takes and refuses Go durations.",
                    lambda t: try_each(t, durations, _duration),
                ),
                _case(
                    f"{path.name}:cron", "0x70 takes what Go's cron grammar takes.", lambda t: try_each(t, crons, _cron)
                ),
            ]
        case [{"method": _, "path": _, "status": _}, *_]:
            return [_case(path.name, "The HTTP API answers as recorded.", lambda t: http_sample(t, content), http=True)]
    raise ValueError("no recording, messages, schedule rules or HTTP sample in it")


def recording_case(path: Path, name: str) -> Case:
    rows = read_recording(path)
    return _case(
        name,
        f"A recorded session ({path.stem}) is served: each call answered as ruled.",
        lambda t: replay_recording(t, rows),
    )


def built_in_cases() -> list[Case]:
    return [recording_case(BUILT_IN / f"{name}.jsonl", name) for name in BUILT_IN_RECORDINGS]


def _case(name: str, requirement: str, body: Callable[[Trial], None], *, http: bool = False) -> Case:
    return Case(f"vectors/{name}", requirement, Severity.MUST, body, http=http)


def _offline(name: str, requirement: str, entries: list[Any], problem_of: Callable[[Any], str]) -> Case:
    def body(trial: Trial) -> None:
        if not entries:
            raise Failed(expected="vectors", actual="none")
        wrong = [problem for entry in entries if (problem := problem_of(entry))]
        check(not wrong, expected=f"all {len(entries)} vectors", actual="; ".join(wrong))

    return _case(name, requirement, body)


# --- without a server ---------------------------------------------------------------------------------------


def check_file(path: Path) -> tuple[int, list[str]]:
    """How many vectors were checked without a server, and what is wrong with them."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return len(lines), [problem for line in lines if (problem := reading(line))]
    content = json.loads(path.read_text(encoding="utf-8"))
    match content:
        case {"build": list(builds), "read": list(reads)}:
            problems = [build(entry) for entry in builds] + [read(entry) for entry in reads]
            return len(problems), [problem for problem in problems if problem]
    return 0, []


def build(entry: dict[str, Any]) -> str:
    """Run a program of builder calls; what is wrong with its bytes, or with reading them back."""
    writer = Writer()
    ids: dict[str, Any] = {}
    root: list[Field] = []
    for step in entry["steps"]:
        match step["op"]:
            case "list":
                items = step["items"]
                if step["kind"] == "bytes":
                    ids[step["id"]] = writer.list("bytes", [bytes.fromhex(item) for item in items])
                else:
                    ids[step["id"]] = writer.list(step["kind"], [int(item) for item in items])
            case "object":
                fields = [Field(f["offset"], f["type"], _value(f, ids)) for f in step["fields"]]
                start = writer.object(step["size"], fields, root=step.get("root", False))
                if step.get("root"):
                    root = fields
                else:
                    ids[step["id"]] = start
    built = writer.finish(entry["flags"])
    if built.hex() != entry["hex"]:
        return f"{entry['name']}: built {built.hex()}, not {entry['hex']}"
    message = parse(built)
    latest = {field.offset: field for field in root}.values()
    wrong = [problem for field in latest if (problem := _read_back(message.root(), field))]
    return f"{entry['name']}: " + "; ".join(wrong) if wrong else ""


def _value(field: dict[str, Any], ids: dict[str, Any]) -> Any:
    match field["type"]:
        case "text":
            return field["value"]
        case "bytes":
            return bytes.fromhex(field["value"])
        case "object" | "list":
            return ids[field["value"]]
    return int(field["value"])


def _read_back(root: Object, field: Field) -> str:
    """A field read as the type it was built with."""
    got: object
    match field.kind:
        case "bool":
            got = int(root.bool(field.offset))
        case "text":
            got = root.text(field.offset)
        case "bytes":
            got = root.bytes(field.offset)
        case "object":
            got = root.object(field.offset).start
        case "list":
            start, count = field.value if isinstance(field.value, tuple) else (0, 0)
            return "" if root.list_length(field.offset) == count else f"list at {field.offset} from {start}"
        case kind:
            got = root.number(kind, field.offset)
    return "" if got == field.value else f"{field.kind} at {field.offset} reads {got!r}, not {field.value!r}"


def read(entry: dict[str, Any]) -> str:
    """Read damaged or sound bytes; each reading must be Go's or null."""
    name = entry["name"]
    try:
        message = parse(bytes.fromhex(entry["hex"]))
    except Unreadable as reason:
        return "" if entry["parse"] != "ok" else f"{name}: refused ({reason}), Go reads it"
    if entry["parse"] != "ok":
        return f"{name}: read, Go refuses it ({entry['parse']})"
    if (message.flags, len(message.data)) != (entry["flags"], entry["size"]):
        return f"{name}: flags {message.flags} size {len(message.data)}, not {entry['flags']} and {entry['size']}"
    root = message.root()
    if entry["root_is_null"] and not root.is_null():
        return f"{name}: the root is null"
    for item in entry["reads"]:
        got, null = _reading(root, item["type"], item["offset"])
        if got not in (item["value"], null):
            return f"{name}: {item['type']} at {item['offset']} reads {got!r}, neither {item['value']!r} nor null"
    return ""


def _reading(root: Object, kind: str, offset: int) -> tuple[object, object]:
    """What this reader answers, and what null is for that kind."""
    match kind:
        case "bytes":
            return root.bytes(offset).hex(), ""
        case "object_is_null":
            return root.object(offset).is_null(), True
        case "list_len":
            return root.list_length(offset), 0
        case "u64" | "i64":
            return str(root.number(kind, offset)), "0"
    return root.number(kind, offset), 0


def reading(line: dict[str, Any]) -> str:
    """The decoded reading beside a recorded frame against this kit's own."""
    payload = bytes.fromhex(line["hex"])[4:]
    wanted = line["decoded"]
    where = f"frame {line['n']}"
    if wire.is_hello(payload) != (wanted["kind"] == "handshake"):
        return f"{where}: taken for {wire.describe(payload)}"
    if wire.is_hello(payload):
        length = wire.read_hello(payload).length
        return "" if 1 <= length <= wire.NODE_ID_BYTES_MAX else f"{where}: a node id of {length} bytes"
    header = wire.correlated(payload)
    message = parse(header.message if header else payload)
    if header and header.request_id != wanted["req_id"]:
        return f"{where}: request id {header.request_id}, not {wanted['req_id']}"
    if f"0x{message.opcode:02X}" != wanted["opcode"]:
        return f"{where}: opcode 0x{message.opcode:02X}, not {wanted['opcode']}"
    root = message.root()
    if "token" in wanted:
        got: object = (root.text(0), root.text(8))
        return "" if got == (wanted["token"], wanted["payload"]) else f"{where}: token and payload {got!r}"
    if "text_0" in wanted:
        got = tuple(root.text(at) for at in (0, 8, 16, 24))
        right = tuple(wanted[key] or "" for key in ("text_0", "bytes_8", "text_16", "text_24"))
        return "" if got == right else f"{where}: fields {got!r}, not {right!r}"
    envelope = wire.read_envelope(header.message if header else payload)
    body = wire.parse_json(envelope.body or b"null")
    got = (body, envelope.status, envelope.error)
    right = (wanted["body"], wanted.get("status", 0), wanted.get("error", ""))
    return "" if got == right else f"{where}: {got!r}, not {right!r}"


# --- against a server -------------------------------------------------------------------------------------


def try_each(
    trial: Trial, entries: list[dict[str, Any]], judge: Callable[[Trial, dict[str, Any]], Iterator[str]]
) -> None:
    wrong = [problem for entry in entries for problem in judge(trial, entry)]
    check(bool(entries) and not wrong, expected=f"all of {len(entries)} rules as recorded", actual="; ".join(wrong))


def _duration(trial: Trial, entry: dict[str, Any]) -> Iterator[str]:
    text, nanoseconds = entry["in"], entry["ns"]
    if text != text.strip():
        return  # Go's client trims before it parses, and so may a server
    if nanoseconds is not None and not (
        int(nanoseconds) <= 0 or SHORTEST_INTERVAL_NS <= int(nanoseconds) <= LONGEST_INTERVAL_NS
    ):
        return
    name = trial.name("tick")
    trial.delete_later(name)
    peer = trial.any_peer()
    reply = peer.reply(peer.send_message(wire.task_schedule(name, interval=text), op.TASK_SCHEDULE))
    wanted = nanoseconds is not None and int(nanoseconds) > 0
    if reply.is_success() != wanted:
        yield f"{text!r} should be {'accepted' if wanted else 'refused'}: {reply}"


def _cron(trial: Trial, entry: dict[str, Any]) -> Iterator[str]:
    if not entry["ok"]:
        return  # a server may accept more than Go does
    fires = entry["next"][:1] != ["never"]
    schedule_id = trial.name("sched")
    trial.delete_later(schedule_id)
    spec = {"cron": [entry["expr"]], "timezone": entry.get("location", "UTC")}
    action = {"workflow_type": "Scheduled", "task_queue": "nobody"}
    reply = trial.any_peer().call(op.CREATE_SCHEDULE, trial.schedule_body(schedule_id, spec, action, paused=True))
    if reply.is_success() != fires:
        yield f"{entry['expr']!r} should be {'accepted' if fires else 'refused: it never fires'}: {reply}"


def http_sample(trial: Trial, entries: list[dict[str, Any]]) -> None:
    """Each request in order: the recorded status (a 4xx where Go has a bare 500) and the recorded keys."""
    wrong = []
    for entry in entries:
        request = f"{entry['method']} {entry['path']}"
        try:
            answer = ask(trial, entry["method"], entry["path"], entry["request"])
            if 400 <= answer.status < 500 if entry["status"] == 500 else answer.status == entry["status"]:
                recorded = entry["response"] if isinstance(entry["response"], dict) else {}
                missing = recorded.keys() - answer.json().keys() if recorded else set()
                wrong += [f"{request}: no `{key}` in {answer}" for key in sorted(missing)]
            else:
                wrong.append(f"{request}: {answer}, not {entry['status']}")
        except Failed as problem:
            wrong.append(f"{request}: {problem}")
    check(not wrong, expected=f"all of {len(entries)} answers as recorded", actual="; ".join(wrong))
