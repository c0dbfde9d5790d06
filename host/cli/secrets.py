"""``picoclaw secrets``: the values of ``.security.yml``, which are never shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getpass
from typing import Annotated

import typer

from host.cli.secret_file import SecretFile
from host.cli.terminal import fail, out, print_json, shown, table
from shared.secrets import IN_FILE, SEALED, Sealer, SecretFault, has_variable, unseal
from shared.settings import SettingsError
from shared.settings.load import config_path
from shared.settings.security_yml import NAME

app = typer.Typer(help="The secrets in .security.yml; values are never shown.", no_args_is_help=True)

PASSPHRASE = "PICOCLAW_KEY_PASSPHRASE"  # noqa: S105 - a variable's name
NEW_PASSPHRASE = "PICOCLAW_NEW_KEY_PASSPHRASE"  # noqa: S105 - a variable's name


@app.command("list")
def list_secrets(json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """List which secrets there are and how each is kept."""
    with _faults():
        rows = [{"name": spot.name, "kept": _kept(spot.value)} for spot in _file().spots()]
    if json:
        print_json(rows)
        return
    made = table("secret", "kept")
    for row in rows:
        made.add_row(shown(row["name"]), row["kept"])
    out.print(made if rows else "No secrets.")


@app.command("set")
def set_secret(
    name: Annotated[str, typer.Argument(help="Such as api_token or model_list.default.api_keys.")],
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Keep it encrypted.")] = False,
    add: Annotated[bool, typer.Option("--add", help="Beside the keys that are there already.")] = False,
) -> None:
    """Set a secret; the value is read from standard input, without echo at a terminal."""
    with _faults():
        file = _file()
        value = _asked("Value: ").strip()
        if not value:
            fail("The value is empty; nothing was changed.")
        file.set(name, Sealer(_passphrase(PASSPHRASE, new=True)).seal(value) if encrypt else value, add=add)
        file.save()
    out.print(f"{shown(name)} is set.")


@app.command()
def encrypt() -> None:
    """Encrypt every value that is written in the clear."""
    with _faults():
        file = _file()
        plain = [spot for spot in file.spots() if _kept(spot.value) == "in the clear"]
        if plain:
            sealer = Sealer(_passphrase(PASSPHRASE, new=True))
            for spot in plain:
                spot.write(sealer.seal(spot.value))
            file.save()
    out.print(f"{len(plain)} encrypted.")


@app.command()
def rotate() -> None:
    """Encrypt every encrypted value anew, under a new passphrase."""
    with _faults():
        file = _file()
        sealed = [spot for spot in file.spots() if spot.value.startswith(SEALED)]
        if sealed:
            old = _passphrase(PASSPHRASE, new=False)
            values = [unseal(spot.value, old) for spot in sealed]
            sealer = Sealer(_passphrase(NEW_PASSPHRASE, new=True))
            for spot, value in zip(sealed, values, strict=True):
                spot.write(sealer.seal(value))
            file.save()
    out.print(f"{len(sealed)} encrypted anew.")


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
        fail(f"{variable} is not set, and there is no terminal to ask at.")
    first = getpass("New passphrase: " if new else "Passphrase: ")
    if new and getpass("The same again: ") != first:
        fail("The two differ; nothing was changed.")
    return first


def _asked(prompt: str) -> str:
    return getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline()


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except (SettingsError, SecretFault) as fault:
        fail(str(fault))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}")
    except EOFError:
        fail("Nothing was entered; nothing was changed.")
