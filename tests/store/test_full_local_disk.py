"""The local disk is full: what frees it works, and everything else heals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.running import HostProcess, directive, new_host, running_model, until

pytestmark = pytest.mark.skipif(
    os.environ.get("PICOCLAW_TEST_ENGINE") == "postgres", reason="needs a store on the local disk"
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostProcess]:
    """A host whose local database and commands' temporary files share one small disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=1777", "none", str(disk)]
    if subprocess.run(options, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount")
    for part in (*tmp_path.parents[:2], tmp_path):
        part.chmod(0o755)
    settings = {"LOCAL_DB_PATH": str(disk / "local" / "picoclaw.db"), "TMPDIR": str(disk)}
    with running_model() as model:
        made = new_host(tmp_path / "host", model.url, settings)
        try:
            yield made.start()
        finally:
            made.stop()
            subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_command_that_fills_the_disk_takes_it_from_nobody(host: HostProcess) -> None:
    fill = {"name": "exec", "input": {"command": "head -c 1G </dev/zero >$TMPDIR/x; true"}}
    with host.client() as client:
        message = directive(steps=[{"tools": [fill]}, {"text": "$results"}])
        filled = client.post("/chat", json={"message": message}).json()
        assert "its temporary files took too much" in filled["result"]
        assert client.post("/chat", json={"message": directive(text="fine")}).json()["status"] == "success"
        assert client.delete(f"/chat/{filled['conversation_id']}").status_code == 204


def test_a_conversation_can_be_deleted_from_a_full_disk(host: HostProcess, tmp_path: Path) -> None:
    keep = {"name": "exec", "input": {"command": "head -c 10M </dev/zero >$TMPDIR/x; echo $TMPDIR"}}
    filler = tmp_path / "disk" / "filler"
    with host.client() as client:
        message = directive("w" * 100_000, steps=[{"tools": [keep]}, {"text": "$results"}])
        made = client.post("/chat", json={"message": message}).json()
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        refused = client.post("/chat", json={"message": directive("x" * 100_000, text="no")})
        assert (refused.status_code, refused.json()["code"]) == (503, "store_not_durable")
        assert refused.json()["error"].startswith("The local disk cannot be written")
        looked = subprocess.run(
            [sys.executable, "-m", "host.cli", "doctor", "--json"],
            env=host.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        said = {row["check"]: row["said"] for row in json.loads(looked.stdout)}
        assert "(No space left on device); make room there" in said["database"]
        deleted = client.delete(f"/chat/{made['conversation_id']}")
        assert deleted.status_code == 204, deleted.text
        assert client.get(f"/chat/{made['conversation_id']}").status_code == 404
        until(lambda: not Path(made["result"].splitlines()[0]).exists())
        assert client.post("/chat", json={"message": directive(text="fine")}).json()["status"] == "success"
