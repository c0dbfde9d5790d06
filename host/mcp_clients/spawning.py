"""What starts a stdio server: somebody who runs programs inside the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from anyio.abc import ByteStream

Spawn = Callable[[Sequence[str], Mapping[str, str]], AbstractAsyncContextManager[ByteStream]]
"""Runs a command confined, with this environment and nothing of the host's; yields stdin and stdout.

Leaving the context ends the program with everything it started.
"""
