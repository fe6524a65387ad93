"""What a server says of itself, over ZAP and over HTTP."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from zapserver.namespaces import Namespaces

FAILURES_SHOWN: Final = 100
"""A full disk fails every namespace, and the reason is the same in all of them."""


def health(namespaces: Namespaces) -> dict[str, Any]:
    """`status` is "ok", or "failing" while the store of the default namespace takes nothing.

    `durability` is the most that a call can ask for, `store` is "ok" or the reason for each namespace whose store takes
    nothing (the first 100 of them), and `queued_bytes` are decided and not on the disk yet.
    """
    default = namespaces.get("")
    failing = [each for each in namespaces if each.journal.failure is not None]
    failing.sort(key=lambda each: (each is not default, each.name))
    return {
        "service": "tasks",
        "status": "ok" if default.journal.failure is None else "failing",
        "namespace": namespaces.default,
        "durability": default.journal.durability.name.lower(),
        "store": {each.name: str(each.journal.failure) for each in islice(failing, FAILURES_SHOWN)} or "ok",
        "queued_bytes": sum(each.journal.queued_bytes for each in namespaces),
    }
