"""The whole command line, as Typer sees it. Only the command that is asked for is imported."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Final

import typer

COMMANDS: Final = {
    "chat": ("host.cli.chat", "chat"),
    "dev": ("host.cli.dev", "dev_command"),
    "doctor": ("host.cli.doctor", "doctor"),
    "init": ("host.cli.init", "init"),
    "mcp": ("host.cli", "become_tool_server"),
    "serve": ("host.cli.serve", "serve_command"),
    "supervise": ("host.cli.supervise", "supervise_command"),
    "usage": ("host.cli.usage", "usage"),
}
GROUPS: Final = {
    "sandbox": "host.cli.sandbox",
    "secrets": "host.cli.secrets",
    "store": "host.cli.store",
    "tasks": "host.cli.tasks",
    "token": "host.cli.token",
}


def make_app(asked: str | None = None) -> typer.Typer:
    """Return the application with the command ``asked``, or with all of them when there is no such one."""
    app = typer.Typer(name="picoclaw", no_args_is_help=True, pretty_exceptions_enable=False)

    # Without a callback Typer would take a lone command for the application itself.
    @app.callback()
    def picoclaw(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None:
        """PicoClaw: a self-hosted agent host."""

    everything = asked not in COMMANDS and asked not in GROUPS
    for name, (module, function) in COMMANDS.items():
        if everything or name == asked:
            app.command(name)(getattr(import_module(module), function))
    for name, module in GROUPS.items():
        if everything or name == asked:
            app.add_typer(import_module(module).app, name=name)
    return app


def _version(asked: bool) -> None:
    if asked:
        from shared.settings import Settings

        typer.echo(f"picoclaw {os.environ.get('APP_VERSION') or Settings.model_fields['version'].default}")
        raise typer.Exit
