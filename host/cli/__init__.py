"""The ``picoclaw`` command: what there is, and the one that is asked for.

Only that one is imported. Commands that start long-lived processes are called before Typer is (40 ms).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from host.models import WORKER, environment
from shared.processes import begin_early

if TYPE_CHECKING:
    from io import TextIOWrapper

    from typer import Typer

COMMANDS: Final = {
    "chat": ("host.cli.chat", "chat"),
    "dev": ("host.cli.dev", "dev"),
    "doctor": ("host.cli.doctor", "doctor"),
    "init": ("host.cli.moving_in", "init"),
    "serve": ("host.cli", "become_host"),
    "supervise": ("host.cli", "become_supervisor"),
    "usage": ("host.cli.runs", "usage"),
}
GROUPS: Final = {
    "approvals": ("host.cli.runs", "approvals_app"),
    "files": ("host.cli.sandbox", "files_app"),
    "import": ("host.cli.moving_in", "app"),
    "mcp": ("host.cli.mcp", "app"),
    "principal": ("host.cli.principal", "app"),
    "runs": ("host.cli.runs", "app"),
    "sandbox": ("host.cli.sandbox", "app"),
    "secrets": ("host.cli.secrets", "app"),
    "store": ("host.cli.store", "app"),
    "tasks": ("host.cli.tasks", "app"),
    "token": ("host.cli.principal", "token_app"),
    "webhook": ("host.cli.webhook", "app"),
}
LONG_LIVED: Final = ("dev", "serve", "supervise")
INTERRUPTED: Final = 130

NO_SUPERVISOR: Final = "picoclaw: supervise needs supervisord: pip install 'picoclaw[image]'\n"


def main() -> None:
    """Run the command of ``sys.argv`` and end the process with its exit code."""
    # Pydantic's plugins would see every value that is validated, secrets too.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    # A stream that the caller closed is nobody's: no file or socket may get its number.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: PTH123, SIM115
    # A terminal that lacks a character shows ? in its place.
    for stream in (sys.stdout, sys.stderr):
        cast("TextIOWrapper", stream).reconfigure(errors="replace")
    try:
        Path.cwd()
    except OSError:
        sys.stderr.write("picoclaw: the working directory is gone; change to another\n")
        raise SystemExit(2) from None
    try:
        try:
            match sys.argv[1:]:
                case ["mcp"]:
                    become_tool_server()
                case [name] if name in LONG_LIVED:
                    _named(*COMMANDS[name])()
                case [*words]:
                    make_app(words[0] if words else None)()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:  # before anything was there to be closed
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:  # of a file, or of standard output: a reader who has enough, or a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"picoclaw: {error.filename or 'standard output'}: {error.strerror}\n")
        raise SystemExit(1) from None


def make_app(asked: str | None = None) -> Typer:
    """Return the application with the command ``asked``, or with all of them when there is no such one.

    The version is asked of none of them.
    """
    import typer

    from host.cli.terminal import Commands

    app = typer.Typer(name="picoclaw", cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)

    # Without a callback Typer would take a lone command for the application itself.
    @app.callback()
    def picoclaw(
        version: bool = typer.Option(
            False, "--version", help="Print the version.", callback=_version, is_eager=True
        ),
    ) -> None:
        """PicoClaw: a self-hosted agent host."""

    everything = asked not in (*COMMANDS, *GROUPS, "--version")
    for name in COMMANDS:
        if everything or name == asked:
            app.command(name)(_named(*COMMANDS[name]))
    for name, group in GROUPS.items():
        if everything or name == asked:
            app.add_typer(_named(*group), name=name)
    return app


def become_host() -> NoReturn:
    """Run the host, from the environment, .security.yml and config.json."""
    # First: it imports for as long as the host itself does, on another processor.
    early = begin_early(WORKER, environment())
    try:
        from host.cli.serve import serve

        serve(early)
    finally:
        if early is not None:
            early.kill()  # settings may be wrong


def become_tool_server() -> NoReturn:
    """Run the tool server on standard input and output.

    It replaces this process: standard streams, environment and process id stay. ``-P``: nothing is imported
    from the directory an agent happens to start it in. What stands for a stream that the caller closed stays,
    too: the store's files must not get its number.
    """
    for stream in (0, 1, 2):
        os.set_inheritable(stream, True)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "mcp_server"])  # noqa: S606 - no shell is what we want


def become_supervisor(config: Path | None = None) -> NoReturn:
    """Run the programs of a supervisord.conf, as the main process of a container."""
    from shared.processes import not_dumpable

    # The environment holds every secret of the programs, for as long as they may have to be restarted.
    not_dumpable()
    try:
        from host.cli.supervise import supervise
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("supervisor"):
            raise
        sys.stderr.write(NO_SUPERVISOR)
        raise SystemExit(2) from None
    raise SystemExit(supervise(config, all_json=os.environ.get("LOG_FORMAT") != "console"))


def _named(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _version(asked: bool) -> None:
    if asked:
        from shared.settings import Settings

        sys.stdout.write(
            f"picoclaw {os.environ.get('APP_VERSION') or Settings.model_fields['version'].default}\n"
        )
        raise SystemExit
