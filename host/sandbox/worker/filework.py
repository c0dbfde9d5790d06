"""The file worker: one process per conversation, confined before it hears of any path."""

from __future__ import annotations

import contextlib
import select

from . import confine, files, namespaces, privileges, survey
from .config import Config, Place
from .frames import Channel, Closed, Frame
from .paths import Refused, RootPath, Roots, root_paths
from .private_root import PrivateRoot

TOOLS = {**files.TOOLS, "survey": survey.survey}


def serve(channel: Channel, host: Channel, config: Config, place: Place, supervisor: int) -> None:
    """Confine this process, then answer the host's requests until it or the supervisor closes its channel."""
    privileges.no_new_privileges()
    known = root_paths(config, place)
    if needs_namespaces(config):
        namespaces.settle(config.inner_uid, config.inner_gid)
        root = PrivateRoot(config, place.workspace)
        root.enter()
        root.show(place)
        privileges.renounce()
        confine.confine_worker(config, place, uid=None, gid=None)
    else:
        confine.confine_worker(config, place, uid=config.uid, gid=config.gid)
        privileges.die_with_parent(supervisor)  # after the change of uid, which clears it (prctl(2))
    waiting = select.poll()
    waiting.register(channel, select.POLLIN)
    waiting.register(host, select.POLLIN)
    with contextlib.suppress(Closed):
        # The supervisor says nothing: what is to be read there is its end.
        while channel.fileno() not in dict(waiting.poll()):
            host.send(answer(host.receive(), known))


def needs_namespaces(config: Config) -> bool:
    """Return whether a private root has to stand in for Landlock; without need a worker costs less."""
    return config.namespaces and not config.landlock_abi


def answer(request: Frame, known: list[RootPath]) -> Frame:
    """Run one tool; a fault of any kind is a sentence."""
    try:
        with Roots(known) as roots:
            return {"ok": TOOLS[request["tool"]](roots, request["arguments"])}
    except Refused as refusal:
        return {"error": str(refusal).encode("utf-8", "replace").decode()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        return {"error": f"the file tool failed: {type(error).__name__}: {error}"}
