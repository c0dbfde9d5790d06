"""The owner of the process with the model's client: started when it is wanted, again when it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import anyio
from anyio.abc import Process

from host.models.link import Link
from host.models.messages import ModelConfig
from host.ports import Delta, ModelError, Reply
from shared.jsons import dump_bytes
from shared.processes import terminate

logger = logging.getLogger("picoclaw.agent")

STOP_S: Final = 5.0
"""How long the process may take to end once its socket is closed."""

PASSED_ON: Final = frozenset(
    {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "TZ"}
)
"""What of the host's environment is for the model's client, in capitals or not."""


class ModelProcess:
    """One process for all models of a host. Whoever makes it closes it."""

    def __init__(self) -> None:
        self._starting = anyio.Lock()
        self._process: Process | None = None
        self._link: Link | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return None if self._process is None else self._process.pid

    async def link(self) -> Link:
        """Return the way to the process, which is started if there is none; raises ModelError."""
        while self._link is None or self._link.lost:
            # Cut in two a start would leave a process without an owner.
            async with self._starting:
                with anyio.CancelScope(shield=True):
                    if self._link is None or self._link.lost:
                        self._link = await self._start()
        return self._link

    async def aclose(self) -> None:
        """Have the process end, and wait for that."""
        self._closed = True
        async with self._starting:
            await self._end()

    async def _start(self) -> Link:
        if self._process is not None:
            logger.warning("The model process ended unexpectedly and is started again")
            await self._end()
        if self._closed:
            raise ModelError("The host is stopping.", retryable=False)
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await anyio.open_process(
                    [sys.executable, "-I", "-m", "host.models.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=None,
                    env=_environment(),
                    cwd=os.sep,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                ours.close()
                logger.error("The model process could not be started: %s", error.strerror)
                raise ModelError(
                    "The process that reaches the model could not be started.", retryable=True
                ) from None
        ours.setblocking(False)
        _, link = await asyncio.get_running_loop().create_connection(lambda: Link(self._kill), sock=ours)
        return link

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _end(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._process is not None:
            process, self._process = self._process, None
            await terminate(process, STOP_S)


def _environment() -> dict[str, str]:
    passed_on = {name: value for name, value in os.environ.items() if name.upper() in PASSED_ON}
    return {**passed_on, "PYDANTIC_DISABLE_PLUGINS": "__all__"}


class RemoteModel:
    """A model's API, asked by the client in the process."""

    def __init__(self, process: ModelProcess, config: ModelConfig) -> None:
        self._process = process
        self._config = config

    async def load(self) -> None:
        """Have the process started; raises Misconfigured without a credential."""
        self._config.check()
        await self._process.link()

    async def reply(self, request: Mapping[str, Any], on_delta: Callable[[Delta], Awaitable[None]]) -> Reply:
        """See ``host.ports.Ask``; raises Misconfigured without a credential."""
        self._config.check()
        link = await self._process.link()
        return await link.ask(self._config, dump_bytes({**request, "stream": True}), on_delta)
