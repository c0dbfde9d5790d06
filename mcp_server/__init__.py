"""The tool server: a stdio MCP server for one conversation, which its environment names at birth."""
