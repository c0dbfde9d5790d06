"""The worker that looks at the directories of all principals for the host, one after the other.

It has no tool but ``survey``, may read below PRINCIPALS_DIR alone and write nothing, and works under the uid
of whose directory it looks at: what that principal plants leads to no more than the principal itself reaches.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from ..config import Config
from ..confine import confine, privileges
from ..frames import Channel, Frame
from . import files
from .paths import RootPath, Roots

PROCESSOR_S: Final = 0.5  # a survey of a hundred skills takes 10 ms, and the other principals' wait meanwhile


def serve(channel: Channel, host: Channel, config: Config, directory: str) -> None:
    """Confine this process to ``directory``, then answer the host's requests, as ``files.serve`` does."""
    privileges.no_new_privileges()
    confine.confine_surveyor(config, directory)

    def respond(request: Frame) -> Frame:
        arguments = request["arguments"] | {"unborn": True}
        with _acting_as(config, arguments["uid"]):
            roots = Roots([RootPath(arguments["root"], False, follow=False)])
            return files.answer({"tool": "survey", "arguments": arguments}, roots, PROCESSOR_S)

    files.attend(channel, host, respond)


@contextlib.contextmanager
def _acting_as(config: Config, principals: int | None) -> Iterator[None]:
    """Have a principal's uid, or that of all commands if it has none: root passes over no mode."""
    own = None if config.no_uids else principals
    uid, gid = (config.uid, config.gid) if own is None else (own, own)
    if uid is None or gid is None:
        yield
        return
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
