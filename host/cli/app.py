"""The whole command line, as Typer sees it."""

from __future__ import annotations

from typing import Annotated

import typer

from host.cli import chat as chat_command
from host.cli import secrets, tasks

app = typer.Typer(
    help="PicoClaw: a self-hosted agent host.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(tasks.app, name="tasks")
app.add_typer(secrets.app, name="secrets")
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


@app.command()
def init() -> None:
    """Make a home: config.json, .security.yml with an API token, workspace; changes nothing that is there."""
    from host.cli.init import init as run

    run()


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """Check settings, secrets, volumes, sandbox and model; say what mends a fault."""
    from host.cli.doctor import doctor as run

    run(json=json)
