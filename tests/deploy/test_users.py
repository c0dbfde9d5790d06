"""docs/users.md done: a host as root with five capabilities, a user, a limit, a deletion with its proof."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.running import picoclaw
from tests.deploy.test_files import DEPLOY, ROOT, known
from tests.deploy.test_helm import needs_helm, rendered
from tests.running import TOKEN, HostProcess, new_host

CAPABILITIES = ["CHOWN", "SETUID", "SETGID", "FOWNER", "KILL"]
PAGE = (ROOT / "docs/users.md").read_text()
SETPRIV = shutil.which("setpriv")
KUBECTL = shutil.which("kubectl")


class Overriding(yaml.SafeLoader):
    """Reads Compose's own tag as what stands behind it."""


def _list(loader: Overriding, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node)


Overriding.add_constructor("!override", _list)


@pytest.fixture
def host() -> Iterator[HostProcess]:
    """A host with the rights of the variant for many users, where other uids can pass."""
    if os.geteuid() != 0 or SETPRIV is None:
        pytest.skip("needs root and setpriv")
    root = Path(tempfile.mkdtemp(prefix="picoclaw-users-", dir="/var/lib"))
    root.chmod(0o755)
    process = new_host(root, None)
    bounds = ",".join(["-all", *(f"+{name.lower()}" for name in CAPABILITIES)])
    process.command = (SETPRIV, f"--bounding-set={bounds}", "--no-new-privs", *process.command)
    yield process
    if process.process is not None and process.process.poll() is None:
        process.stop()
    shutil.rmtree(root, ignore_errors=True)


def test_what_the_page_tells_is_done_with_five_capabilities(host: HostProcess, tmp_path: Path) -> None:
    host.start()

    def run(command: str, *more: str) -> str:
        words = re.search(rf"^picoclaw ({command}.*)$", PAGE, re.M)
        assert words is not None, command
        given = words[1].replace("prin-…", ann).split()
        ended = picoclaw(tmp_path, *given, *more, API_TOKEN=TOKEN, PICOCLAW_URL=host.url)
        assert ended.returncode == 0, ended.stderr + ended.stdout
        return str(ended.stdout.strip())

    ann = ""
    ann = run("principal create")
    text = run("principal token")
    with host.client(text) as client:
        me = client.get("/me").json()
        assert (me["name"], me["budgets"]["day"]["tokens"]) == ("Ann", 500_000)
        said = client.post("/chat", json={"message": "run `id -u; echo plums > plums.txt`"}).json()
        assert re.search(r"\n[67]\d{4}\n", said["result"]), said
    with host.client() as client:
        assert client.get("/health").json()["status"] == "ok"
    host.stop()
    host.start()
    with host.client(text) as client:
        assert "plums" in client.post("/chat", json={"message": "run `cat plums.txt`"}).json()["result"]
    run_delete = ("principal", "delete", ann, "--prove")
    proof = picoclaw(tmp_path, *run_delete, API_TOKEN=TOKEN, PICOCLAW_URL=host.url)
    assert proof.returncode == 0, proof.stdout
    assert list((host.root / "principals").iterdir()) == []


def test_the_composed_variant_adds_five_capabilities_and_no_more() -> None:
    composed: dict[str, Any] = yaml.load((DEPLOY / "users.yml").read_text(), Overriding)
    added = composed["services"]["host"]
    assert added["cap_add"] == CAPABILITIES
    assert added["user"] == "0:0"
    assert set(added) == {"user", "cap_add", "environment", "volumes"}
    known(set(added["environment"]))
    places = {volume.split(":")[1] for volume in added["volumes"]}
    assert set(added["environment"].values()) <= places


@needs_helm
def test_the_chart_s_variant_adds_five_capabilities_and_a_volume() -> None:
    stateful = rendered({"users": {"enabled": True}})["StatefulSet/picoclaw"]["spec"]
    pod = stateful["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsUser"] == 0
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": CAPABILITIES}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert {"name": "principals", "mountPath": "/data/principals"} in container["volumeMounts"]
    assert "principals" in [claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]]


@pytest.mark.skipif(KUBECTL is None, reason="needs kubectl")
def test_the_manifest_s_variant_adds_five_capabilities() -> None:
    built = subprocess.check_output([str(KUBECTL), "kustomize", DEPLOY / "kubernetes"])
    (stateful,) = (item for item in yaml.safe_load_all(built) if item["kind"] == "StatefulSet")
    pod = stateful["spec"]["template"]["spec"]
    kept = {"runAsUser": 0, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["securityContext"] == kept
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": CAPABILITIES}
    assert {"name": "principals", "mountPath": "/data/principals"} in container["volumeMounts"]
