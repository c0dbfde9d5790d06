"""Rules and dashboard against the metrics that a host really serves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.http.conftest import host, model
from tests.mcp.over_http import RawHttp
from tests.running import TOKEN, HostProcess, directive, until

__all__ = ["host", "model"]

MONITORING = Path(__file__).parents[2] / "deploy/monitoring"
DASHBOARD = json.loads((MONITORING / "grafana.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
BY_PROMETHEUS = {"up"}


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def served(host: HostProcess) -> dict[str, set[str]]:
    """Every sample that a host serves after some use: name and labels."""
    with host.client() as client:
        use(client)
        with RawHttp(host, TOKEN) as agent:
            asked = {"name": "ask", "arguments": {"message": directive("hi", text="hello")}}
            assert "hello" in agent.stateless("tools/call", asked).text
        text = client.get("/metrics").text
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def use(client: httpx2.Client) -> None:
    assert client.post("/chat", json={"message": directive("hi", text="hello")}).status_code == 200
    typed = {"message": directive("typed", text="3"), "output_schema": {"type": "integer"}}
    assert client.post("/chat", json=typed).json()["output"] == 3
    with_file = {"message": directive("hi", text="hello"), "attachments": [{"name": "x.txt", "data": "aGk="}]}
    assert client.post("/chat", json=with_file).status_code == 200
    client.post("/v1/responses", json={"input": directive("hi", text="hello")})
    for content in (b"new", b"again"):
        client.put("/chat/main/files/x", content=content, headers={"If-None-Match": "*"})
    assert client.get("/chat/main/files/x").content == b"new"
    task = {"prompt": "hi", "schedule_type": "once", "schedule_value": "2020-01-01", "run_if_past": True}
    assert client.post("/task", json=task).status_code == 201
    assert client.post("/task/check").json()["checked"] == 1
    hook = {"url": "https://receiver.invalid/", "events": ["run.ended"]}
    told = f"/webhooks/{client.post('/webhooks', json=hook).json()['id']}"
    assert client.post(f"{told}/test").status_code == 202
    until(lambda: client.get(f"{told}/deliveries").json()["deliveries"][0]["ended_at"])


@pytest.mark.parametrize("expression", [*dashboard_expressions(), *(rule["expr"] for rule in RULES)])
def test_every_metric_and_label_is_one_that_a_host_serves(
    expression: str, served: dict[str, set[str]]
) -> None:
    for name, matchers in re.findall(r"\b(picoclaw_\w+|up)(?:\{([^}]*)\})?", expression):
        assert name in served or name in BY_PROMETHEUS, name
        used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)", matchers)) - {"instance", "job"}
        assert used <= served.get(name, set()), (name, used)


def test_every_metric_that_a_host_serves_is_on_the_dashboard(served: dict[str, set[str]]) -> None:
    shown = " ".join(dashboard_expressions())
    left_out = {name for name in served if not name.endswith(("_created", "_count", "_sum"))}
    assert {name for name in left_out if name not in shown} == set()


def test_each_alert_says_what_it_is_and_how_bad() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= set(rule["annotations"])


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert not own & cells, panel["title"]
        assert max(x for x, _ in own) < 24
        cells |= own
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
@pytest.mark.parametrize("arguments", [("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")])
def test_prometheus_takes_the_rules_and_they_fire_when_they_should(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
