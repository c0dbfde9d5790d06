"""What root gets by default: commands under a uid of their own, whatever that uid can't reach."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host.skills.catalogue import SHIPPED
from tests.cli.running import process
from tests.running import new_host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a uid of its own")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may pass through, as /var/lib is one; pytest's own are closed."""
    directory = Path(tempfile.mkdtemp(prefix="picoclaw-root-", dir="/var/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def closed(place: Path) -> Path:
    """A folder of skills below a directory that only root may enter."""
    folder = place / "root" / "skills"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "SKILL.md").write_text("---\nname: mine\ndescription: Mine.\n---\nDo it.\n")
    (place / "root").chmod(0o700)
    return folder


def sandbox_findings(home: Path, **extra: str) -> list[tuple[str, str]]:
    """What doctor says of the sandbox, but for where this tree lies: below a closed directory its own skills
    are left out too.
    """
    rows: list[dict[str, Any]] = json.loads(process(home, "doctor", "--json", **extra).stdout)
    found = [(row["verdict"], row["said"]) for row in rows if row["check"] in ("sandbox", "commands")]
    return [(verdict, said) for verdict, said in found if str(SHIPPED) not in said]


def test_a_home_of_init_gives_commands_a_uid_of_their_own(place: Path) -> None:
    home = place / "home"
    assert process(home, "init").returncode == 0
    assert home.stat().st_mode & 0o777 == 0o711
    assert {name: (home / name).stat().st_mode & 0o777 for name in ("run", "config.json")} == {
        "run": 0o700,
        "config.json": 0o600,
    }
    ((verdict, said),) = sandbox_findings(home)
    assert verdict == "ok"
    assert "level 3" in said
    assert said.endswith("61900") or "picoclaw-sandbox" in said


def test_a_folder_of_skills_out_of_reach_is_left_out_by_name_and_costs_no_level(
    place: Path, closed: Path
) -> None:
    process(place / "home", "init")
    fine, left_out = sandbox_findings(place / "home", SKILLS_DIR=str(closed))
    assert fine[0] == "ok"
    assert "level 3" in fine[1]
    assert left_out[0] == "note"
    assert str(closed) in left_out[1]
    host = new_host(place / "host", None, {"SKILLS_DIR": str(closed)}).start()
    try:
        with host.client() as client:
            answer = client.post("/chat", json={"message": "run id -u"}).json()
            health = client.get("/health").json()
    finally:
        host.stop()
    assert answer["status"] == "success"
    assert "\n61900\n" in answer["result"] or "picoclaw-sandbox" in Path("/etc/passwd").read_text()
    assert (health["sandbox"]["level"], health["sandbox"]["own_uid"]) == (3, True)
    assert f"The skills in {closed} are left out" in host.log_text


def test_a_workspace_out_of_reach_is_named_with_what_mends_it(place: Path) -> None:
    home = place / "root" / "home"
    home.mkdir(parents=True)
    (place / "root").chmod(0o700)
    process(home, "init")
    # Commands of a root without rights can't reach these; that costs them the skills alone.
    (place / "theirs" / "skills").mkdir(parents=True)
    (place / "theirs").chmod(0o700)
    os.chown(place / "theirs", 4711, 4711)
    fine, as_root = sandbox_findings(home, SKILLS_DIR=str(place / "theirs" / "skills"))
    assert "level 3" in fine[1]
    assert "commands run as root (uid 0)" in fine[1]
    assert as_root[0] == "note"
    assert "/var/lib/picoclaw" in as_root[1]
