"""Kills between an ending and its delivery: every run is told, and each time with the same id."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.fakes.receiver import Answer, Receiver, receiving
from tests.http.conftest import configure
from tests.running import HostProcess, new_host, until

KILLS, KILLS_SLOW = 6, 200


def test_each_ending_is_told_although_the_host_is_killed(tmp_path: Path) -> None:
    _torment(tmp_path, KILLS, random.Random(5))


@pytest.mark.slow
def test_each_ending_is_told_although_the_host_is_killed_two_hundred_times(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    _torment(tmp_path, KILLS_SLOW, random.Random(seed))


def test_a_host_whose_telling_process_is_stuck_stops_and_tells_when_it_is_back(tmp_path: Path) -> None:
    host = configure(new_host(tmp_path / "host", None), webhooks={"allowed_hosts": ["127.0.0.1"]})
    with receiving() as receiver:
        host.start()
        try:
            with host.client() as client:
                client.post("/webhooks", json={"url": receiver.url, "events": ["run.ended"]})
                client.post("/chat", json={"message": "one"})
                receiver.wait(1)
                (telling,) = (each for each in host.tree() if _is_telling(each))
                telling.suspend()
                ended = client.post("/chat", json={"message": "two"}).json()["run_id"]
            assert host.stop() == 0
            host.start()
            until(lambda: ended in _told(receiver))
        finally:
            host.kill()
    assert len(_told(receiver)[ended]) == 1


def _is_telling(process: psutil.Process) -> bool:
    with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # others of the tree end meanwhile
        return "host.egress.receivers" in process.cmdline()
    return False


def _torment(root: Path, kills: int, chance: random.Random) -> None:
    host = configure(new_host(root / "host", None), webhooks={"allowed_hosts": ["127.0.0.1"]})
    ended: list[str] = []
    with receiving() as receiver:
        host.start()
        with host.client() as client:
            client.post("/webhooks", json={"url": receiver.url, "events": ["run.ended"]})
        try:
            for number in range(kills):
                ended.append(_end_a_run(host, receiver, number, chance))
                host.start()
            until(lambda: _told(receiver).keys() >= set(ended))
        finally:
            host.kill()
        told = _told(receiver)
    assert {run_id for run_id in ended if len(told[run_id]) != 1} == set()


def _end_a_run(host: HostProcess, receiver: Receiver, number: int, chance: random.Random) -> str:
    """End a run and kill the host: before it told anybody, while it does, or as it is answered."""
    hold, before = threading.Event(), len(receiver.received)
    moment = chance.choice(("before", "while", "after"))
    if moment == "while":
        receiver.answers.append(Answer(hold=hold))
    with host.client() as client:
        run_id: str = client.post("/chat", json={"message": f"remember {number}"}).json()["run_id"]
    if moment != "before":
        receiver.wait(before + 1)
    host.kill()
    hold.set()
    receiver.answers.clear()
    return run_id


def _told(receiver: Receiver) -> dict[str, set[str]]:
    """Return the ids under which each run's end came."""
    found = defaultdict[str, set[str]](set)
    for each in list(receiver.received):
        found[each.event["data"]["run_id"]].add(each.id)
    return found
