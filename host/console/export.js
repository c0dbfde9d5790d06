// A conversation as a file: Markdown to read, JSON with everything the API tells of it.

import { all, call, path } from "./api.js";
import { asked, download, h } from "./dom.js";
import { icon } from "./icons.js";

/** Ask in which form, and hand the file to the browser. */
export function offerExport(id, shell) {
  const choice = (value, label, hint) => h("label", { class: "switch", for: `export-${value}` },
    h("input", { type: "radio", name: "form", id: `export-${value}`, value, prop: { checked: value === "md" } }), h("span", {}, label, " ", h("span", { class: "hint" }, hint)));
  const inside = h("fieldset", { class: "choices" }, h("legend", {}, "As"), choice("md", "Markdown", "what was said, to read"), choice("json", "JSON", "messages and runs, for programs"));
  return asked({
    title: "Export this conversation",
    inside,
    action: [icon("export"), "Save"],
    act: async () => {
      const form = inside.querySelector(":checked").value;
      const whole = await exported(id, shell.conversations.title(id));
      const text = form === "json" ? `${JSON.stringify(whole, null, 2)}\n` : asMarkdown(whole);
      download(`${id}.${form}`, form === "json" ? "application/json" : "text/markdown", text);
    },
  });
}

async function exported(id, title) {
  const [conversation, messages, runs] = await Promise.all([
    call("GET", path`/chat/${id}`),
    all(path`/chat/${id}/messages`, "messages", { most: Infinity }),
    all(path`/chat/${id}/runs`, "runs", { most: Infinity }),
  ]);
  return { ...conversation, title: conversation.title ?? title, messages, runs };
}

function asMarkdown({ title, conversation_id: id, messages, runs }) {
  const failed = Map.groupBy(runs.filter((run) => run.error).reverse(), (run) => run.message_id);
  const parts = messages.map((message) => {
    const name = message.role === "user" ? message.sender_name : "Agent";
    const ends = (failed.get(message.id) ?? []).map((run) => `\n\n> ${run.status}: ${run.error}`);
    return `## ${name}, ${message.created_at}\n\n${message.content}${ends.join("")}\n`;
  });
  return `# ${title}\n\n${id}\n\n${parts.join("\n")}`;
}
