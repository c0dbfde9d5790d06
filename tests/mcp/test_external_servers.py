"""Other people's servers: what they offer reaches the model, what they break costs only their tools."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import psutil
import pytest
from anyio.abc import ByteStream
from anyio.streams.stapled import StapledByteStream
from hypothesis import given, settings
from hypothesis import strategies as st

from host.egress.addresses import CLOSED, Network, is_public
from host.egress.bounded import MESSAGE_LIMIT
from host.mcp_clients.external import ExternalServers, Reach, open_external
from host.mcp_clients.listed_tools import NAME, ToolPins
from host.mcp_clients.server_config import ServerConfig
from host.ports import ToolResult
from shared.store.store import Store
from tests.examples import examples
from tests.mcp.other_servers import PIXEL, Hostile, listening, weather_server

LOCAL = Reach(allowed_hosts=frozenset({"127.0.0.1"}))


@pytest.fixture
async def hostile() -> AsyncIterator[tuple[Hostile, str]]:
    servers = Hostile()
    async with listening(servers.app()) as base:
        yield servers, base


@asynccontextmanager
async def opened(reach: Reach = LOCAL, **servers: ServerConfig) -> AsyncIterator[ExternalServers]:
    with anyio.fail_after(60):
        async with open_external(servers, reach) as found:
            yield found


def web(url: str, **more: object) -> ServerConfig:
    return ServerConfig(type="http", url=url, **{"timeout_ms": 30_000, **more})  # type: ignore[arg-type] # any field


def names(found: ExternalServers) -> list[str]:
    return [spec.name for toolset in found.toolsets for spec in toolset.specs]


async def call(found: ExternalServers, name: str, **arguments: object) -> ToolResult:
    (toolset,) = [toolset for toolset in found.toolsets if name in {spec.name for spec in toolset.specs}]
    return await toolset.call(name, arguments)


@pytest.mark.parametrize("kind", ["http", "sse"])
async def test_tools_structured_results_and_images_reach_the_model(kind: str) -> None:
    server = weather_server()
    app = server.streamable_http_app() if kind == "http" else server.sse_app()
    async with listening(app) as base:
        url = f"{base}/mcp" if kind == "http" else f"{base}/sse"
        config = ServerConfig(type="http" if kind == "http" else "sse", url=url)
        async with opened(weather=config) as found:
            assert found.problems == []
            assert names(found) == [f"mcp__weather__{name}" for name in ("forecast", "photo", "archive")]
            sky = await call(found, "mcp__weather__forecast", city="Bonn")
            assert '"sky"' in sky.text
            assert not sky.is_error
            photo = await call(found, "mcp__weather__photo")
            assert [image.media_type for image in photo.images] == ["image/png"]
            assert len(photo.images[0].data) >= len(PIXEL)
            long = await call(found, "mcp__weather__archive", size=100_000)
            assert long.text.endswith("[cut: the result had 100000 bytes, 65536 are shown]")
            wrong = await call(found, "mcp__weather__forecast", town="Bonn")
            assert wrong.is_error


async def test_a_server_that_is_down_costs_its_tools_only(hostile: tuple[Hostile, str]) -> None:
    _, base = hostile
    async with listening(weather_server().streamable_http_app()) as good:
        async with opened(
            Reach(allowed_hosts=LOCAL.allowed_hosts, connect_seconds=60),
            down=web("http://127.0.0.1:9/mcp"),
            junk=web(f"{base}/junk"),
            mute=web(f"{base}/mute", start_ms=1000),
            weather=web(f"{good}/mcp"),
            endless=web(f"{base}/endless"),
        ) as found:
            assert [toolset.specs[0].name for toolset in found.toolsets] == ["mcp__weather__forecast"]
            assert not (await call(found, "mcp__weather__forecast", city="Rome")).is_error
            told = {problem.split()[3]: problem for problem in found.problems}
            assert set(told) == {"down", "junk", "mute", "endless"}
            assert "could not be reached" in told["down"]
            assert "more tools than can be offered" in told["endless"]


async def test_an_operators_server_that_was_down_is_not_waited_for_by_every_run(
    hostile: tuple[Hostile, str],
) -> None:
    _, base = hostile
    reach = Reach(allowed_hosts=frozenset({"127.0.0.1"}), connect_seconds=1)
    mute = web(f"{base}/mute", trusted=True)
    async with opened(reach, mute=mute) as found:
        assert "did not answer within 1 s" in found.problems[0]
    with anyio.fail_after(60):
        async with opened(reach, mute=mute) as found:
            assert "did not answer a moment ago" in found.problems[0]


async def test_tool_lists_are_paged_through_and_kept_to_the_allowed_ones(
    hostile: tuple[Hostile, str],
) -> None:
    _, base = hostile
    async with opened(
        all=web(f"{base}/pages"), some=web(f"{base}/pages", allowed_tools=frozenset({"page1"}))
    ) as found:
        assert names(found) == ["mcp__all__page0", "mcp__all__page1", "mcp__all__page2", "mcp__some__page1"]
        assert found.problems == []


async def test_a_name_that_is_taken_is_refused_and_one_no_model_can_call_is_made_safe(
    hostile: tuple[Hostile, str],
) -> None:
    _, base = hostile
    async with opened(a=web(f"{base}/names")) as found:
        assert found.problems == ["The tool mcp__a__fine is not offered: its name is taken."]
        (toolset,) = found.toolsets
        titles = {spec.title or spec.name: spec.name for spec in toolset.specs}
        assert list(titles) == ["mcp__a__fine", "mcp__a__with space", f"mcp__a__{'x' * 152}", "mcp__a__../up"]
        assert all(NAME.fullmatch(name) for name in titles.values())
        assert (await call(found, titles["mcp__a__../up"])).text == "hello"


@pytest.mark.parametrize("what", ["schemas", "array", "number", "deep"])
async def test_a_schema_no_model_can_use_is_refused(hostile: tuple[Hostile, str], what: str) -> None:
    _, base = hostile
    async with opened(a=web(f"{base}/{what}")) as found:
        assert names(found) == []
        assert len(found.problems) == 1


@pytest.mark.parametrize("what", ["hang", "flood", "events", "cut", "wrong", "other", "liar", "error"])
async def test_a_call_that_goes_wrong_is_a_result_and_the_run_goes_on(
    hostile: tuple[Hostile, str], what: str
) -> None:
    _, base = hostile
    bad_one = web(f"{base}/{what}", timeout_ms=1500)
    async with opened(bad=bad_one, good=web(f"{base}/fine")) as found:
        bad = next(name for name in names(found) if name.startswith("mcp__bad__"))
        with anyio.fail_after(60):
            answer = await call(found, bad)
        assert answer.is_error
        assert answer.text.startswith("The MCP server bad ")
        assert "does not speak the protocol" not in answer.text
        assert (await call(found, "mcp__good__act")).text == "hello"


@pytest.mark.parametrize("what", ["lists", "blocks", "events_of_lists", "pings", "packed"])
async def test_a_server_that_says_too_much_costs_its_call_and_not_the_others(
    hostile: tuple[Hostile, str], what: str
) -> None:
    _, base = hostile
    before = psutil.Process().memory_info().rss
    async with opened(bad=web(f"{base}/{what}"), good=web(f"{base}/fine")) as found:
        answer = await call(found, "mcp__bad__act")
        assert answer.is_error
        assert answer.text.startswith("The MCP server bad ")
        assert (await call(found, "mcp__good__act")).text == "hello"
    # What the server made of it lies in this process too; made into objects it would be 0.4 GB more.
    assert psutil.Process().memory_info().rss < before + 250_000_000


@pytest.mark.parametrize("kind", ["sse", "stdio"])
async def test_later_calls_are_told_why_a_server_is_heard_no_more(kind: str) -> None:
    program = "from tests.mcp.other_servers import weather_server; weather_server().run()"
    async with listening(weather_server().sse_app()) as base:
        config = ServerConfig(
            type=kind,  # type: ignore[arg-type] # one of them
            url=f"{base}/sse",
            command=sys.executable,
            args=("-c", program),
            start_ms=60_000,
        )
        async with opened(replace(LOCAL, spawn=unconfined), p=config) as found:
            first = await call(found, "mcp__p__archive", size=MESSAGE_LIMIT)
            later = await call(found, "mcp__p__forecast", city="Berlin")
    assert first.text == "The MCP server p says too much."
    assert later.text == "The MCP server p says too much: nothing more of it is read in this run."


async def test_a_text_may_hold_as_many_brackets_as_it_likes(hostile: tuple[Hostile, str]) -> None:
    _, base = hostile
    async with opened(a=web(f"{base}/commas")) as found:
        answer = await call(found, "mcp__a__act")
    assert not answer.is_error
    assert answer.text.startswith('[{"a":1},[{"a":1},')


async def test_an_answer_given_twice_counts_once(hostile: tuple[Hostile, str]) -> None:
    _, base = hostile
    async with opened(a=web(f"{base}/twice")) as found:
        for _ in range(3):
            assert (await call(found, "mcp__a__act")).text == "hello"


async def test_tools_that_changed_since_they_were_first_seen_are_reported(
    hostile: tuple[Hostile, str],
) -> None:
    _, base = hostile
    async with opened(a=web(f"{base}/changing")) as found:
        assert found.problems == []
    async with opened(a=web(f"{base}/changing")) as found:
        assert found.problems == ["The tools of the MCP server a have changed since they were first seen."]


@pytest.mark.parametrize("trusted", [True, False])
async def test_an_operators_server_that_changed_between_two_lives_is_reported_for_one_life(
    hostile: tuple[Hostile, str], store: Store, trusted: bool
) -> None:
    servers, base = hostile
    told = []
    for generation in (1, 2, 2):
        servers.generation = generation
        reach = Reach(allowed_hosts=LOCAL.allowed_hosts, pins=ToolPins(store.tool_pins))
        for _ in range(2):
            async with opened(reach, a=web(f"{base}/generation", trusted=trusted)) as found:
                told.append(bool(found.problems))
    assert told == [False, False, trusted, trusted, False, False]


async def test_what_ends_a_run_comes_out_as_it_is(hostile: tuple[Hostile, str]) -> None:
    _, base = hostile
    with pytest.raises(KeyError, match="limit"):
        async with opened(a=web(f"{base}/fine"), down=web("http://127.0.0.1:9/mcp")):
            raise KeyError("limit")


async def test_a_cancelled_run_leaves_its_servers_at_once(hostile: tuple[Hostile, str]) -> None:
    _, base = hostile
    with anyio.move_on_after(0.5) as scope:
        async with opened(a=web(f"{base}/hang", trusted=True), b=web(f"{base}/mute")) as found:
            await call(found, "mcp__a__act")
    assert scope.cancelled_caught


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/fine", "http://localhost:{port}/fine"])
async def test_a_loopback_address_is_not_dialled_unless_its_host_is_allowed(
    hostile: tuple[Hostile, str], url: str
) -> None:
    _, base = hostile
    config = web(url.format(port=base.rpartition(":")[2]))
    async with opened(Reach(), a=config) as found:
        assert found.toolsets == []
        (problem,) = found.problems
        assert "at an address that requests may not reach" in problem
    async with opened(Reach(allowed_hosts=frozenset({"127.0.0.1", "localhost"})), a=config) as found:
        assert names(found) == ["mcp__a__act"]


async def test_a_redirect_is_not_followed_to_another_place(hostile: tuple[Hostile, str]) -> None:
    _, base = hostile
    async with opened(a=web(f"{base}/redirect", headers={"X-Key": "secret"})) as found:
        assert found.toolsets == []
        assert len(found.problems) == 1


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "192.88.99.1",
        "240.0.0.1",
        "::8.8.8.8",
        "::10.0.0.1",
        "::ffff:0:8.8.8.8",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "100:0:0:1::1",
        "2001::1",
        "2001:db8::1",
        "3fff::1",
        "5f00::1",
        "4000::1",
        "fc00::1",
        "fec0::1",
        "2606:4700::5efe:10.0.0.1",
        "2606:4700::200:5efe:7f00:1",
    ],
)
def test_an_address_that_is_not_public_is_known(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_a_public_address_is_known(address: str) -> None:
    assert is_public(address)


@settings(max_examples=examples(2_000))
@given(st.integers(0, 2**32 - 1) | st.integers(0, 2**128 - 1) | st.integers(2**125, 2**126 - 1))
def test_what_is_public_is_global_to_every_python(number: int) -> None:
    address = ipaddress.ip_address(number)
    if is_public(str(address)):
        inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        assert inner.is_global
        assert not inner.is_multicast


@pytest.mark.parametrize("block", [block for block in CLOSED if str(block) != "168.63.129.16/32"], ids=str)
def test_the_table_of_closed_blocks_differs_from_pythons_only_where_it_says_so(block: Network) -> None:
    newer = {"192.88.99.0/24", "3fff::/20"}  # deprecated by RFC 7526; RFC 9637, unknown before Python 3.13
    multicast = block[0].is_multicast
    assert not is_public(str(block[0]))
    assert not is_public(str(block[-1]))
    assert multicast or str(block) in newer or not block[1].is_global


@asynccontextmanager
async def unconfined(command: Sequence[str], env: Mapping[str, str]) -> AsyncIterator[ByteStream]:
    process = await anyio.open_process(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with process:
        yield StapledByteStream(process.stdin, process.stdout)
        process.kill()


PROGRAM = """
import os
from mcp.server.mcpserver import MCPServer
server = MCPServer("p")
@server.tool()
def environment() -> str:
    return ",".join(sorted(os.environ))
@server.tool()
def die() -> str:
    os._exit(1)
server.run()
"""


async def test_a_program_speaks_through_whoever_runs_it_with_only_its_environment() -> None:
    config = ServerConfig(type="stdio", command=sys.executable, args=("-c", PROGRAM), env={"ONLY": "this"})
    async with opened(Reach(spawn=unconfined, connect_seconds=60), p=config) as found:
        assert found.problems == []
        seen = (await call(found, "mcp__p__environment")).text
        assert set(seen.split(",")) <= {"ONLY", "LC_CTYPE"}
        assert (await call(found, "mcp__p__die")).is_error
        assert (await call(found, "mcp__p__environment")).is_error


async def test_a_program_without_a_sandbox_is_not_run() -> None:
    async with opened(p=ServerConfig(type="stdio", command="/bin/true")) as found:
        assert found.problems == [
            "The MCP server p is a program, and there is no sandbox to run it in; its tools are missing."
        ]


async def test_a_program_that_may_have_wanted_the_network_says_which_setting_opens_it() -> None:
    config = ServerConfig(type="stdio", command="/bin/false")
    for has_network in (True, False):
        async with opened(Reach(spawn=unconfined, has_network=has_network), p=config) as found:
            assert ("tools.exec.allow_network" in found.problems[0]) is not has_network
            assert found.problems[0].startswith("The MCP server p ")


@pytest.mark.parametrize(
    "said",
    ["'x' * 65536", "'[' + '[],' * 2_000_000 + '[]]\\n'", '\'{"jsonrpc":"2.0","id":1,"method":"ping"}\\n\''],
)
async def test_a_program_that_floods_ends_its_own_session(said: str) -> None:
    flood = f"import sys\nwhile True: sys.stdout.write({said})"
    config = ServerConfig(type="stdio", command=sys.executable, args=("-c", flood))
    async with opened(Reach(spawn=unconfined), p=config) as found:
        assert found.toolsets == []
        assert len(found.problems) == 1
