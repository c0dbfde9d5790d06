// The TypeScript client against a tool server: prints what it saw as one JSON line.
// Arguments: the era (legacy, auto, pin), then either a URL or the program and its arguments.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [mode, target, ...args] = process.argv.slice(2);
const { env, headers } = JSON.parse(process.env.TOOL_SERVER);
const negotiation = mode === "pin" ? { pin: "2026-07-28" } : mode;
const client = new Client({ name: "ts", version: "1" }, { versionNegotiation: { mode: negotiation } });
const overHttp = target.startsWith("http");
await client.connect(
  overHttp
    ? new StreamableHTTPClientTransport(new URL(target), { requestInit: { headers } })
    : new StdioClientTransport({ command: target, args, env }),
);
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
