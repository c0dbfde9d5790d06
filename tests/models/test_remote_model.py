"""The model in a process of its own: the same port as beside it, and what happens when the process fails."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.models import PASSED_ON, WORKER, environment
from host.models import process as processes
from host.models.anthropic_model import AnthropicModel, make_client
from host.models.process import ModelConfig, ModelProcess, WorkerFault
from host.ports import Ask, Delta, ModelError, Reply, ToolUseStart
from shared.errors import Misconfigured
from shared.jsons import dump_bytes
from shared.processes import Frames, begin_early
from shared.usage_values import Usage
from tests.fakes.model_server import FakeModel, fake_model
from tests.models.test_models import KEY, ask, directive, request
from tests.only_root import only_root

HANGS = directive(deltas=["a", "b"], hang_after_deltas=1)
LONG = "0123456789 äöü\n" * 10_000


@pytest.fixture
async def server() -> AsyncIterator[FakeModel]:
    async with fake_model(minimum_cached_tokens=1) as fake:
        yield fake


@pytest.fixture
async def process() -> AsyncIterator[ModelProcess]:
    one = ModelProcess()
    yield one
    await one.aclose()


@pytest.fixture
def model(process: ModelProcess, server: FakeModel) -> Ask:
    return partial(process.ask, ModelConfig(api_key=KEY, base_url=server.url))


async def outcome(model: Ask | AnthropicModel, body: dict[str, Any]) -> Any:
    try:
        return await ask(model, body)
    except ModelError as error:
        return vars(error)


@asynccontextmanager
async def in_flight(model: Ask, body: dict[str, Any]) -> AsyncIterator[list[ModelError]]:
    """Have the model answer, from its first piece on; what it fails with is in the list after the block."""
    started, failures = anyio.Event(), list[ModelError]()

    def hear(_: Delta) -> None:
        started.set()

    async def reply() -> None:
        try:
            await model(body, hear)
        except ModelError as error:
            failures.append(error)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reply)
            await started.wait()
            yield failures


async def test_it_answers_and_fails_as_it_would_in_the_host(model: Ask, server: FakeModel) -> None:
    bodies = [
        request(),
        directive(deltas=["one ", "two", "  "], thinking="so", delta_delay_ms=3),
        directive(tools=[{"name": "t", "input": {"a": [1, {"b": "ü\n"}]}}, {"name": "u", "input_json": "{"}]),
        directive(text="x", stop_reason="max_tokens"),
        directive(status=529, error_type="overloaded_error", retry_after="7"),
        directive(status=400, message="prompt is too long: 208310 tokens > 200000 maximum"),
        directive(status=401),
        directive(deltas=["a", "b"], drop_after_deltas=1),
        directive(deltas=["a", "b"], truncate_after_deltas=1),
        directive(deltas=["a", "b"], error_after_deltas=1, error_type="overloaded_error"),
    ]
    here = AnthropicModel(make_client(ModelConfig(api_key=KEY, base_url=server.url)))
    for body in bodies:
        there, beside = await outcome(model, body), await outcome(here, body)
        assert without_ids(there) == without_ids(beside)
    await here.aclose()
    assert server.requests[0].headers["x-api-key"] == KEY
    assert server.requests[0].body == server.requests[1].body


def without_ids(outcome: Any) -> Any:
    """Return an outcome without the ids of its calls, which the server invents; its texts are joined."""
    if isinstance(outcome, dict):
        return outcome
    reply, deltas = outcome
    for block in reply.blocks:
        block.pop("id", None)
    named = [replace(delta, id="") if isinstance(delta, ToolUseStart) else delta for delta in deltas]
    told = list(processes.pieces_of(processes.pieces_body(named)))
    return reply.blocks, list(reply.malformed.values()), reply.usage, reply.stop_reason, reply.model, told


async def test_long_replies_side_by_side_arrive_whole(model: Ask) -> None:
    pieces = [LONG[start : start + 5_000] for start in range(0, len(LONG), 5_000)]
    heard: list[str] = []

    async def one(number: int) -> None:
        reply, deltas = await ask(model, directive(deltas=[f"{number}: ", *pieces]))
        assert reply.text == f"{number}: {LONG}" == "".join(delta.text for delta in deltas)  # type: ignore[union-attr]
        heard.append(reply.text)

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(one, number)
    assert len(set(heard)) == 20


async def test_a_cancelled_request_gives_its_connection_up(model: Ask, server: FakeModel) -> None:
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            async with in_flight(model, HANGS):
                tasks.cancel_scope.cancel()
        await server.idle()
    assert (await ask(model, request("still there?")))[0].text == "echo: still there?"


async def test_a_request_that_is_cancelled_at_once_counts_as_ended(
    process: ModelProcess, model: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LEAVE_S", 0.3)
    await ask(model, request())
    pid = process.pid
    for _ in range(20):
        task = asyncio.create_task(ask(model, request()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await anyio.sleep(0.5)
    await ask(model, request())
    assert process.pid == pid


async def test_what_the_listener_raises_passes_through_as_it_is(
    process: ModelProcess, model: Ask, server: FakeModel
) -> None:
    def hear(_: Delta) -> None:
        raise ValueError("mine")

    with anyio.fail_after(60):
        with pytest.raises(ValueError, match="mine"):
            await model(HANGS, hear)
        pid = process.pid
        await server.idle()
        await ask(model, request())
    assert process.pid == pid


async def test_a_process_that_dies_fails_what_it_answered_and_is_started_again(
    process: ModelProcess, model: Ask
) -> None:
    async with in_flight(model, HANGS) as first, in_flight(model, HANGS) as second:
        died = process.pid
        assert died is not None
        os.kill(died, signal.SIGKILL)
    assert [error.retryable for error in first + second] == [True, True]
    assert (await ask(model, request("again")))[0].text == "echo: again"
    assert process.pid != died
    assert died is not None
    assert not psutil.pid_exists(died)


async def test_a_process_that_does_not_let_go_of_a_request_is_ended(
    process: ModelProcess, model: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LEAVE_S", 0.1)
    async with anyio.create_task_group() as tasks:
        async with in_flight(model, HANGS):
            stuck = process.pid
            assert stuck is not None
            os.kill(stuck, signal.SIGSTOP)
            tasks.cancel_scope.cancel()
    assert stuck is not None
    with anyio.fail_after(60), suppress(psutil.NoSuchProcess):
        while psutil.Process(stuck).status() != psutil.STATUS_ZOMBIE:
            await anyio.sleep(0.02)
    assert (await ask(model, request("again")))[0].text == "echo: again"
    assert not psutil.pid_exists(stuck)


@only_root
async def test_the_process_holds_secrets_apart(
    process: ModelProcess, model: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "Authorization: Bearer from-the-environment")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    await ask(model, request())
    assert process.pid is not None
    running = psutil.Process(process.pid)
    assert KEY not in " ".join(running.cmdline()) + str(running.environ())
    passed_on = {name for name in os.environ if name.upper() in PASSED_ON}
    assert set(running.environ()) - {"LC_CTYPE"} == {*passed_on, "PYDANTIC_DISABLE_PLUGINS"}
    if sys.platform == "linux":
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert next(
            line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core file")
        ) == ["0", "0"]


async def test_the_process_ends_with_its_host_and_not_by_the_signals_of_a_terminal(
    process: ModelProcess, model: Ask
) -> None:
    await ask(model, request())
    assert process.pid is not None
    running = psutil.Process(process.pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        running.send_signal(number)
    await ask(model, request())
    assert process.pid == running.pid
    await process.aclose()
    assert not running.is_running()
    with pytest.raises(ModelError, match="stopping"):
        await ask(model, request())


async def test_a_process_that_was_begun_before_the_event_loop_is_the_one_that_answers_and_ends(
    server: FakeModel,
) -> None:
    early = begin_early(WORKER, environment())
    assert early is not None
    process = ModelProcess(early)
    assert (await ask(partial(process.ask, ModelConfig(api_key=KEY, base_url=server.url)), request()))[0].text
    assert process.pid == early.pid
    await process.aclose()
    assert early.returncode == 0


async def test_a_process_that_cannot_be_started_is_tried_again(
    model: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as there:
        there.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(ModelError) as caught:
            await ask(model, request())
    assert caught.value.retryable
    assert (await ask(model, request()))[0].text


async def test_a_fault_in_the_process_is_an_exception_here_and_nothing_more(
    process: ModelProcess, model: Ask
) -> None:
    broken = partial(process.ask, ModelConfig(api_key=KEY, base_url=cast("Any", 5)))
    with pytest.raises(WorkerFault, match="Error") as caught:
        await ask(broken, request())
    assert KEY not in str(caught.value)
    assert (await ask(model, request()))[0].text


async def test_the_api_without_a_credential_is_a_matter_for_the_operator(process: ModelProcess) -> None:
    model = partial(process.ask, ModelConfig())
    with pytest.raises(Misconfigured, match="ANTHROPIC_API_KEY"):
        await ask(model, request())
    assert process.pid is None


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 2**64 - 1), st.binary())), st.data())
def test_frames_come_whole_however_the_socket_cuts_them(
    sent: list[tuple[int, int, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(processes.frame(kind, number, body, client=3) for kind, number, body in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    frames = Frames(processes.MOST)
    found = [
        frame
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
        for frame in processes.frames_of(frames.feed(stream[start:end]))
    ]
    assert found == [(kind, number, 3, body) for kind, number, body in sent]


def test_a_reply_is_the_same_on_both_sides() -> None:
    reply = Reply(
        [{"type": "tool_use", "id": "a", "name": "n", "input": {"deep": [[1.5, None, True]]}}],
        "tool_use",
        Usage(1, 2, 3, 4),
        "m",
        {"a": "{"},
    )
    assert processes.reply_of(dump_bytes(reply)) == reply
