"""The files under deploy/ against the schemas and tools of those who read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.settings import load
from shared.settings.leaves import leaves
from tests.json_schema import check_kubernetes

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes/picoclaw.yaml").read_text()))
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SANDBOX_CALLS = {
    "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
    "seccomp", "prctl", "openat2", "clone", "prlimit64", "setresuid", "pidfd_open",
}  # fmt: skip
RESTORE_S = 3600
OURS = {"STOP_WAIT_SECONDS", "TICK", "TICK_SECONDS", "HOME", "PATH"}


def kinds() -> dict[str, dict[str, Any]]:
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in KUBERNETES}


def pods() -> list[dict[str, Any]]:
    host = kinds()["StatefulSet/picoclaw"]["spec"]["template"]["spec"]
    tick = kinds()["CronJob/picoclaw-tick"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return [host, tick]


def known(names: set[str]) -> None:
    """Hold that every name is a setting or one of the image's own."""
    settings = {name for leaf in leaves() for name in leaf.env}
    assert {name for name in names - settings - OURS if not name.startswith(("AWS_", "PYTHON"))} == set()


def test_the_compose_file_follows_the_specifications_schema() -> None:
    import jsonschema  # takes 1.4 s: see tests/json_schema.py

    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    jsonschema.validate(COMPOSE, schema)


def test_the_composed_host_has_no_more_rights_than_it_needs() -> None:
    host = COMPOSE["services"]["host"]
    assert host["read_only"] is True
    assert host["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in host["security_opt"]
    assert host["ports"] == ["127.0.0.1:9000:9000"]
    assert {"pids_limit", "mem_limit", "cpus"} <= set(host)
    known(set(host["environment"]))


def test_the_composed_host_is_passed_every_variable_of_the_configuration() -> None:
    host = COMPOSE["services"]["host"]
    assert host["env_file"] == [".env"]
    # What stands here wins over the file, so it is only what the ports and volumes beside it need.
    assert set(host["environment"]) == {"API_TOKEN", "HOST", "PORT", "LOCAL_DB_PATH"}
    settings = {name for leaf in leaves() for name in leaf.env}
    used = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text()))
    assert used - settings == {"IMAGE_VERSION"}
    # A name of ours that is no setting would be a warning of each start.
    assert not any(name.startswith("PICOCLAW_") for name in used - settings)


@pytest.mark.parametrize("item", KUBERNETES, ids=lambda item: f"{item['kind']}/{item['metadata']['name']}")
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_each_kubernetes_object_follows_the_apis_schema(item: dict[str, Any], version: str) -> None:
    check_kubernetes(item, version)


@pytest.mark.parametrize("pod", pods(), ids=["host", "tick"])
def test_pods_meet_the_restricted_security_standard(pod: dict[str, Any]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, "Restricted"."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        known({entry["name"] for entry in container.get("env", [])})
    allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod.get("volumes", []))


def test_the_config_in_the_config_map_is_one_that_the_program_takes(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(kinds()["ConfigMap/picoclaw-org"]["data"]["config.json"])
    settings = load({"HOME": str(tmp_path), "PICOCLAW_CONFIG": str(config)})
    assert settings.warnings == ()
    assert settings.budgets.day.tokens


def test_every_platform_waits_longer_than_the_host_needs_to_stop() -> None:
    grace = load({"HOME": "/nonexistent"}).stop_grace_ms / 1000
    wait = int(re.findall(r"STOP_WAIT_SECONDS=(\d+)", DOCKERFILE)[0])
    assert grace < wait
    assert wait < int(COMPOSE["services"]["host"]["stop_grace_period"].removesuffix("s"))
    assert wait < pods()[0]["terminationGracePeriodSeconds"]
    unit = (DEPLOY / "systemd/picoclaw.service").read_text()
    assert wait < int(re.findall(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)[0])


def test_every_platform_starts_the_host_after_a_reboot_and_waits_while_a_store_is_restored() -> None:
    assert COMPOSE["services"]["host"]["restart"] == "unless-stopped"
    unit = (DEPLOY / "systemd/picoclaw.service").read_text()
    assert {"Type=exec", "Restart=on-failure", "WantedBy=multi-user.target"} <= set(unit.splitlines())
    probe = pods()[0]["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= RESTORE_S
    (start_period,) = re.findall(r"--start-period=(\d+)s", DOCKERFILE)
    assert int(start_period) >= RESTORE_S
    template = yaml.load((DEPLOY / "lambda/template.yaml").read_text(), _Tagged)
    variables = template["Resources"]["Host"]["Properties"]["Environment"]["Variables"]
    assert variables["AWS_LWA_ASYNC_INIT"] == "true"


class _Tagged(yaml.SafeLoader):
    """Reads CloudFormation's short tags as plain values."""


_Tagged.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")


def test_the_lambda_template_passes_cloudformations_linter() -> None:
    template = DEPLOY / "lambda/template.yaml"
    done = subprocess.run(
        [Path(sys.executable).parent / "cfn-lint", template], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_on_lambda_a_run_ends_before_the_platform_ends_it() -> None:
    template = yaml.load((DEPLOY / "lambda/template.yaml").read_text(), _Tagged)
    host = template["Resources"]["Host"]["Properties"]
    variables = host["Environment"]["Variables"]
    assert int(variables["MAX_EXECUTION_MS"]) + 30_000 <= host["Timeout"] * 1000
    assert host["ReservedConcurrentExecutions"] == 1
    assert variables["STORE_DIR"].startswith(host["FileSystemConfigs"][0]["LocalMountPath"])
    known(set(variables))


def test_the_image_sets_nothing_that_is_no_setting() -> None:
    block = DOCKERFILE.partition("\nENV PATH=")[2].partition("\n\n")[0]
    known(set(re.findall(r"^ +([A-Z_]+)=", block, re.MULTILINE)))


def test_the_image_names_no_private_registry_and_takes_a_digest() -> None:
    assert re.search(r"^ARG BASE=docker\.io/library/python:3\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^FROM (?!\$\{BASE\}|\$\{LAMBDA_ADAPTER\}|adapter-)", DOCKERFILE, re.MULTILINE) == []


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that is there, as systemd-analyze wants it."""
    text = (DEPLOY / "systemd/picoclaw.service").read_text()
    path = tmp_path / "picoclaw.service"
    path.write_text(text.replace("/opt/picoclaw/bin/picoclaw", str(Path(sys.executable).parent / "picoclaw")))
    return path


needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")


@needs_systemd
def test_systemd_finds_no_fault_in_the_unit(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])


@needs_systemd
def test_the_unit_is_exposed_less_than_systemds_own_threshold_for_ok(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", unit],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:]


@needs_systemd
def test_the_units_filter_leaves_the_sandbox_the_calls_it_needs() -> None:
    unit = (DEPLOY / "systemd/picoclaw.service").read_text()
    allowed, denied = re.findall(r"^SystemCallFilter=(~?.*)$", unit, re.MULTILINE)
    assert calls(allowed.split()) >= SANDBOX_CALLS
    assert SANDBOX_CALLS & calls(denied.removeprefix("~").split()) == set()


def calls(names: list[str]) -> set[str]:
    """Return the system calls that a filter's names and groups stand for."""
    found: set[str] = set()
    for name in names:
        if name.startswith("@"):
            said = subprocess.run(
                ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
            ).stdout
            members = [line.strip() for line in said.splitlines()[1:] if line.strip()]
            found |= calls([member for member in members if not member.startswith("#")])
        else:
            found.add(name)
    return found


def test_no_file_holds_a_secret_and_each_is_taken_from_elsewhere() -> None:
    assert "Secret" not in {item["kind"] for item in KUBERNETES}
    host = pods()[0]["containers"][0]
    assert {"secretRef": {"name": "picoclaw"}} in host["envFrom"]
    assert COMPOSE["services"]["host"]["environment"]["API_TOKEN"].startswith("${API_TOKEN:")
