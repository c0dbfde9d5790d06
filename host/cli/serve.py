"""``picoclaw serve``: the host, from the environment's settings."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from getpass import getpass
from typing import Final

from shared.lazy_packages import make_lazy
from shared.lines import one_line
from shared.logging import configure
from shared.processes import not_dumpable
from shared.redact import Redactor
from shared.settings import Settings, SettingsError, load


def passphrase_asker() -> Callable[[], str | None] | None:
    """Return what asks the person at the terminal, or None when there is none."""
    return _ask if sys.stdin.isatty() else None


def _ask() -> str | None:
    try:
        return getpass("Passphrase of the encrypted secrets: ")
    except EOFError:
        return None


logger = logging.getLogger("picoclaw.cli")

BAD_SETTINGS: Final = 2


def serve() -> int:
    """Run the host until it is stopped; return its exit code, 2 when the settings cannot be used."""
    # What is imported and opened on the way to a running host stays; the host enables it again.
    gc.disable()
    settings = take_settings(os.environ)
    return BAD_SETTINGS if settings is None else run(settings)


def serve_command() -> None:
    """Run the host, from the environment, .security.yml and config.json."""
    raise SystemExit(serve())


def take_settings(environ: MutableMapping[str, str]) -> Settings | None:
    """Load the settings and take the secrets out of the environment, so that no child inherits them.

    None when they cannot be used; the sentence is on standard error then.
    """
    try:
        settings = load(environ, passphrase_asker())
    except SettingsError as error:
        sys.stderr.write(f"picoclaw: {one_line(str(error))}\n")
        return None
    for name in settings.secret_names:
        environ.pop(name, None)
    return settings


def run(settings: Settings) -> int:
    """Run the host with settings that were loaded; return its exit code."""
    not_dumpable()
    configure(settings.log_level, settings.log_format, Redactor(settings.secret_values()))
    if settings.api_token is None:
        logger.warning("API_TOKEN is not set: every route but /health answers 500; `picoclaw init` makes one")
    # Its __init__ imports its command line.
    make_lazy("uvicorn")
    from host.server import run as run_server

    return run_server(settings)
