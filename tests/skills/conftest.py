"""The sandbox's workspace, for skills that run in it."""

from tests.sandbox.conftest import place, ws

__all__ = ["place", "ws"]
