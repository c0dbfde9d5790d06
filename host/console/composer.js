// Where people write. Enter sends; while the agent is at work, the same place stops it.

import { h, refill } from "./dom.js";
import { icon } from "./icons.js";

const drafts = new Map();
let thinking = false;

export class Composer {
  /** `onSend(text, {thinking})`, `onStop()`; `key` names the draft that is kept while people look elsewhere. */
  constructor({ key, onSend, onStop }) {
    this.key = key;
    this.onSend = onSend;
    this.onStop = onStop;
    this.running = false;
    this.field = h("textarea", {
      id: "message", rows: "1", placeholder: "Write to the agent…", "aria-label": "Message", enterkeyhint: "send", autocomplete: "off",
      prop: { value: drafts.get(key) ?? "" },
    });
    this.button = h("button", { class: "round", type: "submit" });
    this.think = h("input", { type: "checkbox", id: "think", prop: { checked: thinking } });
    this.think.addEventListener("change", () => { thinking = this.think.checked; });
    this.node = h("form", { class: "composer" },
      h("div", { class: "box" }, this.field,
        h("div", { class: "row tools" },
          h("label", { class: "chip", for: "think", title: "Let the model think before it answers" }, this.think, icon("thought"), "Think"),
          h("span", { class: "hint wide-only" }, h("kbd", {}, "Enter"), " sends, ", h("kbd", {}, "Shift"), " ", h("kbd", {}, "Enter"), " makes a line"),
          this.button)));
    this.listen();
    this.setRunning(false);
  }

  listen() {
    this.node.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.onStop();
      else this.submit();
    });
    this.field.addEventListener("input", () => this.changed());
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running) this.onStop();
      const touch = matchMedia("(pointer: coarse)").matches;
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch) return;
      event.preventDefault();
      if (!this.running) this.submit();
    });
    requestAnimationFrame(() => this.changed());
  }

  submit() {
    const text = this.field.value;
    if (text.trim() === "") return;
    this.write("");
    this.onSend(text, { thinking: this.think.checked });
  }

  /** Put a text in; what stood there is gone. */
  write(text) {
    this.field.value = text;
    this.changed();
  }

  setRunning(running) {
    this.running = running;
    const [name, drawn] = running ? ["Stop the answer", "stop"] : ["Send", "send"];
    refill(this.button, icon(drawn));
    this.button.setAttribute("aria-label", name);
    this.button.title = name;
    this.button.classList.toggle("stopping", running);
    this.changed();
  }

  changed() {
    drafts.set(this.key, this.field.value);
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * 0.4)}px`;
    this.button.disabled = !this.running && this.field.value.trim() === "";
  }
}
