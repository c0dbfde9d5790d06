"""Torture: kill an agent host at random moments under load, and judge what it answered, kept, did and showed.

``python -m benchmarks.torture [--host NAME] [--seed N] [--kills N]``. A host is driven through its adapter
(``benchmarks.agent_hosts``: start, kill, chat, messages, command, schedule, trigger, task_runs, running);
``--host module:Class`` is one of your own. Judged is:

- lost: what was acknowledged (a chat's 200, a task's run) and is not there after the next start
- doubled: a message that stands twice, a command that was carried out twice, more runs of a task than asked
- stuck: a host that doesn't start again or answers nobody for three minutes; a run that still counts as
  running, a conversation that takes no message, three minutes after the start
- secrets: whether a command of the agent finds the model's key or the host's token, in environments, command
  lines or the host's files
- seen by another: a user's conversation, or a line of a file, that another user reads

The seed decides what each caller does and when the kill comes; the scheduling of threads stays the machine's.
What is wrong is printed with the command that does it again; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.agent_hosts import ANSWER_S, UNTOLD, AgentHost, DidNotStart, NotThere, Refused, adapter
from tests.chaos.clients import Names
from tests.running import directive, running_model

USERS: Final = (1, 2, 3)
CALLERS: Final = 6
LINE: Final = "effects.txt"


@dataclass(slots=True)
class Ledger:
    """What callers sent and what they were told, by conversation and user."""

    owner: dict[str, int] = field(default_factory=dict)
    """Conversation to its user."""
    told: dict[str, str] = field(default_factory=dict)
    """Acknowledged text to its conversation."""
    effects: dict[str, int] = field(default_factory=dict)
    """Line that a command wrote, its chat acknowledged, to its user."""
    asked: int = 0
    """How often the task was triggered."""
    runs: int = 0
    """How many of these runs were acknowledged."""
    touched: set[str] = field(default_factory=set)
    """Conversations that were talked to since the last look."""
    refusal: str = ""
    """What a caller got last instead of an answer."""

    @property
    def acknowledged(self) -> int:
        """Return how many promises there are."""
        return len(self.told) + len(self.effects) + self.runs


@dataclass(slots=True)
class Verdict:
    """What was judged, how often, and what was wrong, a sentence each."""

    looked: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    def judge(self, kind: str, sentence: str, *, good: bool) -> None:
        """Note that something was looked at."""
        self.looked[kind] += 1
        if not good and sentence not in self.wrong.setdefault(kind, []):
            self.wrong[kind].append(sentence)

    def lines(self) -> Iterator[str]:
        """Yield a line for each kind, and what was wrong."""
        for kind in self.looked:
            found = self.wrong.get(kind, [])
            yield f"{kind:<16} {len(found):>5} of {self.looked[kind]} looks"
            yield from (f"    {sentence}" for sentence in found[:5])
        for kind in sorted(self.absent):
            yield f"the host has no {kind}: not judged"


class Caller(threading.Thread):
    """One caller of a user in one life of the host: does one thing after the other until it is killed."""

    def __init__(self, torture: Torture, user: int, own: list[str], dice: random.Random) -> None:
        super().__init__(daemon=True)
        self._host, self._ledger, self._names = torture.host, torture.ledger, torture.names
        self._task = torture.task
        self._user, self._own, self._dice = user, own, dice
        self.over = threading.Event()

    def run(self) -> None:
        """Talk until the host is gone."""
        doing: list[Callable[[], None]] = [self._say, self._say, self._act]
        if self._task is not None:
            doing.append(self._trigger)
        while not self.over.is_set():
            try:
                self._dice.choice(doing)()
            except UNTOLD as untold:
                self._ledger.refusal = repr(untold)

    def _conversation(self) -> str | None:
        # Two callers of a user take care not to meet in one conversation: a busy one is refused.
        return (
            self._own.pop(self._dice.randrange(len(self._own)))
            if self._own and self._dice.random() < 0.7
            else None
        )

    def _chat(self, message: str) -> str:
        conversation = self._conversation()
        if conversation is not None:
            self._ledger.touched.add(conversation)
        told = self._host.chat(message, conversation, self._user)
        self._ledger.owner[told] = self._user
        self._ledger.touched.add(told)
        self._own.append(told)
        return told

    def _say(self) -> None:
        text = f"{self._names.new('said')}."
        told = self._chat(directive(text, text="fine"))
        self._ledger.told[text] = told

    def _act(self) -> None:
        """Have the agent carry a command out, whose effect can be counted."""
        line = f"{self._names.new('line')}."
        try:
            call = self._host.command(f"echo {line} >>{LINE}")
        except NotThere:
            self._say()
            return
        self._chat(directive(steps=[{"tools": [call]}, {"text": "done"}]))
        self._ledger.effects[line] = self._user

    def _trigger(self) -> None:
        assert self._task is not None
        self._ledger.asked += 1
        self._host.trigger(self._task)
        self._ledger.runs += 1


class NotFit(Exception):
    """The adapter doesn't do with a host that nobody has killed what it promises."""


@dataclass(slots=True)
class Torture:
    """A host, and what is known of it."""

    host: AgentHost
    seed: int
    ledger: Ledger = field(default_factory=Ledger)
    names: Names = field(default_factory=Names)
    verdict: Verdict = field(default_factory=Verdict)
    task: str | None = None

    @property
    def users(self) -> tuple[int, ...]:
        """Return whose callers there are."""
        return USERS if self.host.several_users else USERS[:1]

    def run(self, kills: int) -> Verdict:
        """Let it live and die so often; then judge all there is. Raises NotFit."""
        self.host.start()
        self._try_adapter()
        with self._if_there():
            self.task = self.host.schedule(directive(text="did it"))
        self._secrets()
        try:
            for life in range(kills):
                self._live_and_die(life)
                self.host.start()
                self._judge_conversations(self.ledger.touched)
                self._stuck()
                self.ledger.touched.clear()
        except DidNotStart as ended:
            self.verdict.judge("stuck", f"after kill {life + 1}: {ended}", good=False)
            return self.verdict
        self._judge_conversations(set(self.ledger.owner))
        self._effects()
        self._tasks()
        self._seen_by_others()
        self._secrets()
        self.host.kill()
        return self.verdict

    def _try_adapter(self) -> None:
        """Say something and read it back before anything is killed; what fails is the adapter's fault."""
        text = f"{self.names.new('said')}."
        try:
            kept = self.host.messages(self.host.chat(directive(text, text="fine"), None, USERS[0]), USERS[0])
        except UNTOLD as untold:
            raise NotFit(f"chat or messages: {untold!r}") from untold
        if text not in kept:
            raise NotFit(f"messages has not what chat was told ({text}): {kept[:300]!r}")

    @contextlib.contextmanager
    def _if_there(self) -> Iterator[None]:
        try:
            yield
        except NotThere as kind:
            self.verdict.absent.add(str(kind))

    def _live_and_die(self, life: int) -> None:
        """Talk to it with all callers, and kill it some time after it has made so many more promises."""
        dice = random.Random(f"{self.seed} {life}")
        goal = self.ledger.acknowledged + dice.choice([1, dice.randrange(2, 10), dice.randrange(10, 60)])
        pause = dice.uniform(0, 0.05)
        callers = [self._caller(life, n) for n in range(CALLERS)]
        for caller in callers:
            caller.start()
        known, changed = self.ledger.acknowledged, time.monotonic()
        while known < goal and time.monotonic() < changed + ANSWER_S:
            time.sleep(0.002)
            if self.ledger.acknowledged > known:
                known, changed = self.ledger.acknowledged, time.monotonic()
        self.verdict.judge(
            "stuck", f"life {life}: nothing is answered ({self.ledger.refusal})", good=known >= goal
        )
        time.sleep(pause)
        self.host.kill()
        for caller in callers:
            caller.over.set()
        for caller in callers:
            caller.join()

    def _caller(self, life: int, n: int) -> Caller:
        """Return one of the callers; those of a user share out its conversations."""
        user = self.users[n % len(self.users)]
        own = [each for each, owner in self.ledger.owner.items() if owner == user]
        part = own[n // len(self.users) :: CALLERS // len(self.users)]
        return Caller(self, user, part, random.Random(f"{self.seed} {life} {n}"))

    def _judge_conversations(self, conversations: set[str]) -> None:
        texts: dict[str, list[str]] = {}
        for text, conversation in self.ledger.told.items():
            texts.setdefault(conversation, []).append(text)
        for conversation in sorted(conversations):
            if conversation not in self.ledger.owner:
                continue
            try:
                kept = self.host.messages(conversation, self.ledger.owner[conversation])
            except Refused as refused:
                self.verdict.judge("lost", f"{conversation} cannot be read: {refused}", good=False)
                continue
            counted = Counter(re.findall(r"said-\d+\.", kept))
            for text in texts.get(conversation, ()):
                self.verdict.judge("lost", f"{text} is not in {conversation}", good=counted[text] > 0)
            for text, times in counted.items():
                self.verdict.judge(
                    "doubled", f"{text} stands {times} times in {conversation}", good=times == 1
                )

    def _stuck(self) -> None:
        """Each conversation that was cut off takes a new message in time, and no run goes on for ever."""
        for conversation in sorted(self.ledger.touched & self.ledger.owner.keys()):
            user = self.ledger.owner[conversation]
            taken = self._in_time(
                lambda: self.host.chat(directive(text="fine"), conversation, user)  # noqa: B023 - called at once
            )
            self.verdict.judge("stuck", f"{conversation} takes no message", good=taken)
        with self._if_there():
            self.host.running()
            ended = self._in_time(self._all_ended)
            going = [] if ended else self.host.running()
            self.verdict.judge("stuck", f"still running: {', '.join(going[:3])}", good=ended)

    def _all_ended(self) -> None:
        if going := self.host.running():
            raise Refused(f"{going} still run")

    def _in_time(self, what: Callable[[], Any]) -> bool:
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            with contextlib.suppress(*UNTOLD):
                what()
                return True
            time.sleep(0.1)
        return False

    def _output(self, user: int, line: str) -> str:
        """Have the agent of a user run a command, and return what it printed."""
        steps = [{"tools": [self.host.command(line)]}, {"text": "printed: $results"}]
        conversation = self.host.chat(directive(steps=steps), None, user)
        self.ledger.owner[conversation] = user
        return self.host.messages(conversation, user).rpartition("printed: ")[2]

    def _effects(self) -> None:
        with self._if_there():
            for user in self.users:
                counted = Counter(re.findall(r"line-\d+\.", self._output(user, f"cat {LINE}")))
                for line in (each for each, owner in self.ledger.effects.items() if owner == user):
                    self.verdict.judge("lost", f"the effect {line} is not there", good=counted[line] > 0)
                for line, times in counted.items():
                    self.verdict.judge("doubled", f"{line} was written {times} times", good=times == 1)

    def _tasks(self) -> None:
        if self.task is None:
            return
        with self._if_there():
            kept, told, asked = self.host.task_runs(self.task), self.ledger.runs, self.ledger.asked
            sentence = f"{kept} runs of the task are listed; {asked} were asked for, {told} of them answered"
            self.verdict.judge("lost", sentence, good=kept >= told)
            self.verdict.judge("doubled", sentence, good=kept <= asked)

    def _secrets(self) -> None:
        """Look for secrets from a command; only counts are printed, so nothing can be redacted."""
        for name, secret in self.host.secrets.items():
            # The command itself is in a command line and in the host's files: it must not find itself.
            pattern = f"{secret[:-1]}[{secret[-1]}]"
            with self._if_there():
                told = self._output(
                    USERS[0],
                    f"a=$(cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | grep -ac '{pattern}');"
                    f" b=$(grep -rasl '{pattern}' {self.host.root} 2>/dev/null | wc -l); echo probe $a $b",
                )
                found = re.search(r"probe (\d+) (\d+)", told)
                if found is None:
                    self.verdict.absent.add(f"answer of a command ({told[:80]!r})")
                    return
                self.verdict.judge("secrets", f"a command finds {name} in a process", good=found[1] == "0")
                self.verdict.judge("secrets", f"a command finds {name} in a file", good=found[2] == "0")

    def _reads(self, conversation: str, user: int) -> bool:
        with contextlib.suppress(Refused):
            return "said-" in self.host.messages(conversation, user)
        return False

    def _seen_by_others(self) -> None:
        if not self.host.several_users:
            self.verdict.absent.add("users")
            return
        for conversation, owner in sorted(self.ledger.owner.items()):
            other = USERS[owner % len(USERS)]
            if not self._reads(conversation, owner):
                continue  # where there is nothing to see, nothing is proven
            seen = self._reads(conversation, other)
            self.verdict.judge(
                "seen by another", f"user {other} reads {conversation} of user {owner}", good=not seen
            )
        with self._if_there():
            self._output(1, "echo only-for-user-1 >own.txt")
            told = self._output(2, f"grep -rasl 'only-for-user-[1]' {self.host.root} 2>/dev/null | wc -l")
            good = re.match(r"\s*0\b", told) is not None
            self.verdict.judge("seen by another", "a command of user 2 reads a file of user 1", good=good)


def main() -> int:
    """Torture what was asked for; return 1 if something was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torture", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--host", default="PicoClaw", help="its adapter's name, or module:Class")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--kills", type=int, default=20)
    asked = parser.parse_args()
    again = f"python -m benchmarks.torture --host {asked.host} --seed {asked.seed} --kills {asked.kills}"
    kind = adapter(asked.host)
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    with tempfile.TemporaryDirectory() as root, running_model("--any-client") as model:
        Path(root).chmod(0o755)  # the principals' uids pass through
        host = kind(Path(root) / "host", model.url)
        print(f"{asked.host} ({host.version()}); {machine}")
        torture = Torture(host, asked.seed)
        try:
            verdict = torture.run(asked.kills)
        except NotFit as fault:
            raise SystemExit(f"the adapter doesn't fit: {fault}\n{host.process.log_text[-2000:]}") from fault
        except BaseException:
            print("\n".join(torture.verdict.lines()))
            print(f"cut off; again: {again}", file=sys.stderr)
            raise
        finally:
            host.kill()
    promises, conversations = torture.ledger.acknowledged, len(torture.ledger.owner)
    print(f"{promises} acknowledged in {conversations} conversations, {asked.kills} kills")
    print("\n".join(verdict.lines()))
    print(f"again: {again}")
    return 1 if any(verdict.wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
