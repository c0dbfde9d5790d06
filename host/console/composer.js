// Where people write. Enter sends; while the agent is at work, what is written is sent next.

import { call } from "./api.js";
import { Tray } from "./attachments.js";
import { directed, h, refill } from "./dom.js";
import { brief } from "./format.js";
import { icon } from "./icons.js";
import { session } from "./session.js";

const KEPT = "picoclaw.next";
let drafts = new Map();
const chosen = { thinking: false, model: "" };

export class Composer {
  /**
   * `onSend(text, how)` and `onFiles(files)`, which returns what goes with a message; `onStop()`. `key` names the draft
   * that is kept while people look elsewhere.
   */
  constructor({ key, onSend, onFiles, onStop, told }) {
    this.key = key;
    this.drafts = drafts;
    this.onSend = onSend;
    this.onFiles = onFiles;
    this.onStop = onStop;
    this.told = told;
    this.tray = new Tray(() => this.changed());
    this.running = false;
    this.sending = false;
    this.replaces = null;
    this.aside = "";
    this.field = h("textarea", {
      id: "message", rows: "1", placeholder: "Write to the agent…", "aria-label": "Message", enterkeyhint: "send", autocomplete: "off",
      prop: { value: drafts.get(key) ?? "" },
    });
    directed(this.field);
    this.button = h("button", { class: "round", type: "submit" });
    this.later = h("button", { class: "button later", type: "button", title: "Send next", "aria-label": "Send next", hidden: true, on: { click: () => this.submit() } }, icon("send"), h("span", { class: "wide-only" }, "Send next"));
    this.hint = h("span", { class: "hint wide-only" });
    this.above = h("div", { class: "above", role: "status" });
    this.think = h("input", { type: "checkbox", id: "think", prop: { checked: chosen.thinking } });
    this.think.addEventListener("change", () => { chosen.thinking = this.think.checked; });
    this.models = h("select", { id: "model", class: "models", "aria-label": "Model", hidden: true });
    this.models.addEventListener("change", () => { chosen.model = this.models.value; });
    this.node = h("form", { class: "composer" },
      h("div", { class: "box" }, this.above, this.tray.node, this.field,
        h("div", { class: "row tools" }, this.tray.button, this.tray.chosen,
          h("label", { class: "chip", for: "think", title: "Let the model think before it answers" }, this.think, icon("thought"), "Think"),
          this.models, this.hint, this.later, this.button)));
    this.listen();
    this.setRunning(false);
    this.offerModels();
    this.showNext();
  }

  listen() {
    this.node.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.onStop();
      else this.submit();
    });
    this.field.addEventListener("input", () => this.changed());
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.escape();
      const touch = matchMedia("(pointer: coarse)").matches;
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch) return;
      event.preventDefault();
      this.submit();
    });
    requestAnimationFrame(() => this.changed());
  }

  escape() {
    if (this.running) this.onStop();
    else if (this.replaces !== null) this.stopEditing();
  }

  get wishes() {
    return { thinking: this.think.checked, model: this.models.value };
  }

  async submit() {
    if (this.isBlank) return;
    const files = this.tray.take();
    const text = this.field.value.trim() ? this.field.value : files.map(({ name }) => name).join(", ");
    const how = { ...this.wishes, replaces: this.replaces };
    this.replaces = null;
    this.write(this.aside);
    this.aside = "";
    if (files.length && !(await this.sent(files, how))) {
      this.giveBack(text, files, how.replaces);
      return;
    }
    if (this.running) this.queue = [...this.queue, { ...how, text }];
    else this.onSend(text, { ...how, files });
    this.showNext();
  }

  /** Put a text in; what stood there is gone. */
  write(text) {
    this.field.value = text;
    this.changed();
  }

  /** Send files ahead of their message, and note in `how` what they became; false when that failed. */
  async sent(files, how) {
    this.sending = true;
    this.showNext();
    try {
      how.attachments = await this.onFiles(files);
      return true;
    } catch (error) {
      this.told(error);
      return false;
    } finally {
      this.sending = false;
      this.showNext();
    }
  }

  get isBlank() {
    return this.sending || (this.field.value.trim() === "" && this.tray.files.length === 0);
  }

  /** Let people say a message again in other words; `files` came with it. */
  edit(text, id, files = []) {
    this.giveBack(text, files, id);
    this.field.focus();
  }

  /** Put a message that was not sent back into the field; what was typed meanwhile stays behind it. */
  giveBack(text, files, replaces = null) {
    const typed = this.field.value;
    if (replaces !== null && this.replaces === null) this.aside = typed;
    this.replaces = replaces;
    this.write(replaces === null && typed.trim() ? `${text}\n\n${typed}` : text);
    this.tray.add(files);
    this.showNext();
  }

  stopEditing() {
    this.tray.take();
    this.replaces = null;
    this.write(this.aside);
    this.aside = "";
    this.showNext();
    this.field.focus();
  }

  // What is sent next: kept over a reload, until the run has ended.

  get queue() {
    return queues()[this.key] ?? [];
  }

  set queue(texts) {
    sessionStorage.setItem(KEPT, JSON.stringify({ ...queues(), [this.key]: texts.length ? texts : undefined }));
  }

  /** Return what is sent next, and take it out; null for nothing. */
  next() {
    const [first, ...others] = this.queue;
    if (first === undefined) return null;
    this.queue = others;
    this.showNext();
    return first;
  }

  /** The conversation that began here has its id now. */
  rekey(id) {
    const waiting = this.queue;
    this.queue = [];
    this.drafts.delete(this.key);
    this.key = id;
    if (waiting.length) this.queue = waiting;
    this.changed();
  }

  showNext() {
    const line = (words, label, away) => h("p", { class: "row waiting-line" }, h("span", {}, words), h("button", { class: "ghost", type: "button", title: label, "aria-label": label, on: { click: away } }, icon("close")));
    const waiting = this.queue.map(({ text }, place) => line(h("span", {}, h("b", {}, "Sent next: "), brief(text, 80)), `Don’t send: ${brief(text, 40)}`, () => {
      this.queue = this.queue.filter((_, other) => other !== place);
      this.showNext();
    }));
    const editing = this.replaces === null ? null : line("Editing your last message: what followed it is taken back, what it did stays done.", "Don’t edit", () => this.stopEditing());
    const sending = this.sending ? h("p", {}, "Sending the files…") : null;
    refill(this.above, editing, sending, ...waiting);
    this.above.hidden = !editing && !sending && waiting.length === 0;
    this.changed();
  }

  async offerModels() {
    const names = await modelNames();
    if (names.length === 0) return;
    refill(this.models, h("option", { value: "" }, "Model: default"), ...names.map((name) => h("option", { value: name }, name)));
    this.models.value = names.includes(chosen.model) ? chosen.model : "";
    this.models.hidden = false;
  }

  setRunning(running) {
    this.running = running;
    const [name, drawn] = running ? ["Stop the answer", "stop"] : ["Send", "send"];
    refill(this.button, icon(drawn));
    this.button.setAttribute("aria-label", name);
    this.button.title = name;
    this.button.classList.toggle("stopping", running);
    refill(this.hint, h("kbd", {}, "Enter"), running ? " sends it next, " : " sends, ", ...(running ? [h("kbd", {}, "Esc"), " stops"] : [h("kbd", {}, "Shift"), " ", h("kbd", {}, "Enter"), " makes a line"]));
    this.changed();
  }

  changed() {
    this.drafts.set(this.key, this.field.value);
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * 0.4)}px`;
    const blank = this.isBlank;
    this.button.disabled = !this.running && blank;
    this.later.hidden = !this.running || blank;
  }
}

function queues() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? {};
  } catch {
    return {};
  }
}

let known = null;

session.addEventListener("left", () => {
  drafts = new Map();
  Object.assign(chosen, { thinking: false, model: "" });
  known = null;
});

/** Return the names that a message can ask for; none where the host can't tell. */
function modelNames() {
  known ??= call("GET", "/v1/models").then(({ data }) => data.map((model) => model.id), () => {
    known = null;
    return [];
  });
  return known;
}
