"""Calls about namespaces, and health."""

from __future__ import annotations

from zapserver import shapes
from zapserver.calls.context import Call, Handler
from zapserver.engine.errors import Invalid
from zapserver.health import health
from zapserver.requests import NamespaceRequest, Request
from zapwire.opcodes import Op


def _register(call: Call, request: NamespaceRequest) -> object:
    given = request.namespaceInfo
    namespace = call.namespaces.register(
        request.name or (given.name if given else ""),
        call.now_ms,
        description=request.description or (given.description if given else ""),
        owner_email=request.owner_email or (given.ownerEmail if given else ""),
        retention_ms=request.retention_ms,
    )
    call.changes(namespace)
    return shapes.described_namespace(namespace)


def _describe(call: Call, request: NamespaceRequest) -> object:
    name = request.name or request.namespace
    if not name:
        raise Invalid("namespace name required")
    return shapes.described_namespace(call.namespaces.get(name))


def _list(call: Call, request: NamespaceRequest) -> object:
    return {"namespaces": [shapes.namespace(item) for item in call.namespaces], "next_page_token": ""}


def _health(call: Call, request: Request) -> object:
    return {**health(call.namespaces), "refused": call.namespaces.refused}


CALLS: dict[int, Handler] = {
    Op.REGISTER_NAMESPACE: Handler(NamespaceRequest, _register),
    Op.DESCRIBE_NAMESPACE: Handler(NamespaceRequest, _describe),
    Op.LIST_NAMESPACES: Handler(NamespaceRequest, _list),
    Op.HEALTH: Handler(Request, _health),
}
