"""The image at work: first start, next start, crashes, other users, bad settings."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.image.conftest import MakeContainer
from tests.image.container import Container
from tests.running import until

LONGEST_START = 10
"""In starts of an interpreter that imports the web frameworks alone: 1.5 s where that takes 0.15 s."""


def chat(client: httpx2.Client, message: str, conversation: str | None = None) -> dict[str, Any]:
    body = {"message": message} | ({"conversation_id": conversation} if conversation else {})
    answer = client.post("/chat", json=body)
    assert answer.status_code == 200, answer.text
    done: dict[str, Any] = answer.json()
    assert done["status"] == "success", done
    return done


def test_on_empty_volumes_it_starts_with_a_sandbox_of_level_2(running: Container) -> None:
    with running.client() as client:
        until(lambda: client.get("/health").json()["sandbox"].get("level") == 2)
        health = client.get("/health").json()
    assert health["status"] == "ok"
    assert (health["version"], health["commit"]) == ("9.8.7", "abc1234")
    assert health["volumes"]["memory"]
    assert health["volumes"]["store"]


def test_files_and_commands_work_and_the_rest_is_out_of_reach(running: Container) -> None:
    with running.client() as client:
        until(lambda: client.get("/health").json()["sandbox"].get("level") == 2)
        chat(client, "write hello to notes.txt")
        assert "hello" in chat(client, "run cat notes.txt")["result"]
        for secret in ("/data/store", "/proc/1/environ", "/opt/picoclaw/bin"):
            said = chat(client, f"run ls -la {secret} || echo out of reach")["result"]
            assert "out of reach" in said or "outside working dir" in said, said
    assert (running.root / "memory/notes.txt").read_text().strip() == "hello"


def test_killed_at_once_it_starts_again_on_its_volumes_with_nothing_lost(
    make_container: MakeContainer, tmp_path: Path
) -> None:
    container = make_container().start()
    with container.client() as client:
        conversation = chat(client, "remember the milk")["conversation_id"]
    container.kill()
    for path in (tmp_path / "tmp").iterdir():
        assert path.name in ("picoclaw", "exit-code") or path.is_dir()
    # A new container has a new /tmp: only the volumes are left.
    os.rename(tmp_path / "tmp", tmp_path / "tmp-before")
    again = make_container().start()
    with again.client() as client:
        messages = client.get(f"/chat/{conversation}/messages").json()["messages"]
    assert messages[0]["content"] == "remember the milk"
    assert again.stop() == 0


def test_it_answers_soon_after_what_its_frameworks_alone_take(make_container: MakeContainer) -> None:
    took, alone = [], frameworks_alone()
    for _ in range(3):
        container = make_container().start(wait=False)
        container.wait_ready()
        ready = time.time()
        main, host = container.find("supervise"), container.find("serve")
        took.append(ready - main.create_time() - waited_for_a_processor(main, host))
        assert container.stop() == 0
    print("start to /ready:", ", ".join(f"{seconds:.2f} s" for seconds in took), f"alone: {alone:.2f} s")
    assert min(took) <= LONGEST_START * alone


def frameworks_alone() -> float:
    """Return the seconds in which this machine, at this moment, starts an interpreter with the frameworks."""
    took = []
    for _ in range(3):
        started = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", "import anyio, pydantic, starlette.routing, uvicorn"], check=True
        )
        took.append(time.monotonic() - started)
    return min(took)


def waited_for_a_processor(*processes: psutil.Process) -> float:
    """Return the seconds in which others had the processors (proc(5), schedstat): not the image's fault."""
    texts = [Path(f"/proc/{process.pid}/schedstat").read_text() for process in processes]
    return sum(int(text.split()[1]) for text in texts) / 1e9


def test_a_volume_of_another_user_is_refused_with_what_mends_it(
    make_container: MakeContainer, tmp_path: Path
) -> None:
    container = make_container()
    os.chown(tmp_path / "store", 4711, 4711)
    container.start(wait=False)
    assert container.wait() == 2
    assert "/data/store belongs to uid 4711 and the host runs as uid 1000" in container.log_text
    assert "chown -R 1000:1000 /data/store" in container.log_text
    assert container.log_text.count("spawned") == 1


def test_any_user_may_run_it_whose_the_volumes_are(make_container: MakeContainer) -> None:
    container = make_container(uid=54_321).start()
    with container.client() as client:
        until(lambda: client.get("/health").json()["sandbox"].get("level") == 2)
        assert "54321" in chat(client, "run id -u")["result"]
    assert container.stop() == 0


def test_started_as_root_its_commands_have_a_user_of_their_own(make_container: MakeContainer) -> None:
    container = make_container(uid=0).start()
    with container.client() as client:
        until(lambda: client.get("/health").json()["sandbox"].get("level") == 2)
        assert "61900" in chat(client, "run id -u")["result"]
    assert container.stop() == 0


def test_a_setting_that_cannot_be_used_stops_it_with_exit_code_2(make_container: MakeContainer) -> None:
    container = make_container({"TZ": "Mars/Olympus"}).start(wait=False)
    assert container.wait() == 2
    assert "TZ (environment) must be the name of a time zone" in container.log_text


def test_a_crashed_host_is_started_again_in_the_same_container(make_container: MakeContainer) -> None:
    container = make_container().start()
    host = container.find("serve")
    host.kill()
    host.wait(60)
    container.wait_ready()
    assert container.stop() == 0


def test_the_health_check_tells_well_from_ill(running: Container) -> None:
    check = running.image.config["Healthcheck"]["Test"][1:]
    assert running.run(*check).returncode == 0
    assert running.run(*check, PORT="1").returncode == 1


def test_its_main_process_cannot_be_read_by_its_own_user(running: Container) -> None:
    pid = running.supervisor().pid
    read = running.run("cat", f"/proc/{pid}/environ")
    assert read.returncode == 1
    assert "Permission denied" in read.stderr


@pytest.mark.parametrize("command", [("picoclaw", "doctor"), ("picoclaw", "store", "check")])
def test_the_operators_commands_work_in_it(running: Container, command: tuple[str, ...]) -> None:
    done = running.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_backup_made_in_it_is_whole(running: Container) -> None:
    done = running.run("picoclaw", "store", "backup", "/tmp/backup.db")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (running.root / "tmp/backup.db").read_bytes().startswith(b"SQLite format 3")
