"""How a command ends when something is wrong: sentences on standard error, and a code of docs/cli.md."""

from __future__ import annotations

from typing import Any, Final

from typer.core import TyperGroup

from host.cli.start import HOPELESS
from host.cli.terminal import fail, warn
from shared.errors import InvalidInput, Misconfigured, PicoError, StoreDamaged, StoreError
from shared.secrets import SecretFault
from shared.settings import SettingsError

FAILED: Final = 1
UNAUTHORIZED: Final = 401


class HostFault(Exception):
    """The host cannot be reached, or refused; the sentence is for people."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class Commands(TyperGroup):
    """All commands, none of which shows a stack trace for what a person can mend."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a fault ends the program."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # whoever reads has enough: Typer ends without a word
        except EOFError:
            fail("Nothing was entered; nothing was changed.")
        except (SettingsError, SecretFault, HostFault, StoreError, PicoError, OSError) as error:
            *others, last = _sentences(error)
            for sentence in others:
                warn(sentence)
            fail(last, _code(error))


def _sentences(error: Exception) -> tuple[str, ...]:
    if isinstance(error, SettingsError):
        return error.faults
    if isinstance(error, OSError) and error.filename:
        return (f"{error.filename}: {error.strerror}",)
    return (str(error),)


def _code(error: Exception) -> int:
    match error:
        case HostFault():
            hopeless = error.status == UNAUTHORIZED
        case StoreError():
            hopeless = error.hopeless and not isinstance(error, StoreDamaged)
        case _:
            hopeless = isinstance(error, SettingsError | SecretFault | Misconfigured | InvalidInput)
    return HOPELESS if hopeless else FAILED
