"""Whatever a server lists and answers: the run goes on, its neighbours answer, the host stays its size."""

from __future__ import annotations

from typing import Any

import anyio
import psutil
from hypothesis import given, settings
from hypothesis import strategies as st

from host.mcp_clients.external import Reach
from host.mcp_clients.listed_tools import NAME
from host.mcp_clients.server_config import ServerConfig
from host.schemas import SchemaJudge
from shared import jsons
from tests.examples import examples
from tests.mcp.odd_servers import EVIL, SLOW, OddServer, tool
from tests.mcp.other_servers import listening
from tests.mcp.test_external_servers import opened

MIB = 1024 * 1024
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)
WORDS = st.sampled_from(
    ["object", "array", "#", "#/$defs/a", "https://elsewhere.example", "(a+)+$", "string"]
)
KEYS = st.sampled_from([
    "type", "properties", "required", "anyOf", "oneOf", "$ref", "$defs", "pattern", "uniqueItems", "$filter",
])  # fmt: skip
SCHEMA = st.recursive(
    JSON | WORDS | st.sampled_from([EVIL, SLOW]),
    lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=9,
)
FIELDS = {
    "name": JSON | st.sampled_from(["a", "a.b", "a/b", "ns:tool", "größe"]),
    "inputSchema": SCHEMA,
    "outputSchema": SCHEMA,
    "description": JSON,
    "annotations": JSON,
}
TOOLS = st.lists(JSON | st.fixed_dictionaries({}, optional=FIELDS), max_size=4) | JSON
TEXT = st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=50) | JSON})
IMAGE = st.fixed_dictionaries({"type": st.just("image"), "data": JSON | st.just("data:x"), "mimeType": JSON})
ANSWER = JSON | st.fixed_dictionaries(
    {"content": st.lists(TEXT | IMAGE | JSON, max_size=3) | JSON},
    optional={"structuredContent": JSON | st.just({"a": "a" * 50_000 + "!"}), "isError": JSON},
)


async def use(judge: SchemaJudge, odd_one: OddServer) -> None:
    reach = Reach(allowed_hosts=frozenset({"127.0.0.1"}), judge=judge)
    sound = OddServer([tool("sound")])
    async with listening(odd_one.app()) as odd, listening(sound.app()) as well:
        servers = {"odd": f"{odd}/mcp", "well": f"{well}/mcp"}
        entries = {
            name: ServerConfig(type="http", url=url, timeout_ms=20_000) for name, url in servers.items()
        }
        async with opened(reach, **entries) as found:
            offered = [(each, spec) for each in found.toolsets for spec in each.specs]
            for toolset, spec in offered:
                assert NAME.fullmatch(spec.name)
                assert spec.input_schema["type"] == "object"
                assert not {"anyOf", "oneOf", "allOf"} & spec.input_schema.keys()
                assert (await judge.schema(spec.input_schema, input_only=True)).schema_fault is None
                assert jsons.fits(spec.definition)
                result = await toolset.call(spec.name, {"input": {"a": 1}})
                assert isinstance(result.text, str)
            assert "mcp__well__sound" in {spec.name for _, spec in offered}
            assert [each for each in found.problems if "\n" in each or len(each) >= 2_000] == []


@settings(max_examples=examples(15), deadline=None)
@given(TOOLS, ANSWER, st.none() | st.fixed_dictionaries({"code": JSON, "message": JSON}))
def test_whatever_a_server_says_its_neighbour_is_used(tools: Any, answer: Any, error: Any) -> None:
    async def whole() -> None:
        async with SchemaJudge() as judge:
            await use(judge, OddServer(tools, answer, error))

    before = psutil.Process().memory_info().rss
    anyio.run(whole)
    assert psutil.Process().memory_info().rss - before < 64 * MIB
