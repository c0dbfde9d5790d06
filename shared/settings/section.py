"""What every part of the settings tree is made of: an immutable, strict model and its environment name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticUndefined


class SettingsError(Exception):
    """The settings cannot be used: a sentence for each fault, with file, line and key, never a value."""

    def __init__(self, *faults: str) -> None:
        self.faults = tuple(dict.fromkeys(faults))
        super().__init__("\n".join(self.faults))


class Section(BaseModel):
    """A node of the tree: immutable, no coercion, no unknown keys, no values in its errors."""

    # Built when first used: the root validates the whole tree, so the nodes never need to be (saves 10 ms).
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True
    )


@dataclass(frozen=True, slots=True)
class Env:
    """The operator's environment name of a field; one at the root has its own in capitals otherwise.

    ``under_home``: the field is a path whose default is this name below ``$PICOCLAW_HOME``.
    ``empty_counts``: an empty value is a value; elsewhere it is the same as unset.
    ``or_name``: another name of it, which is weaker.
    """

    name: str
    under_home: str | None = None
    empty_counts: bool = False
    or_name: str | None = None


def setting(meaning: str, default: Any = PydanticUndefined, **bounds: Any) -> Any:
    """Declare a field: what it means, its default (without one it has to be given), its bounds."""
    return Field(default, description=meaning, **bounds)
