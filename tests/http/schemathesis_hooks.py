"""What a schema can't say: values of formats, and what depends on the state or on several fields."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st

schemathesis.openapi.format("cursor", st.just(""))
schemathesis.openapi.format("iana-timezone", st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"]))
schemathesis.openapi.format("cron", st.sampled_from(["0 9 * * 1", "*/5 * * * *", "@daily"]))
schemathesis.openapi.format("milliseconds", st.integers(1000, 10**9).map(str))
schemathesis.openapi.format("time-to-come", st.integers(2100, 9000).map("{}-01-02T03:04:05Z".format))
schemathesis.openapi.format("local-time-to-come", st.integers(2100, 9000).map("{}-01-02T03:04:05".format))
schemathesis.openapi.format("http-url", st.sampled_from(["http://mcp.example/mcp", "https://mcp.example"]))
schemathesis.openapi.format(
    "webhook-url", st.sampled_from(["https://hooks.example/in", "https://a.example:8443"])
)
schemathesis.openapi.format("webhook-secret", st.sampled_from(["whsec_" + "A" * 32, "whsec_" + "q83v" * 8]))
schemathesis.openapi.format("tool-glob", st.sampled_from(["*", "exec", "mcp__*"]))
schemathesis.openapi.format("header", st.text(alphabet="abc 123"))


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Let the last message be the user's (docs/openai.md), schemas and terms be some that can be used."""
    if isinstance(body, dict) and isinstance(body.get("output_schema"), dict):
        body = {**body, "output_schema": {"type": "object", "required": ["a"]}}
    if isinstance(body, dict) and isinstance(body.get("response_format"), dict):
        body = {**body, "response_format": {"type": "json_object"}}
    if isinstance(body, dict):
        # What there is to be granted stands in the settings of the host that is asked.
        body = {name: value for name, value in body.items() if name not in ("grants", "subject", "budgets")}
    if isinstance(body, dict) and isinstance(body.get("messages"), list) and body["messages"]:
        last = body["messages"][-1]
        if isinstance(last, dict) and last.get("role") != "user":
            return {**body, "messages": [*body["messages"], {"role": "user", "content": "hi"}]}
    return body
