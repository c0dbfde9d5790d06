"""GET /metrics, read with Prometheus's own parser."""

from __future__ import annotations

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from host.http.health import stuck
from shared.approval_values import Waiting
from tests.http.conftest import MakeHost, configure
from tests.running import HostProcess, directive


def figures(client: httpx2.Client) -> dict[tuple[str, tuple[str, ...]], float]:
    text = client.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_runs_requests_and_tasks_are_counted(make_host: MakeHost) -> None:
    host = make_host().start()
    with host.client() as client:
        client.post("/chat", json={"message": "hi"})
        client.post("/chat", json={"message": directive(status=400)})
        client.post("/chat", json={"message": 7})
        client.patch("/chat/none", json={"title": "t"})
        client.request("OPTIONS", "/chat")
        due = {"prompt": "x", "schedule_type": "once", "schedule_value": "2020-01-01", "run_if_past": True}
        client.post("/task", json=due)
        found = figures(client)
        assert found["picoclaw_runs_total", ("success",)] == 1
        assert found["picoclaw_runs_total", ("error",)] == 1
        assert found["picoclaw_http_requests_total", ("200", "POST")] == 2
        assert found["picoclaw_http_requests_total", ("400", "POST")] == 1
        assert found["picoclaw_http_requests_total", ("404", "PATCH")] == 1
        assert found["picoclaw_http_requests_total", ("405", "other")] == 1
        assert found["picoclaw_tasks", ()] == 1
        assert found["picoclaw_tasks_due", ()] == 1
        assert found["picoclaw_tasks_overdue_seconds", ()] > 1_000_000
        assert found["picoclaw_run_seconds_count", ()] == 2
        assert found["picoclaw_store_durable", ()] == 1
        assert found["picoclaw_principal_runs_today", ("operator",)] == 2
        assert found["picoclaw_principal_tokens_today", ("operator",)] > 0
        client.post("/task/check")
        assert figures(client)["picoclaw_task_runs_total", ("success",)] == 1


def test_requests_for_a_person_are_counted(make_host: MakeHost) -> None:
    host = configure(make_host(), permissions=[{"tool": "append_file", "do": "ask"}]).start()
    call = {"name": "append_file", "input": {"path": "a.txt", "content": "x"}}
    with host.client() as client:
        told = [
            client.post(
                "/chat", json={"message": directive(steps=[{"tools": [call]}, {"text": "done"}])}
            ).json()
            for _ in range(2)
        ]
        (asked,) = told[0]["requests"]
        client.post(f"/approvals/{asked['id']}", json={"decision": "deny"})
        found = figures(client)
        assert found["picoclaw_approvals_requested_total", ("approval",)] == 2
        assert found["picoclaw_approvals_decided_total", ("approval", "deny")] == 1
        assert found["picoclaw_approvals_open", ()] == 1
        assert found["picoclaw_approvals_oldest_seconds", ()] > 0
        assert client.get("/health").json()["approvals"] == {"note": None}


def test_a_step_that_can_not_go_on_is_said_after_a_quarter_of_an_hour() -> None:
    assert stuck(Waiting(1, 10**9, 15 * 60_000 - 1)) is None
    assert "16 minutes" in (stuck(Waiting(0, 0, 16 * 60_000)) or "")


def test_metrics_want_the_token(host: HostProcess) -> None:
    with host.client(None) as client:
        assert client.get("/metrics").status_code == 401
