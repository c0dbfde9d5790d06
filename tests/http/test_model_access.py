"""Which model answers, by which key, and what happens when one of them does not."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.http.conftest import MakeHost, configure
from tests.running import HostProcess, ModelProcess, running_model

AT_ONCE = "0"


@pytest.fixture
def models() -> Iterator[list[ModelProcess]]:
    """Two model servers of their own, so that one can fail while the other answers."""
    with running_model() as one, running_model() as two:
        yield [one, two]


def chat(client: httpx2.Client, message: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/chat", json={"message": message, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def keys(model: ModelProcess) -> list[str]:
    """Return the key of each request that came in."""
    return [request["headers"]["x-api-key"] for request in model.requests()]


def with_keys(host: HostProcess, model: ModelProcess, *names: str) -> HostProcess:
    """Give the host one model and several keys for it."""
    entry = {"model_name": "default", "model": "claude-one", "api_base": model.url}
    configure(host, model_list=[entry])
    secrets = host.root / "home" / ".security.yml"
    secrets.write_text(f"model_list: {{default: {{api_keys: [{', '.join(names)}]}}}}\n")
    secrets.chmod(0o600)
    return host


def test_keys_are_used_in_turn_a_run_each(make_host: MakeHost, models: list[ModelProcess]) -> None:
    host = with_keys(make_host(), models[0], "sk-one", "sk-two", "sk-three").start()
    with host.client() as client:
        for number in range(4):
            chat(client, f"hello {number}")
        assert keys(models[0]) == ["sk-one", "sk-two", "sk-three", "sk-one"]


def test_entries_of_one_name_are_used_in_turn_and_one_that_is_dead_is_passed_over(
    make_host: MakeHost, models: list[ModelProcess]
) -> None:
    addresses = [models[0].url, "http://127.0.0.1:9", models[1].url]
    entries = [{"model_name": "default", "model": "claude-one", "api_base": each} for each in addresses]
    host = configure(make_host(), model_list=entries).start()
    with host.client() as client:
        for number in range(3):
            assert chat(client, f"hello {number}")["status"] == "success"
        assert [len(model.requests()) for model in models] == [1, 2]


@pytest.mark.parametrize("status", [402, 403, 404, 408, 500, 502, 503, 529])
def test_what_may_be_the_key_s_or_the_address_s_fault_goes_on_to_the_next(
    make_host: MakeHost, models: list[ModelProcess], status: int
) -> None:
    host = with_keys(make_host(), models[0], "sk-one", "sk-two").start()
    models[0].script({"status": status, "times": 1, "text": "Hello"})
    with host.client() as client:
        assert chat(client, "hello", max_execution_ms=15_000)["result"] == "Hello"
        assert keys(models[0]) == ["sk-one", "sk-two"]


def test_a_request_that_is_wrong_is_not_tried_with_every_key(
    make_host: MakeHost, models: list[ModelProcess]
) -> None:
    host = with_keys(make_host(), models[0], "sk-one", "sk-two").start()
    models[0].script({"status": 400})
    with host.client() as client:
        assert chat(client, "hello")["code"] == "model_error"
        assert keys(models[0]) == ["sk-one"]


@pytest.mark.parametrize("status", [429, 401])
def test_a_key_that_is_turned_away_gives_way_to_the_next_within_the_step(
    make_host: MakeHost, models: list[ModelProcess], status: int
) -> None:
    host = with_keys(make_host(), models[0], "sk-one", "sk-two").start()
    models[0].script({"status": status, "retry_after": "60", "times": 1, "text": "Hello"})
    with host.client() as client:
        # A backoff would take the 60 seconds that the API asks for.
        first = chat(client, "hello", max_execution_ms=15_000)
        assert (first["status"], first["result"]) == ("success", "Hello")
        assert keys(models[0]) == ["sk-one", "sk-two"]
        chat(client, "again")
        assert keys(models[0])[2:] == ["sk-two"]


def test_a_run_fails_once_every_key_was_refused(make_host: MakeHost, models: list[ModelProcess]) -> None:
    host = with_keys(make_host(), models[0], "sk-one", "sk-two").start()
    models[0].script({"status": 401, "times": 2})
    with host.client() as client:
        body = chat(client, "hello")
        assert (body["status"], body["code"]) == ("error", "model_error")
        assert keys(models[0]) == ["sk-one", "sk-two"]
        assert "sk-" not in str(body)


def test_keys_that_are_all_limited_are_tried_again_after_the_backoff(
    make_host: MakeHost, models: list[ModelProcess]
) -> None:
    host = with_keys(make_host(), models[0], "sk-one", "sk-two").start()
    models[0].script({"status": 429, "retry_after": AT_ONCE, "times": 3, "text": "fine"})
    with host.client() as client:
        assert chat(client, "hello")["status"] == "success"
        assert sorted(keys(models[0])) == ["sk-one", "sk-one", "sk-two", "sk-two"]


def test_a_limit_in_the_middle_of_a_reply_begins_the_step_anew_with_the_next_key(
    make_host: MakeHost, models: list[ModelProcess]
) -> None:
    host = with_keys(make_host(), models[0], "sk-one", "sk-two").start()
    fault = {"error_after_deltas": 1, "error_type": "rate_limit_error", "times": 1}
    models[0].script({"deltas": ["one ", "two"], **fault})
    with host.client() as client:
        assert chat(client, "hello")["result"] == "one two"
        assert keys(models[0]) == ["sk-one", "sk-two"]


@pytest.mark.parametrize(
    ("status", "retry_after", "tries"), [(529, AT_ONCE, 5), (429, AT_ONCE, 5), (429, "3600", 1)]
)
def test_the_fallback_model_takes_over_when_the_first_stays_overloaded_or_says_to_wait_long(
    make_host: MakeHost, models: list[ModelProcess], status: int, retry_after: str, tries: int
) -> None:
    host = configure(
        make_host(settings={"CLAUDE_FALLBACK_MODEL": "small"}),
        model_list=[
            {"model_name": "big", "model": "claude-big", "api_base": models[0].url},
            {"model_name": "small", "model": "claude-small", "api_base": models[1].url},
        ],
    ).start()
    models[0].script({"status": status, "retry_after": retry_after, "times": 9})
    tools = [{"name": "list_dir", "input": {}}]
    models[1].script({"text": "a", "tools": tools}, {"text": "b"})
    with host.client() as client:
        body = chat(client, "hello")
        assert (body["status"], body["result"], body["model"]) == ("success", "a\n\nb", "claude-small")
        # Once it was overloaded in a run, the first is not asked again in it.
        assert [request["body"]["model"] for request in models[0].requests()] == ["claude-big"] * tries
        assert len(models[1].requests()) == 2


def test_an_error_that_is_no_overload_does_not_change_the_model(
    make_host: MakeHost, models: list[ModelProcess]
) -> None:
    settings = {"ANTHROPIC_BASE_URL": models[0].url, "CLAUDE_FALLBACK_MODEL": "claude-small"}
    host = make_host(settings=settings).start()
    models[0].script({"status": 400})
    with host.client() as client:
        assert chat(client, "hello")["code"] == "model_error"
        assert len(models[0].requests()) == 1


def test_a_request_may_ask_only_for_models_of_the_list(
    make_host: MakeHost, models: list[ModelProcess]
) -> None:
    host = configure(
        make_host(),
        agents={"defaults": {"model_name": "two"}},
        model_list=[
            {"model_name": "one", "model": "claude-1", "api_base": models[0].url},
            {"model_name": "two", "model": "claude-2", "api_base": models[1].url},
        ],
    ).start()
    with host.client() as client:
        refused = client.post("/chat", json={"message": "hi", "model": "claude-1"})
        assert refused.status_code == 400
        assert refused.json()["error"] == "model: must be one of one, two"
        assert [entry["conversation_id"] for entry in client.get("/chat").json()["conversations"]] == ["main"]
        assert chat(client, "hi")["model"] == "claude-2"
        assert chat(client, "hi", model="one")["model"] == "claude-1"
        assert len(models[0].requests()) == 1


def test_without_a_list_any_model_may_be_asked_for(client: httpx2.Client) -> None:
    assert chat(client, "hi", model="claude-of-my-own")["model"] == "claude-of-my-own"


def test_thinking_follows_the_settings_unless_the_request_says(
    make_host: MakeHost, model: ModelProcess
) -> None:
    defaults = {"thinking": True, "max_thinking_tokens": 2000, "max_tokens": 500}
    older = {"CLAUDE_MODEL": "claude-3-7-sonnet"}
    host = configure(make_host(settings=older), agents={"defaults": defaults}).start()
    with host.client() as client:
        chat(client, "hi")
        sent = model.requests()[-1]["body"]
        assert sent["thinking"] == {"type": "enabled", "budget_tokens": 2000}
        assert sent["max_tokens"] == 2500
        chat(client, "hi", thinking=False)
        assert "thinking" not in model.requests()[-1]["body"]
        chat(client, "hi", thinking=True, max_thinking_tokens=3000)
        assert model.requests()[-1]["body"]["thinking"]["budget_tokens"] == 3000


@contextlib.contextmanager
def recording_proxy() -> Iterator[tuple[str, list[str]]]:
    """Run a proxy that connects to nothing; yield its address and what it was asked to connect to."""
    asked: list[str] = []

    class Refuse(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked.append(self.rfile.readline().decode().split()[1])
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()


def test_no_key_reaches_an_address_that_it_was_not_given_for(
    make_host: MakeHost, model: ModelProcess, models: list[ModelProcess]
) -> None:
    own, other = models
    shapes = {  # name: its model, where it goes, the key that is seen there
        "plain": ("claude-one", None, model, "sk-test-canary"),
        "prefixed": ("anthropic/claude-one", None, model, "sk-test-canary"),
        "keyed": ("anthropic-messages/claude-one", None, model, "sk-keyed"),
        "based": ("openai/claude-one", f"{own.url}/v1", own, "sk-based"),
        "keyless": ("claude-one", f"{other.url}/v1/messages/", other, "Bearer none"),
        "other:0": ("claude-one", other.url, other, "sk-other"),
    }
    abroad = {"deepseek": "api.deepseek.com", "zai": "api.z.ai", "openrouter": "openrouter.ai"}
    entries: list[dict[str, Any]] = [
        {"model_name": name, "model": asked, "api_base": base} for name, (asked, base, *_) in shapes.items()
    ]
    entries += [{"model_name": name, "model": f"{name}/some-model"} for name in abroad]
    with recording_proxy() as (proxy, asked):
        host = make_host(settings={"HTTPS_PROXY": proxy, "NO_PROXY": "127.0.0.1"})
        configure(host, model_list=entries)
        keyed = ("keyed", "based", "other", *abroad)
        lines = "".join(f"  {name}: {{api_keys: [sk-{name}]}}\n" for name in keyed)
        secrets = host.root / "home" / ".security.yml"
        secrets.write_text(f"model_list:\n{lines}")
        secrets.chmod(0o600)
        host.start()
        with host.client() as client:
            for name, (_, _, server, key) in shapes.items():
                before = {id(one): len(one.requests()) for one in (model, own, other)}
                assert chat(client, "hello", model=name)["status"] == "success", name
                new = {id(one): one.requests()[before[id(one)] :] for one in (model, own, other)}
                (request,) = new.pop(id(server))
                assert not any(new.values()), name
                assert key in str(request["headers"]), name
                assert not any(
                    f"sk-{other}" in str(request["headers"]) for other in (*keyed, "test") if other not in key
                )
                assert request["body"]["model"] == "claude-one", name
            for name, address in abroad.items():
                seen = [len(one.requests()) for one in (model, own, other)]
                assert chat(client, "hello", model=name, max_execution_ms=2_000)["status"] != "success"
                assert [len(one.requests()) for one in (model, own, other)] == seen, name
                assert set(asked) == {f"{address}:443"}
                asked.clear()
