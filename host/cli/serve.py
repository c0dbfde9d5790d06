"""``picoclaw serve``: the host, from the environment's settings."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from getpass import getpass
from typing import Final, NoReturn

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

HOPELESS: Final = 2
UNGUARDED: Final = (
    "API_TOKEN is not set: `picoclaw init` makes one; with ALLOW_NO_TOKEN_500=1 the host starts without it, "
    "and every route but /health answers 500"
)


def serve() -> NoReturn:
    """Run the host, from the environment, .security.yml and config.json."""
    # What is imported and opened on the way to a running host stays; the host enables it again.
    gc.disable()
    raise SystemExit(run(take_settings(os.environ)))


def take_settings(environ: MutableMapping[str, str]) -> Settings:
    """Load the settings and take the secrets out of the environment, so that no child inherits them.

    Ends the process, after a sentence on standard error, when they cannot be used.
    """
    try:
        settings = load(environ, passphrase_asker())
    except SettingsError as error:
        stop(str(error))
    for name in settings.secret_names:
        environ.pop(name, None)
    return settings


def stop(sentence: str) -> NoReturn:
    """Say what only the operator can mend, and end the process."""
    sys.stderr.write(f"picoclaw: {one_line(sentence)}\n")
    raise SystemExit(HOPELESS)


def run(settings: Settings) -> int:
    """Run the host with settings that were loaded; return its exit code."""
    if settings.api_token is None and not settings.allow_no_token_500:
        stop("; ".join((UNGUARDED, *(said for said in settings.warnings if said.startswith("api_token")))))
    not_dumpable()
    configure(settings.log_level, settings.log_format, Redactor(settings.secret_values()))
    # Its __init__ imports its command line.
    make_lazy("uvicorn")
    from host.server import run as run_server

    return run_server(settings)
