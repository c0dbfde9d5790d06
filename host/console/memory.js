// MEMORY.md: what the agent keeps from one conversation to the next. People may read and rewrite it.

import { call } from "./api.js";
import { directed, h, refill } from "./dom.js";
import { icon } from "./icons.js";
import { markdown } from "./markdown.js";

const FILE = "MEMORY.md";

export class MemoryView {
  constructor(shell) {
    this.shell = shell;
    this.title = "Memory";
    this.node = h("div", { class: "page" });
    this.edit = h("button", { class: "button", type: "button", hidden: true, on: { click: () => this.write() } }, icon("pencil"), "Edit");
    this.tools = [this.edit];
    this.memory = { text: "", version: null };
  }

  async open() {
    try {
      this.memory = await call("GET", `/admin/workspace?path=${FILE}`);
    } catch (error) {
      if (error.status !== 404) {
        refill(this.node, h("p", { class: "empty" }, error.message));
        return;
      }
      this.memory = { text: "", version: null };
    }
    this.read();
  }

  close() {}

  read() {
    this.edit.hidden = false;
    const { text } = this.memory;
    refill(this.node,
      h("p", { class: "quiet lead" }, "What the agent reads at the beginning of each turn, and writes when it is to remember something: ", h("code", {}, FILE), " in its workspace."),
      text.trim() ? h("section", { class: "card" }, h("h2", {}, FILE), markdown(text)) : h("div", { class: "empty" }, icon("note", "icon large"), h("h2", {}, "Nothing remembered yet"), h("p", {}, "Say “remember that …” in a conversation, or write it here.")));
  }

  write() {
    this.edit.hidden = true;
    const field = h("textarea", { id: "memory", class: "text", rows: "18", spellcheck: "true", prop: { value: this.memory.text } });
    directed(field);
    const fault = h("p", { class: "fault", role: "alert" });
    const form = h("form", { class: "card field" }, h("label", { for: "memory" }, "What the agent remembers (Markdown)"), field, fault,
      h("div", { class: "row end" },
        h("button", { class: "button", type: "button", on: { click: () => this.read() } }, "Cancel"),
        h("button", { class: "button primary" }, "Save")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.save(field.value, fault);
    });
    refill(this.node, form);
    field.focus();
  }

  async save(text, fault) {
    try {
      this.memory = await call("PUT", "/admin/memory", { body: { text, version: this.memory.version } });
      this.shell.notice("The memory is saved.");
      this.read();
    } catch (error) {
      refill(fault, error.code === "changed" ? "The agent or somebody else changed it meanwhile. Copy your text, cancel, open this page again, and put it in there." : error.message);
    }
  }
}
