// The TypeScript client against a tool server: prints what it saw as one JSON line.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [mode, python] = process.argv.slice(2);
const env = JSON.parse(process.env.TOOL_SERVER_ENV);
const negotiation = mode === "pin" ? { pin: "2026-07-28" } : mode;
const client = new Client({ name: "ts", version: "1" }, { versionNegotiation: { mode: negotiation } });
await client.connect(new StdioClientTransport({ command: python, args: ["-m", "mcp_server"], env }));
const { tools } = await client.listTools();
const said = await client.callTool({ name: "send_message", arguments: { text: "from node" } });
const refused = await client.callTool({ name: "get_task", arguments: { task_id: "foreign" } });
const { contents } = await client.readResource({ uri: "picoclaw://conversation" });
console.log(
  JSON.stringify({
    server: client.getServerVersion()?.name ?? null,
    tools: tools.map((tool) => tool.name),
    said: said.structuredContent,
    refused: refused.content[0].text,
    conversation: JSON.parse(contents[0].text),
  }),
);
await client.close();
