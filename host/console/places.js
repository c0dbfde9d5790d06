// The pages beside the conversations. Another one is one line here: its address, name, icon, key and view.
// `scope` is what a token needs for it; "operator": it takes API_TOKEN. A view has title, tools, node, open() and close().

import { MemoryView } from "./memory.js";
import { PrincipalsView } from "./principals.js";
import { ServersView } from "./servers.js";
import { SkillsView } from "./skills.js";
import { TasksView } from "./tasks.js";
import { UsageView } from "./usage.js";
import { WebhooksView } from "./webhooks.js";
import { WorkspaceView } from "./workspace.js";

export const PLACES = [
  { name: "tasks", title: "Tasks", icon: "clock", key: "t", scope: "tasks", view: TasksView },
  { name: "usage", title: "Usage", icon: "chart", key: "u", scope: "usage", view: UsageView },
  { name: "memory", title: "Memory", icon: "note", key: "m", scope: "operator", view: MemoryView },
  { name: "skills", title: "Skills", icon: "star", key: "s", scope: "operator", view: SkillsView },
  { name: "servers", title: "Servers", icon: "tool", key: "p", scope: "operator", view: ServersView },
  { name: "workspace", title: "Workspace", icon: "folder", key: "w", scope: "files", view: WorkspaceView },
  { name: "webhooks", title: "Webhooks", icon: "bolt", key: "h", scope: "chat", view: WebhooksView },
  { name: "principals", title: "Principals", icon: "people", key: "r", scope: "operator", view: PrincipalsView },
];
