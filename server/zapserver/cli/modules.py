"""What commands take from the user's Python modules, as `module:object`."""

from __future__ import annotations

import importlib
import os
import sys

import click

from zaptasks import sort_handlers
from zaptasks.sorted_handlers import Sorted


def load_object(target: str) -> object:
    """`module` or `module:object`, also from the current directory. What is wrong with it is a usage error."""
    module_name, _, object_name = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise click.UsageError(f"there is no module {error.name!r}, here in {os.getcwd()} or installed") from None
    except ValueError:
        raise click.UsageError(f"{target!r} is no MODULE[:OBJECT], such as shop.tasks or shop.tasks:HANDLERS") from None
    for name in object_name.split(".") if object_name else ():
        try:
            found = getattr(found, name)
        except AttributeError:
            raise click.UsageError(f"{module_name} has no {object_name!r}") from None
    return found


def load_handlers(target: str) -> Sorted:
    """The tasks, activities and workflows of `module:object`. What is wrong with it is a usage error."""
    found = load_object(target)
    try:
        handlers = sort_handlers(found)
    except TypeError as error:
        raise click.UsageError(f"{target}: {error}") from None
    if not any(handlers):
        raise click.UsageError(f"{target} holds no handlers: decorate some with @zaptasks.task, or name a list of them")
    return handlers
