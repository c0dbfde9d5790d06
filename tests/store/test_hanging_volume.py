"""Volumes and local disks that hang: frozen under the host as storage that is gone leaves them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.http.conftest import alone_on_the_store, model
from tests.http.test_other_file_systems import hanging, needs_fuse
from tests.running import HostProcess, ModelProcess, directive, new_host, until

__all__ = ["model"]

TOOLS = ("fsfreeze", "mkfs.ext4", "mount", "umount")
SOONER = """
import sys
from host.cli import serve, start
from shared.store.volume import lock, volume
serve.HANGS_S = start.HANGS_S = 2.0
lock.BEAT_S, volume.ANSWERS_S = 0.5, 4.0
sys.argv[1:] = ["serve"]
from host.cli import main
main()
"""

pytestmark = [
    alone_on_the_store,
    pytest.mark.skipif(os.geteuid() != 0 or not all(map(shutil.which, TOOLS)), reason="needs root and ext4"),
]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    image, mounted = tmp_path / "image", tmp_path / "volume"
    image.touch()
    os.truncate(image, 64 << 20)
    mounted.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    done = subprocess.run(
        ["mount", "-o", "loop", image, mounted], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"needs to mount: {done.stderr}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


@contextmanager
def frozen(volume: Path) -> Iterator[None]:
    subprocess.run(["fsfreeze", "--freeze", volume], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", volume], check=True)


@pytest.fixture
def host(volume: Path, model: ModelProcess, tmp_path: Path) -> Iterator[HostProcess]:
    process = new_host(tmp_path / "host", model.url, {"STORE_DIR": str(volume / "store")})
    process.command = (sys.executable, "-c", SOONER)
    yield process.start()
    if process.process is not None and process.process.poll() is None:
        process.kill()


def test_nothing_is_acknowledged_everybody_is_told_and_it_goes_on_by_itself(
    host: HostProcess, volume: Path
) -> None:
    with host.client() as client:
        known = client.post("/chat", json={"message": "before"}).json()["conversation_id"]
        with frozen(volume):
            first = client.post("/chat", json={"message": "during", "conversation_id": known})
            assert (first.status_code, first.json()["code"]) == (503, "store_not_durable")
            until(lambda: client.get("/ready").status_code == 503)
            health = client.get("/health").json()
            assert (health["status"], health["volumes"]["store"]) == ("degraded", False)
            assert "picoclaw_store_durable 0.0" in client.get("/metrics").text
            refused = client.post("/chat", json={"message": "more"})
            assert (refused.status_code, refused.json()["code"]) == (503, "store_not_durable")
        until(lambda: client.get("/ready").status_code == 200)
        assert client.get("/health").json()["status"] == "ok"
        assert "picoclaw_store_durable 1.0" in client.get("/metrics").text
        assert client.post("/chat", json={"message": "after"}).json()["status"] == "success"


def test_an_idle_host_sees_it_without_a_request(host: HostProcess, volume: Path) -> None:
    with host.client() as client, frozen(volume):
        until(lambda: client.get("/ready").status_code == 503)


def test_sigterm_ends_the_host_and_its_children_while_the_kernel_keeps_a_thread(
    host: HostProcess, volume: Path
) -> None:
    """Only the entry of the process stays until the file system answers: the kernel keeps it."""
    assert host.process is not None
    with host.client() as client, host.client() as other:
        message = directive(tools=[{"name": "exec", "input": {"command": "true"}}])
        assert client.post("/chat", json={"message": message}).status_code == 200
        main, *children = host.tree()
        assert children
        with frozen(volume):
            thread = threading.Thread(target=talk, args=(other,))
            thread.start()
            host.process.send_signal(signal.SIGTERM)
            until(lambda: all(map(ended, [main, *children])))
            assert not host.listens()
            thread.join(60)
    assert host.process.wait(60) == 1
    assert "STORE_DIR does not answer" in host.log_text
    host.start()
    with host.client() as client:
        assert client.post("/chat", json={"message": "again"}).json()["status"] == "success"


def test_a_local_disk_that_hangs_is_named_and_sigterm_ends_the_host_at_once(
    model: ModelProcess, volume: Path, tmp_path: Path
) -> None:
    """Statements run on the event loop: nobody is answered, and the kernel keeps its thread."""
    host = new_host(tmp_path / "host", model.url, {"LOCAL_DB_PATH": str(volume / "picoclaw.db")})
    host.command = (sys.executable, "-c", SOONER)
    host.start()
    assert host.process is not None
    with host.client() as client, host.client() as other:
        known = client.post("/chat", json={"message": "before"}).json()
        children = host.tree()[1:]
        with frozen(volume):
            thread = threading.Thread(target=talk, args=(other,))
            thread.start()
            until(lambda: "No request is answered: LOCAL_DB_PATH" in host.log_text)
            host.process.send_signal(signal.SIGTERM)
            thread.join(60)
            assert f"LOCAL_DB_PATH ({volume / 'picoclaw.db'}) does not answer: ending" in host.log_text
            assert not host.listens()
    assert host.process.wait(60) == 1
    until(lambda: all(map(ended, children)))
    host.environment["LOCAL_DB_PATH"] = str(tmp_path / "elsewhere" / "picoclaw.db")
    host.start()
    with host.client() as client:
        kept = client.get(f"/chat/{known['conversation_id']}/messages").json()["messages"]
        assert [message["role"] for message in kept] == ["user", "assistant"]
    host.stop()


def test_a_disk_that_hangs_while_the_host_starts_is_named(volume: Path, tmp_path: Path) -> None:
    """Its files are read, and only what would write them waits: a thread, while the event loop goes on."""
    host = new_host(tmp_path / "host", None, {"LOCAL_DB_PATH": str(volume / "picoclaw.db")})
    host.command = (sys.executable, "-c", SOONER)
    with frozen(volume):
        host.start(wait=False)
        until(lambda: f"The host cannot start: LOCAL_DB_PATH ({volume}) does not answer" in host.log_text)
        assert host.process is not None
        host.process.send_signal(signal.SIGTERM)
        until(lambda: f"LOCAL_DB_PATH ({volume}) does not answer: ending without it" in host.log_text)
    assert host.process.wait(60) == 1


@needs_fuse
@pytest.mark.parametrize(
    ("name", "place"),
    [("LOCAL_DB_PATH", "local"), ("STORE_DIR", "store"), ("MEMORY_DIR", "memory"), ("SKILLS_DIR", "skills")],
)
def test_a_file_system_that_hangs_when_the_host_is_started_is_named(
    tmp_path: Path, name: str, place: str
) -> None:
    host = new_host(tmp_path / "host", None, {"SKILLS_DIR": str(tmp_path / "host" / "skills")})
    host.command = (sys.executable, "-c", SOONER)
    (directory := tmp_path / "host" / place).mkdir()
    with hanging(directory):
        host.start(wait=False)
        until(lambda: f"{name} ({directory}) does not answer" in host.log_text)
        assert host.stop() == 1
    assert f"{name} ({directory}) does not answer: ending without it" in host.log_text


@needs_fuse
@pytest.mark.parametrize(("name", "place"), [("PICOCLAW_HOME", "home"), ("ORG_DIR", "organisation")])
def test_settings_that_hang_are_named(tmp_path: Path, name: str, place: str) -> None:
    host = new_host(tmp_path / "host", None, {name: str(tmp_path / place)})
    host.command = (sys.executable, "-c", SOONER)
    (tmp_path / place).mkdir()
    with hanging(tmp_path / place):
        host.start(wait=False)
        until(lambda: f"{name} ({tmp_path / place}) does not answer" in host.log_text)
        host.stop()


@needs_fuse
def test_a_local_disk_whose_files_cannot_be_looked_up_is_told_from_the_volume(
    model: ModelProcess, tmp_path: Path
) -> None:
    """What is open goes on: only the thread that ships waits."""
    host = new_host(tmp_path / "host", model.url)
    host.command = (sys.executable, "-c", SOONER)
    host.start()
    with host.client() as client, hanging(tmp_path / "host" / "local"):
        answer = client.post("/chat", json={"message": "never stored"})
        assert (answer.status_code, answer.json()["error"]) == (503, "The local disk does not answer")
        assert client.get("/health").json()["status"] == "degraded"
        assert host.stop() == 1
        assert f"LOCAL_DB_PATH ({tmp_path / 'host' / 'local' / 'picoclaw.db'}) does not" in host.log_text


def talk(client: httpx2.Client) -> None:
    with suppress(httpx2.TransportError):
        client.post("/chat", json={"message": "never stored"})


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("how", ["full", "read-only", "gone", "another directory over it"])
def test_a_volume_that_refuses_writes_makes_an_idle_host_not_ready(
    host: HostProcess, volume: Path, how: str
) -> None:
    with host.client() as client:
        with refusing(volume, how):
            until(lambda: client.get("/ready").status_code == 503)
            assert client.get("/health").json()["volumes"]["store"] is False
        until(lambda: client.get("/ready").status_code == 200)


@contextmanager
def refusing(volume: Path, how: str) -> Iterator[None]:
    """Make a volume refuse what is written, and take it again after the block."""
    store, away = volume / "store", volume / "away"
    if how == "full":
        filler = volume / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()
    elif how == "gone":
        store.rename(away)
        yield
        away.rename(store)
    else:
        source = volume if how == "read-only" else volume.parent
        target = volume if how == "read-only" else store
        subprocess.run(["mount", "--bind", source, target], check=True)
        try:
            if how == "read-only":
                # Busy for the moment of a heartbeat, which writes a file.
                remount: list[str | Path] = ["mount", "-o", "remount,bind,ro", target]
                until(lambda: subprocess.run(remount, check=False).returncode == 0)
            yield
        finally:
            subprocess.run(["umount", "-l", target], check=True)
