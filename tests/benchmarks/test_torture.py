"""The torture kit finds what a bad host does, and nothing in ours; it needs an adapter and no more."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.agent_hosts import AgentHost, Refused
from benchmarks.torture import Torture
from tests.running import HostProcess

ROOT = Path(__file__).parents[2]


class Forgetful(AgentHost):
    """The adapter of a host without commands, tasks and a list of runs."""

    name = "forgetful"

    def prepared(self) -> HostProcess:
        command = (sys.executable, "-m", "tests.benchmarks.forgetful")
        return HostProcess(self.root, {"PATH": os.environ["PATH"]}, command=command)

    def asked(
        self, message: str, conversation: str | None, user: int, stream: bool
    ) -> tuple[str, bytes, str]:
        body = {"conversation": conversation, "message": message}
        return "/chat", json.dumps(body).encode(), "application/json"

    def messages(self, conversation: str, user: int = 0) -> str:
        return "\n".join(self.seen(f"/chat/{conversation}"))


def test_a_host_that_forgets_doubles_and_shows_is_found_out(tmp_path: Path) -> None:
    torture = Torture(Forgetful(tmp_path, "http://127.0.0.1:9"), seed=3)
    try:
        verdict = torture.run(kills=2)
        assert verdict.wrong["lost"]
        told = torture.host.chat
        torture.host.start()
        text = "said-1000000."
        conversation = told(text, None, 1)
        torture.ledger.owner, torture.ledger.told = {conversation: 1}, {text: conversation}
        torture._judge_conversations({conversation})
        torture._seen_by_others()
    finally:
        torture.host.kill()
    assert f"{text} stands 2 times in {conversation}" in verdict.wrong["doubled"]
    assert verdict.wrong["seen by another"] == [f"user 2 reads {conversation} of user 1"]
    assert verdict.absent == {"commands", "list of what runs", "tasks"}


class Unreadable(Forgetful):
    """An adapter that reads something else than what the host was told."""

    def messages(self, conversation: str, user: int = 0) -> str:
        return "nothing"


class Broken(Forgetful):
    """An adapter with a fault of its own, after something was judged."""

    def running(self) -> list[str]:
        raise RuntimeError("broken")


class OnceOnly(Forgetful):
    """A host that does not start again, and whose tasks run more often than they were asked to."""

    several_users = False

    def schedule(self, message: str) -> str:
        return "task"

    def trigger(self, task: str) -> None:
        raise Refused("later")

    def task_runs(self, task: str) -> int:
        return 1_000_000

    def running(self) -> list[str]:
        return []

    def kill(self) -> None:
        super().kill()
        self.process.command = (sys.executable, "-c", "raise SystemExit('no')")


def test_a_host_that_does_not_start_again_is_judged_as_stuck(tmp_path: Path) -> None:
    verdict = Torture(OnceOnly(tmp_path, "http://127.0.0.1:9"), seed=3).run(kills=3)
    [sentence] = verdict.wrong["stuck"]
    assert sentence.startswith("after kill 1: forgetful did not start: ")


def test_runs_of_a_task_that_nobody_asked_for_are_doubled_and_one_user_sees_only_his_own(
    tmp_path: Path,
) -> None:
    verdict = Torture(OnceOnly(tmp_path, "http://127.0.0.1:9"), seed=3).run(kills=0)
    assert verdict.wrong == {
        "doubled": ["1000000 runs of the task are listed; 0 were asked for, 0 of them answered"]
    }
    assert verdict.absent == {"commands", "users"}


def test_an_adapter_of_ones_own_is_named_by_its_module_and_told_what_does_not_fit() -> None:
    mine = "tests.benchmarks.test_torture:Unreadable"
    command = [sys.executable, "-m", "benchmarks.torture", "--host", mine, "--kills", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "the adapter doesn't fit: messages has not what chat was told (said-1.): 'nothing'" in done.stderr
    assert done.returncode == 1


def test_what_was_judged_before_it_was_cut_off_is_told_with_how_to_do_it_again() -> None:
    mine = "tests.benchmarks.test_torture:Broken"
    command = [sys.executable, "-m", "benchmarks.torture", "--host", mine, "--seed", "7", "--kills", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(r"^lost +\d+ of \d+ looks$", done.stdout, re.M), done.stdout + done.stderr
    assert f"cut off; again: python -m benchmarks.torture --host {mine} --seed 7 --kills 1" in done.stderr


def test_our_host_outlasts_a_kill_and_the_same_can_be_done_again() -> None:
    command = [sys.executable, "-m", "benchmarks.torture", "--seed", "7", "--kills", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "again: python -m benchmarks.torture --host PicoClaw --seed 7 --kills 1" in done.stdout
