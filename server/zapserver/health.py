"""What a server says of itself, over ZAP and over HTTP."""

from __future__ import annotations

from typing import Any, Final

from zapserver.namespaces import Namespaces

FAILURES_SHOWN: Final = 100
"""A full disk fails every namespace, and the reason is the same in all of them."""


def health(namespaces: Namespaces) -> dict[str, Any]:
    """`status` is "ok", or "failing" while the store of the default namespace takes nothing.

    `durability` is the most that a call can ask for, `store` is "ok" or the reason for each namespace whose store takes
    nothing or cannot be read (the first 100 of them), and `queued_bytes` are decided and not on the disk yet.
    """
    default = namespaces.get("")
    failures = {name: str(error) for name, error in namespaces.unreadable.items()}
    failures |= {each.name: str(each.journal.failure) for each in namespaces if each.journal.failure is not None}
    shown = sorted(failures, key=lambda name: (name != default.name, name))[:FAILURES_SHOWN]
    return {
        "service": "tasks",
        "status": "ok" if default.journal.failure is None else "failing",
        "namespace": namespaces.default,
        "durability": default.journal.durability.name.lower(),
        "store": {name: failures[name] for name in shown} or "ok",
        "queued_bytes": sum(each.journal.queued_bytes for each in namespaces),
    }
