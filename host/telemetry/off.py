"""What stands around all that is worth telling about; it tells nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Set
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from host.ports import Ask, ToolResult, Toolset

Converse = TypeVar("Converse", bound=Callable[..., Awaitable[None]])
"""Works on a run: takes what is asked (``scheduled``), the lease, who hears (``model``, ``meter``), more."""


class Telemetry:
    """Tells nothing. ``host.telemetry.otel`` has one that tells OpenTelemetry."""

    def app(self, app: ASGIApp, *, probes: Set[str], methods: Set[str]) -> ASGIApp:
        """Return the application; its requests are told, but for those of the ``probes``' paths.

        A method that is none of ``methods`` is not told by its name.
        """
        return app

    def run(self, converse: Converse) -> Converse:
        """Return what works on a run; its runs are told."""
        return converse

    def ask(self, ask: Ask) -> Ask:
        """Return the way to a model; its replies are told."""
        return ask

    async def call(self, toolset: Toolset, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call a tool, and tell of it."""
        return await toolset.call(name, arguments)


OFF = Telemetry()
