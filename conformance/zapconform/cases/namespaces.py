"""Namespaces: two shapes of request and answer, one set of names, and isolation."""

from __future__ import annotations

from typing import Any

from zapconform import opcodes as op
from zapconform.case import SHOULD, case, check, equal
from zapconform.peer import Json, Peer
from zapconform.trial import Trial

OTHER = "zapconform"
"""Namespaces cannot be deleted over ZAP, so every run uses the same ones."""


def both_shapes(answer: dict[str, Any], name: str) -> None:
    """An answer that Go's SDK and Go's HTTP clients both understand."""
    equal("namespaceInfo.name", expected=name, actual=dig(answer, "namespaceInfo", "name"))
    nested = answer.get("namespace", answer)
    equal("namespace.info.name", expected=name, actual=dig(nested, "info", "name"))


def dig(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def register(peer: Peer, name: str, **fields: object) -> None:
    peer.call(op.REGISTER_NAMESPACE, {"name": name, **fields}).succeeded()


@case("call/namespace-register-sdk-shape", "0x80 takes the SDK's shape: name, description, owner_email, retention_ms.")
def register_sdk_shape(trial: Trial) -> None:
    peer = trial.peer()
    register(peer, OTHER, description="conformance", owner_email="o@example.test", retention_ms=86_400_000)
    answer = peer.call(op.DESCRIBE_NAMESPACE, {"name": OTHER}).ok()
    equal("the description", expected="conformance", actual=dig(answer, "namespaceInfo", "description"))


@case("call/namespace-register-server-shape", "0x80 takes the server's shape too: namespaceInfo and config.")
def register_server_shape(trial: Trial) -> None:
    peer = trial.peer()
    name = f"{OTHER}-server-shape"
    body = {"namespaceInfo": {"name": name, "description": "d"}, "config": {"workflowExecutionRetentionTtl": "24h"}}
    peer.call(op.REGISTER_NAMESPACE, body).succeeded()
    both_shapes(peer.call(op.DESCRIBE_NAMESPACE, {"namespace": name}).ok(), name)


@case("call/namespace-register-again", "Registering a namespace again succeeds: it is an upsert.")
def register_again(trial: Trial) -> None:
    peer = trial.peer()
    register(peer, OTHER)
    register(peer, OTHER)


@case("call/namespace-name-required", "0x80 without a name is refused with 400.")
def name_required(trial: Trial) -> None:
    peer = trial.peer()
    nameless: tuple[Json, ...] = ({}, {"name": ""}, {"namespaceInfo": {}}, {"description": "nameless"})
    for body in nameless:
        peer.call(op.REGISTER_NAMESPACE, body).refused(400)


@case("call/namespace-names-accepted", "A namespace name is 1 to 64 of letters, digits, underscore, dot and hyphen.")
def names_accepted(trial: Trial) -> None:
    peer = trial.peer()
    for name in ("zapconform-prod", "zapconform_1", "zapconform.b.c", OTHER.ljust(64, "z")):
        register(peer, name)


@case(
    "call/namespace-names-refused",
    "A namespace name that is a path, has other characters or over 64 of them is refused with 400.",
)
def names_refused(trial: Trial) -> None:
    peer = trial.peer()
    for name in (".", "..", "../etc", "a/b", "a\\b", "a b", " ", "a\x00b", "a\n", "ä", "n" * 65):
        peer.call(op.REGISTER_NAMESPACE, {"name": name}).refused(400)


@case("call/namespace-describe-both-keys", "0x81 takes `name` or `namespace` and answers both shapes.")
def describe_both_keys(trial: Trial) -> None:
    peer = trial.peer()
    for key in ("name", "namespace"):
        both_shapes(peer.call(op.DESCRIBE_NAMESPACE, {key: trial.namespace}).ok(), trial.namespace)


@case("call/namespace-describe-unknown", "0x81 for a namespace that nobody registered is answered 404.")
def describe_unknown(trial: Trial) -> None:
    trial.peer().call(op.DESCRIBE_NAMESPACE, {"name": trial.name("ghost")}).refused(404)


@case("call/namespace-list-both-shapes", "0x82 lists every namespace, each in both shapes.")
def list_both_shapes(trial: Trial) -> None:
    peer = trial.peer()
    register(peer, OTHER)
    answer = peer.call(op.LIST_NAMESPACES, {}).ok()
    namespaces = answer.get("namespaces")
    check(isinstance(namespaces, list), expected="a list under `namespaces`", actual=answer)
    names = {dig(entry, "namespaceInfo", "name") for entry in namespaces or []}
    sdk_names = {dig(entry, "info", "name") for entry in namespaces or []}
    for wanted in (trial.namespace, OTHER):
        check(wanted in names, expected=f"{wanted} as some namespaceInfo.name", actual=sorted(map(str, names)))
        check(wanted in sdk_names, expected=f"{wanted} as some info.name", actual=sorted(map(str, sdk_names)))


@case("call/namespace-absent-is-default", "A request without a namespace, or with an empty one, means the default one.")
def absent_is_default(trial: Trial) -> None:
    peer = trial.peer()
    for extra in ({}, {"namespace": ""}):
        workflow_id = trial.name("wf")
        trial.terminate_later({"workflow_id": workflow_id})
        start = {"workflow_id": workflow_id, "workflow_type": "W", "task_queue": trial.name("queue"), **extra}
        peer.call(op.START, start).ok()
        trial.describe(peer, workflow_id)


@case("call/namespace-unregistered-refused", "Nothing starts in a namespace that nobody registered.")
def unregistered_refused(trial: Trial) -> None:
    body = {"namespace": trial.name("ghost"), "workflow_id": "w", "workflow_type": "W", "task_queue": "q"}
    peer = trial.peer()
    peer.call(op.START, body).refused(400, 404)
    peer.call(op.DESCRIBE, body).refused(400, 404)


@case(
    "call/namespace-unregistered-named",
    "The error for an unregistered namespace names it.",
    severity=SHOULD,
)
def unregistered_named(trial: Trial) -> None:
    name = trial.name("ghost")
    reply = trial.peer().call(op.START, {"namespace": name, "workflow_type": "W"}).refused()
    check(name in reply.envelope.error, expected=f"an error text with {name} in it", actual=reply.envelope.error)


@case("call/namespace-isolated", "An execution of one namespace is invisible in another.")
def isolated(trial: Trial) -> None:
    peer = trial.peer()
    register(peer, OTHER)
    workflow_id = trial.name("wf")
    body = {"workflow_id": workflow_id, "workflow_type": "W", "task_queue": trial.name("queue")}
    trial.terminate_later({"workflow_id": workflow_id, "namespace": OTHER})
    peer.call(op.START, {**body, "namespace": OTHER}).ok()
    peer.call(op.DESCRIBE, {"workflow_id": workflow_id, "namespace": OTHER}).ok()
    peer.call(op.DESCRIBE, {"workflow_id": workflow_id, "namespace": trial.namespace}).refused(404)


@case("call/namespace-queues-isolated", "A worker of one namespace never gets the tasks of another's equal queue name.")
def queues_isolated(trial: Trial) -> None:
    peer = trial.peer()
    register(peer, OTHER)
    queue = trial.name("queue")
    peer.subscribe_workflows(OTHER, queue)
    trial.start(peer, queue)
    peer.no_push(op.DELIVER_WORKFLOW)
