"""Where the store of a namespace lies, and making sure that it lies nowhere else."""

from __future__ import annotations

from pathlib import Path

from zapserver.engine.errors import Invalid
from zapserver.namespaces import NAME, check_namespace_name, is_namespace_name

ROOT_ORG_FOLDER = "_"
"""Of the org without a name; so no org may have this name."""


def store_path(data: Path, org: str, namespace: str) -> Path:
    """`<data>/<org>/<namespace>.db`, with the org "" in the folder "_". Raises `Invalid` for a name with a trick in it.

    Every file of a store ends in another way than every other, so no namespace's name can hit a sibling's journal.
    """
    check_namespace_name(namespace)
    if org and (not NAME.fullmatch(org) or org in (".", "..", ROOT_ORG_FOLDER)):
        raise Invalid(f"invalid org {org[:80]!r}: 1 to 64 of A-Z a-z 0-9 _ . - and not '.', '..' or '_'")
    return data / (org or ROOT_ORG_FOLDER) / f"{namespace}.db"


def stored_namespaces(data: Path, org: str) -> list[str]:
    """The namespaces of an org that have a file, sorted. What else lies there is none of ours."""
    folder = store_path(data, org, "any").parent
    if not folder.is_dir():
        return []
    files = (path.name for path in folder.iterdir() if path.name.endswith(".db") and not path.is_dir())
    return sorted(name for name in (file.removesuffix(".db") for file in files) if is_namespace_name(name))
