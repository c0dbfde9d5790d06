"""Tools of installed packages: the operator's own code, which runs in the host."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from host.ports import Toolset
from shared.errors import Misconfigured

GROUP: Final = "picoclaw.tools"
"""The entry points at which packages offer tools: a callable from its options to a ``Toolset``."""


def installed_tools(wanted: Mapping[str, Mapping[str, Any]]) -> list[Toolset]:
    """Return the toolsets that ``tools.plugins`` names, one for all runs; raises Misconfigured."""
    return [_made(name, options) for name, options in wanted.items()]


def _made(name: str, options: Mapping[str, Any]) -> Toolset:
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        raise Misconfigured(f"tools.plugins.{name}: no installed package offers tools of this name")
    try:
        toolset: Toolset = found[0].load()(options)
        list(toolset.specs)
    except Exception as error:
        raise Misconfigured(f"tools.plugins.{name}: {type(error).__name__}: {error}") from error
    return toolset
