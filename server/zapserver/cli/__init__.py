"""The command `zaptasks`. Each subcommand's module is imported only when it is called, so that help is quick."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import click

SERVER_EXTRA = frozenset({"starlette", "anycorn", "anyio"})
"""What `pip install zaptasks` alone does not bring."""


class _Command(NamedTuple):
    module: str
    attribute: str
    help: str


_COMMANDS = {
    "serve": _Command("serve", "serve", "Run the server."),
    "limits": _Command("limits", "limits", "List the limits of a server."),
    "demo": _Command("demo", "demo", "A server, a worker and a client at work, in half a minute."),
    "now": _Command("tasks", "now", "Start a one-shot task."),
    "add": _Command("tasks", "add", "Start a one-shot task on a schedule."),
    "worker": _Command("worker", "worker", "Run a worker for the handlers of a module."),
    "dead-letters": _Command("tasks", "dead_letters", "Tasks that failed for good."),
    "workflow": _Command("workflows", "workflow", "Start, look at and steer workflows and tasks."),
    "replay": _Command("replay", "replay", "Hold workflows against exported histories."),
    "schedule": _Command("schedules", "schedule", "Make, look at and steer schedules."),
    "health": _Command("tasks", "health", "Ask a server how it is."),
    "backup": _Command("maintenance", "backup", "Copy a data directory, also of a running server."),
    "verify": _Command("maintenance", "verify", "Look for damage in a data directory."),
    "compact": _Command("maintenance", "compact", "Give unused space of a data directory back."),
    "inspect": _Command("inspect", "inspect", "Show captured or live ZAP traffic."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        try:
            module = importlib.import_module(f"zapserver.cli.{entry.module}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in SERVER_EXTRA:
                raise
            raise click.ClickException(
                f"`zaptasks {cmd_name}` needs {error.name}, which comes with the server: pip install 'zaptasks[server]'"
            ) from None
        command = getattr(module, entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, so that help imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="zaptasks", prog_name="zaptasks")
def main() -> None:
    """Tasks and workflows over ZAP.

    `zaptasks serve` runs a server, `zaptasks worker module:object` a worker, and `zaptasks now TYPE JSON` starts a
    task. `zaptasks demo` shows all of it at once.
    """
