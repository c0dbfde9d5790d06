"""Which host the command line talks to, and with what token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from shared import jsons

DEV_FILE: Final = "dev.json"
DEV_HOME: Final = ".run"

EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True)
class Target:
    """A running host's address and the token for it."""

    url: str
    token: str | None = field(repr=False)


def find_target(url: str | None, token: str | None, environ: Mapping[str, str]) -> Target:
    """Return the host to talk to.

    Said on the command line, else by PICOCLAW_URL and API_TOKEN, else what ``picoclaw dev`` wrote down, else
    the host that this user's settings describe. A token that was found goes only to the host it is for.
    """
    said = (url or environ.get("PICOCLAW_URL") or "").rstrip("/")
    given = token or environ.get("API_TOKEN") or None
    for find in (_written_down, _configured):
        found = find(environ)
        if found is not None and said in ("", found.url):
            return Target(found.url, given or found.token)
    # Settings that this process can't use (a passphrase that was typed, say) may be the host's all the same.
    return Target(said or local_url(environ.get("HOST") or "127.0.0.1", environ.get("PORT") or 9000), given)


def local_url(host: str, port: int | str) -> str:
    """Return the URL at which a host on this machine is reached."""
    host = EVERYWHERE.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _configured(environ: Mapping[str, str]) -> Target | None:
    """Return the host that ``picoclaw serve`` would be; None when the settings cannot be used."""
    from shared.settings import SettingsError, load

    try:
        settings = load(environ)
    except SettingsError:
        return None
    token = settings.api_token.get_secret_value() if settings.api_token else None
    return Target(local_url(settings.host, settings.port), token)


def _written_down(environ: Mapping[str, str]) -> Target | None:
    home = environ.get("PICOCLAW_HOME")
    for directory in (home, DEV_HOME) if home else (DEV_HOME,):
        target = _read(Path(directory) / DEV_FILE)
        if target:
            return target
    return None


def _read(path: Path) -> Target | None:
    """Return what the file says; None for none, for another user's file, and for junk."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            said = jsons.loads(file.read())
        return Target(str(said["url"]), str(said["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
