"""The whole command line, as Typer sees it."""

from __future__ import annotations

import typer

from host.cli import chat as chat_command
from host.cli import tasks

app = typer.Typer(
    help="PicoClaw: a self-hosted agent host.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(tasks.app, name="tasks")
app.command("chat")(chat_command.chat)


@app.command()
def serve() -> None:
    """Run the host, from the environment, .security.yml and config.json."""
    from host.cli.serve import serve as run

    raise typer.Exit(run())


@app.command()
def dev() -> None:
    """Try it out: the host on this machine with its state in ./.run."""
    from host.cli.dev import dev as run

    raise typer.Exit(run())


@app.command()
def mcp() -> None:
    """Run the tool server on standard input and output."""
    from host.cli.mcp import become_tool_server

    become_tool_server()
