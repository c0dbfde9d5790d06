// One run as it is told by its events: text, steps, messages, and how it ended.

import { fileList } from "./attachments.js";
import { h, refill } from "./dom.js";
import { endedWith, note, waysOn } from "./endings.js";
import { count, duration, exact } from "./format.js";
import { icon } from "./icons.js";
import { Markdown, markdown } from "./markdown.js";
import { Thought, ToolStep } from "./steps.js";

export class RunView {
  /** `onResume(tokens)` goes on after an ending without an answer, `onRetry()` says the message again; without them neither is offered. */
  constructor({ onResume = null, onRetry = null } = {}, conversationId = null) {
    this.conversationId = conversationId;
    this.onResume = onResume;
    this.onRetry = onRetry;
    this.ids = null;
    this.done = null;
    this.body = h("div", { class: "body" });
    this.foot = h("footer", { class: "foot" });
    this.waiting = h("p", { class: "waiting" }, h("span", { class: "dots", "aria-hidden": "true" }, h("i"), h("i"), h("i")), h("span", { class: "unseen" }, "The agent is at work"));
    this.node = h("article", { class: "turn agent", "aria-label": "Agent" }, h("h2", { class: "unseen" }, "Agent"), this.body, this.waiting, this.foot);
    this.text = null;
    this.thought = null;
    this.tools = [];
    this.said = new Map();
    this.hasText = false;
  }

  get ended() {
    return this.done !== null;
  }

  /** Show one event. */
  show({ name, data }) {
    if (name === "start") this.ids = data;
    else if (name === "chunk") this.addText(data.text);
    else if (name === "thinking") this.addThought(data.text);
    else if (name === "tool_use") this.addTool(data);
    else if (name === "tool_result") this.tools.find((step) => !step.ended && step.tool === data.tool)?.end(data);
    else if (name === "message") this.addSaid(data);
    else if (name === "error") this.fault = data;
    else if (name === "done") this.end(data);
  }

  addText(piece) {
    this.thought = null;
    if (this.text === null) {
      // A gap between two steps' texts is the space between two elements here.
      if (piece.trim() === "") return;
      piece = piece.trimStart();
      this.text = new Markdown();
      this.body.append(this.text.node);
    }
    this.hasText = true;
    this.text.add(piece);
  }

  addThought(piece) {
    this.text = null;
    if (this.thought === null) {
      this.thought = new Thought();
      this.body.append(this.thought.node);
    }
    this.thought.add(piece);
  }

  addTool(data) {
    this.text = this.thought = null;
    const step = new ToolStep(data);
    this.tools.push(step);
    this.body.append(step.node);
  }

  addSaid({ text, sender, file }) {
    this.text = this.thought = null;
    this.said.set(text, h("aside", { class: "said", "aria-label": `Message from ${sender}` }, h("p", { class: "label" }, icon("speech"), "Said on the way"), markdown(text), fileList(this.ids?.conversation_id, file && [file], "A file")));
    this.body.append(this.said.get(text));
  }

  /** The run is over: `data` is its answer. */
  end(data) {
    this.done = data;
    this.text?.render();
    this.waiting.remove();
    for (const step of this.tools) if (!step.ended) step.end(null);
    if (!this.hasText && data.result) this.body.append(markdown(data.result));
    const changed = fileList(this.conversationId ?? this.ids?.conversation_id, data.files_changed, "Files this run changed");
    if (changed) this.body.append(changed);
    for (const warning of data.warnings ?? []) this.body.append(note("warn", warning));
    // The host says the same to whoever reads elsewhere.
    if (data.status === "paused") this.said.get(data.error)?.remove();
    if (data.status !== "success") this.body.append(endedWith(data, this));
    refill(this.foot, ...figures(data));
  }

  /** The run ended without an answer of its own. */
  fail(message) {
    this.waiting.remove();
    this.text?.render();
    for (const step of this.tools) if (!step.ended) step.end(null);
    this.body.append(note("bad", this.fault?.error ?? message, ...waysOn({}, { onRetry: this.onRetry })));
  }

}

function figures(data) {
  const used = data.usage;
  if (!used) return [];
  const input = used.input_tokens + used.cache_creation_input_tokens + used.cache_read_input_tokens;
  const tokens = h("span", { title: `${exact(input)} in, of which ${exact(used.cache_read_input_tokens)} from the cache; ${exact(used.output_tokens)} out` }, `${count(input + used.output_tokens)} tokens`);
  return [data.model ? h("span", {}, data.model) : null, data.duration_ms === undefined ? null : h("span", {}, duration(data.duration_ms)), tokens];
}

