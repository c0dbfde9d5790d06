"""Which host a command is about, and its HTTP API: requests with the token, faults as one sentence."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import IO, Annotated, Any, Final, Self
from urllib.parse import quote

import httpx2
import typer

from host.cli.dev import DEV_FILE, DEV_HOME, DEV_NAMES
from host.cli.start import local_url, passphrase_asker
from host.cli.terminal import FAILED, HostFault, Told, err, shown, tell, warn
from shared import jsons
from shared.secrets import MAX_FILE_BYTES, read_regular
from shared.settings import Settings, SettingsError, load
from shared.settings.leaves import variable
from shared.settings.load import home_of

INCOMPLETE: Final = "not everything could be listed: too much, too deep, closed, or a name that isn't UTF-8"
CONNECT_S: Final = 5.0
ANSWER_S: Final = 60.0
PIECE_BYTES: Final = 1 << 16

Url = Annotated[str | None, typer.Option(help="Address of the host.")]
Token = Annotated[str | None, typer.Option(help="API token (better in API_TOKEN).")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@dataclass(frozen=True, slots=True)
class Target:
    """A running host's address, the token for it, and its home where it is this user's."""

    url: str
    token: str | None = field(repr=False)
    home: Path | None = None

    def __str__(self) -> str:
        return self.url if self.home is None else f"{self.url} ({self.home})"


def find_target(url: str | None, token: str | None, environ: Mapping[str, str]) -> Target:
    """Return the host to talk to.

    Said on the command line, else by PICOCLAW_URL and API_TOKEN, else the host of ``surroundings``. A token
    that was found goes only to the host it is for.
    """
    said = (url or variable(environ, "PICOCLAW_URL")).strip().rstrip("/")
    if said and "://" not in said:
        said = f"http://{said}"
    by_name = variable(environ, "API_TOKEN").strip()
    around = surroundings(environ)
    try:
        settings = load(around)
    except SettingsError:
        # This process may lack what the host has, such as a passphrase that was typed.
        own = local_url(around.get("HOST") or "127.0.0.1", around.get("PORT") or 9000)
        return Target(said or own, token or by_name or None)
    own = local_url(settings.host, settings.port)
    found = settings.api_token.get_secret_value() if settings.api_token else None
    if said not in ("", own):
        return Target(said, token or (found if by_name else None))
    return Target(own, token or found, settings.home)


def surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that makes the settings those of the host that commands are about.

    The host whose home PICOCLAW_HOME names. Without it the one that ``picoclaw dev`` runs in this directory;
    else the home's; else, where there is no home, the one that ran in this directory.
    """
    home, here = home_of(environ), Path(DEV_HOME).absolute()
    if not variable(environ, "PICOCLAW_HOME") and (_running(here) or (not home.exists() and _is_mine(here))):
        home = here
    given = {name: value for name, value in environ.items() if value.strip()}
    running = _running(home)
    # A PORT that stands here for something else is not where that host listens.
    listening = {name: running[name] for name in running.keys() - {"API_TOKEN"}}
    return {**running, **given, **listening, "PICOCLAW_HOME": str(home)}


def _running(home: Path) -> dict[str, str]:
    """Return what ``picoclaw dev`` wrote down of itself; nothing for none, another user's file, and junk."""
    path = home / DEV_FILE
    try:
        said = jsons.loads(read_regular(path, MAX_FILE_BYTES)) if _is_mine(path) else {}
        return {name: str(said[name]) for name in said.keys() & DEV_NAMES}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_mine(path: Path) -> bool:
    return path.exists() and path.stat().st_uid == os.geteuid()


def host_settings() -> Settings:
    """Return the settings of the host that commands are about, and say which it is; raises SettingsError."""
    settings = load(surroundings(os.environ), passphrase_asker())
    err.print(f"[dim]The host of {shown(str(settings.home))}[/]", soft_wrap=True)
    return settings


def host(url: str | None, token: str | None, *, say: bool = False) -> HostClient:
    """Return a client of the host that options, environment or directory name.

    ``say``: tell a person first which host was found.
    """
    target = find_target(url, token, os.environ)
    if say and target.home:
        err.print(f"[dim]{shown(str(target))}[/]", soft_wrap=True)
    return HostClient(target)


def asking(command: Callable[..., Told]) -> Callable[..., None]:
    """Make a command of a function that is given a client and returns what came of it.

    It gets the options that say which host is meant, and --json.
    """

    def options(url: Url = None, token: Token = None, json: Json = False) -> None:
        """Only declared."""

    @wraps(command)
    def asked(*, url: str | None, token: str | None, json: bool, **given: Any) -> None:
        with host(url, token, say=not json) as client:
            told = command(client, **given)
        tell(told.value, told.words, json=json)
        if not told.ok:
            raise SystemExit(FAILED)

    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    common = inspect.signature(options, eval_str=True).parameters.values()
    asked.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    return asked


def at(*steps: str) -> str:
    """Return a path of these steps, whatever characters they have.

    Raises HostFault for ``.``, ``..`` and nothing: with those it would be the path of something else.
    """
    if not {".", "..", ""}.isdisjoint(steps):
        raise HostFault(f"{'/'.join(steps)!r} must not contain . or .. or an empty name")
    return "".join(f"/{quote(step, safe='', errors='surrogateescape')}" for step in steps)


class HostClient:
    """A connection to a running host."""

    def __init__(self, target: Target) -> None:
        headers = {"X-PicoClaw-Door": "cli"}
        if target.token:
            headers["Authorization"] = f"Bearer {target.token}"
        self.target = target
        try:
            self._client = httpx2.Client(
                base_url=target.url,
                headers=headers,
                timeout=httpx2.Timeout(ANSWER_S, connect=CONNECT_S),
                trust_env=not _is_local(target.url),
            )
        except (httpx2.InvalidURL, UnicodeEncodeError):
            raise HostFault("The host's URL or token has characters that HTTP cannot carry.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        timeout: float | None = ANSWER_S,
    ) -> Any:
        """Return the answer's JSON (None for an empty one); raises ``HostFault``."""
        with self._faults():
            response = self._client.request(method, path, json=body, params=params, timeout=timeout)
            self._check(response)
            return response.json() if response.content else None

    def send(self, path: str, file: IO[bytes]) -> Any:
        """Send a file, as long as it is now, and return the answer; raises ``HostFault``.

        What has no length, such as a pipe, is sent to its end.
        """
        size = os.fstat(file.fileno()).st_size
        headers = {"Content-Length": str(size)} if size else {}
        with self._faults():
            response = self._client.put(path, content=_pieces(file, size or sys.maxsize), headers=headers)
            self._check(response)
            return response.json()

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield a file as it comes; raises ``HostFault``."""
        with self._faults(), self._client.stream("GET", path) as response:
            if not response.is_success:
                response.read()
                self._check(response)
            yield from response.iter_raw()

    def pages(self, path: str, key: str, **params: str) -> Iterator[dict[str, Any]]:
        """Yield the items of a paged list, and say in the end whether it left something out."""
        is_incomplete = False
        while True:
            page = self.request("GET", path, params=params)
            yield from page[key]
            is_incomplete = is_incomplete or page.get("incomplete", False)
            if not page.get("next_cursor"):
                if is_incomplete:
                    warn(INCOMPLETE)
                return
            params["cursor"] = page["next_cursor"]

    def events(
        self, body: Mapping[str, Any] | None, path: str = "/chat"
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Start a run by ``POST``, or follow one (no body); yield its events. Raises ``HostFault``."""
        method, endless = "GET" if body is None else "POST", httpx2.Timeout(None, connect=CONNECT_S)
        with self._faults(), self._client.sse(path, method=method, json=body, timeout=endless) as source:
            if source.response.status_code != httpx2.codes.OK:
                source.response.read()
                self._check(source.response)
            for event in source:
                if event.data:
                    yield event.event, _object(event.json())

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError:
            raise HostFault(
                f"No host answers at {self.target}. Start one with `picoclaw serve`, or name it with --url."
            ) from None
        except httpx2.TimeoutException:
            raise HostFault(f"The host at {self.target.url} did not answer in time.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise HostFault(f"The connection to {self.target.url} failed: {type(error).__name__}.") from None
        except UnicodeEncodeError as error:
            # Python makes half a character of each byte of an argument that is not UTF-8.
            byte = ord(error.object[error.start]) & 0xFF
            raise HostFault(
                f"What you gave is not UTF-8: it has the byte 0x{byte:02x}. "
                "Use a terminal that is set to UTF-8, or convert the text, for instance with iconv."
            ) from None
        except ValueError:
            raise HostFault(f"What answers at {self.target.url} is not a PicoClaw host.") from None

    def _check(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        if response.status_code == httpx2.codes.UNAUTHORIZED:
            without = "wants a token: set API_TOKEN, or give --token."
            said = (
                without if self.target.token is None else "does not accept this token (API_TOKEN or --token)."
            )
            raise HostFault(f"{self.target.url} {said}", response.status_code)
        said = str(_object(response.json()).get("error", response.reason_phrase))
        raise HostFault(said, response.status_code)


def _pieces(file: IO[bytes], left: int) -> Iterator[bytes]:
    while piece := file.read(min(left, PIECE_BYTES)):
        left -= len(piece)
        yield piece


def _is_local(url: str) -> bool:
    """Return whether a URL is this machine's, where no proxy has a place."""
    return httpx2.URL(url).host in ("127.0.0.1", "::1", "localhost")


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
