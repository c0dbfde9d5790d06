// Single-key shortcuts, and the page that tells them. They can be switched off (WCAG 2.1.4).

import { h } from "./dom.js";

const KEPT = "picoclaw.keys";
const SHORTCUTS = [
  ["n", "New conversation"],
  ["/", "Write a message"],
  ["j", "Next conversation"],
  ["k", "Conversation before"],
  ["f", "Search conversations"],
  ["a", "Allow the call that waits here"],
  ["d", "Deny it"],
];
/** What the keys of pages open: filled by the shell. */
export const pages = [];
const ALWAYS = [["Enter", "Send, or send next while the agent is at work"], ["Shift Enter", "New line"], ["Esc", "Stop the answer, or close what is open"]];

/** Call `actions[key]` when its key is pressed and nobody is typing, until `signal`. */
export function listenForKeys(actions, signal) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.ctrlKey || event.metaKey || event.altKey || typing || event.isComposing) return;
    if (document.querySelector("dialog[open]") || localStorage.getItem(KEPT) === "off") return;
    const action = Object.hasOwn(actions, event.key) ? actions[event.key] : null;
    if (action) {
      event.preventDefault();
      action();
    }
  }, { signal });
}

/** Show the list of shortcuts. */
export function showKeys() {
  const on = h("input", { type: "checkbox", id: "keys-on", prop: { checked: localStorage.getItem(KEPT) !== "off" } });
  on.addEventListener("change", () => localStorage.setItem(KEPT, on.checked ? "on" : "off"));
  const rows = [...ALWAYS, ...SHORTCUTS, ...pages, ["?", "This list"]].map(([keys, what]) =>
    h("div", {}, h("dt", {}, ...keys.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, what)));
  const dialog = h("dialog", { class: "dialog small", "aria-labelledby": "keys-title" },
    h("form", { method: "dialog" },
      h("h2", { id: "keys-title" }, "Keyboard"),
      h("dl", { class: "keys" }, ...rows),
      h("label", { class: "switch", for: "keys-on" }, on, " Single keys do something"),
      h("div", { class: "row end" }, h("button", { class: "button" }, "Close"))));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
