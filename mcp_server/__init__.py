"""The tool server: a stdio MCP server for one conversation, which its environment names at birth."""

from shared.processes import make_lazy

make_lazy("mcp", "server", "client")
# Answers over HTTP, which it doesn't serve; importing it imports uvicorn.
make_lazy("sse_starlette", late={"sse_starlette.EventSourceResponse"})
