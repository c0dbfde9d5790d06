"""``picoclaw dev``: the host for trying out, with everything it needs below one directory."""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import sys
import threading
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from host.cli.serve import BAD_SETTINGS, run, take_settings
from host.cli.target import DEV_FILE, DEV_HOME, EVERYWHERE, local_url
from shared.settings import Settings

POLL_S: Final = 0.05
NO_PORT: Final = 1


def dev() -> int:
    """Run the host on the loopback with its state in ``.run``; say how to talk to it once it answers."""
    token = prepare(os.environ)
    settings = take_settings(os.environ)
    if settings is None:
        return BAD_SETTINGS
    if not _is_free(settings):
        sys.stderr.write(
            f"picoclaw: port {settings.port} on {settings.host} is in use by another program; "
            f"stop that one or choose another port: PORT={settings.port + 1} make run\n"
        )
        return NO_PORT
    url = local_url(settings.host, settings.port)
    address = settings.home / DEV_FILE
    write_address(address, url, token)
    ended = threading.Event()
    threading.Thread(target=_greet, args=(settings, url, token, ended), daemon=True).start()
    try:
        return run(settings)
    finally:
        ended.set()
        address.unlink(missing_ok=True)


def dev_command() -> None:
    """Try it out: the host on this machine with its state in ./.run."""
    raise SystemExit(dev())


def prepare(environ: MutableMapping[str, str]) -> str:
    """Fill in what ``dev`` has other defaults for than ``serve``; return the API token."""
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
    return environ["API_TOKEN"]


def write_address(path: Path, url: str, token: str) -> None:
    """Write where the host is and its token for ``picoclaw chat``, readable by this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": url, "token": token}, file)


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

    curl -s {url}/chat -H 'Authorization: Bearer {token}' \\
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
    try:
        with socket.create_connection(_near(settings), timeout=1) as connection:
            connection.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def _is_free(settings: Settings) -> bool:
    """Return whether the port can be listened on; no other fault of the address is judged here."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
            probe.listen(1)
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _near(settings: Settings) -> tuple[str, int]:
    return EVERYWHERE.get(settings.host, settings.host), settings.port


def _command() -> str:
    """Return how this command was called, as a path from here when it is below."""
    called = Path(sys.argv[0]).absolute()
    here = Path.cwd()
    return str(called.relative_to(here)) if called.is_relative_to(here) else str(called)
