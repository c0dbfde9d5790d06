"""The protocol's own conformance suite against /mcp: every scenario is run, or left out for a reason."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from shared import jsons
from tests.mcp.bearer_proxy import bearer_proxy
from tests.mcp.over_http import HANDSHAKE, STATELESS, new_token
from tests.mcp.programs import HERE, NPM, node, npm_ci
from tests.running import running_host

DOCS = HERE.parent.parent / "docs" / "mcp.md"

pytestmark = pytest.mark.skipif(NPM is None, reason="needs npm")

FIT: Final = {
    HANDSHAKE: {
        "server-initialize",
        "server-session-lifecycle",
        "ping",
        "tools-list",
        "server-sse-multiple-streams",
        "resources-list",
        "dns-rebinding-protection",
    },
    STATELESS: {
        "server-stateless",
        "tools-list",
        "server-sse-multiple-streams",
        "resources-list",
        "sep-2164-resource-not-found",
        "dns-rebinding-protection",
        "caching",
        "http-header-validation",
    },
}

# Why the others are not run: what they call is a fixture that only a server made for the suite has.
LEFT_OUT: Final = {
    "logging-set-level": "logging is not offered",
    "completion-complete": "completion is not offered",
    "tools-call-": "the tools `test_*` are fixtures",
    "json-schema-2020-12": "its tool is a fixture",
    "elicitation-": "the server sends no requests; the tools are fixtures",
    "input-required-result-": "the tools are fixtures",
    "server-sse-polling": "its tool is a fixture; answers are not streamed",
    "resources-read-": "the resources `test://` are fixtures",
    "resources-templates-read": "there are no templates; `test://` is a fixture",
    "resources-subscribe": "subscriptions are not offered",
    "resources-unsubscribe": "subscriptions are not offered",
    "prompts-": "there are no prompts",
    "http-custom-header-server-validation": "no tool asks for `Mcp-Param-*` headers; its tool is a fixture",
}

# Single checks of scenarios that are run otherwise.
CHECKS_LEFT_OUT: Final = {
    "sep-2575-server-rejects-undeclared-capability": "`test_missing_capability` is a fixture",
    "sep-2575-missing-capability-http-400": "`test_missing_capability` is a fixture",
    "sep-2575-http-server-no-independent-requests-on-stream": "`test_streaming_elicitation` is a fixture",
    "sep-2575-server-no-log-without-loglevel": "`test_logging_tool` is a fixture",
    "sep-2549-prompts-list-caching-hints": "there are no prompts",
}

OF_TASKS: Final = {
    "tasks-capability-negotiation": {"tasks-extension-advertised", "sep-2663-tasks-methods-non-declaring"},
    "tasks-dispatch-and-envelope": {
        "sep-2663-tasks-result-removed-method-not-found",
        "tasks-removed-tasks-list",
        "sep-2663-tasks-get-invalid-task-id-32602",
    },
    "tasks-request-headers": {"tasks-headers-reject-mismatched-method"},
}
"""Of the Tasks extension's scenarios, the checks that call no fixture."""

Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    npm_ci(HERE / "node")
    with (
        running_host(tmp_path_factory.mktemp("host"), None) as host,
        bearer_proxy(host.url, new_token(host, "conformance")["token"]) as url,
    ):
        yield f"{url}/mcp"


@pytest.fixture(scope="module", params=[HANDSHAKE, STATELESS])
def suite(
    request: pytest.FixtureRequest, address: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Results]:
    """Return the version, and each scenario's checks."""
    output = tmp_path_factory.mktemp("conformance")
    program = str(HERE / "node" / "node_modules" / ".bin" / "conformance")
    command = [node(), program, "server", "--url", address, "--suite", "all"]
    options = ["--spec-version", request.param, "--output-dir", str(output)]
    # It fails because of the scenarios that don't fit; what counts is in its files.
    subprocess.run([*command, *options], check=False, timeout=120, stdout=subprocess.DEVNULL)
    return request.param, {
        _scenario(path): jsons.loads(path.read_bytes()) for path in output.glob("*/checks.json")
    }


@pytest.mark.parametrize("scenario", OF_TASKS)
def test_the_checks_of_the_tasks_extension_that_need_no_fixture_pass(
    address: str, scenario: str, tmp_path: Path
) -> None:
    program = str(HERE / "node" / "node_modules" / ".bin" / "conformance")
    command = [node(), program, "server", "--url", address, "--scenario", scenario]
    subprocess.run(
        [*command, "--output-dir", str(tmp_path)], check=False, timeout=120, stdout=subprocess.DEVNULL
    )
    (found,) = tmp_path.glob("*/checks.json")
    passed = {check["id"] for check in jsons.loads(found.read_bytes()) if check["status"] == "SUCCESS"}
    assert passed >= OF_TASKS[scenario] | {"wire-schema-valid"}
    assert f"`{scenario}`" in DOCS.read_text()


def _scenario(path: Path) -> str:
    """server-tools-list-2026-11-22T22-25-16-525Z/checks.json → tools-list."""
    return re.sub(r"^server-|-\d{4}-\d\d-\d\dT[\d-]+Z$", "", path.parent.name)


def test_every_scenario_that_fits_passes(suite: tuple[str, Results]) -> None:
    version, results = suite
    assert FIT[version] <= set(results)
    failed = {
        (scenario, check["id"]): check.get("errorMessage")
        for scenario in FIT[version]
        for check in results[scenario]
        if check["status"] not in ("SUCCESS", "INFO", "SKIPPED") and check["id"] not in CHECKS_LEFT_OUT
    }
    assert failed == {}
    passed = sum(check["status"] == "SUCCESS" for scenario in FIT[version] for check in results[scenario])
    assert passed >= 15


def test_every_other_scenario_is_left_out_for_a_reason_that_the_docs_give(suite: tuple[str, Results]) -> None:
    version, results = suite
    text = " ".join(DOCS.read_text().split())
    for scenario in set(results) - FIT[version]:
        (reason,) = {why for name, why in LEFT_OUT.items() if scenario.startswith(name)}
        assert reason in text, scenario
    for scenario in FIT[version]:
        assert f"`{scenario}`" in text
    for check, reason in CHECKS_LEFT_OUT.items():
        assert f"`{check}`" in text
        assert reason in text
