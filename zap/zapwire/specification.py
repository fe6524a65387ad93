"""docs/wire.md, made from the declarations that the code follows, so that the page cannot drift.

python -m zapwire.specification > docs/wire.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zapwire.frame import FRAME_BYTES_MAX
from zapwire.handshake import Capability
from zapwire.layouts import OBJECT_LAYOUTS, ObjectLayout
from zapwire.opcodes import FREE_RANGES, opcode_table

_INTRODUCTION = f"""# The ZAP wire

This page is made by `python -m zapwire.specification` from the tables that the code follows.

Two peers keep one TCP (or TLS) connection. Everything on it is a frame, every frame holds a message,
and a message is a small header and a root object whose fields are read in place. All numbers are
little-endian.

## Frames

    u32 length | payload

A payload has at most {FRAME_BYTES_MAX:,} bytes. A longer length is refused when it is readable: the connection
ends and nothing of the body is held. A length of 0 is legal and means nothing.

## Calls, answers and one-way messages

The payload of a one-way message is the message itself. A call and its answer have eight bytes before it:

    u32 request id | u32 kind (1 call, 2 answer)

The caller counts its request ids per connection; they wrap at 2^32 and skip those in use. Many calls
may be in flight and answers come in any order. Every call is answered: an opcode that is not served with
status 501, a body that cannot be read with 400, a failure of the server's own with 500. One-way
messages that nobody knows are counted and dropped. Because a plain message with flags 0 would look like
a call, opcode 0 is never sent one-way.

## Messages

    0   4 bytes  "ZAP\\0"
    4   u16      version, 1
    6   u8       flags: 1 compressed, 2 encrypted, 4 signed, 8 CBOR body
    7   u8       opcode; 0 in answers and in the handshake
    8   u32      root: where the root object starts, from the first byte; 0: there is none
    12  u32      size of the message; bytes after it are ignored

An object is a block of fields at fixed offsets. Text and bytes are a slot of eight bytes, `i32` offset from
the slot itself and `u32` length; an object in an object is an `i32` offset from its slot; a list is a slot
that counts elements. An offset of 0 is null. A writer aligns objects and lists to 8 bytes and appends
texts and bytes behind the object, in the order in which they were set. A reader checks every offset: what
points outside the message or into its header, and a list that runs past the end, reads as null; a
field past the end reads as 0.

## Handshake

The client speaks first. Each side sends one message, the hello, within 10 s. A node id is 1 to 60
bytes of printable ASCII; any other is refused. A second connection with a known node id takes the
place of the first.

A hello of 64 bytes is a v1 peer. Ours may be longer: capability bits at 64, and a CBOR map at 72 (`sdk`,
`version`, `max_frame`). A peer that knows nothing of them reads the first 64 bytes only. A capability is used
when both sides have it; unknown bits and keys are ignored; bits are only ever added.

With `bodies` = "cbor" in the details of either side, and CBOR bodies among the capabilities of both, calls and
one-way messages travel as CBOR where CBOR can say them. An answer has the encoding of its call, or is JSON: flag 8
says so message by message. Layouts other than the envelope carry their payloads as they are.
"""

_CAPABILITY_TEXTS = {
    Capability.CBOR_BODIES: "reads bodies that are CBOR (flag 8)",
    Capability.REPLAY_HISTORY: "wants the history in a workflow task, and replays it",
    Capability.RECEIPTS: "reads in each acknowledgement how durable it is",
    Capability.COMPRESSED: "reads compressed bodies (flag 1)",
    Capability.GOODBYE: "is told before the connection closes",
    Capability.STREAMS: "takes payloads in pieces",
}

_RECEIPTS = """## Receipts

Each request that changes something may carry `durability`, in its JSON body or in the options of 0x50 and 0x51: what
its answer waits for. Another word is refused with 400. Without the key it is the most that the server can do.

| receipt | durability | the change is |
|---|---|---|
| 1 | `memory` | made; gone with the server's process |
| 2 | `written` | with the operating system: survives the process, not the loss of power |
| 3 | `synced` | on the disk |

Between peers that both have RECEIPTS the answer says which one was reached, in the field `receipt` of its root object:
at 20 in an envelope and in the acknowledgement of a respond frame, at 12 in the answer to 0x50 and 0x51. It is less
than was asked for where the server keeps less, and that is no error. 0 says nothing: refusals, answers to requests that
only look, and answers that come when something has happened later (0x91, 0x9A, 0x9B) have none, and towards a peer
without RECEIPTS the field is always 0. The key is read from every peer. Over HTTP the level stands in the answer's JSON
as `durability`.
"""

_RULINGS = """## Where Go's client and Go's server disagree

One server serves both; the fields of the request tell them apart and the answer carries both shapes.

| opcode | is | else |
|---|---|---|
| 0x66 | with `signal_name`: signal-with-start | history |
| 0x67 | query; arguments in `args` or `query_args`; answered in `query_result` and, as base64, in `result` | |
| 0x71 | without `schedule_id`: list schedules | delete |
| 0x72 | with `schedule_id`: delete | list schedules |
| 0x74 | with `schedule`: update; an empty spec or action keeps what there is | unpause |
| 0x76 | describe: `id`, `spec`, `action`, `paused`, and `schedule` with `info` | |
| 0x80 to 0x82 | `name` or `namespaceInfo`/`namespace`; both shapes in the answer | |
| 0xA5 | answered with status 0: go on | status 200: a cancel was asked for |

A payload (input, result, details) is one JSON value. The server passes it on as it came. Where Go sends base64
of JSON (0x6B `input`, 0xC4 `result`), a string counts as base64 when it decodes to valid JSON, and as itself
when it does not.

A failure may say when the next attempt is to begin, whatever the retry policy's own interval is:
`{"v":1,"p":{"message":"busy","code":"Busy"},"nextRetryDelayMs":1500}`. It is ours; Go ignores it.
"""

_COMMANDS = """## Workers that replay

A workflow worker that subscribes with `replays` gets a workflow task (0xB0) whenever its run has events that it has
not seen. `history` has the events past `previous_event_id`, which is 0 for a worker that does not have the run at
hand, up to `last_event_id`; where `next_event_id` is given it reads those from there on with 0x66. `updates` are to be
accepted or rejected with the answer. The answer (0xA2) says what the workflow wants done, and gives the task back:

    {"v":1,"cmds":[{"kind":"start-timer","id":"0.1","fire_after_ms":1000},{"kind":"complete","result":{"n":1}}]}

An answer is applied as a whole or refused as a whole, with 400, or 429 past a limit; a refused one counts as a failed
task. An answer of nothing but `reject-update` to a task that brought nothing but updates leaves no event; the run is
then where it was, and `previous_event_id` of its next task stays. `id` names the place in the workflow's code; the
events that follow from a command carry it as `commandId`. Payloads are JSON values.

| kind | fields |
|---|---|
| `schedule-activity` | id type task_queue? input? start_to_close_ms? heartbeat_ms? schedule_to_start_ms? \
schedule_to_close_ms? retry_policy? |
| `cancel-activity` | id |
| `start-timer` | id fire_after_ms |
| `cancel-timer` | id |
| `start-child` | id type workflow_id? task_queue? input? timeouts? retry_policy? parent_close_policy? memo? \
search_attributes? cron_schedule? |
| `cancel-external` | id workflow_id run_id? reason? |
| `signal-external` | id workflow_id run_id? signal_name input? |
| `record-marker` | id name details? |
| `upsert` | id memo? search_attributes? |
| `accept-update` | update_id |
| `reject-update` | update_id failure |
| `complete-update` | update_id result? failure? |
| `complete` | result? |
| `fail` | failure? |
| `cancel` | failure? |
| `continue-as-new` | type? task_queue? input? timeouts? memo? search_attributes? |
| `fail-task` | reason: the worker could not do its task; another tries |
| `unknown-type` | the worker does not have this workflow type, and is not asked for it again |

`parent_close_policy` is terminate (the default), cancel or abandon. `complete`, `fail`, `cancel` and `continue-as-new`
end the run and come last; Go's kinds 0, 1 and 3 do the same. `fail-task` and `unknown-type` stand alone.
"""


def specification() -> str:
    """The whole page, in Markdown."""
    parts = [
        _INTRODUCTION,
        _table(
            ("bit", "capability", "a peer that has it"),
            ((str(int(bit)), bit.name or "", _CAPABILITY_TEXTS[bit]) for bit in Capability),
        ),
        "\n## Root objects\n",
        *(_layout(layout) for layout in OBJECT_LAYOUTS),
        "## Opcodes\n",
        "`?` marks a field that may be absent. `since` is v1 for what the Go system defines, else the version of ours "
        "that added it. New opcodes come from "
        + ", ".join(f"0x{numbers.start:02X} to 0x{numbers.stop - 1:02X}" for numbers in FREE_RANGES)
        + "; every other number belongs to the Go system, used or not.\n",
        _table(
            ("number", "name", "direction", "kind", "request", "response", "since", "served", "note"), opcode_table()
        ),
        "\n" + _RECEIPTS,
        _RULINGS,
        _COMMANDS,
    ]
    return "\n".join(parts)


def _layout(layout: ObjectLayout) -> str:
    rows = (
        (str(item.offset), f"{item.width} bytes" if item.type == "raw" else item.type, item.name, item.note)
        for item in sorted(layout.fields, key=lambda item: item.offset)
    )
    heading = f"### {layout.name}, {layout.size} bytes\n\n{layout.note[:1].upper()}{layout.note[1:]}.\n\n"
    return heading + _table(("offset", "type", "field", ""), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    print(specification(), end="")
