"""What commands have in common before they do anything: the settings, or the sentence that ends them."""

import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from getpass import getpass
from pathlib import Path
from typing import Final, NoReturn

from shared.processes import hangs
from shared.settings import Settings, SettingsError, load
from shared.untrusted import one_line

HOPELESS: Final = 2
HANGS_S: Final = 8.0
"""A file system that hasn't answered for so many seconds is told."""
HOMES_MODE: Final = 0o711 if os.geteuid() == 0 else 0o700
"""Root's commands have a uid of their own, which has to pass through to the workspace."""
UNGUARDED: Final = (
    "API_TOKEN is not set: `picoclaw init` makes one; with ALLOW_NO_TOKEN_500=1 the host starts without it, "
    "and every route but /health answers 500"
)

SHORTEST_TOKEN: Final = 16
FEWEST_CHARACTERS: Final = 6
"""Different ones."""
# Atomic and possessive: it never goes back, however long a token is.
_WORD: Final = (
    r"(?>change[-_ .]?(?:me|this|it)|replace|your|insert|placeholder|example|sample|todo|fixme|dummy|secret|"
    r"token|password|passphrase|api|key|default|openssl|random|rand|hex|picoclaw|here|goes|to|of|the|me|with|"
    r"own|this|value|string|output|put|please|now)"
)
PLACEHOLDER: Final = re.compile(
    rf"(?:{_WORD}[-_ .]*+)++\d{{0,4}}|(?:change[-_ .]?me|replace|your|insert)[-_ .].*"
    r"|<.*>|\[.*\]|\{.*\}|%\w+%",
    re.IGNORECASE,
)

EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


def take_settings(environ: MutableMapping[str, str], *, making: bool = False) -> Settings:
    """Load the settings and take the secrets out of the environment, so that no child inherits them.

    ``making`` as for ``load``. Ends the process, after what is wrong with them, when they cannot be used.
    """
    told = threading.Timer(HANGS_S, _tell_what_hangs, (dict(environ),))
    told.daemon = True
    told.start()
    try:
        settings = load(environ, passphrase_asker(), making=making)
    except SettingsError as error:
        stop(*error.faults)
    finally:
        told.cancel()
    for name in settings.secret_names:
        environ.pop(name, None)
    return settings


def _tell_what_hangs(environ: Mapping[str, str]) -> None:
    """Name the places of settings that don't answer: nothing else would be said, for ever."""
    places = {"PICOCLAW_HOME": str(Path("~/.picoclaw").expanduser()), **environ}
    for name in ("PICOCLAW_HOME", "PICOCLAW_CONFIG", "ORG_DIR"):
        if (path := places.get(name)) and hangs(partial(os.stat, path), 1.0):
            sys.stderr.write(f"picoclaw: the settings cannot be read: {name} ({path}) does not answer\n")


def guessable(settings: Settings) -> str | None:
    """Return which API token whoever reads the documentation could guess, as a sentence without it."""
    for name in ("api_token", "api_token_previous"):
        secret = getattr(settings, name)
        fault = None if secret is None else _fault(secret.get_secret_value())
        if fault is not None:
            return f"{name.upper()} {fault}; make one with `openssl rand -hex 32` or `picoclaw init`"
    return None


def lacks_temporary_files() -> str | None:
    """Return why there can be no temporary files, as a sentence that says what mends it."""
    import tempfile  # many commands live without it

    try:
        tempfile.gettempdir().encode()
    except FileNotFoundError:
        return "TMPDIR: no directory for temporary files can be written; mount one at /tmp, or name one"
    except UnicodeEncodeError:
        return "TMPDIR: its path is not UTF-8 text; name another directory"
    return None


def _fault(token: str) -> str | None:
    if len(token) < SHORTEST_TOKEN:
        return f"is shorter than {SHORTEST_TOKEN} characters"
    if PLACEHOLDER.fullmatch(token):
        return "is a placeholder"
    return "repeats a few characters" if len(set(token)) < FEWEST_CHARACTERS else None


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
