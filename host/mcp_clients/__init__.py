"""The host as an MCP client: its own tool server, and other people's servers."""
