"""The supervisor: the one process that the host starts, and the parent of everything that touches the agent's
files.

It forks a confined worker per conversation, which talks to the host itself, and reapers for commands, whose
frames it passes on. It opens no path that the agent named and reads no file the agent wrote. When the host
goes, so does it, and with it everything below.
"""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final

from .confine import confine, namespaces, privileges, workspaces
from .confine.workspaces import Places
from .exec import reapers
from .exec.children import Child, Children, Jobs
from .exec.reapers import Reapers
from .files import files
from .frames import Channel, Closed, Config, Frame, Place, close_all
from .limits import quota

MOST_PAGES: Final = 512
REQUESTED: Final = ("command", "program", "environment", "cwd", "stdin", "timeout_ms")
GONE: Final = "the process that watches the command is gone"
_TURN_MS: Final = 1000
_SHORT_TURN_MS: Final = 20


def serve(descriptor: int) -> None:
    """Serve the host on an inherited socket until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    host = Channel(socket.socket(fileno=descriptor), takes_descriptors=True)
    host.socket.set_inheritable(False)
    try:
        Supervisor(host).run()
    except Closed:
        return
    except Exception as error:
        with contextlib.suppress(Closed):
            host.send({"fatal": f"{type(error).__name__}: {error}"})
        raise


class Supervisor:
    """The loop and its tables."""

    def __init__(self, host: Channel) -> None:
        self._host = host
        self._poll = select.poll()
        self._children = Children(self._poll)
        self._jobs = Jobs()
        self._pages: dict[str, int] = {}
        self._locks = os.memfd_create("locks")  # of file workers; stays empty
        self._pid = os.getpid()

    def run(self) -> None:
        """Configure from the first frame, then serve until the host closes; ends everything below.

        Raises ``Removed``: the host starts another, which has private directories again.
        """
        first = self._host.receive()
        self._workspace: str = first["workspace"]
        try:
            self._configure(first)
            self._loop()
        finally:
            self._end()

    def _configure(self, frame: Frame) -> None:
        privileges.adopt_orphans()
        privileges.not_dumpable()
        self._config, reason = reapers.configure(frame)
        self._places = Places(self._config)
        report = self._self_test()
        if self._config.namespaces and report["level"] < confine.LEVEL_OF_NAMESPACES:
            reason = reapers.why(report)
            self._config = self._config._replace(namespaces=False)
            report = self._self_test()
        if reason:
            report["missing"].append(f"namespaces ({reason})")
        self._host.send({"ready": report})
        self._poll.register(self._host, select.POLLIN)
        self._reapers.warm_up()
        self._places.remove_abandoned()

    def _self_test(self) -> Frame:
        """Try this configuration; its reapers are the ones that serve, unless another is tried."""
        reapers.precompute(self._config)
        self._reapers = Reapers(self._children, self._config, self._workspace)
        answer = self._reapers.tried(self._places)
        self._places.forget(confine.SELF_TEST)
        return confine.judge_self_test(self._config, answer)

    def _loop(self) -> None:
        while True:
            for descriptor, events in self._poll.poll(_SHORT_TURN_MS if self._children.leaving else _TURN_MS):
                if descriptor == self._host.fileno():
                    for frame in self._host.serve(events):
                        self._obey(frame)
                elif (child := self._children.at(descriptor)) is not None:
                    self._serve_child(child, events)
            self._children.watch(self._host)
            self._children.collect()
            self._reapers.retire_stale()
            self._reapers.warm_up()

    def _obey(self, frame: Frame) -> None:
        handler: Callable[[Frame], None] | None = getattr(self, f"_on_{frame.get('op')}", None)
        if handler is None:
            self._fail(frame, "unknown operation")
            return
        frame["streams"] = self._host.descriptors(frame.get("descriptors", 0))
        try:
            handler(frame)
        except OSError as error:
            self._fail(frame, f"the sandbox could not start a process: {error.strerror or error}")
        finally:
            close_all(frame["streams"])

    def _fail(self, frame: Frame, sentence: str) -> None:
        if "id" in frame:
            self._answer(frame["id"], {"error": sentence})

    # --- files

    def _on_worker(self, frame: Frame) -> None:
        """Start the conversation's file worker."""
        config, place = self._place(frame)
        self._start_worker(
            frame,
            lambda channel, host: files.serve(channel, host, config, place, self._pid, self._locks),
            config if files.needs_namespaces(config) else None,
            (self._locks, *config.kept),
        )

    def _on_surveyor(self, frame: Frame) -> None:
        """Start what looks at the directories of principals."""
        directory = frame["workspace"]
        workspaces.make_passable(directory)
        self._start_worker(
            frame, lambda channel, host: files.serve_surveyor(channel, host, self._config, directory)
        )

    def _on_viewer(self, frame: Frame) -> None:
        """Start what looks into one file."""
        program = (frame["program"], frame["kind"], frame["packages"])
        self._start_worker(
            frame, lambda channel, host: files.serve_viewer(channel, host, self._config, *program)
        )

    def _start_worker(
        self,
        frame: Frame,
        role: Callable[[Channel, Channel], None],
        inside: Config | None = None,
        kept: Sequence[int] = (),
    ) -> None:
        """Start one, on the host's own socket to it, in place of one that is stuck."""
        conversation = frame["conversation"]
        for child in self._children:
            if child.is_worker and child.conversation == conversation:
                self._drop(child)
        (descriptor,) = frame["streams"]
        worker = self._children.fork(
            lambda channel: role(channel, Channel(socket.socket(fileno=descriptor), takes_descriptors=True)),
            inside,
            namespaces.CLONE_NEWPID,
            kept=(descriptor, *kept),
        )
        worker.conversation = conversation
        worker.is_worker = True
        self._answer(frame["id"], {"ok": {}})

    # --- commands

    def _on_exec(self, frame: Frame) -> None:
        if not frame.get("background"):
            self._start_command(frame).requests.add(frame["id"])
        elif (refusal := self._jobs.refusal(frame["conversation"])) is not None:
            self._fail(frame, refusal)
        else:
            child = self._start_command(frame)
            child.job = self._jobs.add(frame["conversation"], frame["command"], child.channel.fileno())
            self._answer(frame["id"], {"ok": {"job": child.job}})

    def _start_command(self, frame: Frame) -> Child:
        config, place = self._place(frame)
        if config.most_bytes and (used := quota.known(config.page)) >= config.most_bytes:
            # Names are made by the reaper for who may not change all: it is to be stopped if it adds much.
            if place.words and used > config.most_bytes + quota.GRACE:
                raise OSError(quota.sentence(used, config.most_bytes))
            config = config._replace(is_full=not place.words)
        child = self._reapers.take(frame["conversation"], place, config)
        fields: Frame = {name: frame[name] for name in REQUESTED if name in frame}
        request = {**fields, "workspace": place.workspace, "temporary": place.temporary, "words": place.words}
        request["descriptors"] = len(frame["streams"])
        try:
            child.channel.queue(request, frame["streams"])
        except Closed:
            self._lose(child)
            raise OSError(GONE) from None
        self._children.watch(child.channel)
        return child

    def _on_cancel(self, frame: Frame) -> None:
        for child in self._children:
            if frame["target"] in child.requests:
                self._send(child, {"op": "cancel"})

    def _send(self, child: Child, frame: Frame) -> None:
        if not self._children.send(child, frame):
            self._lose(child)

    def _on_job(self, frame: Frame) -> None:
        """List, read or kill background commands."""
        conversation, kills = frame["conversation"], frame["action"] == "kill"
        if frame["action"] == "list":
            self._answer(frame["id"], {"ok": {"jobs": self._jobs.listed(conversation)}})
            return
        job = self._jobs.get(conversation, frame["job"])
        if job is None or (kills and job.result is not None):
            kind = "running background command" if kills else "background command"
            self._fail(frame, f"there is no {kind} {frame['job']} in this conversation")
        elif job.result is not None:
            self._answer(frame["id"], {"ok": job.result})
        else:
            child = self._children.at(job.descriptor)
            if child is None:
                raise OSError(GONE)
            child.requests.add(frame["id"])
            self._send(child, {"op": "cancel"} if kills else {"op": "peek", "id": frame["id"]})

    # --- conversations

    def _place(self, frame: Frame) -> tuple[Config, Place]:
        """Return what a conversation may do, and where it works."""
        config = reapers.for_principal(self._config, frame["allowance"])
        if config.counted:
            config = config._replace(page=self._page(config.counted[0]))
        if config.most_bytes:
            config = config._replace(counted=(*config.counted, self._places.shared(config.counted[0])))
        place = self._places.of(frame["conversation"], frame["workspace"], frame["words"], config)
        return config, place

    def _page(self, principal: str) -> int:
        """Return what all processes of a principal share of the last count of its files."""
        if principal not in self._pages and len(self._pages) >= MOST_PAGES:
            os.close(self._pages.pop(next(iter(self._pages))))  # it is counted anew
        if principal not in self._pages:
            self._pages[principal] = os.memfd_create("count")
        return self._pages[principal]

    def _on_place(self, frame: Frame) -> None:
        _, place = self._place(frame)
        self._answer(frame["id"], {"ok": {"temporary": place.temporary}})

    def _on_remove(self, frame: Frame) -> None:
        """Remove directories of principals, and end what works there."""
        for conversation in self._places.within(frame["paths"]):
            self._leave(conversation)
        paths = [*frame["paths"], self._places.shared(frame["paths"][0])]
        child = self._children.fork(lambda channel: channel.send({"left": workspaces.remove(paths)}))
        child.requests.add(frame["id"])

    def _on_forget(self, frame: Frame) -> None:
        self._leave(frame["conversation"])
        self._answer(frame["id"], {"ok": {}})

    def _leave(self, conversation: str) -> None:
        self._reapers.forget(conversation)
        for child in self._children:
            if child.conversation != conversation:
                continue
            if child.is_worker or not (child.requests or child.job):
                self._drop(child)
            else:
                self._send(child, {"op": "cancel"})
        self._jobs.forget(conversation)
        self._places.forget(conversation)

    # --- children

    def _serve_child(self, child: Child, events: int) -> None:
        try:
            frames = child.channel.serve(events)
        except Closed:
            self._lose(child)
            return
        for frame in frames:
            self._pass_on(child, frame)
        if self._children.at(child.channel.fileno()) is child:
            self._children.watch(child.channel)

    def _pass_on(self, child: Child, frame: Frame) -> None:
        """Pass an answer on, under the host's id that this child really owes, whatever it claims."""
        if child.is_worker:
            self._drop(child)  # it has nothing to say here
        elif "peek" in frame:
            self._settle(child, frame["peek"], {"ok": frame})
        elif "rests" in frame:
            self._reapers.rest(child)
        else:
            self._finished(child, frame)

    def _settle(self, child: Child, claimed: object, frame: Frame) -> None:
        if isinstance(claimed, int) and claimed in child.requests:
            child.requests.discard(claimed)
            self._answer(claimed, frame)

    def _answer(self, identity_: int, frame: Frame) -> None:
        answer: Frame = {key: frame[key] for key in ("ok", "error") if key in frame}
        self._host.queue({"id": identity_, **answer})

    def _finished(self, child: Child, frame: Frame) -> None:
        answer = {"error": frame["fault"]} if "fault" in frame else {"ok": frame}
        for identity_ in child.requests:
            self._answer(identity_, answer)
        child.requests.clear()
        if child.job is not None:
            self._jobs.finish(child.conversation, child.job, frame)
            child.job = None

    def _lose(self, child: Child) -> None:
        """A child is gone: answer what it owes, and end what it may have left."""
        self._children.forget(child)
        self._reapers.lost(child)
        if child.requests or child.job is not None:
            self._finished(child, {"fault": "the sandbox process died; try again"})
            self._children.end_orphans()

    def _drop(self, child: Child) -> None:
        self._children.kill(child)
        self._lose(child)

    def _end(self) -> None:
        """End everything below, and clean up."""
        self._children.end()
        with contextlib.suppress(AttributeError):  # never configured
            self._places.remove_all()
