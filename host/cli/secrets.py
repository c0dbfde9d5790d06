"""``picoclaw secrets``: the values of ``.security.yml``, which are never shown."""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from getpass import getpass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from ruamel.yaml.util import load_yaml_guess_indent

from host.cli.client import Json
from host.cli.terminal import fail, shown, table, tell, warn
from shared.secrets import IN_FILE, SEALED, Sealer, has_variable, unseal
from shared.settings import SettingsError
from shared.settings.files import read_text
from shared.settings.load import config_path
from shared.settings.security_yml import NAME, ROOT_KEYS

app = typer.Typer(help="The secrets in .security.yml; values are never shown.", no_args_is_help=True)

PASSPHRASE = "PICOCLAW_KEY_PASSPHRASE"  # noqa: S105 - a variable's name
NEW_PASSPHRASE = "PICOCLAW_NEW_KEY_PASSPHRASE"  # noqa: S105 - a variable's name

FORMS: Final = (
    *ROOT_KEYS,
    "model_list.<name>.api_keys",
    "channels.<name>.token",
    "channels.telegram.webhook_secret",
    "channels.plugins.<name>.secrets.<name>",
    "telemetry.headers",
    "tools.mcp.servers.<name>.env.<NAME>",
    "tools.mcp.servers.<name>.headers.<Name>",
    "tools.mcp.servers.<name>.client_secret",
)

_MODEL_KEY: Final = re.compile(r"model_list\.(?P<name>.+)\.api_keys?")
_OTHERS: Final = (
    *(re.compile(re.sub("<.*?>", "[^.]+", form.replace(".", r"\."))) for form in FORMS),
    re.compile(r"channels\.[^.]+\.settings\.(?:token|webhook_secret)"),
)


@app.command("list")
def list_secrets(json: Json = False) -> None:
    """List which secrets there are and how each is kept."""
    rows = [{"name": spot.name, "kept": _kept(spot.value)} for spot in _file().spots()]
    made = table("secret", "kept")
    for row in rows:
        made.add_row(shown(row["name"]), row["kept"])
    tell(rows, made if rows else "No secrets.", json=json)


@app.command("set")
def set_secret(
    name: Annotated[str, typer.Argument(help="Such as api_token or model_list.default.api_keys.")],
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Keep it encrypted.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Beside the keys that are there already.")] = False,
    json: Json = False,
) -> None:
    """Set a secret; the value is read from standard input, without echo at a terminal."""
    file = _file()
    value = (getpass("Value: ") if sys.stdin.isatty() else _piped()).strip()
    if not value:
        fail("The value is empty; nothing was changed.")
    file.set(name, Sealer(_passphrase(PASSPHRASE, new=True)).seal(value) if encrypt else value, add=add)
    file.save()
    tell({"set": name}, f"{shown(name)} is set.", json=json)


@app.command()
def encrypt(json: Json = False) -> None:
    """Encrypt every value that is written in the clear."""
    file = _file()
    plain = [spot for spot in file.spots() if _kept(spot.value) == "in the clear"]
    if plain:
        sealer = Sealer(_passphrase(PASSPHRASE, new=True))
        for spot in plain:
            spot.write(sealer.seal(spot.value))
        file.save()
    tell({"encrypted": len(plain)}, f"{len(plain)} encrypted.", json=json)


@app.command()
def rotate(json: Json = False) -> None:
    """Encrypt every encrypted value anew, under a new passphrase."""
    file = _file()
    sealed = [spot for spot in file.spots() if spot.value.startswith(SEALED)]
    if sealed:
        old = _passphrase(PASSPHRASE, new=False)
        values = [unseal(spot.value, old) for spot in sealed]
        sealer = Sealer(_passphrase(NEW_PASSPHRASE, new=True))
        for spot, value in zip(sealed, values, strict=True):
            spot.write(sealer.seal(value))
        file.save()
    config = config_path(os.environ)
    if SEALED in (read_text(config) or ""):
        warn(f"{config} has encrypted values too, which stay as they are: move them to {NAME}")
    tell({"encrypted": len(sealed)}, f"{len(sealed)} encrypted anew.", json=json)


def _file() -> SecretFile:
    return SecretFile(config_path(os.environ).parent / NAME)


def _kept(value: str) -> str:
    if has_variable(value):
        return "in a variable"
    kinds = {SEALED: "encrypted", IN_FILE: "in a file"}
    return next((kind for scheme, kind in kinds.items() if value.startswith(scheme)), "in the clear")


def _passphrase(variable: str, *, new: bool) -> str:
    """Return the passphrase of a variable, or ask for it; a new one is asked for twice."""
    given = os.environ.get(variable)
    if given:
        return given
    if not sys.stdin.isatty():
        fail(f"{variable} is not set, and there is no terminal to ask at.", 2)
    first = getpass("New passphrase: " if new else "Passphrase: ")
    if new and getpass("The same again: ") != first:
        fail("The two differ; nothing was changed.")
    return first


def _piped() -> str:
    with suppress(UnicodeDecodeError):
        text = sys.stdin.buffer.read().decode("utf-8-sig")
        if "\0" not in text:
            return text
    return fail("The value is not UTF-8 text; nothing was changed.")


@dataclass(frozen=True, slots=True)
class Spot:
    """A place of the file that holds one secret value."""

    name: str
    holder: Any
    key: str | int

    @property
    def value(self) -> str:
        """The value as it is written."""
        return str(self.holder[self.key])

    def write(self, text: str) -> None:
        """Put another value in its place."""
        self.holder[self.key] = text


class SecretFile:
    """The file as a tree that keeps comments, order and unknown keys.

    Raises ``SettingsError`` when it is no YAML.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = read_text(path) or ""
        self._yaml = YAML()
        self._yaml.preserve_quotes = True
        self._yaml.width = 1 << 20
        try:
            _, indent, offset = load_yaml_guess_indent(StringIO(text))
            self._yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
            self._tree: Any = self._yaml.load(text)
        except (YAMLError, ValueError, RecursionError):
            raise SettingsError(f"{path} is not YAML; `picoclaw doctor` says where") from None
        if self._tree is None:
            self._tree = CommentedMap()
            self._heading = text
        elif isinstance(self._tree, CommentedMap):
            self._heading = ""
        else:
            raise SettingsError(f"{path} must hold a mapping")

    def spots(self) -> list[Spot]:
        """Return every place that holds a secret value, in the file's order; what is encrypted is one."""
        found = _walk("", self._tree)
        return [spot for spot in found if _is_secret(spot.name) or spot.value.startswith(SEALED)]

    def set(self, name: str, value: str, *, add: bool) -> None:
        """Set one value; ``add`` puts it beside the ones that a list of keys has already.

        Raises ``SettingsError`` for a name that is no secret's, and where something else stands above it.
        """
        *path, last = _steps(name)
        node = self._tree
        for step in path:
            if node.get(step) is None:
                node[step] = CommentedMap()
            node = node[step]
            if not isinstance(node, dict):
                raise SettingsError(f"{self.path}: {step} must be a mapping; nothing was changed")
        if last != "api_keys":
            node[last] = value
        elif add and isinstance(node.get(last), list):
            node[last].append(value)
        else:
            node[last] = [value]

    def remove(self, name: str) -> bool:
        """Remove everything at and below a name; False if there was nothing."""
        *path, last = name.split(".")
        node = self._tree
        for step in path:
            node = node.get(step) if isinstance(node, dict) else None
        return isinstance(node, dict) and node.pop(last, None) is not None

    def save(self) -> None:
        """Write the file in one step, for this user's eyes alone; a link's target is what is replaced."""
        text = StringIO()
        text.write(self._heading)
        self._yaml.dump(self._tree, text)
        rewrite(self.path, text.getvalue(), private=True)


def rewrite(path: Path, text: str, *, private: bool) -> None:
    """Replace a file's content in one step. The mode of one that isn't private stays; all others get 0600.

    Root leaves it to whom it belongs, a new one to whom its directory belongs. Where the path is a link, the
    file that it leads to is meant.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            state = (path if path.exists() else path.parent).stat()
            if os.geteuid() == 0:
                os.fchown(file.fileno(), state.st_uid, state.st_gid)
            if path.exists() and not private:
                os.fchmod(file.fileno(), stat.S_IMODE(state.st_mode))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _walk(name: str, node: Any) -> Iterator[Spot]:
    if isinstance(node, dict):
        for key, item in node.items():
            yield from _step(f"{name}.{key}".lstrip("."), node, key, item)
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield from _step(name, node, index, item)


def _step(name: str, holder: Any, key: str | int, item: Any) -> Iterator[Spot]:
    if isinstance(item, str) and item:
        yield Spot(name, holder, key)
    else:
        yield from _walk(name, item)


def _is_secret(name: str) -> bool:
    return bool(_MODEL_KEY.fullmatch(name)) or any(form.fullmatch(name) for form in _OTHERS)


def _steps(name: str) -> list[str]:
    model = _MODEL_KEY.fullmatch(name)
    if model:  # a model's name may have dots
        return ["model_list", model["name"], "api_keys"]
    if not _is_secret(name):
        raise SettingsError(f"{name} is not a secret's name; the forms are {', '.join(FORMS)}")
    return name.split(".")
