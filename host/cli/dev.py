"""``picoclaw dev``: the host for trying out, with everything it needs below one directory."""

import json
import os
import platform
import secrets
import shlex
import socket
import sys
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from host.cli.start import EVERYWHERE, HOMES_MODE, local_url, stop, take_settings, write_new
from shared.settings import Settings
from shared.settings.load import config_path
from shared.settings.security_yml import NAME

POLL_S: Final = 0.05
DEV_FILE: Final = "dev.json"
DEV_HOME: Final = ".run"
DEV_NAMES: Final = frozenset({"HOST", "PORT", "API_TOKEN"})
"""The settings of a running ``picoclaw dev`` that stand in its file for the commands beside it."""


def dev() -> NoReturn:
    """Try it out: the host on this machine with its state in ./.run."""
    from host.cli.serve import CannotListen, listening, run

    prepare(os.environ)
    with suppress(OSError):  # the settings say what is wrong with the folder
        folder = config_path(os.environ).parent
        folder.mkdir(parents=True, exist_ok=True, mode=HOMES_MODE)
        write_new(folder / NAME, f'seal_key: "{secrets.token_urlsafe(32)}"\n')
    settings = take_settings(os.environ)
    _check_system(settings)
    token = settings.api_token.get_secret_value() if settings.api_token else ""
    url = local_url(settings.host, settings.port)
    address = settings.home / DEV_FILE
    try:
        bound = listening(settings)
    except CannotListen as fault:
        stop(str(fault), code=fault.code)
    try:
        write_address(address, {"HOST": settings.host, "PORT": str(settings.port), "API_TOKEN": token})
    except OSError as error:
        stop(f"{error.filename} cannot be written ({error.strerror}); start it in a folder of yours")
    ended = threading.Event()
    threading.Thread(target=_greet, args=(settings, url, token, ended), daemon=True).start()
    try:
        raise SystemExit(run(settings, bound))
    finally:
        ended.set()
        address.unlink(missing_ok=True)


def prepare(environ: MutableMapping[str, str]) -> None:
    """Fill in what ``dev`` has other defaults for than ``serve``."""
    defaults = {
        "PICOCLAW_HOME": str(Path(DEV_HOME).absolute()),
        "API_TOKEN": secrets.token_urlsafe(24),
        "LOG_FORMAT": "console",
        "CONSOLE": "true",
    }
    for name, value in defaults.items():
        if not environ.get(name, "").strip():
            environ[name] = value
    if environ.get("PORT", "").strip() == "0":
        environ["PORT"] = str(_free_port())


def write_address(path: Path, names: dict[str, str]) -> None:
    """Write down for the commands beside it which host runs here, readable by this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=HOMES_MODE)
    path.unlink(missing_ok=True)
    write_new(path, json.dumps(names))


def banner(settings: Settings, url: str, token: str) -> str:
    """Return what a newcomer should read: where it is, who answers, two lines to paste."""
    model = "the embedded offline model (set ANTHROPIC_API_KEY for a real one)"
    if not settings.offline:
        model = settings.agents.defaults.model_name or settings.model.model
    return f"""
  {settings.assistant_name} is ready at {url}
  Model: {model}
  State: {settings.home}
{_console(settings, url, token)}
  Talk to it from another terminal:

    {_command()} chat

    curl -s {url}/chat -H {shlex.quote(f"Authorization: Bearer {token}")} \\
      -H 'Content-Type: application/json' -d '{{"message": "remember that my cat is called Miso"}}'

  Ctrl-C stops it.
"""


def _console(settings: Settings, url: str, token: str) -> str:
    """Return where the web console is; the token is typed there, so that no address ever holds it."""
    if not settings.console:
        return ""
    return f"\n  In a browser:  {url}/console\n  Its token:     {token}\n"


def _greet(settings: Settings, url: str, token: str, ended: threading.Event) -> None:
    """Print the banner when the host answers /health; give up when it has ended."""
    while not ended.wait(POLL_S):
        if _answers(settings):
            sys.stdout.write(banner(settings, url, token))
            sys.stdout.flush()
            return


def _answers(settings: Settings) -> bool:
    near = EVERYWHERE.get(settings.host, settings.host)
    try:
        with socket.create_connection((near, settings.port), timeout=1) as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def _check_system(settings: Settings) -> None:
    if platform.system() != "Linux" and settings.sandbox_min_level:
        stop(
            f"{platform.system()} has no sandbox, so file tools and commands do not work here; conversations,"
            " tasks, channels and MCP servers do. For everything run the container: docker compose up "
            "(docs/deploy.md). For the rest alone: SANDBOX_MIN_LEVEL=0 make run"
        )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _command() -> str:
    """Return how this command was called, as a path from here when it is below."""
    called = Path(sys.argv[0]).absolute()
    here = Path.cwd()
    return shlex.quote(str(called.relative_to(here) if called.is_relative_to(here) else called))
