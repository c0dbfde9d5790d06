"""The host as an MCP client: its own tool server, and other people's servers."""

from shared.processes import make_lazy

make_lazy("mcp", "server", "client")
