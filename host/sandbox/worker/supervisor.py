"""The supervisor: the one process that the host starts, and the parent of everything that touches the agent's
files.

It forks a confined worker per conversation and a reaper per command, and passes frames between them and the
host. It opens no path that the agent named and reads no file the agent wrote. When the host goes, so does it,
and with it everything below.
"""

# Descriptors and raw paths on purpose: pathlib can't work relative to a directory that is held open.
# ruff: noqa: PTH110

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from . import filework, grants, identity, landlock, privileges, probe, reaper, seccomp, syscalls, tree
from .config import Config
from .frames import Channel, Closed, Frame, close_all
from .jobs import Jobs
from .places import Places

WARM_REAPERS: Final = 2
MAX_WORKERS: Final = 512
PARALLEL_COMMANDS: Final = 8  # the kernel's own process limit, a backstop, allows so many at their limit
REQUESTED: Final = ("command", "program", "environment", "cwd", "stdin", "timeout_ms")
_TURN_MS: Final = 1000
_END_S: Final = 3.0


@dataclass(slots=True, eq=False)
class Child:
    """A forked process and our end of its channel; ``requests`` are the host's ids it owes an answer."""

    pid: int
    channel: Channel
    conversation: str = ""
    requests: set[int] = field(default_factory=set)
    job: int | None = None
    is_worker: bool = False


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
        self._children: dict[int, Child] = {}  # by descriptor
        self._workers: dict[str, Child] = {}
        self._warm: list[Child] = []
        self._jobs = Jobs()
        self._pid = os.getpid()

    def run(self) -> None:
        """Configure from the first frame, then serve until the host closes; ends everything below."""
        first = self._host.receive()
        try:
            self._configure(first)
            self._loop()
        finally:
            self._end()

    def _configure(self, frame: Frame) -> None:
        privileges.adopt_orphans()
        privileges.not_dumpable()
        abi = min(landlock.abi(), frame.get("max_landlock_abi") or 99)
        chosen = _identity(frame)
        privileges.drop_bounding_set()
        privileges.keep_capabilities(privileges.permitted(privileges.SUPERVISOR_CAPABILITIES))
        # private directories are closed to all but their own conversation, also where "outside" is open
        frame["secret_paths"] = [*frame["secret_paths"], frame["temporary"]]
        self._config = Config.from_frame(
            frame,
            uid=chosen.uid,
            gid=chosen.gid,
            own_uid=chosen.own,
            landlock_abi=abi,
            uid_processes=_process_allowance(chosen, frame["processes"]),
        )
        self._places = Places(self._config)
        self._prepare()
        self._host.send({"ready": self._self_test(frame["workspace"])})
        self._poll.register(self._host, select.POLLIN)
        self._warm_up()
        self._places.remove_abandoned()

    def _self_test(self, workspace: str) -> Frame:
        child = self._fork(self._reap)
        child.channel.send(probe.request(self._config, self._places, workspace))
        waiting = select.poll()
        waiting.register(child.channel, select.POLLIN)
        try:
            if waiting.poll(2 * probe.TIMEOUT_MS):
                answer = child.channel.receive()
            else:
                answer = {"fault": "the self-test did not end"}
        except Closed:
            answer = {"fault": "the self-test died"}
        self._drop(child)
        self._places.forget(probe.CONVERSATION)
        return probe.judge(self._config, answer)

    def _prepare(self) -> None:
        """Compute what all children share, before they are forked."""
        grants.system_grants(self._config)
        for metadata in seccomp.Metadata:
            seccomp.command_filter(self._config.allow_network, metadata, self._config.landlock_abi)
        seccomp.worker_filter()
        gc.collect()
        gc.freeze()

    def _loop(self) -> None:
        while True:
            for descriptor, events in self._poll.poll(_TURN_MS):
                if descriptor == self._host.fileno():
                    self._serve_host(events)
                elif (child := self._children.get(descriptor)) is not None:
                    self._serve_child(child, events)
            self._watch(self._host)
            self._collect()
            self._warm_up()

    def _serve_host(self, events: int) -> None:
        if events & select.POLLOUT:
            self._host.flush()
        if events & (select.POLLIN | select.POLLHUP):
            for frame in self._host.pull():
                self._obey(frame)

    def _watch(self, channel: Channel) -> None:
        events = select.POLLIN | (select.POLLOUT if channel.pending else 0)
        self._poll.register(channel, events)

    def _obey(self, frame: Frame) -> None:
        handler = self._operations().get(frame.get("op", ""))
        if handler is None:
            self._fail(frame, "unknown operation")
            return
        frame["streams"] = self._host.descriptors(frame.get("descriptors", 0))
        try:
            handler(frame)
        except OSError as error:
            self._fail(frame, f"the sandbox could not start a process: {error}")
        finally:
            close_all(frame["streams"])

    def _operations(self) -> dict[str, Callable[[Frame], None]]:
        return {
            "file": self._file,
            "exec": self._exec,
            "spawn": self._exec,
            "cancel": self._cancel,
            "forget": self._forget,
            "place": self._place_of,
            "job_list": self._job_list,
            "job_read": self._job_read,
            "job_kill": self._job_kill,
        }

    def _fail(self, frame: Frame, sentence: str) -> None:
        if "id" in frame:
            self._host.queue({"id": frame["id"], "error": sentence})

    # --- files

    def _file(self, frame: Frame) -> None:
        conversation = frame["conversation"]
        worker = self._workers.pop(conversation, None) or self._start_worker(frame)
        self._workers[conversation] = worker  # last used goes last
        worker.requests.add(frame["id"])
        fields = {name: frame[name] for name in ("id", "tool", "arguments")}
        try:
            worker.channel.queue(fields)
        except Closed:
            self._lose(worker)
            return
        self._watch(worker.channel)

    def _start_worker(self, frame: Frame) -> Child:
        place = self._places.of(frame["conversation"], frame["workspace"])
        self._retire_idle_worker()
        worker = self._fork(lambda channel: filework.serve(channel, self._config, place, self._pid))
        worker.conversation = frame["conversation"]
        worker.is_worker = True
        return worker

    def _retire_idle_worker(self) -> None:
        if len(self._workers) < MAX_WORKERS:
            return
        idle = next((w for w in self._workers.values() if not w.requests), None)
        if idle is not None:
            self._drop(idle)

    # --- commands

    def _exec(self, frame: Frame) -> None:
        if frame.get("background"):
            self._exec_background(frame)
            return
        child = self._start_command(frame)
        child.requests.add(frame["id"])

    def _start_command(self, frame: Frame) -> Child:
        place = self._places.of(frame["conversation"], frame["workspace"])
        child = self._warm.pop() if self._warm else self._fork(self._reap)
        child.conversation = frame["conversation"]
        fields: Frame = {name: frame[name] for name in REQUESTED if name in frame}
        request = {**fields, "workspace": place.workspace, "temporary": place.temporary}
        request["descriptors"] = len(frame["streams"])
        try:
            child.channel.queue(request, frame["streams"])
        except Closed:
            self._lose(child)
            raise OSError("the process that watches the command is gone") from None
        self._watch(child.channel)
        return child

    def _exec_background(self, frame: Frame) -> None:
        refusal = self._jobs.refusal(frame["conversation"])
        if refusal is not None:
            self._fail(frame, refusal)
            return
        child = self._start_command(frame)
        child.job = self._jobs.add(frame["conversation"], frame["command"], child.channel.fileno())
        self._host.queue({"id": frame["id"], "ok": {"job": child.job}})

    def _reap(self, channel: Channel) -> None:
        reaper.reap(channel, self._config, self._pid)

    def _warm_up(self) -> None:
        while len(self._warm) < WARM_REAPERS:
            self._warm.append(self._fork(self._reap))

    def _cancel(self, frame: Frame) -> None:
        for child in list(self._children.values()):
            if frame["target"] in child.requests and not child.is_worker:
                self._send(child, {"op": "cancel"})

    def _send(self, child: Child, frame: Frame) -> None:
        try:
            child.channel.queue(frame)
            self._watch(child.channel)
        except Closed:
            self._lose(child)

    # --- background commands

    def _job_list(self, frame: Frame) -> None:
        self._host.queue({"id": frame["id"], "ok": {"jobs": self._jobs.listed(frame["conversation"])}})

    def _job_read(self, frame: Frame) -> None:
        job = self._jobs.get(frame["conversation"], frame["job"])
        if job is None:
            self._fail(frame, f"there is no background command {frame['job']} in this conversation")
        elif job.result is not None:
            self._host.queue({"id": frame["id"], "ok": job.result})
        else:
            child = self._children[job.descriptor]
            child.requests.add(frame["id"])
            self._send(child, {"op": "peek", "id": frame["id"]})

    def _job_kill(self, frame: Frame) -> None:
        job = self._jobs.get(frame["conversation"], frame["job"])
        if job is None or job.result is not None:
            self._fail(frame, f"there is no running background command {frame['job']} in this conversation")
            return
        child = self._children[job.descriptor]
        child.requests.add(frame["id"])
        self._send(child, {"op": "cancel"})

    # --- conversations

    def _place_of(self, frame: Frame) -> None:
        place = self._places.of(frame["conversation"], frame["workspace"])
        self._host.queue({"id": frame["id"], "ok": {"temporary": place.temporary}})

    def _forget(self, frame: Frame) -> None:
        conversation = frame["conversation"]
        for child in list(self._children.values()):
            if child.conversation != conversation:
                continue
            if child.is_worker:
                self._drop(child)
            else:
                self._send(child, {"op": "cancel"})
        self._jobs.forget(conversation)
        self._places.forget(conversation)
        self._host.queue({"id": frame["id"], "ok": {}})

    # --- children

    def _fork(self, role: Callable[[Channel], None]) -> Child:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = os.fork()
        if pid == 0:
            self._be_child(theirs, role)
        theirs.close()
        child = Child(pid, Channel(ours))
        self._children[ours.fileno()] = child
        self._watch(child.channel)
        return child

    def _be_child(self, connection: socket.socket, role: Callable[[Channel], None]) -> None:
        """Never returns. Everything inherited but the child's own channel is closed first."""
        try:
            keep = connection.fileno()
            syscalls.close_all_but(keep)
            role(Channel(connection))
        except BaseException:  # noqa: BLE001 - a traceback has nowhere to go; the parent sees the end
            os._exit(1)
        os._exit(0)

    def _serve_child(self, child: Child, events: int) -> None:
        try:
            if events & select.POLLOUT:
                child.channel.flush()
            frames = child.channel.pull() if events & (select.POLLIN | select.POLLHUP) else []
        except Closed:
            self._lose(child)
            return
        for frame in frames:
            self._pass_on(child, frame)
        if child.channel.fileno() in self._children:
            self._watch(child.channel)

    def _pass_on(self, child: Child, frame: Frame) -> None:
        """Pass an answer on, under the host's id that this child really owes, whatever it claims."""
        if child.is_worker:
            self._settle(child, frame.get("id"), frame)
        elif "peek" in frame:
            self._settle(child, frame["peek"], {"ok": frame})
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
        self._poll.unregister(child.channel)
        self._children.pop(child.channel.fileno(), None)
        child.channel.close()
        if child in self._warm:
            self._warm.remove(child)
        if self._workers.get(child.conversation) is child:
            del self._workers[child.conversation]
        if child.requests or child.job is not None:
            self._finished(child, {"fault": "the sandbox process died; try again"})
            self._end_orphans()

    def _drop(self, child: Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        self._lose(child)

    def _collect(self) -> None:
        """Reap whatever has ended: our children, and orphans that came to us."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    def _end_orphans(self) -> None:
        """Kill children that are not ours by birth: what a reaper left when it died."""
        known = {child.pid for child in self._children.values()}
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline:
            self._collect()
            strangers = [pid for pid in tree.children(self._pid) if pid not in known]
            if not strangers:
                return
            for pid in strangers:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _end(self) -> None:
        """Close all channels, at which reapers sweep and workers leave; then make sure, and clean up."""
        for child in self._children.values():
            child.channel.close()
        deadline = time.monotonic() + _END_S
        while time.monotonic() < deadline and tree.children(self._pid):
            self._collect()
            time.sleep(0.002)
        self._children.clear()
        self._end_orphans()
        with contextlib.suppress(AttributeError):  # never configured
            self._places.remove_all()


def _identity(frame: dict[str, Any]) -> identity.Identity:
    needed: list[tuple[str, int]] = []
    for names, bits in (("read_paths", os.R_OK), ("write_paths", os.W_OK)):
        for path, _ in grants.expand(frame[names]):
            if os.path.exists(path):
                needed.append((path, bits))
    wanted = (frame["uid"], frame["gid"]) if frame.get("uid") is not None else None
    if wanted is None and not frame["restrict_to_workspace"]:
        return identity.Identity()  # what is outside belongs to root
    return identity.choose(frame["workspace"], needed, wanted)


def _process_allowance(chosen: identity.Identity, processes: int) -> int:
    """RLIMIT_NPROC counts all processes of a uid: leave room for those that are not ours."""
    allowed = PARALLEL_COMMANDS * processes
    if chosen.own:
        return allowed
    return allowed + tree.tasks_of(os.geteuid() if chosen.uid is None else chosen.uid)
