"""What commands have in common before they do anything: the settings, or the sentence that ends them."""

import os
import sys
from collections.abc import Callable, MutableMapping
from getpass import getpass
from pathlib import Path
from typing import Final, NoReturn

from shared.settings import Settings, SettingsError, load
from shared.untrusted import one_line

HOPELESS: Final = 2
HOMES_MODE: Final = 0o711 if os.geteuid() == 0 else 0o700
"""Root's commands have a uid of their own, which has to pass through to the workspace."""
UNGUARDED: Final = (
    "API_TOKEN is not set: `picoclaw init` makes one; with ALLOW_NO_TOKEN_500=1 the host starts without it, "
    "and every route but /health answers 500"
)

EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def take_settings(environ: MutableMapping[str, str], *, making: bool = False) -> Settings:
    """Load the settings and take the secrets out of the environment, so that no child inherits them.

    ``making`` as for ``load``. Ends the process, after what is wrong with them, when they cannot be used.
    """
    try:
        settings = load(environ, passphrase_asker(), making=making)
    except SettingsError as error:
        stop(*error.faults)
    for name in settings.secret_names:
        environ.pop(name, None)
    return settings


def write_new(path: Path, text: str) -> bool:
    """Make a file for this user alone; False when something is there, a dangling link too. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def stop(*sentences: str, code: int = HOPELESS) -> NoReturn:
    """Say what the operator can mend, each on a line, and end the process."""
    sys.stderr.writelines(f"picoclaw: {one_line(sentence)}\n" for sentence in sentences)
    raise SystemExit(code)


def passphrase_asker() -> Callable[[], str | None] | None:
    """Return what asks the person at the terminal, or None when there is none."""
    return _ask if sys.stdin.isatty() else None


def _ask() -> str | None:
    try:
        return getpass("Passphrase of the encrypted secrets: ")
    except EOFError:
        return None


def local_url(host: str, port: int | str) -> str:
    """Return the URL at which a host on this machine is reached."""
    host = EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
