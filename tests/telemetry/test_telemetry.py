"""OpenTelemetry: spans of requests, runs, model calls and tools; what people said only when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.http.conftest import configure
from tests.only_root import only_root
from tests.running import HostProcess, directive, new_host, running_host, running_model
from tests.telemetry.collector import Collector, running_collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SECRET_HEADER = "collector-secret-55aa"
SAID = "words-that-stay-here"


def settings(collector: Collector) -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {SECRET_HEADER}",
        "OTEL_SERVICE_NAME": "pico-under-test",
    }


def converse(client: httpx2.Client) -> dict[str, Any]:
    child = directive(steps=[{"text": "done below"}])
    tools = [
        {"name": "exec", "input": {"command": f"echo {SAID}"}},
        {"name": "read_file", "input": {"path": "nowhere"}},
        {"name": "spawn", "input": {"task": child}},
    ]
    message = directive(SAID, steps=[{"tools": tools}, {"text": f"answer {SAID}"}])
    answer = client.post(
        "/chat", json={"message": message}, headers={"traceparent": f"00-{TRACE}-{CALLER}-01"}
    )
    body: dict[str, Any] = answer.json()
    return body


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Collector, dict[str, Any], HostProcess]]:
    """What a host told of one conversation, to its end."""
    root = tmp_path_factory.mktemp("told")
    with running_collector() as collector, running_model() as model:
        with running_host(root, model.url, settings(collector)) as host, host.client() as client:
            body = converse(client)
            client.post("/chat", json={"message": directive(status=400, message=f"no {SAID}")})
            assert client.get("/health").status_code == 200
        yield collector, body, host


Told = tuple[Collector, dict[str, Any], HostProcess]


def test_a_run_is_one_trace_below_the_callers(told: Told) -> None:
    collector, body, _ = told
    (request,) = [span for span in collector.named("POST /chat") if span.trace_id == TRACE]
    assert request.parent_id == CALLER
    assert request.attributes["http.response.status_code"] == 200
    (run,) = [span for span in collector.named("invoke_agent Pico") if span.trace_id == TRACE]
    assert run.parent_id == request.span_id
    assert run.attributes["gen_ai.conversation.id"] == body["conversation_id"]
    assert run.attributes["picoclaw.run.id"] == body["run_id"]
    mine = [span for span in collector.spans if span.trace_id == TRACE]
    calls = [span for span in mine if span.name.startswith("chat ")]
    assert len(calls) == 3
    assert sum(span.parent_id == run.span_id for span in calls) == 2
    (spawn,) = [span for span in mine if span.name == "execute_tool spawn"]
    assert sum(span.parent_id == spawn.span_id for span in calls) == 1


def test_a_model_call_has_the_attributes_of_the_conventions(told: Told) -> None:
    collector, body, _ = told
    call = next(span for span in collector.spans if span.name.startswith("chat ") and span.trace_id == TRACE)
    told_of = call.attributes
    assert told_of["gen_ai.operation.name"] == "chat"
    assert told_of["gen_ai.provider.name"] == "anthropic"
    assert told_of["gen_ai.request.model"] == told_of["gen_ai.response.model"] == body["model"]
    assert told_of["gen_ai.response.finish_reasons"] == ["tool_use"]
    assert told_of["gen_ai.usage.input_tokens"] > 0
    assert told_of["gen_ai.usage.output_tokens"] > 0


def test_a_runs_span_adds_up_what_it_used(told: Told) -> None:
    collector, body, _ = told
    (run,) = [span for span in collector.named("invoke_agent Pico") if span.trace_id == TRACE]
    used = run.attributes["gen_ai.usage.input_tokens"] + run.attributes["gen_ai.usage.output_tokens"]
    assert used == sum(body["usage"].values())


def test_failures_are_marked_by_kind_and_without_their_texts(told: Told) -> None:
    collector, _, _ = told
    assert [span.failed for span in collector.named("execute_tool read_file")] == [True]
    assert [span.failed for span in collector.named("execute_tool exec")] == [False]
    failed = [span for span in collector.spans if span.attributes.get("error.type") == "400"]
    assert len(failed) == 1
    assert [span.events for span in collector.spans] == [0] * len(collector.spans)


def test_nothing_that_was_said_is_told_and_no_probe(told: Told) -> None:
    collector, _, _ = told
    assert not any(SAID.encode() in body for body in collector.raw)
    assert not any("/health" in str(span.attributes) for span in collector.spans)


def test_tokens_durations_and_requests_are_measured(told: Told) -> None:
    collector, _, _ = told
    assert {point["gen_ai.token.type"] for point in collector.points["gen_ai.client.token.usage"]} == {
        "input",
        "output",
    }
    assert collector.points["gen_ai.client.operation.duration"]
    assert {"http.request.method": "POST", "http.response.status_code": 200} in collector.points[
        "http.server.request.duration"
    ]


def test_the_collectors_credential_is_sent_to_it_and_nowhere_else(told: Told) -> None:
    collector, _, host = told
    assert {headers["authorization"] for headers in collector.headers} == {f"Bearer {SECRET_HEADER}"}
    assert SECRET_HEADER not in host.log_text


def test_log_lines_name_their_trace(told: Told) -> None:
    _, _, host = told
    lines = [json.loads(line) for line in host.log_text.splitlines()]
    assert any(line.get("trace_id") == TRACE for line in lines if line["message"] == "request")


def test_what_was_said_is_told_when_it_is_asked_for_with_secrets_taken_out(tmp_path: Path) -> None:
    with running_collector() as collector, running_model() as model:
        host = new_host(tmp_path, model.url, settings(collector))
        configure(host, telemetry={"capture_content": True}).start()
        with host.client() as client:
            client.post("/chat", json={"message": directive(f"{SAID} sk-test-canary", text="fine")})
            client.post("/chat", json={"message": "hello", "model": "sk-test-canary"})
            refused = client.post("/chat", json={"message": "a", "mcp_servers": {"My sk-test-canary": {}}})
            assert refused.status_code == 400
            assert "My [redacted]" in refused.text
        host.stop()
    assert any(span.name == "chat [redacted]" for span in collector.spans)
    call = next(span for span in collector.spans if span.name.startswith("chat "))
    asked = json.loads(call.attributes["gen_ai.input.messages"])
    assert SAID in asked[-1]["parts"][0]["content"]
    assert json.loads(call.attributes["gen_ai.output.messages"])[0]["parts"] == [
        {"type": "text", "content": "fine"}
    ]
    assert not any(b"sk-test-canary" in body for body in collector.raw)


@pytest.mark.parametrize("part", ["0", "1"])
def test_the_part_of_the_traces_that_is_asked_for_is_kept_under_the_service_s_name(
    tmp_path: Path, part: str
) -> None:
    with running_collector() as collector, running_model() as model:
        given = {**settings(collector), "PICOCLAW_TELEMETRY_SAMPLE": part}
        with running_host(tmp_path, model.url, given) as host, host.client() as client:
            client.post("/chat", json={"message": "hello"})
        assert bool(collector.spans) is (part == "1")
        assert b"pico-under-test" in b"".join(collector.raw)


@pytest.mark.parametrize("status", [500, None], ids=["failing", "gone"])
def test_a_collector_that_fails_costs_no_turn_and_no_end(tmp_path: Path, status: int | None) -> None:
    with running_collector(status or 200) as collector:
        given = settings(collector)
        if status is None:
            given["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
        with running_model() as model:
            host = new_host(tmp_path, model.url, given).start()
            with host.client() as client:
                assert client.post("/chat", json={"message": "hi"}).json()["status"] == "success"
            assert host.stop() == 0
    assert SECRET_HEADER not in host.log_text


@only_root
def test_without_an_endpoint_nothing_of_it_is_imported(tmp_path: Path) -> None:
    with running_model() as model, running_host(tmp_path, model.url) as host:
        with host.client() as client:
            client.post("/chat", json={"message": "hi"})
        assert host.process is not None
        mapped = Path(f"/proc/{host.process.pid}/maps").read_text()
    assert "google/_upb" not in mapped
