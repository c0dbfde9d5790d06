"""Disks that fail, clocks that jump, a second host: nothing is acknowledged that could be lost."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shared.store.volume.lock import Sidecar
from tests.running import HostProcess, ModelProcess, directive, frames, new_host, running_model, until


@pytest.fixture(scope="module")
def model() -> Iterator[ModelProcess]:
    with running_model() as process:
        yield process


@pytest.fixture
def host(model: ModelProcess, tmp_path: Path) -> Iterator[HostProcess]:
    made = new_host(tmp_path / "host", model.url)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


@pytest.fixture
def small_volume(host: HostProcess) -> Iterator[Path]:
    """A STORE_DIR of two mebibytes."""
    volume = Path(host.environment["STORE_DIR"])
    volume.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "none", volume], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs to mount")
    yield volume
    subprocess.run(["umount", "-l", volume], check=True)


def chat(client: httpx2.Client, text: str, **more: Any) -> httpx2.Response:
    return client.post("/chat", json={"message": directive(text, text="fine"), **more})


def texts(client: httpx2.Client) -> set[str]:
    """Return the first word of every message a person sent."""
    found: set[str] = set()
    for conversation in client.get("/chat", params={"limit": "1000"}).json()["conversations"]:
        listed = client.get(f"/chat/{conversation['conversation_id']}/messages").json()["messages"]
        found |= {entry["content"].split(" ")[0] for entry in listed if entry["role"] == "user"}
    return found


def refuses(client: httpx2.Client) -> None:
    """What would have to be durable is refused, what only reads is answered."""
    refused = chat(client, "refused")
    assert (refused.status_code, refused.json()["code"]) == (503, "store_not_durable")
    assert refused.headers["retry-after"]
    task = {"prompt": "x", "schedule_type": "interval", "schedule_value": "60000"}
    assert client.post("/task", json=task).status_code == 503
    assert client.get("/chat").status_code == 200
    health = client.get("/health").json()
    assert health["status"] == "degraded"
    assert health["volumes"]["store"] is False


def accepts(client: httpx2.Client) -> None:
    until(lambda: bool(client.get("/health").json()["status"] == "ok"))
    assert chat(client, "accepted").json()["status"] == "success"


def test_a_full_volume_is_said_and_heals(host: HostProcess, small_volume: Path) -> None:
    host.start()
    with host.client() as client:
        assert chat(client, "before").status_code == 200
        filler = small_volume / "filler"
        fill(filler)
        until(lambda: chat(client, "maybe").status_code == 503)
        refuses(client)
        filler.unlink()
        accepts(client)
    host.kill()
    shutil.rmtree(Path(host.environment["LOCAL_DB_PATH"]).parent)
    host.start()
    with host.client() as client:
        assert {"before", "accepted"} <= texts(client)


def test_a_volume_that_is_gone_and_comes_back(host: HostProcess) -> None:
    host.start()
    volume = Path(host.environment["STORE_DIR"])
    away = volume.with_name("away")
    with host.client() as client:
        assert chat(client, "before").status_code == 200
        volume.rename(away)
        volume.mkdir()
        assert chat(client, "first").status_code == 503
        refuses(client)
        volume.rmdir()
        away.rename(volume)
        accepts(client)
    assert host.stop() == 0
    host.start()
    with host.client() as client:
        assert {"before", "accepted"} <= texts(client)


def test_a_stream_whose_start_cannot_be_kept_is_not_begun(host: HostProcess) -> None:
    host.start()
    volume = Path(host.environment["STORE_DIR"])
    with host.client() as client:
        assert chat(client, "before").status_code == 200
        volume.rename(volume.with_name("away"))
        body = {"message": directive("x", text="fine"), "stream": True}
        with client.stream("POST", "/chat", json=body) as response:
            told = (
                [] if response.status_code == 503 else [name for _, name, _ in frames(response.iter_lines())]
            )
        assert not {"start", "chunk", "done"} & set(told)
        volume.with_name("away").rename(volume)


def test_a_stream_shows_nothing_before_its_message_is_kept_although_the_model_is_done(
    host: HostProcess, model: ModelProcess
) -> None:
    host.start()
    sidecar = Sidecar(Path(host.environment["LOCAL_DB_PATH"]))
    told: list[str] = []

    def follow(client: httpx2.Client) -> None:
        body = {"message": directive("waits-to-be-kept", text="fine"), "stream": True}
        with client.stream("POST", "/chat", json=body) as response:
            told.extend(name for _, name, _ in frames(response.iter_lines()))

    with host.client() as client:
        assert chat(client, "before").status_code == 200
        reader = threading.Thread(target=follow, args=(client,))
        with sidecar:  # whoever ships has to wait
            reader.start()
            until(lambda: "waits-to-be-kept" in str(model.requests()))
            time.sleep(0.7)  # longer than until events are stored
            assert told == []
        reader.join()
    sidecar.close()
    assert told == ["start", "chunk", "done"]


def test_the_answer_of_a_key_is_given_only_when_it_is_kept(host: HostProcess) -> None:
    host.start()
    volume = Path(host.environment["STORE_DIR"])
    away = volume.with_name("away")
    task = {"id": "t", "prompt": "x", "schedule_type": "interval", "schedule_value": "60000"}
    key = {"Idempotency-Key": "k"}
    with host.client() as client:
        assert chat(client, "before").status_code == 200
        volume.rename(away)
        for _ in range(3):
            assert client.post("/task", json=task, headers=key).status_code == 503
        away.rename(volume)
        until(lambda: client.post("/task", json=task, headers=key).status_code == 201)
        assert [each["id"] for each in client.get("/tasks").json()["tasks"]] == ["t"]


@pytest.mark.parametrize(
    "fault", ["torn tail", "torn snapshot", "local gone", "local log gone", "local torn"]
)
def test_the_next_start_needs_no_hand(host: HostProcess, fault: str) -> None:
    volume, local = Path(host.environment["STORE_DIR"]), Path(host.environment["LOCAL_DB_PATH"])
    host.start()
    with host.client() as client:
        assert chat(client, "told").status_code == 200
    host.kill()
    if fault == "torn tail":
        newest = sorted(volume.glob("wal-*"))[-1]
        newest.write_bytes(newest.read_bytes() + b"half a frame" * 50)
        shutil.rmtree(local.parent)
    elif fault == "torn snapshot":
        (volume / "snapshot-000099-00000099.tmp").write_bytes(b"half")
        shutil.rmtree(local.parent)
    elif fault == "local gone":
        local.unlink()
    elif fault == "local log gone":
        local.with_name(local.name + "-wal").unlink()
    else:
        local.write_bytes(b"\0" * 4096)
        (local.parent / f"{local.name}.ship").unlink()
    host.start()
    with host.client() as client:
        assert texts(client) == {"told"}
        assert client.get("/health").json()["status"] == "ok"


def test_two_hosts_on_one_volume(host: HostProcess, model: ModelProcess, tmp_path: Path) -> None:
    host.start()
    second = new_host(tmp_path / "second", model.url, {"STORE_DIR": host.environment["STORE_DIR"]})
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(60) == 1
    assert "STORE_DIR is in use by host-" in second.log_text
    with host.client() as client:
        assert chat(client, "still here").status_code == 200
    host.kill()
    second.start()
    with second.client() as client:
        assert texts(client) == {"still"}
    second.kill()


def test_a_clock_set_back_an_hour_changes_no_order_and_stops_nothing(
    host: HostProcess, tmp_path: Path
) -> None:
    offset = tmp_path / "offset"
    offset.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(SHIFTED_CLOCK.format(path=str(offset)))
    host.environment["PYTHONPATH"] = str(tmp_path)
    host.start()
    with host.client() as client:
        told = chat(client, "one").json()
        conversation = told["conversation_id"]
        task = {"id": "t", "prompt": "x", "schedule_type": "interval", "schedule_value": "1000"}
        assert client.post("/task", json=task).status_code == 201
        offset.write_text("-3600")
        assert chat(client, "two", conversation_id=conversation).json()["status"] == "success"
        with client.stream(
            "POST", "/chat", json={"message": directive("three", hang=True), "stream": True}
        ) as response:
            running = next(frames(response.iter_lines()))[2]
            offset.write_text("-7200")
            busy = chat(client, "x", conversation_id=running["conversation_id"])
            assert busy.status_code == 409
            host.kill()
    host.start()
    with host.client() as client:
        path = f"/chat/{running['conversation_id']}"
        assert client.get(path).json()["status"] == "idle"
        assert chat(client, "four", conversation_id=running["conversation_id"]).status_code == 200
        listed = client.get(f"/chat/{conversation}/messages").json()["messages"]
        assert [entry["content"].split(" ")[0] for entry in listed] == ["one", "fine", "two", "fine"]
        newest = client.get("/chat").json()["conversations"]
        assert {entry["status"] for entry in newest} == {"idle"}
        assert client.get("/task/t").json()["status"] == "active"


SHIFTED_CLOCK = """
import time
from pathlib import Path

real = time.time_ns

def time_ns():
    return real() + int(Path({path!r}).read_text() or 0) * 1_000_000_000

time.time_ns = time_ns
time.time = lambda: time_ns() / 1e9
"""


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
