"""Check, trigger, pause, edit, delete and crash in any order, by two hosts on one database."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from shared.errors import Conflict, ConversationBusy, LeaseLost
from shared.principals import EVERYTHING, Reach
from shared.store.postgres.database import Place
from shared.store.postgres.opening import PostgresStore
from shared.store.sqlite.store import SqliteStore
from shared.store.store import Store
from shared.task_values import Task, TaskRun, TaskRunState, TaskStatus
from shared.tasks import TaskService
from shared.usage_values import Usage
from shared.values import Lease, NewMessage, NewRun, RunEnd, RunState
from tests.examples import examples
from tests.postgres import emptied_database, needs_postgres

T = TypeVar("T")


class Stage(IntEnum):
    """How far a claim has come."""

    CLAIMED = 1
    BEGUN = 2
    ACTED = 3
    ENDED = 4
    FINISHED = 5


STAGES = st.sampled_from(list(Stage))
ENDINGS = st.sampled_from([RunState.SUCCESS, RunState.ERROR, RunState.CANCELLED])
PICK = st.integers(0, 11)
"""Which of the things at hand; taken modulo their number, so that a step is never wasted."""

NOW = 1_800_000_000_000
MINUTE = 60_000
LEASE_MS = 3_600_000
DEAD = 0
HOME = "conv-home"
HOSTS = ("a", "b")
MEMORY = "/dev/shm"
"""A hundred databases are made and thrown away; what a disk adds to that is not looked at here."""


@dataclass
class Held:
    """A claim as its host sees it, with the run that serves it."""

    host: str
    task: Task
    claim: TaskRun
    lease: Lease | None = None
    ended: RunState | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.task.id, self.claim.slot


@dataclass
class Expected:
    """What people last wanted of a task."""

    status: TaskStatus
    prompt: str


def at(things: Sequence[T], pick: int) -> T:
    return things[pick % len(things)]


class TaskRaces(RuleBasedStateMachine):
    """Each rule is one thing somebody does; the invariants hold after every one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = NOW
        self.numbers = iter(range(1, 10_000))
        self.stores: dict[str, Store] = {}
        self.services: dict[str, TaskService] = {}
        self.expected: dict[str, Expected] = {}
        self.alive: list[Held] = []
        self.effects: list[tuple[str, str]] = []
        self.served: list[str] = []

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        # Not the runner's own, which sets a handler for SIGINT each time: twice the cost of a step.
        return self.runner.get_loop().run_until_complete(work)

    def open_stores(self) -> Iterator[Store]:
        """Open the same empty database once for each host."""
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None)
        for _ in HOSTS:
            yield SqliteStore(Path(self.folder.name) / "store.db")

    def clean_up(self) -> None:
        """Throw the database away."""
        self.folder.cleanup()

    @initialize()
    def start(self) -> None:
        for host, store in zip(HOSTS, self.open_stores(), strict=True):
            self.stores[host] = store
            self.services[host] = TaskService(store, default_timezone="UTC")
        self.run(self.stores["a"].conversations.create(HOME, NOW))
        for mode in ("group", "isolated"):
            self.add(("once", "2027-01-15T08:01"), mode, "once")

    # People

    @rule(
        kind=st.sampled_from([("once", "2027-01-15T08:01"), ("interval", "60000")]),
        mode=st.sampled_from(["group", "isolated"]),
        catch_up=st.sampled_from(["skip", "once", "all"]),
    )
    def add(self, kind: tuple[str, str], mode: str, catch_up: str) -> None:
        task = self.run(
            self.services["a"].schedule(
                reach=Reach(HOME),
                conversation_id=None,
                prompt="first",
                schedule_type=kind[0],
                schedule_value=kind[1],
                context_mode=mode,
                catch_up=catch_up,
                run_if_past=True,
                id=f"task-{next(self.numbers)}",
                now=self.now,
            )
        )
        self.expected[task.id] = Expected(TaskStatus.ACTIVE, "first")

    @precondition(lambda self: self.expected)
    @rule(pick=PICK, host=st.sampled_from(HOSTS))
    def pause(self, pick: int, host: str) -> None:
        self.change(self.task_at(pick), host, {"status": "paused"})

    @precondition(lambda self: self.expected)
    @rule(pick=PICK, host=st.sampled_from(HOSTS))
    def resume(self, pick: int, host: str) -> None:
        self.change(self.task_at(pick), host, {"status": "active"})

    @precondition(lambda self: self.expected)
    @rule(pick=PICK, host=st.sampled_from(HOSTS), prompt=st.sampled_from(["second", "third"]))
    def edit(self, pick: int, host: str, prompt: str) -> None:
        self.change(self.task_at(pick), host, {"prompt": prompt})

    @precondition(lambda self: self.expected)
    @rule(pick=PICK, host=st.sampled_from(HOSTS), minutes=st.integers(-3, 3))
    def reschedule(self, pick: int, host: str, minutes: int) -> None:
        task_id = self.task_at(pick)
        if self.stored(task_id).schedule_type == "interval":
            self.change(task_id, host, {"schedule_value": str(MINUTE * (5 + minutes))})

    @precondition(lambda self: self.expected)
    @rule(pick=PICK, host=st.sampled_from(HOSTS))
    def delete(self, pick: int, host: str) -> None:
        task_id = self.task_at(pick)
        self.run(self.services[host].cancel(task_id, Reach(HOME)))
        del self.expected[task_id]

    def change(self, task_id: str, host: str, fields: dict[str, Any]) -> None:
        try:
            task = self.run(self.services[host].update(task_id, Reach(HOME), fields, now=self.now))
        except Conflict:
            assert self.stored(task_id).schedule_type == "once"
            return
        expected = self.expected[task_id]
        expected.prompt = fields.get("prompt", expected.prompt)
        expected.status = task.status

    # Hosts

    @rule(host=st.sampled_from(HOSTS), minutes=st.integers(0, 7), stage=STAGES, state=ENDINGS)
    def check(self, host: str, minutes: int, stage: Stage, state: RunState) -> None:
        self.now += minutes * MINUTE
        claimed = self.run(self.stores[host].tasks.claim_due(host=host, now=self.now, lease_ms=LEASE_MS))
        if claimed is None:
            return
        task, claim = claimed
        assert task.status is TaskStatus.ACTIVE
        assert int(claim.slot) <= self.now
        assert task.prompt == self.expected[task.id].prompt
        held = Held(host, task, claim)
        assert held.key not in self.effects, "a slot that had its effect was handed out again"
        assert held.key not in [each.key for each in self.alive], "two live claims of one slot"
        self.alive.append(held)
        self.bring(held, stage, state)

    @precondition(lambda self: self.expected)
    @rule(pick=PICK, host=st.sampled_from(HOSTS))
    def trigger(self, pick: int, host: str) -> None:
        task_id = self.task_at(pick)
        tasks = self.stores[host].tasks
        log = self.run(tasks.runs(task_id, Reach(HOME), limit=1000, cursor=None))
        assert log is not None
        runs = any(entry.state is TaskRunState.RUNNING for entry in log.items)
        try:
            task, claim = self.run(
                tasks.claim_manual(task_id, Reach(HOME), host=host, now=self.now, lease_ms=LEASE_MS)
            )
        except Conflict:
            assert runs, "refused although nothing of it runs"
            return
        assert not runs, "a task overlapped itself"
        self.alive.append(Held(host, task, claim))

    @rule(host=st.sampled_from(HOSTS), minutes=st.integers(1, 7), stage=STAGES)
    def check_and_crash(self, host: str, minutes: int, stage: Stage) -> None:
        self.check(host, minutes, stage, RunState.SUCCESS)
        if self.alive:
            self.crash(len(self.alive) - 1)

    @precondition(lambda self: self.alive)
    @rule(pick=PICK, stage=STAGES, state=ENDINGS)
    def go_on(self, pick: int, stage: Stage, state: RunState) -> None:
        self.bring(at(self.alive, pick), stage, state)

    def bring(self, held: Held, stage: Stage, state: RunState) -> None:
        """Take a claim as far as the stage, unless it is beyond it or lost."""
        if stage >= Stage.BEGUN and held.lease is None:
            self.begin(held)
        if held not in self.alive or held.lease is None:
            return
        if stage >= Stage.ACTED and held.ended is None:
            self.act(held, held.lease)
        if stage >= Stage.ENDED and held.ended is None:
            self.end_run(held, held.lease, state)
        if stage >= Stage.FINISHED and held.ended is not None:
            self.finish(held, held.ended)

    def begin(self, held: Held) -> None:
        """Start the run; a busy conversation gives the claim back."""
        run_id = f"run-{next(self.numbers)}"
        group = held.task.context_mode == "group"
        conversation = HOME if group else f"conv-{run_id}"
        store = self.stores[held.host]
        try:
            new = self.new_run(run_id, conversation, held.host)
            held.lease = self.run(store.runs.begin(replace(new, claim=held.claim)))
        except ConversationBusy:
            self.run(store.tasks.release(held.claim))
            self.alive.remove(held)
        except LeaseLost:
            assert held.task.id not in self.expected
            self.alive.remove(held)

    def act(self, held: Held, lease: Lease) -> None:
        """Do the thing that must not happen twice."""
        self.run(self.stores[held.host].runs.append(lease, [], self.now, effect_ahead=True))
        if held.key not in self.effects:
            self.effects.append(held.key)

    def end_run(self, held: Held, lease: Lease, state: RunState) -> None:
        end = RunEnd(state, {"status": str(state), "result": "ok"}, Usage(), "m")
        self.run(self.stores[held.host].runs.finish(lease, end, [], [], self.now))
        held.ended = state

    def finish(self, held: Held, ended: RunState) -> None:
        self.alive.remove(held)
        try:
            self.run(
                self.stores[held.host].tasks.finish(
                    held.claim, state=TaskRunState(ended), result="ok", error=None, now=self.now
                )
            )
        except LeaseLost:
            assert held.task.id not in self.expected
            return
        self.note_outcome(held)

    @precondition(lambda self: self.alive)
    @rule(pick=PICK)
    def crash(self, pick: int) -> None:
        """A host dies: nobody renews its leases, and what it held is worthless to it."""
        held = at(self.alive, pick)
        store = self.stores[held.host]
        self.alive.remove(held)
        try:
            self.run(store.tasks.renew_claim(held.claim, DEAD))
        except LeaseLost:
            assert held.task.id not in self.expected
        if held.lease is not None and held.ended is None:
            assert self.run(store.runs.renew([held.lease], DEAD)) == set()
        with pytest.raises(LeaseLost):
            self.run(
                store.tasks.finish(
                    held.claim, state=TaskRunState.SUCCESS, result="late", error=None, now=self.now
                )
            )

    @rule(busy=st.booleans())
    def chat(self, busy: bool) -> None:
        """Somebody talks in the conversation, and the host answers (or dies while it does)."""
        run_id = f"run-{next(self.numbers)}"
        store = self.stores["a"]
        try:
            lease = self.run(store.runs.begin(self.new_run(run_id, HOME, "a", create=False)))
        except ConversationBusy:
            return
        if busy:
            assert self.run(store.runs.renew([lease], DEAD)) == set()
        else:
            end = RunEnd(RunState.SUCCESS, {"status": "success", "result": "hi"}, Usage(), "m")
            self.run(store.runs.finish(lease, end, [], [], self.now))

    def new_run(self, run_id: str, conversation: str, host: str, *, create: bool | None = None) -> NewRun:
        message = NewMessage(f"msg-{run_id}", "user", [], text="hello")
        apart = conversation != HOME
        return NewRun(
            run_id,
            conversation,
            message,
            owner=host,
            now=self.now,
            lease_ms=LEASE_MS,
            create=apart if create is None else create,
            parent_id=HOME if apart else None,
            temporary=apart,
        )

    def task_at(self, pick: int) -> str:
        return at(list(self.expected), pick)

    # What always holds

    def stored(self, task_id: str) -> Task:
        task = self.run(self.stores["b"].tasks.get(task_id, Reach(HOME)))
        assert task is not None, "a task vanished"
        return task

    def note_outcome(self, held: Held) -> None:
        expected = self.expected.get(held.task.id)
        if expected is None or held.task.schedule_type != "once" or not held.claim.slot.isdigit():
            return
        if held.ended is RunState.SUCCESS:
            assert held.task.id not in self.served, "a once task was served twice"
            self.served.append(held.task.id)

    @invariant()
    def what_people_wanted_is_kept(self) -> None:
        for task_id, expected in self.expected.items():
            task = self.stored(task_id)
            assert task.prompt == expected.prompt
            ended = task.schedule_type == "once" and task.status in (TaskStatus.COMPLETED, TaskStatus.FAILED)
            if ended and expected.status is TaskStatus.ACTIVE:
                expected.status = task.status
            assert task.status is expected.status

    @invariant()
    def an_active_task_always_has_a_next_slot_or_is_running(self) -> None:
        for task_id in self.expected:
            task = self.stored(task_id)
            if task.status is TaskStatus.ACTIVE:
                assert task.next_run is not None or task.running

    @invariant()
    def no_slot_is_in_the_log_twice(self) -> None:
        for task_id in self.expected:
            page = self.run(self.stores["a"].tasks.runs(task_id, EVERYTHING, limit=1000, cursor=None))
            assert page is not None
            slots = [run.slot for run in page.items]
            assert len(slots) == len(set(slots))

    def teardown(self) -> None:
        """Both hosts die, a new one starts: everything that is due runs, and nothing stays stuck."""
        if self.stores:
            self.drain()
            for store in self.stores.values():
                self.run(store.close())
            self.clean_up()
        self.runner.close()

    def drain(self) -> None:
        store = self.stores["a"]
        self.now += 60 * MINUTE
        self.run(store.runs.recover(self.now, all_but="new"))
        self.run(store.tasks.recover(self.now, all_but="new"))
        for _ in range(1000):
            claimed = self.run(store.tasks.claim_due(host="new", now=self.now, lease_ms=LEASE_MS))
            if claimed is None:
                break
            assert (claimed[0].id, claimed[1].slot) not in self.effects
            self.run(
                store.tasks.finish(
                    claimed[1], state=TaskRunState.SUCCESS, result="ok", error=None, now=self.now
                )
            )
        assert self.run(store.tasks.count_due(self.now)) == 0
        assert self.run(store.tasks.metrics(self.now)).running == 0
        for task_id in self.expected:
            task = self.stored(task_id)
            assert not task.running
            if task.schedule_type == "once":
                assert task.status is not TaskStatus.ACTIVE or task.next_run is not None


class TaskRacesOnPostgres(TaskRaces):
    """The same on PostgreSQL."""

    def open_stores(self) -> Iterator[Store]:
        self.database = emptied_database()
        url = self.run(self.database.__aenter__())
        for host in HOSTS:
            yield PostgresStore(Place(url, owner=host, connections=2))

    def clean_up(self) -> None:
        self.run(self.database.__aexit__(None, None, None))


TaskRaces.TestCase.settings = settings(max_examples=examples(100), stateful_step_count=40)
TestTaskRaces = TaskRaces.TestCase
TaskRacesOnPostgres.TestCase.settings = settings(max_examples=examples(10), stateful_step_count=30)
TestTaskRacesOnPostgres = needs_postgres(TaskRacesOnPostgres.TestCase)
