"""What the commands of one reaper have in common, and the launcher: the process that starts them.

An environment (a root, the rules of a Landlock domain) is made ahead of any request and becomes one
conversation's with its first. As long as a command leaves nothing in it, the next one finds it ready.

The launcher is confined as commands are before any comes. In namespaces it is process 1, whom nobody in there
can signal or outlive, and serves one command after the other. Each starts as a spawn (posix_spawn(3)): it
shares the launcher's memory until it is the shell, so nothing has to be copied or taken down, and inherits
the whole confinement. Without namespaces the launcher becomes the command itself. It holds nothing that
commands don't have, and they can't look into it: it is not dumpable, and the filter leaves no way to trace.
"""

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Final, NamedTuple, NoReturn

from .. import frames, syscalls
from ..confine import confine, grants, privileges, seccomp
from ..confine.grants import Access
from ..confine.namespaces import PrivateRoot
from ..frames import DEVICES, Channel, Closed, Config, Frame, Place
from ..limits.quota import Quota
from ..names import Words
from .name_calls import NameCalls

_SOCKETS: Final = "/proc/1/net/sockstat"
_SOCKETS_LEFT: Final = re.compile(rb"(?:TCP|UDP): inuse [1-9]|TCP: .*\btw [1-9]")


class Environment:
    """Made with all rights that there will be; ``admit`` gives up the last of them.

    ``guarded``: its conversation may not change what is obeyed, so that the reaper makes and changes names
    for its commands. ``scoped``: ``kill(-1)`` reaches what is below the reaper and nothing else.
    """

    def __init__(self, config: Config, workspace: str, *, scoped: bool, guarded: bool = False) -> None:
        """Lay out what needs no request. Raises ``OSError``."""
        self.config = config
        self.guarded = guarded
        self.scoped = scoped
        self.place: Place | None = None
        self.settled = False
        self._workspace = workspace
        self.quota = Quota(config) if config.most_bytes else None
        self._root = PrivateRoot(config, workspace) if config.namespaces else None
        self._system = grants.system_grants(config)
        self._inodes: dict[str, tuple[int, int]] = {}  # of the system's files, which rules hold
        self._rules = confine.ruleset(config, network=config.allow_network or config.namespaces)

    @property
    def descriptors(self) -> list[int]:
        """What a launcher needs of what the reaper holds open."""
        return [] if self._rules is None else [self._rules.descriptor]

    def enter(self) -> None:
        """Make its root that of the reaper and the calling process, its launcher, who is process 1."""
        if self._root is not None:
            self._root.enter()

    def furnish(self) -> None:
        """Lay down the rules, in the root that the launcher has entered."""
        if self._root is not None:
            self._root.entered()
        self._inodes = self._allow(self._system)
        self._allow(grants.shared_grants(self.config, self._workspace))

    def _allow(self, more: Iterable[grants.Grant]) -> dict[str, tuple[int, int]]:
        return {} if self._rules is None else grants.add_rules(self._rules, more)

    def admit(self, place: Place) -> None:
        """Make it the conversation's who works in ``place``; it can't become another's."""
        if self.place is None:
            if self._root is not None:
                self._root.show(place)
                privileges.renounce()
            self._allow([grants.private_grant(place)])
            self.renew()
            self.place = place
        elif self.place != place:
            raise ValueError("the environment is another conversation's")

    def renew(self) -> None:
        """Follow what was replaced in the system while a command ran or nobody came; never in a root of our
        own.
        """
        if self._root is None and self._rules is not None:
            now = {grant: grants.inode(grant.path) for grant in self._system}
            self._inodes |= self._allow(
                grant for grant, there in now.items() if there and there != self._inodes.get(grant.path)
            )

    def settle_in(self) -> None:
        """Confine the calling process, a launcher, to it for good."""
        if self._rules is not None:
            self._rules.enforce()
        self.settled = True

    @cached_property
    def writable(self) -> list[str]:
        """The paths below which a command may change files."""
        assert self.place is not None  # noqa: S101 - asked once somebody is in
        return [g.path for g in grants.worker_grants(self.config, self.place) if g.access & Access.MAKE_REG]

    def name_calls(self) -> NameCalls | None:
        """Return who makes names for commands that may not themselves."""
        if not self.guarded or self.place is None:
            return None
        own = [path for path in (*grants.TERMINALS, grants.SHARED_MEMORY) if self.config.namespaces]
        devices = [*DEVICES, "/dev/full", "/dev/tty", *own]
        words = Words(self.place.workspace, self.place.words)
        return NameCalls([*self.writable, *own], devices, words)

    def is_clean(self) -> bool:
        """Return whether nothing is left that the next command would meet outside the conversation's files:
        no shared memory, and no socket that still keeps a port (proc_pid_net(5)).
        """
        if not self.config.namespaces:
            return True
        if os.listdir(grants.SHARED_MEMORY):
            return False
        if self.config.allow_network:
            return True
        with open(_SOCKETS, "rb", buffering=0) as file:
            return _SOCKETS_LEFT.search(file.read(4096)) is None


NICE: Final = 10
OOM_SCORE: Final = 600  # the kernel's out-of-memory killer takes the command, not the host
_SHELLS: Final = ("/bin/bash", "/usr/bin/bash", "/bin/sh")
_ALL_SIGNALS: Final = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}


def launch(environment: Environment, channel: Channel, reaper: int) -> None:
    """Never returns. What needs no request is done at once; then each frame says where and what to start."""
    try:
        syscalls.close_all_but(channel.fileno(), *environment.descriptors)
        listener = _confine(environment, reaper)
        channel.send({"descriptors": len(listener)}, listener)
        frames.close_all(listener)
        channel.takes_descriptors = True
        while True:
            _serve(environment, channel, channel.receive())
    except Closed:
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - the one place to tell of it is the channel
        with contextlib.suppress(Closed):
            channel.send({"fault": _sentence(error)})
    os._exit(1)


def _confine(environment: Environment, reaper: int) -> list[int]:
    """Give up rights; returns the descriptor on which the filter asks, if there is one."""
    config = environment.config
    os.setsid()
    _be_modest()
    environment.enter()
    privileges.renounce()
    if config.namespaces:
        privileges.be_killed_with_parent()
    else:
        privileges.die_with_parent(reaper)
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.close(nothing)
    confine.limit_resources(config)
    for number in _ALL_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    listener = _filter(config, guarded=environment.guarded)
    _rehearse(config)
    if environment.place is not None:
        environment.settle_in()
    return listener


def _serve(environment: Environment, channel: Channel, request: Frame) -> None:
    """Start a command, and tell its status once nothing of it is left; or tell why it did not start."""
    given = channel.descriptors(request["descriptors"])
    try:
        command = _prepared(environment, request, given)
        if not environment.config.namespaces:
            command.become()
        pid = command.spawn()
    except (OSError, ValueError) as error:
        channel.send({"fault": _sentence(error)})
        if environment.config.namespaces:
            return
        os._exit(1)  # it would have become the command
    finally:
        frames.close_all(given)
    ended, status = os.waitpid(-1, 0)
    while ended != pid:  # an orphan, which comes to us
        ended, status = os.waitpid(-1, 0)
    channel.send({"status": os.waitstatus_to_exitcode(status), "killed": _end_all()})


class _Command(NamedTuple):
    """What is to be executed; ``streams`` by the number they shall have."""

    path: str
    words: list[str]
    surroundings: Mapping[str, str]
    streams: Mapping[int, int]

    def spawn(self) -> int:
        """Start it beside this process, and return its pid. Raises ``OSError``."""
        return os.posix_spawn(
            self.path,
            self.words,
            self.surroundings,
            file_actions=[(os.POSIX_SPAWN_DUP2, stream, number) for number, stream in self.streams.items()],
            setpgroup=0,  # not a session: that is the launcher's, whose share of the processors is bounded
        )

    def become(self) -> NoReturn:
        """Turn into it. Raises ``OSError``."""
        _take(self.streams)
        os.execve(self.path, self.words, self.surroundings)  # noqa: S606 - commands are what exec is for


class _SelfTest(NamedTuple):
    """Tries what a command might."""

    facts: Frame
    temporary: str
    streams: Mapping[int, int]

    def spawn(self) -> int:
        """Start it beside this process, and return its pid."""
        pid = os.fork()
        if pid == 0:
            self.become()
        return pid

    def become(self) -> NoReturn:
        """Try, tell, and end."""
        try:
            _take(self.streams)
            os.write(1, confine.attempts(self.facts, self.temporary))
        finally:
            os._exit(0)


def _take(streams: Mapping[int, int]) -> None:
    for number, stream in streams.items():
        os.dup2(stream, number)


def _prepared(environment: Environment, request: Frame, given: list[int]) -> _Command | _SelfTest:
    """Go where the command is to start, and return what to start."""
    config, place = environment.config, Place(request["workspace"], request["temporary"])
    if not environment.settled:
        environment.settle_in()
    streams = dict(zip(request["streams"], given, strict=False))
    os.chdir(streams.pop("cwd", place.workspace))
    numbered = {int(number): stream for number, stream in streams.items()}
    if "probe" in request:
        return _SelfTest(request["probe"], place.temporary, numbered)
    surroundings = {**variables(config, place, os.getcwd()), **request.get("environment", {})}
    words = request.get("program")
    if words is not None:
        return _Command(_found(words[0], surroundings), words, surroundings, numbered)
    shell = next(shell for shell in _SHELLS if os.path.exists(shell))
    return _Command(shell, [shell.rpartition("/")[2], "-c", "--", request["command"]], surroundings, numbered)


def _end_all() -> int:
    """End what a command left, and return how many that were: as process 1 we are the parent of all, and
    ``kill(-1)`` reaches all but us.
    """
    killed = 0
    if os.getpid() != 1:
        return killed
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        while True:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            os.waitpid(-1, 0)
            killed += 1
    return killed


def _found(program: str, surroundings: Mapping[str, str]) -> str:
    """Return the path of a program, searched as execvp(3) does; the name itself if it is not there."""
    if "/" in program:
        return program
    candidates = (f"{directory}/{program}" for directory in surroundings["PATH"].split(":"))
    return next((path for path in candidates if os.access(path, os.X_OK)), program)


def _rehearse(config: Config) -> None:
    """Walk through what a request needs once, in vain: the page faults of a fresh fork are then paid for."""
    variables(config, Place(config.temporary, config.temporary), "/")
    frames.Decoder().feed(frames.encode({"command": "", "timeout_ms": 1, "cwd": None}))


def _be_modest() -> None:
    os.umask(0o022)
    os.nice(NICE)
    privileges.dumpable()  # or the file would be root's; nobody is here yet who could look
    # where sessions share the processors, theirs counts (sched(7))
    for name, value in (("oom_score_adj", OOM_SCORE), ("autogroup", NICE)):
        with contextlib.suppress(OSError):
            syscalls.write_proc(str(value), "self", name)
    privileges.not_dumpable()


def _filter(config: Config, *, guarded: bool) -> list[int]:
    """Install the filter. Where the kernel gives no notifications, what would need them is refused."""
    kind = confine.filter_kind(config, guarded=guarded)
    for flags in (seccomp.FLAG_NEW_LISTENER | seccomp.FLAG_WAIT_KILLABLE, seccomp.FLAG_NEW_LISTENER):
        with contextlib.suppress(OSError):  # kernels before 5.19 don't know the second flag
            return [seccomp.install(seccomp.command_filter(kind), flags=flags)]
    seccomp.install(seccomp.without_notifications(kind))
    return []


def _sentence(error: BaseException) -> str:
    return f"the sandbox could not start the command: {type(error).__name__}: {error}"


def variables(config: Config, place: Place, cwd: str) -> dict[str, str]:
    """Return the environment variables of a command: nothing is inherited."""
    return {
        "PATH": config.path,
        "HOME": place.home,
        "TMPDIR": place.temporary,
        "PWD": cwd,
        "SHELL": "/bin/bash",
        "USER": "agent",
        "LOGNAME": "agent",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "TZ": config.time_zone,
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
    }
