// The pages beside the conversations. Another one is one line here: its address, name, icon, key and view.
// A view has title, tools, node, open() and close().

import { MemoryView } from "./memory.js";
import { ServersView } from "./servers.js";
import { SkillsView } from "./skills.js";
import { TasksView } from "./tasks.js";
import { UsageView } from "./usage.js";
import { WorkspaceView } from "./workspace.js";

export const PLACES = [
  { name: "tasks", title: "Tasks", icon: "clock", key: "t", view: TasksView },
  { name: "usage", title: "Usage", icon: "chart", key: "u", view: UsageView },
  { name: "memory", title: "Memory", icon: "note", key: "m", view: MemoryView },
  { name: "skills", title: "Skills", icon: "star", key: "s", view: SkillsView },
  { name: "servers", title: "Servers", icon: "tool", key: "p", view: ServersView },
  { name: "workspace", title: "Workspace", icon: "folder", key: "w", view: WorkspaceView },
];
